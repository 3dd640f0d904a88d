"""The schedule of the block executors: three matrix products, one block of rows at a time.

    S_I = A_I C^T            a product
    S_I becomes G_I in place the executor's step
    dA_I += G_I C            a product
    dC   += G_I^T A_I        a product

Only one block of S exists at any time. Blocks are visited in order and each product accumulates
into one place, so the result does not depend on timing.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .problem import Problem
from .workspace import buffer, rows_within, workspace_limit


class Step(Protocol):
    """Turns a block of raw products into weights."""

    # Bytes held per pair of a block, the block itself included.
    def bytes_per_pair(self, problem: Problem) -> int: ...

    def __call__(
        self, problem: Problem, s: Tensor, teacher: Tensor | None, start: int, losses: Tensor,
        gradient: bool,
    ) -> None:
        """s: [R, N] products in, weights of the products out (if `gradient`); losses: [R] out."""


def block_rows(problem: Problem, step: Step) -> int:
    """Rows of a block within the workspace."""
    m, n = problem.relation.rows, problem.relation.columns
    limit = workspace_limit(problem.device_type)
    per_pair = step.bytes_per_pair(problem)
    return rows_within(limit, n, per_pair, m)


def run(
    problem: Problem, step: Step, *, anchors: bool, candidates: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses of the rows [M], and the gradients of anchors and candidates if asked for.

    Where both are one set, the anchors' gradient holds the sum and the candidates' is None.
    """
    a, c = problem.anchors, problem.candidates
    m, n = a.shape[0], c.shape[0]
    losses = torch.empty(m, dtype=problem.statistic, device=a.device)
    gradient = anchors or candidates
    d_anchors = torch.empty(m, a.shape[1], dtype=problem.statistic, device=a.device) if anchors else None
    d_candidates = None
    if problem.one_set:
        d_candidates = d_anchors
    elif candidates:
        d_candidates = torch.empty(n, c.shape[1], dtype=problem.statistic, device=c.device)

    size = block_rows(problem, step)
    held = buffer("similarity", size * n, losses).view(size, n)
    second = None
    if problem.teacher is not None:
        second = buffer("teacher", size * n, losses).view(size, n)
    transposed = c.t()
    for start in range(0, m, size):
        stop = min(m, start + size)
        block = a[start:stop]
        s = torch.mm(block, transposed, out=held[: stop - start])
        t = None
        if second is not None and problem.teacher is not None:
            t = torch.mm(
                problem.teacher[0][start:stop], problem.teacher[1].t(), out=second[: stop - start]
            )
        step(problem, s, t, start, losses[start:stop], gradient)
        if not gradient:
            continue
        if d_candidates is not None:
            if start == 0:
                torch.mm(s.t(), block, out=d_candidates)
            else:
                d_candidates.addmm_(s.t(), block)
        if d_anchors is not None:
            if problem.one_set:
                d_anchors[start:stop].addmm_(s, c)
            else:
                torch.mm(s, c, out=d_anchors[start:stop])
    metric = problem.loss.metric
    if d_anchors is not None:
        metric.finish_(d_anchors, a, problem.row_scale)
    if d_candidates is not None and not problem.one_set:
        metric.finish_(d_candidates, c, problem.col_scale)
    return losses, d_anchors, None if problem.one_set else d_candidates
