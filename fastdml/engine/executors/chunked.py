"""The spec over blocks of rows: autograd inside a block, matrix products between blocks.

Runs any description on any device, a user's too, in linear memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import schedule
from ..problem import Problem
from . import Result


class Chunked:
    name = "chunked"

    def refuses(self, problem: Problem) -> str | None:
        return None

    def plan(self, problem: Problem) -> str:
        rows = schedule.block_rows(problem, self)
        return f"the loss's torch form, {rows} rows at a time"

    def run(self, problem: Problem, *, anchors: bool, candidates: bool) -> Result:
        return schedule.run(problem, self, anchors=anchors, candidates=candidates)

    def bytes_per_pair(self, problem: Problem) -> int:
        size = torch.finfo(problem.statistic).bits // 8
        per_pair = size + problem.loss.spec_bytes * size // 4
        if problem.loss.threshold_list:
            positive, _ = problem.relation.masks(0, min(64, problem.relation.rows))
            # A guess from the first rows; a longer list only makes one block larger.
            per_pair += 5 * size * max(1, int(positive.sum(1).max()) if positive.numel() else 1)
        return per_pair

    def __call__(
        self, problem: Problem, s: Tensor, teacher: Tensor | None, start: int, losses: Tensor,
        gradient: bool,
    ) -> None:
        stop = start + s.shape[0]
        if problem.row_scale is not None and problem.col_scale is not None:
            s.mul_(problem.row_scale[start:stop, None]).mul_(problem.col_scale)
        with torch.enable_grad():
            leaf = s.detach().requires_grad_(gradient)
            row_losses = problem.loss.spec(problem.rows(leaf, start, stop, teacher))
            if gradient:
                weight = torch.full_like(row_losses, problem.weight)
                if problem.row_weight is not None:
                    weight = weight * problem.row_weight[start:stop]
                if row_losses.requires_grad:
                    (g,) = torch.autograd.grad(row_losses, leaf, weight)
                else:  # a loss that is constant on this block
                    g = torch.zeros_like(leaf)
        losses.copy_(row_losses.detach())
        if gradient:
            s.copy_(g)
            if problem.row_scale is not None and problem.col_scale is not None:
                s.mul_(problem.row_scale[start:stop, None]).mul_(problem.col_scale)
