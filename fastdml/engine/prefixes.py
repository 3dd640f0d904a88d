"""Several calls whose embeddings are the leading dimensions of one set, evaluated in one sweep.

For widths d_1 < ... < d_K the block of products of d_(k+1) is that of d_k plus a product of the slice
between. So all K cost the one product of the widest, and every call's rows are visited on a copy of it:

    S   += A_I[:, slice k] C[:, slice k]^T      S_k, and G_k by the call's own step
    Q   += G_k, from the widest down            the weights of all that the slice is part of
    dA_I[:, slice k] = Q C[:, slice k]          and dC alike

Each width has norms of its own. What its normalisation takes out of its gradient lies along the embedding's
first d_k dimensions, by as much as G_k and S_k have in common, which is summed while both are there:
(dA_k)_i . a_i = sum_j (G_k)_ij (S_k)_ij. The widest's own is what the whole gradient has beyond the others'.

Calls that read their outputs before they know their weights (`combine`, means over what is counted) visit the
blocks twice, columns' statistics come from a sweep before, as in `schedule`. Where a pair is visited once for
both its ends (executors/symmetric.py), all of this is done there, to trapezoids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import conditioning, dispatch
from .autograd import evaluate, once, refuse_transforms, scaled, slopes, watched
from .call import LEAVES, Call, versioned
from .executors import one_block
from .executors.chunked import Chunked
from .executors.native import Native
from .executors.symmetric import Run, Symmetric
from .op import own_world
from .problem import Problem, joined
from .schedule import ColumnSums, Result, Step, Visit, Wanted
from .widths import Radial, grow, slices_of, spread
from .workspace import block_limit, buffer, rows_within

_SHARED = 2  # leaves that all calls have together: anchors and candidates


def leading(x: Tensor, width: int) -> Tensor:
    """The first dimensions of embeddings [..., D]; of those that stand for others, their own."""
    found: Tensor = x.leading(width) if hasattr(x, "leading") else x[..., :width]
    return found


def total(calls: Sequence[Call], weights: Sequence[float]) -> Tensor:
    """The weighted sum of the values of calls, widest last, in one sweep where they can share it."""
    ready = _filled(calls)
    together = None if ready[0].reduction == "none" else prepared(ready)
    if together is not None:
        return _together(ready, weights, together)[0]
    found = [v * w for v, w in zip(_values(ready), weights, strict=True)]
    value = found[0]
    for other in found[1:]:
        value = value + other
    return value


def _values(ready: list[Call]) -> list[Tensor]:
    """The values of calls, in one sweep where they are those of rows and can share it."""
    together = prepared(ready) if ready[0].reduction == "none" else None
    if together is None:
        return [evaluate(call) for call in ready]
    found = _together(ready, [1.0] * len(ready), together)
    return [v * c.weight for v, c in zip(found, ready, strict=True)]


def _filled(calls: Sequence[Call]) -> list[Call]:
    """The calls with the values of those that come before them, which may share their products as well."""
    first = calls[0].before
    if first is None:
        return list(calls)
    befores = [c.before for c in calls]
    groups = [list(group) for group in zip(*(b.calls for b in befores if b is not None), strict=True)]
    found = [[slopes(c) for c in group] if first.slopes else _values(_filled(group)) for group in groups]
    return [
        before.fill(call.replace(before=None), [values[k] for values in found])
        for k, (call, before) in enumerate(zip(calls, befores, strict=True))
        if before is not None
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """Calls as problems of one set, and what turns a block of theirs into weights."""

    problems: list[Problem]
    step: Step | Symmetric

    def sweep(self, again: bool) -> _Sweep | Run:
        """again: another visit follows one without a gradient."""
        if isinstance(self.step, Symmetric):
            return Run(self.problems)
        return _Sweep(self.problems, self.step, again)


def prepared(calls: Sequence[Call]) -> Prepared | None:
    """Calls that are one call of the leading dimensions of one set, so that the sweep below can run them;
    None where they are not, and where they run better one by one."""
    last = calls[-1]
    if len(calls) < 2 or last.anchors.device.type != "cpu" or watched(last.anchors):
        return None
    if not all(_alike(call, last) for call in calls):
        return None
    metric = last.loss.metric
    odd = metric.clipped or metric.raw_anchors or metric.from_differences or metric.needs_totals
    odd = odd or metric.in_torch
    values = [c.col_values for c in calls]
    learnt = any(v is not None and v.requires_grad for v in values)  # which the sweep leaves out
    if odd or learnt or last.loss.column_bias:
        return None
    problems = _problems(calls)
    return None if problems is None else _prepared(problems, last.backend)


def _alike(call: Call, last: Call) -> bool:
    """Whether a call is that of the leading dimensions of the other's embeddings."""
    if call.finish is not None or isinstance(call.weight, Tensor) or call.whole is not None:
        return False
    words = [(c.reduction, c.backend, len(c.teacher), c.candidates is None) for c in (call, last)]
    if words[0] != words[1] or call.loss != last.loss:
        return False
    sets = [(call.anchors, last.anchors)]
    if call.candidates is not None and last.candidates is not None:
        sets.append((call.candidates, last.candidates))
    leads = all(_leads(x, whole) for x, whole in sets)
    taught = all(a.shape == b.shape and _leads(a, b) for a, b in zip(call.teacher, last.teacher))
    return leads and taught and _same_pairs(call, last)


