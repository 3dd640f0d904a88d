"""The schedule of the block executors: three matrix products, one block of rows at a time.

    S_I = A_I C^T            a product
    S_I becomes G_I in place the executor's step
    dA_I += G_I C            a product
    dC   += G_I^T A_I        a product

On CUDA the operands may be bfloat16 or float16: S and everything accumulated is float32, and G is
bfloat16 for bfloat16 operands. For float16 operands G stays float32 and the last two products are of
float32, as weights (1/B and less) would be lost below the range of float16.

Where anchors and candidates are one set both products of weights add up to dA; and where G is symmetric
besides, they are equal: the second is left out.

Only one block of S exists at any time. Blocks are visited in order and each product accumulates
into one place, so the result does not depend on timing.

Losses that visit the matrix twice, the first time for the rows' outputs only, begin the second visit with
the block that the first has left in the workspace, and go backwards: its product is saved. Where rows and
columns differ, statistics of the columns are gathered from blocks of rows too, if the executor's step can;
else the first visit is of the columns against the rows, and leaves nothing for the second. Where groups of
rows are combined each by itself, a block has both visits before the next one is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .problem import Block, Problem, joined
from .products import accumulate_, multiply
from .similarity import DISTANCE, PRODUCT
from .workspace import block_limit, buffer, rows_within


class Step(Protocol):
    """Turns a block of raw products into weights."""

    def bytes_per_pair(self, problem: Problem) -> int:
        """Bytes held per pair of a block, the block itself included."""

    def __call__(self, block: Visit) -> Tensor:
        """Returns the weights of the products (if the block wants a gradient), in its s or its weights.

        Writes the block's rows of `out.outputs` and of the row-wise derivatives in `out`, and adds to
        `out.d_col_values`, where there is one.
        """

    def column_sums(self, problem: Problem) -> ColumnSums | None:
        """What gathers the outputs of the loss's presweep from blocks of rows, if this step can."""


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
    total: Tensor | None = None  # the weighted sum of the outputs, where it came with them

    @staticmethod
    def of(problem: Problem, wanted: Wanted) -> Result:
        """Room for outputs, and zeros for the wanted derivatives by values of the call, rows and columns."""
        m, a, kind = problem.relation.rows, problem.anchors, problem.statistic
        out = Result(a.new_empty(m, problem.loss.outputs, dtype=kind))
        if wanted.scalars and problem.all_scalars is not None:
            out.d_scalars = a.new_zeros(m, problem.all_scalars.numel(), dtype=kind)
        if wanted.row_values and problem.row_values is not None:
            out.d_row_values = torch.zeros_like(problem.row_values)
        # (Those by a bias are sums of the weights.)
        if wanted.col_values and problem.col_values is not None and not problem.loss.column_bias:
            out.d_col_values = torch.zeros_like(problem.col_values)
        return out

    def finish(self, problem: Problem) -> None:
        """Once all rows have their own: derivatives by scalars become their sums, outputs tell of poison."""
        if self.d_scalars is not None:
            self.d_scalars = self.d_scalars.sum(0, dtype=torch.float64).to(problem.statistic)
        self.outputs.add_(problem.poison)

    def reordered(self, order: Tensor) -> Result:
        """Of the samples of one set, int64 [M] of them in turn."""
        made = dataclasses.replace(self)
        for name in ("outputs", "d_anchors", "d_row_values"):
            x = getattr(self, name)
            setattr(made, name, None if x is None else x.index_select(0, order))
        if self.d_col_values is not None:
            made.d_col_values = self.d_col_values.index_select(1, order)
        return made


@dataclasses.dataclass
class Visit:
    """A block of rows as a step sees it.

    s: [R, N], products in. start: the first row; the others follow. out: where results go. gradient: whether
    weights are wanted.
    teacher: [R, N] the same pairs in the teacher's matrix.
    weights: [R, N] of the type that the products of weights are made in, if that is not the type of s; the
        schedule converts where the step leaves the weights in s.
    compared: s holds what an earlier step without a gradient has left there: no products.
    """

    problem: Problem
    s: Tensor
    start: int
    out: Result
    gradient: bool = False
    teacher: Tensor | None = None
    weights: Tensor | None = None
    compared: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.s.shape[0])

    def part(self, x: Tensor | None) -> Tensor | None:
        """The block's rows of what all rows have."""
        whole = self.s.shape[0] == self.problem.relation.rows  # a small batch feels every slice
        return x if whole or x is None else x[self.rows]

    def compare(self) -> None:
        """s becomes similarities, for steps in torch."""
        problem = self.problem
        if not self.compared:
            problem.loss.metric.apply_(
                self.s,
                self.part(problem.row_scale),
                problem.col_scale,
                self.part(problem.row_square),
                problem.col_square,
                problem.epsilon,
                *problem.embeddings_of(self.start, self.s.shape[0]),
            )
        self.compared = True

    def weigh(self, g: Tensor) -> Tensor:
        """s, similarities, becomes the weights of the products, from the derivatives g by similarities."""
        problem, metric, s = self.problem, self.problem.loss.metric, self.s
        # Derivatives of distances need those that their weights are about to replace.
        kept = metric.kind == DISTANCE or (metric.kind != PRODUCT and problem.epsilon)
        d = s.clone() if kept else s
        scales = self.part(problem.row_scale), problem.col_scale
        return metric.weigh_(s.copy_(g), d, *scales, problem.epsilon)


