"""The schedule of the block executors: three matrix products, one block of rows at a time.

    S_I = A_I C^T            a product
    S_I becomes G_I in place the executor's step
    dA_I += G_I C            a product
    dC   += G_I^T A_I        a product

Only one block of S exists at any time. Blocks are visited in order and each product accumulates
into one place, so the result does not depend on timing.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from .problem import Problem
from .workspace import buffer, rows_within, workspace_limit


class Step(Protocol):
    """Turns a block of raw products into weights."""

    def bytes_per_pair(self, problem: Problem) -> int:
        """Bytes held per pair of a block, the block itself included."""

    def __call__(
        self,
        problem: Problem,
        s: Tensor,
        teacher: Tensor | None,
        start: int,
        out: Result,
        gradient: bool,
    ) -> None:
        """s [R, N]: products in, weights of the products out (if `gradient`).

        Writes rows [start, start + R) of out.outputs and of the row-wise derivatives in `out`.
        """


@dataclasses.dataclass
class Result:
    """Outputs of all rows and the derivatives that were asked for.

    Where anchors and candidates are one set, d_anchors holds the sum and d_candidates is None.
    """

    outputs: Tensor  # [M, outputs]
    d_anchors: Tensor | None = None  # [M, D]
    d_candidates: Tensor | None = None  # [N, D]
    d_scalars: Tensor | None = None  # [M, n] while blocks run, [n] in the end
    d_row_values: Tensor | None = None  # [M, k]
    d_col_values: Tensor | None = None  # [k, N]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which derivatives are wanted."""

    anchors: bool = False
    candidates: bool = False
    scalars: bool = False
    row_values: bool = False
    col_values: bool = False

    def __bool__(self) -> bool:
        return (
            self.anchors or self.candidates or self.scalars or self.row_values or self.col_values
        )


def block_rows(problem: Problem, step: Step) -> int:
    """Rows of a block within the workspace."""
    m, n = problem.relation.rows, problem.relation.columns
    per_pair = step.bytes_per_pair(problem)
    limit = workspace_limit(problem.device_type, n * per_pair)
    return rows_within(limit, n, per_pair, m)


def presweep(problem: Problem, step: Step) -> None:
    """Fills the column values that come from a loss of columns against rows."""
    before = problem.loss.presweep()
    if before is None or problem.swept:
        return
    problem.swept = True
    found = run(problem.swapped(before), step, Wanted()).outputs.t().contiguous()
    given = problem.col_values
    problem.col_values = found if given is None else torch.cat([given, found])


def run(problem: Problem, step: Step, wanted: Wanted) -> Result:
    """Outputs of the rows and the wanted derivatives of their weighted sum."""
    presweep(problem, step)
    a, c = problem.anchors, problem.candidates
    m, n = a.shape[0], c.shape[0]

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=problem.statistic, device=a.device)

    out = Result(empty(m, problem.loss.outputs))
    if wanted.anchors:
        out.d_anchors = empty(m, a.shape[1])
    if problem.one_set:
        d_candidates = out.d_anchors
    else:
        d_candidates = None
        if wanted.candidates:  # stored as the candidates are, by rows or by columns
            d_candidates = torch.empty_like(c, dtype=problem.statistic)
        out.d_candidates = d_candidates
    if wanted.scalars and problem.scalars is not None:
        out.d_scalars = torch.zeros(
            m, problem.scalars.numel(), dtype=problem.statistic, device=a.device
        )
    if wanted.row_values and problem.row_values is not None:
        out.d_row_values = torch.zeros_like(problem.row_values)
    metric = problem.loss.metric
    bias = wanted.col_values and problem.loss.column_bias
    row_total = empty(m) if metric.needs_totals and wanted.anchors else None
    col_total = None
    if bias or (metric.needs_totals and d_candidates is not None):
        col_total = torch.zeros(n, dtype=problem.statistic, device=a.device)

    size = block_rows(problem, step)
    held = buffer("similarity", size * n, out.outputs).view(size, n)
    second = None
    if problem.teacher is not None:
        second = buffer("teacher", size * n, out.outputs).view(size, n)
    transposed = c.t()
    for start in range(0, m, size):
        stop = min(m, start + size)
        block = a[start:stop]
        s = torch.mm(block, transposed, out=held[: stop - start])
        t = None if second is None else _teacher(problem, start, stop, second[: stop - start])
        step(problem, s, t, start, out, bool(wanted))
        if row_total is not None:
            torch.sum(s, 1, out=row_total[start:stop])
        if col_total is not None:
            col_total += s.sum(0)
        if d_candidates is not None:
            if start == 0:
                torch.mm(s.t(), block, out=d_candidates)
            else:
                d_candidates.addmm_(s.t(), block)
        if out.d_anchors is not None:
            if problem.one_set:
                out.d_anchors[start:stop].addmm_(s, c)
            else:
                torch.mm(s, c, out=out.d_anchors[start:stop])
    if out.d_anchors is not None:
        total = row_total
        if total is not None and problem.one_set and col_total is not None:
            total = total + col_total
        metric.finish_(out.d_anchors, a, None if metric.raw_anchors else problem.row_scale, total)
    if d_candidates is not None and not problem.one_set:
        metric.finish_(
            d_candidates, c, problem.col_scale, col_total if metric.needs_totals else None
        )
    if out.d_scalars is not None:
        out.d_scalars = out.d_scalars.sum(0, dtype=torch.float64).to(problem.statistic)
    if bias and col_total is not None and problem.col_values is not None:
        out.d_col_values = torch.zeros_like(problem.col_values)
        out.d_col_values[0] = col_total
    return out


def _teacher(problem: Problem, start: int, stop: int, held: Tensor) -> Tensor:
    teacher = problem.teacher_problem
    assert teacher is not None
    t = torch.mm(teacher.anchors[start:stop], teacher.candidates.t(), out=held)
    rows = slice(start, stop)
    return teacher.loss.metric.apply_(
        t,
        None if teacher.row_scale is None else teacher.row_scale[rows],
        teacher.col_scale,
        None if teacher.row_square is None else teacher.row_square[rows],
        teacher.col_square,
        teacher.epsilon,
    )