def _same_pairs(call: Call, other: Call) -> bool:
    """Whether two calls of equally many rows relate them alike."""
    named = ("anchor_labels", "candidate_labels", "own", "row_weight")
    for a, b in ((getattr(call, name), getattr(other, name)) for name in named):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a is not b and not torch.equal(a, b):
                return False
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
            return False
    listed = len(call.pairs) == len(other.pairs)
    listed = listed and all(a is b for a, b in zip(call.pairs, other.pairs))
    return listed and call.predicate is other.predicate


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


def _prepared(problems: list[Problem], backend: str) -> Prepared | None:
    """Problems with what turns their blocks into weights; None where the calls run better one by one."""
    executor, _ = dispatch.choose(problems[-1], backend)
    if isinstance(executor, Symmetric):
        if executor.runs_together(problems):
            return Prepared(problems, executor)
        if backend != "auto":
            return None
        # Two products of every width are more than three of the widest.
        native = dispatch.EXECUTORS["native"]
        executor = native if native.refuses(problems[-1]) is None else dispatch.EXECUTORS["chunked"]
    if isinstance(executor, Native):
        return None if one_block.takes(problems[-1]) else Prepared(problems, executor)
    return Prepared(problems, executor) if isinstance(executor, Chunked) else None


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
        problem = Problem.of(call, like=widest)
        problem.anchors = a
        problem.candidates = a if widest.one_set else widest.candidates[:, :width]
        problem.conditioned = True
        found.append(problem)
    found.append(widest)
    if widest.loss.metric.normalized and widest.device_type == "cpu":
        scales = [s for p in found[:-1] for s in (p.row_scale, p.col_scale) if s is not None]
        if any(conditioning.outside(s, widest.anchors) for s in scales):
            return None
    return found


