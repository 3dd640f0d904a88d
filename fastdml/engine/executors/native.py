"""Compiled row functors over blocks of rows whose products come from BLAS."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import library, schedule
from ..problem import Problem
from ..relation import LabelRelation
from . import Result


class Native:
    name = "native"

    def refuses(self, problem: Problem) -> str | None:
        if library.load() is None:
            return "the compiled library is not installed"
        if problem.loss.name not in library.functors():
            return f"no compiled functor is called {problem.loss.name!r}"
        if problem.device_type != "cpu":
            return f"no compiled functors for {problem.device_type}"
        if not isinstance(problem.relation, LabelRelation):
            return "compiled functors take pairs from labels only"
        return None

    def plan(self, problem: Problem) -> str:
        rows = schedule.block_rows(problem, self)
        info = library.build_info()
        return f"compiled functor ({info['instruction_set']}), {rows} rows at a time"

    def run(self, problem: Problem, *, anchors: bool, candidates: bool) -> Result:
        return schedule.run(problem, self, anchors=anchors, candidates=candidates)

    def bytes_per_pair(self, problem: Problem) -> int:
        size = torch.finfo(problem.statistic).bits // 8
        return size * (2 if problem.teacher is not None else 1)

    def __call__(
        self, problem: Problem, s: Tensor, teacher: Tensor | None, start: int, losses: Tensor,
        gradient: bool,
    ) -> None:
        classes = problem.classes
        stop = start + s.shape[0]
        functor, _ = library.functors()[problem.loss.name]
        row_scale, row_weight = problem.row_scale, problem.row_weight
        torch.ops.fastdml_native.rows_(
            s,
            functor,
            problem.loss.parameters(),
            teacher,
            None if row_scale is None else row_scale[start:stop],
            problem.col_scale,
            classes.row_class[start:stop],
            classes.col_class,
            classes.start,
            classes.order,
            classes.longest,
            start if problem.excludes_self else -1,
            None if row_weight is None else row_weight[start:stop],
            problem.weight,
            problem.scalars,
            losses,
            gradient,
        )
