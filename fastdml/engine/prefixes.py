"""Several calls whose embeddings are the leading dimensions of one set, evaluated in one sweep.

For widths d_1 < ... < d_K the block of products of d_(k+1) is that of d_k plus a product of the slice between.
So all K cost the one product of the widest, and the row of every call is visited on a copy of the block:

    S   += A_I[:, slice k] C[:, slice k]^T      S_k, and G_k by the call's own step
    Q   += G_k, from the widest down            the weights of all that the slice is part of
    dA_I[:, slice k] = Q C[:, slice k]          and dC alike

Each width has norms of its own. What its normalisation takes out of its gradient lies along the embedding's
first d_k dimensions, by as much as G_k and S_k have in common, which is summed while both are there:
(dA_k)_i . a_i = sum_j (G_k)_ij (S_k)_ij.

Calls that read their outputs before they know their weights (`combine`, means over what is counted) visit the
blocks twice, columns' statistics come from a sweep before, as in `schedule`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import conditioning, dispatch, library
from .autograd import _scaled, _slopes, _watched, evaluate, once
from .call import LEAVES, Call
from .executors import one_block
from .executors.chunked import Chunked
from .executors.native import Native
from .problem import Problem
from .products import accumulate_, multiply
from .relation import LabelRelation
from .schedule import ColumnSums, Result, Step, Wanted
from .workspace import block_limit, buffer, rows_within

_COUNT = len(LEAVES)
_SHARED = 2  # leaves that all calls have together: anchors and candidates


def totals(calls: Sequence[Call], weights: Sequence[float]) -> Tensor:
    """The weighted sum of the values of calls, which may share their products (`shared`), widest last."""
    ready = _filled(calls)
    values: Sequence[Tensor]
    if ready[0].reduction != "none" and shared(ready):
        return _together(ready, weights)[0]
    values = values_of(ready)
    found = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        found = found + value * weight
    return found


def values_of(calls: Sequence[Call]) -> list[Tensor]:
    """The values of calls: [M] each in one sweep with reduction "none", where they share their products."""
    ready = _filled(calls)
    if ready[0].reduction == "none" and shared(ready):
        return list(_together(ready, [1.0] * len(ready)))
    return [evaluate(call) for call in ready]


def _filled(calls: Sequence[Call]) -> list[Call]:
    """The calls with the values of those that come before them, which may share their products as well."""
    first = calls[0].before
    if first is None:
        return list(calls)
    befores = [c.before for c in calls]
    groups = [list(group) for group in zip(*(b.calls for b in befores if b is not None), strict=True)]
    found = [[_slopes(c) for c in group] if first.slopes else values_of(group) for group in groups]
    return [
        before.fill(call.replace(before=None), [values[k] for values in found])
        for k, (call, before) in enumerate(zip(calls, befores, strict=True))
        if before is not None
    ]


def shared(calls: Sequence[Call]) -> bool:
    """Whether the calls are one call of the leading dimensions of one set, that the sweep below can run."""
    last = calls[-1]
    alike = all(
        type(c.loss) is type(last.loss)
        and c.loss == last.loss
        and (c.reduction, c.backend, c.finish, len(c.teacher)) == (last.reduction, last.backend, None, len(last.teacher))
        and not isinstance(c.weight, Tensor)
        and _leads(c.anchors, last.anchors)
        and (c.candidates is None) == (last.candidates is None)
        and (c.candidates is None or last.candidates is None or _leads(c.candidates, last.candidates))
        and all(a is b for a, b in zip(c.teacher, last.teacher))
        for c in calls
    )
    if not alike or _watched(last.anchors):
        return False
    metric = last.loss.metric
    if metric.clipped or metric.raw_anchors or metric.from_differences or metric.needs_totals:
        return False
    return not last.loss.column_bias and last.anchors.device.type == "cpu" and len(calls) > 1


def _leads(x: Tensor, whole: Tensor) -> bool:
    """Whether x [N, d] is the first dimensions of a set [N, D], in its memory."""
    return (
        x.dim() == whole.dim() == 2
        and x.shape[0] == whole.shape[0]
        and x.shape[1] <= whole.shape[1]
        and x.dtype == whole.dtype
        and x.stride() == whole.stride()
        and x.data_ptr() == whole.data_ptr()
    )


def _step(problem: Problem, backend: str) -> Step | None:
    """The executor whose step turns a block into weights; None where the calls run better one by one."""
    executor, _ = dispatch.choose(problem, backend)
    if backend == "auto" and executor is dispatch.SYMMETRIC:  # two products of each width are more than three of one
        native = dispatch.EXECUTORS["native"]
        executor = native if native.refuses(problem) is None else dispatch.EXECUTORS["chunked"]
    if isinstance(executor, Native):
        return None if one_block.takes(problem) else executor
    return executor if isinstance(executor, Chunked) else None


def _problems(calls: Sequence[Call]) -> list[Problem] | None:
    """The calls as problems of one set, whose leading dimensions they see; None where the rows of some width
    are out of the range of products, or of no length."""
    widest = Problem.of(calls[-1])
    widest.condition()
    if widest.anchors.dtype != widest.statistic:
        return None
    found = []
    for call in calls[:-1]:
        width = call.anchors.shape[1]
        a = widest.anchors[:, :width]
        problem = Problem.of(call, widest.anchors.device, like=widest)
        problem.device = None
        problem.anchors = a
        problem.candidates = a if widest.one_set else widest.candidates[:, :width]
        problem.conditioned = True
        found.append(problem)
    found.append(widest)
    if widest.loss.metric.normalized and widest.device_type == "cpu":
        scales = [s for p in found[:-1] for s in (p.row_scale, p.col_scale) if s is not None]
        if any(conditioning.outside(s) for s in scales):
            return None
    return found


class _Sweep:
    """The blocks of all problems, widest last."""

    def __init__(self, problems: list[Problem], step: Step) -> None:
        self.problems, self.step = problems, step
        self.widest = problems[-1]
        self.a, self.c = self.widest.anchors, self.widest.candidates
        self.m, self.n = self.a.shape[0], self.c.shape[0]
        widths = [p.anchors.shape[1] for p in problems]
        self.slices = [slice(low, high) for low, high in zip([0, *widths], widths)]
        m, n, count = self.m, self.n, len(problems)
        per_pair = step.bytes_per_pair(self.widest)
        size = self.a.element_size()
        held = per_pair + size * (count + 1)  # a copy for each, products of weights and embeddings
        self.rows = rows_within(2 * block_limit("cpu", n, held), n, held, m)

    def block(self, name: str, like: Tensor) -> Tensor:
        return buffer(name, self.rows * self.n, like).view(self.rows, self.n)

    def products(self, start: int, stop: int, k: int, s: Tensor) -> None:
        """s [R, N] of width k, from that of the width before."""
        part = self.slices[k]
        a, c = self.a[start:stop, part], self.c[:, part].t()
        if part.start == part.stop:
            return
        if part.start == 0:
            multiply(a, c, s)
        else:
            accumulate_(s, a, c)

    def presweep(self) -> None:
        """Fills the column values that come from losses of columns against rows (`schedule.presweep`)."""
        before = self.widest.loss.presweep()
        if before is None or self.widest.presweep_done:
            return
        sums = [self.step.column_sums(p) for p in self.problems]
        if all(s is not None for s in sums):
            found = self._gathered([s for s in sums if s is not None])
        else:
            turned = [p.swapped(before) for p in self.problems]
            found = [r.outputs.t().contiguous() for r in _Sweep(turned, self.step).run(Wanted())]
        for problem, values in zip(self.problems, found, strict=True):
            given = problem.col_values
            problem.col_values = values if given is None else torch.cat([given, values])
            problem.presweep_done = True

    def _gathered(self, sums: list[ColumnSums]) -> list[Tensor]:
        held = self.block("similarity", self.a)
        for start in range(0, self.m, self.rows):
            stop = min(self.m, start + self.rows)
            s = held[: stop - start]
            for k, of_columns in enumerate(sums):
                self.products(start, stop, k, s)
                of_columns.add(s, start)
        return [of_columns.outputs for of_columns in sums]

    def run(self, wanted: Wanted) -> list[Result]:
        """Of every problem; derivatives by the embeddings are those of all, in the widest's."""
        self.presweep()
        problems, widest = self.problems, self.widest
        results = [self._empty(p, wanted) for p in problems]
        radial = _Radial(problems, wanted) if widest.loss.metric.normalized and wanted else None
        product = self.block("similarity", self.a)
        copies = [self.block(f"similarity of width {k}", self.a) for k in range(len(problems))]
        together = None if radial is None else self.block("along", self.a)
        teacher = None if widest.teacher is None else self.block("teacher", self.a)
        d_a, d_c = results[-1].d_anchors, results[-1].d_candidates
        if widest.one_set and not widest.symmetric:
            d_c = d_a
        for start in range(0, self.m, self.rows):
            stop = min(self.m, start + self.rows)
            rows = stop - start
            t = None if teacher is None else teacher[:rows]
            if t is not None:
                assert widest.teacher_problem is not None
                widest.teacher_problem.similarities(start, stop, t)
            weights = []
            for k, (problem, out) in enumerate(zip(problems, results, strict=True)):
                self.products(start, stop, k, product[:rows])
                s = copies[k][:rows].copy_(product[:rows])
                g = self.step(problem, s, t, start, out, bool(wanted), None, False)
                if radial is not None and together is not None:
                    radial.add(k, start, g, product[:rows], together[:rows])
                weights.append(g)
            if wanted.anchors or wanted.candidates:
                self._gradients(start, stop, weights, d_a, d_c)
        if radial is not None:
            radial.take_out(d_a, results[-1].d_candidates)
        if widest.symmetric and d_a is not None:
            d_a *= 2
        for problem, out in zip(problems, results, strict=True):
            if out.d_scalars is not None:
                out.d_scalars = out.d_scalars.sum(0, dtype=torch.float64).to(problem.statistic)
            out.outputs.add_(problem.poison)
        return results

    def _gradients(
        self, start: int, stop: int, weights: list[Tensor], d_a: Tensor | None, d_c: Tensor | None
    ) -> None:
        """Adds a block's products of weights, slice by slice from the last: all widths from there on."""
        total = None
        for k in range(len(weights) - 1, -1, -1):
            total = weights[k] if total is None else weights[k].add_(total)
            part = self.slices[k]
            if part.start == part.stop:
                continue
            if d_c is not None:
                accumulate_(d_c[:, part], total.t(), self.a[start:stop, part])
            if d_a is not None:
                accumulate_(d_a[start:stop, part], total, self.c[:, part])

    def _empty(self, problem: Problem, wanted: Wanted) -> Result:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=problem.statistic, device=self.a.device)

        out = Result(zeros(self.m, problem.loss.outputs))
        if problem is self.widest:
            if wanted.anchors or (wanted.candidates and problem.one_set):
                out.d_anchors = zeros(self.m, self.a.shape[1])
            if wanted.candidates and not problem.one_set:
                out.d_candidates = torch.zeros_like(self.c, dtype=problem.statistic)
        if wanted.scalars and problem.all_scalars is not None:
            out.d_scalars = zeros(self.m, problem.all_scalars.numel())
        if wanted.row_values and problem.row_values is not None:
            out.d_row_values = torch.zeros_like(problem.row_values)
        return out