class ColumnSums(Protocol):
    """Statistics of the columns while blocks of rows pass."""

    outputs: Tensor  # [outputs, N] of the columns as rows, after the last block

    def add(self, s: Tensor, start: int) -> None:
        """Adds rows [start, start + R). s [R, N]: products, which stay."""


class Wanted(NamedTuple):
    """Which derivatives are wanted, whether the rows' losses are only added up, and whether nobody reads what
    rows return (known: a visit before has it): an executor that need not find it leaves anything there.

    grouped: the rows' weights are those of a `grouped` loss, which an executor `by_blocks` finds as it goes.
    """

    anchors: bool = False
    candidates: bool = False
    scalars: bool = False
    row_values: bool = False
    col_values: bool = False
    total: bool = False
    known: bool = False
    grouped: bool = False

    def __bool__(self) -> bool:
        return self.anchors or self.candidates or self.scalars or self.row_values or self.col_values


def block_rows(problem: Problem, step: Step) -> int:
    """Rows of a block within the workspace."""
    m, n = problem.relation.rows, problem.relation.columns
    per_pair = step.bytes_per_pair(problem)
    shared = problem.revisited or step.column_sums(problem) is not None
    revisited = shared and problem.teacher is None
    limit = block_limit(problem.device_type, n, per_pair, revisited)
    return rows_within(limit, n, per_pair, m, problem.loss.rows_together)