class _Sweep:
    """The blocks of all problems, widest last. A visit that another follows keeps the products of its last
    block, where the other begins and goes backwards, as in `schedule`."""

    def __init__(self, problems: list[Problem], step: Step, again: bool = False) -> None:
        self.problems, self.step, self.again = problems, step, again
        self.widest = problems[-1]
        self.a, self.c = self.widest.anchors, self.widest.candidates
        self.m, self.n = self.a.shape[0], self.c.shape[0]
        self.slices = slices_of(problems)
        m, n, count = self.m, self.n, len(problems)
        per_pair = step.bytes_per_pair(self.widest)
        size = self.a.element_size()
        held = per_pair + size * (count + 1)  # the block, products of each width, and what the step works on
        rows = rows_within(2 * block_limit("cpu", n, held, again), n, held, m)
        rows = -(-m // -(-m // rows))  # all alike: what is kept of the last one should be worth it
        group = self.widest.loss.rows_together
        self.rows = rows if rows == m else max(group, rows - rows % group)
        self.held: list[Tensor] = []  # products of each width, the last those that grow; then one to work on
        self.kept: int | None = None  # the first row of the block whose products of all widths are held

    def block(self, name: str, like: Tensor) -> Tensor:
        return buffer(name, self.rows * self.n, like).view(self.rows, self.n)

    def products(self, start: int, stop: int, k: int, gradient: bool) -> tuple[Tensor, Tensor]:
        """[R, N] the products of width k, after those of the widths before, and a copy that the step may
        change: of the widest they are one where nobody reads them later."""
        held, spare, widest = self.held, len(self.problems), k == len(self.problems) - 1
        rows = slice(0, stop - start)
        keeps = self.again and not gradient and stop == self.m
        if start == self.kept:
            whole = held[k][rows]
        else:
            whole = held[spare - 1][rows]
            grow(whole, self.a[start:stop], self.c, self.slices[k])
            if keeps and not widest:
                held[k][rows].copy_(whole)
        if widest and not keeps:
            return whole, whole
        s = held[spare][rows].copy_(whole)
        if gradient:  # the weights of all widths are there until the block ends
            held[k], held[spare] = held[spare], held[k]
        return whole, s

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
            problem.col_values = joined(problem.col_values, values)
            problem.presweep_done = True

    def _gathered(self, sums: list[ColumnSums]) -> list[Tensor]:
        held = self.block("similarity", self.a)
        for start in range(0, self.m, self.rows):
            stop = min(self.m, start + self.rows)
            s = held[: stop - start]
            for part, of_columns in zip(self.slices, sums, strict=True):
                grow(s, self.a[start:stop], self.c, part)
                of_columns.add(s, start)
        return [of_columns.outputs for of_columns in sums]

    def run(self, wanted: Wanted) -> list[Result]:
        """Of every problem; derivatives by the embeddings are those of all, in the widest's."""
        self.presweep()
        problems, widest = self.problems, self.widest
        results = [self._empty(p, wanted) for p in problems]
        radial = None
        if widest.loss.metric.normalized and wanted:
            one = widest.one_set
            columns = not widest.symmetric and (wanted.candidates or one)
            radial = Radial(problems, rows=wanted.anchors or one, columns=columns)
        teacher = None if widest.teacher is None else self.block("teacher", self.a)
        d_a, d_c = results[-1].d_anchors, results[-1].d_candidates
        if widest.one_set and not widest.symmetric:
            d_c = d_a
        names = [f"similarity of width {k}" for k in range(len(problems) - 1)]
        self.held = self.held or [self.block(n, self.a) for n in (*names, "similarity", "similarity, a copy")]
        starts = range(0, self.m, self.rows)
        for start in starts if self.kept is None else reversed(starts):
            stop = min(self.m, start + self.rows)
            t = None if teacher is None else teacher[: stop - start]
            if t is not None:
                assert widest.teacher_problem is not None
                widest.teacher_problem.similarities(start, stop, t)
            weights = []
            for k, (problem, out) in enumerate(zip(problems, results, strict=True)):
                whole, s = self.products(start, stop, k, bool(wanted))
                g = self.step(Visit(problem, s, start, out, bool(wanted), t))
                if radial is not None and problem is not widest:
                    radial.add(k, start, g, whole)
                weights.append(g)
            if wanted.anchors or wanted.candidates:
                rows_a = None if d_a is None else d_a[start:stop]
                spread(weights, self.slices, self.a[start:stop], self.c, rows_a, d_c)
        self.kept = starts[-1] if self.again and not wanted else None
        if radial is not None:
            radial.take_out(d_a, results[-1].d_candidates)
        if widest.symmetric and d_a is not None:
            d_a *= 2
        for problem, out in zip(problems, results, strict=True):
            out.finish(problem)
        return results

    def _empty(self, problem: Problem, wanted: Wanted) -> Result:
        out = Result.of(problem, wanted._replace(col_values=False))
        if problem is self.widest:
            if wanted.anchors or (wanted.candidates and problem.one_set):
                out.d_anchors = torch.zeros_like(self.a)
            if wanted.candidates and not problem.one_set:
                out.d_candidates = torch.zeros_like(self.c)
        return out


def _run(
    calls: Sequence[Call], together: Prepared, weights: Sequence[float], wanted: Wanted
) -> tuple[list[Tensor], list[Result]]:
    """The values of calls, not weighted, and the derivatives of their weighted sum."""
    problems = together.problems
    loss, reduction = problems[-1].loss, calls[-1].reduction
    rows = max(1, problems[-1].relation.rows)
    for problem, call, weight in zip(problems, calls, weights, strict=True):
        factor = weight * float(call.weight)
        of_rows = reduction == "mean" and not (loss.counted or loss.combined)
        problem.weight = factor / rows if of_rows else factor
    read_first = loss.combined or reduction == "nonzero" or (reduction == "mean" and loss.counted)
    sweep = together.sweep(again=read_first and bool(wanted))
    if not read_first:
        results = sweep.run(wanted)
        return [_reduced(p, r.outputs, reduction, rows) for p, r in zip(problems, results)], results
    results = sweep.run(Wanted())
    values = []
    for problem, result in zip(problems, results, strict=True):
        if loss.combined:
            values.append(_combined(problem, result.outputs, reduction))
        else:
            values.append(_reduced(problem, result.outputs, reduction, rows))
            problem.weight *= float(_share(problem, result.outputs, reduction))
    return values, sweep.run(wanted) if wanted else results


def _combined(problem: Problem, outputs: Tensor, reduction: str) -> Tensor:
    """The value that the loss makes of all rows' outputs, whose derivatives become the rows' weights."""
    value, weight = problem.loss.weighed(outputs, reduction)
    problem.row_weight = weight.contiguous()  # of sums alone, one row's that stands for all
    return value


def _weighted(problem: Problem, outputs: Tensor) -> Tensor:
    losses = outputs[:, 0]
    return losses if problem.row_weight is None else losses * problem.row_weight


def _share(problem: Problem, outputs: Tensor, reduction: str) -> Tensor:
    """One over what a mean is over that the rows count."""
    count = (_weighted(problem, outputs) > 0) if reduction == "nonzero" else outputs[:, 1]
    return count.sum(dtype=torch.float64).clamp(min=1).reciprocal()


def _reduced(problem: Problem, outputs: Tensor, reduction: str, rows: int) -> Tensor:
    weighted = _weighted(problem, outputs)
    if reduction == "none":
        return weighted.contiguous()
    total = weighted.sum(dtype=torch.float64)
    if reduction == "nonzero" or (reduction == "mean" and problem.loss.counted):
        total = total * _share(problem, outputs, reduction)
    elif reduction == "mean":
        total = total / rows
    return total.to(outputs.dtype)


def _together(
    calls: Sequence[Call], weights: Sequence[float], together: Prepared
) -> tuple[Tensor, ...]:
    """The weighted sum of the calls' values, or with reduction "none" each [M]; differentiable."""
    last = calls[-1]
    others = [x for c in calls for x in c.leaves[_SHARED:]]
    refuse_transforms()
    found = _Together.apply(
        last.anchors, last.candidates, *others,
        tuple(calls), tuple(weights), together, torch.is_grad_enabled(),
    )  # fmt: skip
    return found if isinstance(found, tuple) else (found,)


def _evaluated(
    calls: Sequence[Call], weights: Sequence[float], together: Prepared, needed: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    """The values, and the gradients of the weighted sum that are needed, in the order of the leaves."""
    each = len(LEAVES) - _SHARED
    own = [any(needed[_SHARED + k :: each]) for k in range(each)]
    wanted = Wanted(*needed[:_SHARED], *own)
    with own_world(calls[-1].anchors.device.type):
        values, results = _run(calls, together, weights, wanted)
    widest = results[-1]
    together.problems[-1].unconditioned(widest.d_anchors, widest.d_candidates)
    found = [widest.d_anchors, widest.d_candidates]
    for call, result in zip(calls, results, strict=True):
        d = result.d_scalars
        if d is not None and call.scalars is not None:
            d = d[: call.scalars.numel()]  # those that the loss computes come after the call's
        found += [d, result.d_row_values, result.d_col_values]
    return values, [d for d, n in zip(found, needed, strict=True) if n and d is not None]


class _Together(torch.autograd.Function):
    """The gradients of a sum come with the forward, those of rows with the backward, as for one call."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        *leaves, calls, weights, together, recorded = arguments
        ctx.needed = [recorded and n for n in ctx.needs_input_grad[: len(leaves)]]
        ctx.of_rows = calls[-1].reduction == "none"
        asked = [False] * len(leaves) if ctx.of_rows else ctx.needed
        values, gradients = _evaluated(calls, weights, together, asked)
        wanted = [x for x, n in zip(leaves, ctx.needed) if n]
        if ctx.of_rows:
            others = versioned(x for x, n in zip(leaves, ctx.needed) if not n)
            ctx.save_for_backward(*wanted, *others, *(x for c in calls for x in c.constants))
            ctx.calls, ctx.weights = calls, weights
            return tuple(values)
        ctx.save_for_backward(*wanted, *gradients)
        shares = (w * float(c.weight) for w, c in zip(weights, calls))
        return torch.stack([v * share for v, share in zip(values, shares)]).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = sum(ctx.needed), ctx.saved_tensors  # read once, as activation checkpointing asks
        leaves, gradients = saved[:count], saved[count:]
        if ctx.of_rows:
            weighted = [
                c.replace(
                    reduction="sum", weight=1.0, row_weight=u if c.row_weight is None else u * c.row_weight
                )
                for c, u in zip(ctx.calls, upstream)
            ]
            problems = _problems(weighted)
            assert problems is not None
            together = _prepared(problems, weighted[-1].backend)
            assert together is not None
            _, found = _evaluated(weighted, ctx.weights, together, ctx.needed)
            found = [g.to(x.dtype) for g, x in zip(found, leaves)]
        else:
            found = scaled(gradients, leaves, upstream[0])
        each = iter(once(found, leaves))
        return (*(next(each) if n else None for n in ctx.needed), None, None, None, None)