class _Radial:
    """How much the weights of each width and the products have in common, by rows and by columns."""

    def __init__(self, problems: list[Problem], wanted: Wanted) -> None:
        self.problems = problems
        widest = problems[-1]
        m, n, count = widest.anchors.shape[0], widest.candidates.shape[0], len(problems)
        self.one_set = widest.one_set
        self.symmetric = widest.symmetric
        zeros = widest.anchors.new_zeros
        self.rows = zeros(count, m) if wanted.anchors or widest.one_set else None
        self.columns = None
        if not self.symmetric and (wanted.candidates or widest.one_set):
            self.columns = zeros(count, n)

    def add(self, k: int, start: int, g: Tensor, s: Tensor, room: Tensor) -> None:
        """g, s [R, N]: weights and products of width k."""
        common = torch.mul(g, s, out=room)
        if self.rows is not None:
            self.rows[k, start : start + g.shape[0]] = common.sum(1)
        if self.columns is not None:
            self.columns[k] += common.sum(0)

    def take_out(self, d_a: Tensor | None, d_c: Tensor | None) -> None:
        """Takes what lies along the embeddings' leading dimensions out of the gradients."""
        rows = self.rows
        if self.one_set and self.columns is not None and rows is not None:
            rows = rows + self.columns
        if d_a is not None and rows is not None:
            self._take(d_a, rows, "anchors", "row_scale")
        if d_c is not None and self.columns is not None:
            self._take(d_c, self.columns, "candidates", "col_scale")

    def _take(self, d: Tensor, along: Tensor, of: str, scale: str) -> None:
        factors = torch.stack([getattr(p, scale) for p in self.problems]).square() * along
        whole = getattr(self.problems[-1], of)
        low = 0
        for k, problem in enumerate(self.problems):
            high = getattr(problem, of).shape[1]
            d[:, low:high].addcmul_(whole[:, low:high], factors[k:].sum(0)[:, None], value=-1)
            low = high
