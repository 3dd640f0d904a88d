"""One set, each pair visited once for both its ends: two products instead of three.

Blocks are trapezoids: rows [start, stop) against all columns from `start` on. Forwards every pair is folded
into the statistics of its row and of its column, which is a row too. Backwards the block is multiplied
again, H = G_ij + G_ji made of the numbers of both rows, and

    dA_I += H A_J        half a product
    dA_J += H^T A_I      half a product

where J are all columns from the block's first row on. A loss brings its streamed form (`RowLoss.streamed`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import schedule
from ..loss import RowLoss
from ..problem import Problem
from ..registry import registered
from ..relation import LabelRelation, TupleRelation
from ..similarity import DISTANCE, PRODUCT, Metric
from ..workspace import block_limit, buffer, rows_within
from . import Result, Wanted
from .chunked import Chunked
from .native import Native

_ROWS = 256  # of a trapezoid, at most
# Up to so many samples one block of all pairs costs less.
_SMALL = 512
# What the upper half of a product costs, in trapezoids, over the whole: as measured (4,096 samples, 128 and
# 512 dimensions).
_HALF = 0.54
# Bytes a pair for making the masks of index tuples.
_MASKS = 8


class Symmetric:
    name = "symmetric"

    def refuses(self, problem: Problem) -> str | None:
        if problem.loss.only_in_torch is not None:
            return problem.loss.only_in_torch
        if problem.device_type != "cpu":
            return f"the symmetric schedule runs on the CPU, not on {problem.device_type}"
        if not problem.one_set:
            return "anchors and candidates are two sets"
        if problem.teacher_problem is not None and not problem.teacher_problem.one_set:
            return "the teacher's anchors and candidates are two sets"
        why = _unrelated(problem)
        if why is not None:
            return why
        found = _streamed(problem)
        if found is None:
            return f"{problem.loss.name!r} has no streamed form"
        return found if isinstance(found, str) else found[0].compiled()  # type: ignore[no-any-return]

    def prefers(self, problem: Problem) -> bool:
        """Whether this can run the problem and is expected to cost less than the compiled rows: a sweep
        for statistics multiplies again, which small batches feel."""
        if problem.relation.rows <= _SMALL or problem.device_type != "cpu" or not problem.one_set:
            return False
        found = _streamed(problem)
        if not isinstance(found, tuple):
            return False
        listed = isinstance(problem.relation, TupleRelation)
        # (Before it is asked for, which compiles a user's.)
        if not listed and not self._pays(problem, len(found[0].statistics)):
            return False
        if registered(problem.loss) and not found[0].ready:
            return False  # nobody waits for a compiler who has not asked for it
        if self.refuses(problem) is not None:
            return False
        return not listed or Native().refuses(problem) is not None  # rows read no more than is listed

    def _pays(self, problem: Problem, sweeps: int) -> bool:
        matrices = 1.0  # of products for one visit of all pairs
        if problem.teacher_problem is not None:
            matrices += problem.teacher_problem.anchors.shape[1] / max(1, problem.anchors.shape[1])
        return problem.relation.rows > _SMALL * sweeps and costs_less(
            problem.loss, sweeps, problem.symmetric, matrices
        )

    def plan(self, problem: Problem) -> str:
        form, _ = _form(problem)
        sweeps = len(form.statistics)
        return (
            f"each pair once for both its ends: {sweeps} sweep{'s' * (sweeps > 1)} for statistics, "
            f"then the weights; {_rows(problem)} rows at a time"
        )

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        kept = problem.__dict__.get("symmetric_run")
        if kept is None:  # a loss of several outputs runs twice
            kept = problem.__dict__["symmetric_run"] = _Run(problem)
        return kept.result(wanted)  # type: ignore[no-any-return]


def costs_less(loss: RowLoss, sweeps: int, symmetric: bool, matrices: float = 1.0) -> bool:
    """Whether products cost less than those of rows, of which arithmetic follows suit. symmetric: the
    weights are; matrices: of products for one visit of all pairs."""
    if sweeps > 1 and not loss.two_sweeps_pay:
        return False
    visits = 2 if loss.combined else 1
    rows = visits * matrices + (1 if symmetric else 2)
    return _HALF * matrices * (sweeps + 1) + 2 * _HALF < rows


def _unrelated(problem: Problem) -> str | None:
    """Why the pairs of a problem of one set cannot be visited from both ends."""
    relation = problem.relation
    if not (isinstance(relation.own, int) and relation.own == 0):
        return "samples are not their own candidates"
    if isinstance(relation, LabelRelation):
        return None if relation.one_set else "labels are of two sets"
    if not isinstance(relation, TupleRelation):
        return "a function of pairs, which may draw, is asked for every pair once"
    if not problem.excludes_own:
        return "listed pairs, and samples that are compared with themselves"
    return None if relation.disjoint else "some pair is listed as positive and as negative"


def _ranges(problem: Problem) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Between which numbers the inputs of a row lie."""
    found = {"s": [range_of(problem.loss.metric, problem.epsilon)]}
    if problem.teacher_problem is not None:
        found["teacher"] = [range_of(problem.teacher_problem.loss.metric, 0.0)]
    for name, values in (
        ("scalar", problem.all_scalars),
        ("row_value", None if problem.row_values is None else problem.row_values.t()),
        ("column", problem.col_values if problem.loss.presweep() is None else None),
    ):
        if values is not None and values.numel():
            low, high = values.reshape(values.shape[0], -1).aminmax(dim=1)
            found[name] = list(zip(low.tolist(), high.tolist()))
    return found


