"""The spec over blocks of rows: autograd inside a block, matrix products between blocks.

Runs any description on any device, a user's too, in linear memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import in_torch, schedule
from ..problem import Problem
from ..similarity import DISTANCE, PRODUCT
from . import Result, Wanted


class Chunked:
    name = "chunked"

    def refuses(self, problem: Problem) -> str | None:
        return None

    def plan(self, problem: Problem) -> str:
        if problem.loss.metric.in_torch:
            return in_torch.plan(problem)
        rows = schedule.block_rows(problem, self)
        return f"the loss's torch form, {rows} rows at a time"

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        return schedule.run(problem, self, wanted)

    def column_sums(self, problem: Problem) -> None:
        return None

    def bytes_per_pair(self, problem: Problem) -> int:
        size = torch.finfo(problem.statistic).bits // 8
        per_pair = size + problem.loss.spec_bytes * size // 4
        if problem.loss.threshold_list:
            positive, _ = problem.relation.masks(0, min(64, problem.relation.rows))
            # A guess from the first rows; a longer list only makes one block larger.
            per_pair += 5 * size * max(1, int(positive.sum(1).max()) if positive.numel() else 1)
        return per_pair

    def __call__(
        self,
        problem: Problem,
        s: Tensor,
        teacher: Tensor | None,
        start: int,
        out: Result,
        gradient: bool,
        weights: Tensor | None,
        holds_similarities: bool,
    ) -> Tensor:
        rows = slice(start, start + s.shape[0])

        def part(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows]

        metric = problem.loss.metric
        scales = part(problem.row_scale), problem.col_scale
        if not holds_similarities:
            metric.apply_(
                s,
                *scales,
                part(problem.row_square),
                problem.col_square,
                problem.epsilon,
                *problem.embeddings_of(start, s.shape[0]),
            )
        with torch.enable_grad():
            block = problem.rows(s.detach().requires_grad_(gradient), start, rows.stop, teacher)
            inputs = [block.s]
            if gradient and out.d_scalars is not None and block.scalars is not None:
                block.scalars = block.scalars.detach().requires_grad_()
                inputs.append(block.scalars)
            if gradient and out.d_row_values is not None and block.row_values is not None:
                block.row_values = block.row_values.detach().requires_grad_()
                inputs.append(block.row_values)
            if gradient and out.d_col_values is not None and block.col_values is not None:
                block.col_values = block.col_values.detach().requires_grad_()
                inputs.append(block.col_values)
            outputs = problem.loss.spec(block).reshape(s.shape[0], -1)
            found: list[Tensor | None] = [None] * len(inputs)
            if gradient and outputs.requires_grad:
                weight = torch.full_like(outputs, problem.weight)
                if problem.row_weight is not None:
                    weight = weight * problem.row_weight[rows].reshape(s.shape[0], -1)
                found = list(torch.autograd.grad(outputs, inputs, weight, allow_unused=True))
        out.outputs[rows] = outputs.detach()
        if not gradient:
            return s
        g, *others = (torch.zeros_like(x) if f is None else f for f, x in zip(found, inputs))
        if out.d_scalars is not None:
            out.d_scalars[start] = others.pop(0)  # the block's sum, in its first row
        if out.d_row_values is not None:
            out.d_row_values[rows] = others.pop(0)
        if out.d_col_values is not None:
            out.d_col_values += others.pop(0)
        # Derivatives of distances need those that their weights are about to replace.
        kept = metric.kind == DISTANCE or (metric.kind != PRODUCT and problem.epsilon)
        d = s.clone() if kept else s
        return metric.weigh_(s.copy_(g), d, *scales, problem.epsilon)
