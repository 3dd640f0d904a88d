"""Compiled row functors over blocks of rows whose products come from BLAS."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import library, schedule
from ..problem import Problem
from ..registry import registered
from ..relation import LabelRelation, TupleRelation
from ..schedule import Visit
from . import Result, Wanted, column_sums, listed_rows, one_block
from .one_block import functor_of


class Native:
    name = "native"
    by_blocks = True

    @property
    def kernel(self) -> Callable[..., None]:
        """The operator that turns products into weights."""
        return torch.ops.fastdml_native.rows_

    def refuses(self, problem: Problem) -> str | None:
        if problem.loss.only_in_torch is not None:
            return problem.loss.only_in_torch
        if library.load() is None:
            return "the compiled library is not installed"
        if not library.runs_on(problem.where):
            return (
                library.too_old(problem.where) or f"no compiled functors for {problem.device_type}"
            )
        if isinstance(problem.relation, TupleRelation):
            if (reason := listed_rows.refuses(problem)) is not None:
                return reason
        elif not isinstance(problem.relation, LabelRelation):
            return "compiled functors take pairs from labels or lists only"
        own = problem.loss.functor()
        if own is not None:
            if problem.device_type != "cpu":
                return f"its functor was printed for the CPU, not for {problem.device_type}"
            return own if isinstance(own, str) else None
        if not registered(problem.loss) or problem.loss.functor_name not in library.functors():
            return f"no compiled functor is called {problem.loss.name!r}"
        return None

    def plan(self, problem: Problem) -> str:
        rows = schedule.block_rows(problem, self)
        if problem.device_type == "cpu":
            processor = str(library.build_info()["instruction_set"])
            if isinstance(problem.relation, TupleRelation):
                return f"compiled functor ({processor}), {listed_rows.explained(problem)}"
            return f"compiled functor ({processor}), {rows} rows at a time"
        first = ", sorted first" if self._sorting(problem) else ""
        return f"compiled functor (CUDA), {rows} rows at a time{first}"

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        if isinstance(problem.relation, TupleRelation):
            return listed_rows.run(problem, wanted)
        return self._of_labels(problem, wanted)

    def _of_labels(self, problem: Problem, wanted: Wanted) -> Result:
        small = not wanted.grouped and one_block.takes(problem)
        if small and not (wanted.col_values and problem.loss.column_slopes):
            schedule.presweep(problem, lambda swept: self._of_labels(swept, Wanted()).outputs)
            found = one_block.run(problem, wanted)
            if found is None:
                problem.condition()
                found = one_block.run(problem, wanted)
            if found is not None:
                return found
        return schedule.run(problem, self, wanted)

    def column_sums(self, problem: Problem) -> column_sums.ColumnSums | None:
        return column_sums.of(problem)

    def bytes_per_pair(self, problem: Problem) -> int:
        size = torch.finfo(problem.statistic).bits // 8
        held = size * (2 if problem.teacher is not None else 1)
        if not problem.loss.column_bias:  # whose derivatives are sums of the weights
            held += size * problem.loss.column_slopes
        # Weights in bfloat16 lie beside the similarities they come from.
        if problem.anchors.dtype == torch.bfloat16:
            held += 2
        return held + self._sorting(problem)

    def _sorting(self, problem: Problem) -> int:
        """Bytes per pair for sorting a block's rows before the functor sees them."""
        if problem.device_type != "cuda":
            return 0
        size = torch.finfo(problem.statistic).bits // 8
        return library.cuda_sort_bytes(problem.loss.functor_name, problem.loss.members, size)

    def __call__(self, block: Visit) -> Tensor:
        problem, s, start, out, part = block.problem, block.s, block.start, block.out, block.part
        classes = problem.classes
        weights = block.weights if block.gradient else None
        slopes = None
        if block.gradient and out.d_col_values is not None and problem.loss.column_slopes:
            slopes = s.new_zeros(problem.loss.column_slopes, *s.shape)
        self.kernel(
            s,
            functor_of(problem.loss),
            problem.loss.members,
            block.teacher,
            part(problem.row_scale),
            problem.col_scale,
            part(problem.row_square),
            problem.col_square,
            problem.loss.metric.kind,
            problem.epsilon,
            part(classes.row_class),
            classes.col_class,
            classes.start,
            classes.order,
            problem.longest,
            -1 if problem.own_offset < 0 else start + problem.own_offset,
            part(problem.own_index),
            part(problem.row_weight),
            problem.weight,
            problem.all_scalars,
            part(problem.row_values),
            problem.col_values,
            part(out.outputs),
            part(out.d_scalars),
            part(out.d_row_values),
            block.gradient,
            weights,
            block.compared,
            *problem.embeddings_of(start, s.shape[0]),
            slopes,
        )
        if slopes is not None and out.d_col_values is not None:
            # A functor with several weights has applied them itself.
            by = torch.full_like(s[:, 0], 1.0 if problem.loss.combined else problem.weight)
            if problem.row_weight is not None and not problem.loss.combined:
                by *= problem.row_weight[block.rows]
            for d, slope in zip(out.d_col_values, slopes):
                d += torch.mv(slope.t(), by)
        return s if weights is None else weights