def range_of(metric: Metric, epsilon: float) -> tuple[float, float]:
    """Between which numbers similarities lie."""
    bounded = metric.normalized or metric.clipped
    if metric.kind == PRODUCT:
        return (-1.0, 1.0) if bounded else (-math.inf, math.inf)
    high = 4.0 + epsilon if bounded else math.inf
    return 0.0, math.sqrt(high) if metric.kind == DISTANCE else high


def _streamed(problem: Problem) -> Any:
    """The loss's streamed form and its members for this call, or why there is none, or None."""
    if type(problem.loss).streamed is RowLoss.streamed:
        return None
    if "streamed" not in problem.__dict__:
        size = torch.finfo(problem.statistic).bits // 8
        problem.__dict__["streamed"] = problem.loss.streamed(_ranges(problem), size)
    return problem.__dict__["streamed"]


def _form(problem: Problem) -> tuple[Any, tuple[float, ...]]:
    found = _streamed(problem)
    assert isinstance(found, tuple)
    return found


def _rows(problem: Problem) -> int:
    """Rows of a trapezoid: within the workspace."""
    n = problem.relation.rows
    size = torch.finfo(problem.statistic).bits // 8
    held = size if problem.teacher is None else 2 * size
    if not isinstance(problem.relation, LabelRelation):
        held += _MASKS
    return min(_ROWS, rows_within(block_limit("cpu", n, held, True), n, held, n))


