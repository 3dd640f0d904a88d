"""Statistics of columns, gathered by the compiled library from blocks of rows while these pass."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import library
from ..loss import RowLoss
from ..problem import Problem
from ..similarity import PRODUCT


class ColumnSums:
    """The outputs of a presweep, columns as rows: `outputs` [outputs, N] after the last block."""

    def __init__(self, problem: Problem, before: RowLoss) -> None:
        self.problem = problem
        self.before = before
        self.state: Tensor | None = None  # values of the functor's own

    def add(self, s: Tensor, start: int) -> None:
        """Rows [start, start + R). s [R, N]: products, which stay."""
        functor, _, outputs, gathered = library.functors()[self.before.functor_name]
        first = self.state is None
        if self.state is None:
            self.state = s.new_empty(gathered, s.shape[1])
            self.outputs = s.new_empty(outputs, s.shape[1])
        rows = slice(start, start + s.shape[0])
        scale, classes = self.problem.row_scale, self.problem.classes
        torch.ops.fastdml_native.columns_(
            s,
            functor,
            self.before.members,
            None if scale is None else scale[rows],
            self.problem.col_scale,
            classes.row_class[rows],
            classes.col_class,
            self.problem.all_scalars,
            self.state,
            self.outputs,
            first,
        )


def of(problem: Problem) -> ColumnSums | None:
    """What gathers the outputs of the loss's presweep, if the compiled library can: on the CPU, of
    products, by a functor that says how. Of one set, the visit of columns is one of rows anyway."""
    before, metric = problem.loss.presweep(), problem.loss.metric
    if before is None or problem.one_set or problem.device_type != "cpu":
        return None
    if problem.relation.own is not None:  # which rows' own copies are left out it cannot say
        return None
    if metric.kind != PRODUCT or metric.raw_anchors:
        return None
    functor = library.functors().get(before.functor_name)
    return ColumnSums(problem, before) if functor is not None and functor[3] > 0 else None