def _block(name: str, rows: int, columns: int, like: Tensor) -> Tensor:
    """[rows, columns] uninitialised; on an accelerator rows start on 16 bytes whatever their type."""
    if like.device.type == "cpu":
        return buffer(name, rows * columns, like).view(rows, columns)
    padded = -(-columns // 8) * 8
    return buffer(name, rows * padded, like).view(rows, padded)[:, :columns]


def presweep(
    problem: Problem, outputs_of: Callable[[Problem], Tensor], step: Step | None = None
) -> None:
    """Fills the column values that come from a loss of columns against rows, whose outputs an executor
    finds by outputs_of, or a step, of a conditioned problem, by gathering them."""
    before = problem.loss.before
    if before is None or problem.presweep_done:
        return
    problem.presweep_done = True
    sums = None if step is None else step.column_sums(problem)
    if step is not None and sums is not None:
        found = _gathered(problem, step, sums)
    else:
        sweep = problem.swapped(before)
        found = outputs_of(sweep).t().contiguous()
        if problem.one_set:  # the same matrix, by rows as by columns
            problem.last_block = sweep.last_block
    problem.col_values = joined(problem.col_values, found)


def _gathered(problem: Problem, step: Step, sums: ColumnSums) -> Tensor:
    a, c = problem.anchors, problem.candidates
    m, n = a.shape[0], c.shape[0]
    size = block_rows(problem, step)
    held = _block("similarity", size, n, a.new_empty(0, dtype=problem.statistic))
    transposed = c.t()
    for start in range(0, m, size):
        stop = min(m, start + size)
        s = multiply(a[start:stop], transposed, held[: stop - start])
        sums.add(s, start)
    problem.last_block = Block(start, size, held, None, products=True)
    return sums.outputs


def outputs_by(step: Step) -> Callable[[Problem], Tensor]:
    """How the schedule finds the outputs of a problem's rows."""
    return lambda problem: run(problem, step, Wanted()).outputs


def run(problem: Problem, step: Step, wanted: Wanted) -> Result:
    """Outputs of the rows and the wanted derivatives of their weighted sum."""
    problem.condition()
    presweep(problem, outputs_by(step), step)
    a, c = problem.anchors, problem.candidates
    m, n = a.shape[0], c.shape[0]

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=problem.statistic, device=a.device)

    out = Result.of(problem, wanted)
    if wanted.grouped:
        problem.row_weight = empty(m, problem.loss.outputs)
    if wanted.anchors:
        out.d_anchors = empty(m, a.shape[1])
    if problem.symmetric:
        d_candidates = None
    elif problem.one_set:
        d_candidates = out.d_anchors
    else:
        d_candidates = None
        if wanted.candidates:  # stored as the candidates are, by rows or by columns
            d_candidates = torch.empty_like(c, dtype=problem.statistic)
        out.d_candidates = d_candidates
    metric = problem.loss.metric
    bias = wanted.col_values and problem.loss.column_bias
    row_total = empty(m) if metric.needs_totals and wanted.anchors else None
    col_total = None
    if bias or (metric.needs_totals and d_candidates is not None):
        col_total = torch.zeros(n, dtype=problem.statistic, device=a.device)

    size = block_rows(problem, step)
    starts = list(range(0, m, size))
    earlier = problem.last_block
    problem.last_block = None
    if earlier is not None and (earlier.start, earlier.size) == (starts[-1], size):
        starts.reverse()
    else:
        earlier = None
    held_weights = None
    if earlier is not None:
        held, second = earlier.s, earlier.teacher
    else:
        held = _block("similarity", size, n, out.outputs)
        second = None
        if problem.teacher is not None:
            second = _block("teacher", size, n, out.outputs)
    operand, right = a, c  # of the products of weights
    if wanted and a.dtype == torch.bfloat16:
        held_weights = _block("weights", size, n, a)
    elif wanted and a.dtype != problem.statistic:
        right = c.to(problem.statistic)
        operand = right if problem.one_set else a.to(problem.statistic)
    transposed = c.t()
    for start in starts:
        stop = min(m, start + size)
        reused = earlier if earlier is not None and start == earlier.start else None
        s = held[: stop - start]
        t = None if second is None else second[: stop - start]
        if reused is None:
            multiply(a[start:stop], transposed, s)
            if t is not None:
                assert problem.teacher_problem is not None
                problem.teacher_problem.similarities(start, stop, t)
        weights = None if held_weights is None else held_weights[: stop - start]
        similarities = reused is not None and not reused.products
        if wanted.grouped:
            step(Visit(problem, s, start, out, False, t, None, similarities))
            similarities = True
            _, found = problem.loss.weighed(out.outputs[start:stop], "mean")
            assert problem.row_weight is not None
            torch.mul(found, (stop - start) / m, out=problem.row_weight[start:stop])
        g = step(Visit(problem, s, start, out, bool(wanted), t, weights, similarities))
        if weights is not None and g is not weights:
            g = weights.copy_(g)
        if row_total is not None:
            row_total[start:stop] = weight_totals(g, problem.col_scale)
        if col_total is not None:
            scale = problem.row_scale
            col_total += weight_totals(g.t(), None if scale is None else scale[start:stop])
        if d_candidates is not None:
            if start == starts[0]:
                multiply(g.t(), operand[start:stop], d_candidates)
            else:
                accumulate_(d_candidates, g.t(), operand[start:stop])
        if out.d_anchors is not None:
            if problem.one_set and d_candidates is not None:
                accumulate_(out.d_anchors[start:stop], g, right)
            else:
                multiply(g, right, out.d_anchors[start:stop])
    if out.d_anchors is not None:
        total = row_total
        if problem.symmetric:
            out.d_anchors *= 2
            total = None if total is None else 2 * total
        elif total is not None and problem.one_set and col_total is not None:
            total = total + col_total
        metric.finish_(out.d_anchors, a, None if metric.raw_anchors else problem.row_scale, total)
    if d_candidates is not None and not problem.one_set:
        metric.finish_(
            d_candidates, c, problem.col_scale, col_total if metric.needs_totals else None
        )
    if bias and col_total is not None and problem.col_values is not None:
        out.d_col_values = torch.zeros_like(problem.col_values)
        out.d_col_values[0] = col_total
    if not wanted and a.device.type == "cpu":
        problem.last_block = Block(starts[-1], size, held, second)
    out.finish(problem)
    return out


def weight_totals(weights: Tensor, scale: Tensor | None) -> Tensor:
    """[R] sums over the pairs of weights [R, N], each over the other embedding's scale [N]."""
    if scale is None:
        return weights.sum(1, dtype=torch.promote_types(weights.dtype, torch.float32))
    return torch.mv(weights.to(scale.dtype), scale.reciprocal())