class _Run:
    def __init__(self, problem: Problem) -> None:
        problem.condition()
        schedule.presweep(problem, _outputs)
        self.problem = problem
        self.form, members = _form(problem)
        self.members = list(members)
        self.x = problem.anchors
        n = self.n = self.x.shape[0]
        self.size = _rows(problem)
        self.starts = list(range(0, n, self.size))
        self.pieces = torch.get_num_threads()
        self.held = buffer("similarity", self.size * n, self.x)
        self.held_teacher = None
        if problem.teacher is not None:
            self.held_teacher = buffer("teacher", self.size * n, self.x)
        self.left: tuple[int, Tensor, Tensor | None] | None = None  # the block that the workspace holds
        self.swapped: TupleRelation | None = None
        self.counts: Tensor | None = None
        if isinstance(problem.relation, TupleRelation):
            self.swapped = problem.relation.swapped()
            positives, negatives = problem.relation.counts(without_own=True)
            self.counts = (positives + negatives).to(self.x.dtype)
        self.statistics = self.empty(sum(self.form.statistics), n)
        self.swept = 0  # passes whose statistics are known

    def empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape)

    @property
    def several(self) -> bool:
        return self.problem.loss.outputs > 1 and not self.problem.loss.counted

    def block(self, start: int) -> tuple[Tensor, Tensor | None]:
        """The products of a trapezoid, and what its pairs are to the teacher."""
        if self.left is not None and self.left[0] == start:
            return self.left[1:]
        stop = min(self.n, start + self.size)
        shape = (stop - start, self.n - start)

        def part(held: Tensor) -> Tensor:
            return held[: shape[0] * shape[1]].view(shape)

        s = torch.mm(self.x[start:stop], self.x[start:].t(), out=part(self.held))
        t = None
        if self.held_teacher is not None:
            assert self.problem.teacher_problem is not None
            t = part(self.held_teacher)
            self.problem.teacher_problem.similarities(start, stop, t, start)
        self.left = start, s, t
        return s, t

    def visit(self, start: int, sweep: int, known: Tensor | None, partial: Tensor | None) -> Tensor:
        """Folds a trapezoid into partial, or makes weights of it. Returns it."""
        problem, metric = self.problem, self.problem.loss.metric
        s, teacher = self.block(start)
        torch.ops.fastdml_native.stream_visit_(
            s,
            self.form.id,
            self.members,
            sweep,
            self.pieces,
            partial,
            start,
            teacher,
            problem.row_scale,
            metric.kind,
            problem.row_square,
            problem.epsilon,
            None if metric.kind == PRODUCT else self.x,
            problem.classes.col_class if self.swapped is None else None,
            self.codes(start, s),
            not problem.excludes_own,
            known,
            problem.all_scalars,
            problem.col_values,
            None if self.several else problem.row_weight,
            problem.weight,
        )
        return s

    def codes(self, start: int, s: Tensor) -> Tensor | None:
        """uint8, as a trapezoid: what listed pairs are (csrc/cpu/stream.h: Code)."""
        if self.swapped is None:
            return None
        found = torch.zeros_like(s, dtype=torch.uint8)
        bit = 1
        for relation in (self.problem.relation, self.swapped):
            for mask in relation.masks(start, start + s.shape[0]):
                found += mask[:, start:] * torch.tensor(bit, dtype=torch.uint8)
                bit *= 2
        return found

    def rows(self, sweep: int, **out: Tensor | None) -> None:
        """What a pass reads of the rows, or (-1) their results, from their statistics."""
        problem, several = self.problem, self.several
        torch.ops.fastdml_native.stream_rows_(
            self.form.id,
            self.members,
            sweep,
            self.statistics,
            problem.all_scalars,
            problem.row_values,
            problem.row_weight if several else None,
            problem.weight if several else 1.0,
            float(self.n - problem.excludes_own),
            self.counts,
            out.get("known"),
            out.get("loss"),
            out.get("d_scalars"),
            out.get("d_row_values"),
        )

    def known(self, sweep: int) -> Tensor | None:
        if self.form.reads[sweep] == 0:
            return None
        found = self.empty(self.form.reads[sweep], self.n)
        self.rows(sweep, known=found)
        return found

    def sweep(self, k: int, known: Tensor | None, count: int, into: Tensor) -> None:
        """A pass over all pairs, whose statistics [count, N] go into a tensor."""
        partial = self.empty(self.pieces, count, self.n)
        torch.ops.fastdml_native.stream_gather_(self.form.id, k, partial, None)
        for start in self.order():
            self.visit(start, k, known, partial)
        torch.ops.fastdml_native.stream_gather_(self.form.id, k, partial, into)

    def order(self) -> list[int]:
        """The blocks, from the one that the workspace holds."""
        backwards = self.left is not None and self.left[0] == self.starts[-1]
        return self.starts[::-1] if backwards else self.starts

    def gather(self, passes: int) -> None:
        counts = self.form.statistics
        for k in range(self.swept, passes):
            before = sum(counts[:k])
            self.sweep(k, self.known(k), counts[k], self.statistics[before : before + counts[k]])
        self.swept = max(self.swept, passes)

    def result(self, wanted: Wanted) -> Result:
        problem, form = self.problem, self.form
        if not form.settled:
            self.swept = 0
        self.gather(len(form.statistics) if wanted else form.needed)
        out = Result(self.empty(self.n, problem.loss.outputs))
        scalars = problem.all_scalars
        if wanted.scalars and scalars is not None:
            out.d_scalars = self.x.new_zeros(self.n, scalars.numel())
        if wanted.row_values and problem.row_values is not None:
            out.d_row_values = torch.zeros_like(problem.row_values)
        self.rows(-1, loss=out.outputs, d_scalars=out.d_scalars, d_row_values=out.d_row_values)
        if not self.several:
            for d in (out.d_scalars, out.d_row_values):
                if d is not None:
                    d *= problem.weight
                    if problem.row_weight is not None:
                        d *= problem.row_weight.reshape(-1, 1)
        if out.d_scalars is not None:
            out.d_scalars = out.d_scalars.sum(0, dtype=torch.float64).to(self.x.dtype)
        if wanted:
            known = self.known(len(form.statistics))
            if wanted.col_values and problem.col_values is not None:
                out.d_col_values = torch.zeros_like(problem.col_values)
                if form.slopes:
                    last, into = len(form.statistics), out.d_col_values[: form.slopes]
                    self.sweep(last, known, form.slopes, into)
            if wanted.anchors or wanted.candidates:
                out.d_anchors = self.gradient(known)
        out.outputs.add_(problem.poison)
        return out

    def gradient(self, known: Tensor | None) -> Tensor:
        problem, x, metric = self.problem, self.x, self.problem.loss.metric
        d = torch.zeros_like(x)
        total = x.new_zeros(self.n) if metric.needs_totals else None
        for start in self.order():
            h = self.visit(start, len(self.form.statistics), known, None)
            self.left = None
            stop = start + h.shape[0]
            d[start:stop].addmm_(h, x[start:])
            d[start:].addmm_(h.t(), x[start:stop])
            if total is not None:
                scale = problem.row_scale
                over = torch.ones_like(total) if scale is None else scale.reciprocal()
                total[start:stop] += h @ over[start:]
                total[start:] += h.t() @ over[start:stop]
        metric.finish_(d, x, problem.row_scale, total)
        return d


def _outputs(problem: Problem) -> Tensor:
    """The outputs of a presweep's rows."""
    executors = (Symmetric(), Native(), Chunked())
    executor = next(e for e in executors if e.refuses(problem) is None)
    return executor.run(problem, Wanted()).outputs
