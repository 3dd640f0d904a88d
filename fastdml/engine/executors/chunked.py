"""The spec over blocks of rows: autograd inside a block, matrix products between blocks.

Runs any description on any device, a user's too, in linear memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import in_torch, schedule
from ..problem import Problem
from ..schedule import Visit
from . import Result, Wanted


class Chunked:
    name = "chunked"
    by_blocks = True
    bytes_per_pair = staticmethod(in_torch.bytes_per_pair)

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

    def __call__(self, block: Visit) -> Tensor:
        problem, s, start, rows, out = block.problem, block.s, block.start, block.rows, block.out
        gradient = block.gradient
        block.compare()
        with torch.enable_grad():
            leaf = s.detach().requires_grad_(gradient)
            seen = problem.rows(leaf, start, rows.stop, block.teacher)
            inputs = [leaf]
            if gradient and out.d_scalars is not None and seen.scalars is not None:
                seen.scalars = seen.scalars.detach().requires_grad_()
                inputs.append(seen.scalars)
            if gradient and out.d_row_values is not None and seen.row_values is not None:
                seen.row_values = seen.row_values.detach().requires_grad_()
                inputs.append(seen.row_values)
            if gradient and out.d_col_values is not None and seen.col_values is not None:
                seen.col_values = seen.col_values.detach().requires_grad_()
                inputs.append(seen.col_values)
            outputs = problem.loss.spec(seen).reshape(s.shape[0], -1)
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
        return block.weigh(g)
