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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import schedule
from ..lazy import lazy
from ..loss import RowLoss
from ..problem import Problem, in_order
from ..registry import registered
from ..relation import LabelRelation, TupleRelation
from ..similarity import DISTANCE, PRODUCT, Metric
from ..trapezoids import Block, all_pairs, among_positives, share_among_positives
from ..widths import Radial, grow, slices_of, spread
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
# Sweeps of all pairs for statistics, with those among positives, that are as good as one.
_ONE_SWEEP = 1.5
# Bytes a pair for making the masks of index tuples.
_MASKS = 8


class Symmetric:
    name = "symmetric"
    by_blocks = False

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
        if not listed and not self._pays(problem, found[0]):
            return False
        if registered(problem.loss) and not found[0].ready:
            return False  # nobody waits for a compiler who has not asked for it
        if self.refuses(problem) is not None:
            return False
        return not listed or Native().refuses(problem) is not None  # rows read no more than is listed

    def _pays(self, problem: Problem, form: Any) -> bool:
        if problem.relation.rows <= _SMALL * len(form.statistics):
            return False
        narrow = form.among_positives.count(True)
        sweeps = form.sweeps + (narrow * _share(problem) if narrow else 0.0)
        matrices = 1.0  # of products for one visit of all pairs
        if problem.teacher_problem is not None:
            matrices += problem.teacher_problem.anchors.shape[1] / max(1, problem.anchors.shape[1])
        return costs_less(problem.loss, sweeps, problem.symmetric, matrices)

    def plan(self, problem: Problem) -> str:
        form, _ = _form(problem)
        sweeps, narrow = form.sweeps, form.among_positives.count(True)
        apart = narrow and _together(problem) is not None
        among = f" and {narrow} among positives{', put together first' * apart}" if narrow else ""
        return (
            f"each pair once for both its ends: {sweeps} sweep{'s' * (sweeps != 1)} for statistics{among}, "
            f"then the weights; {_rows(problem)} rows at a time"
        )

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        kept = problem.__dict__.get("symmetric_run")
        if kept is None:  # a loss of several outputs runs twice
            problem.condition()
            schedule.presweep(problem, _outputs)
            order = _together(problem)
            run = Run([problem if order is None else problem.reordered(order)])
            kept = problem.__dict__["symmetric_run"] = run, order
        run, order = kept
        if order is None:
            return run.run(wanted)[0]  # type: ignore[no-any-return]
        if problem.loss.combined and problem.row_weight is not None:  # found since the first visit
            run.each[-1].problem.row_weight = in_order(problem.row_weight, order)
        return run.run(wanted)[0].reordered(order.argsort())  # type: ignore[no-any-return]

    def runs_together(self, problems: Sequence[Problem]) -> bool:
        """Whether `Run` takes problems of the leading dimensions of one set at once."""
        if problems[-1].loss.presweep() is not None or any(self.refuses(p) for p in problems):
            return False
        return len({_form(p)[0].id for p in problems}) == 1


def costs_less(loss: RowLoss, sweeps: float, symmetric: bool, matrices: float = 1.0) -> bool:
    """Whether products cost less than those of rows, of which arithmetic follows suit. symmetric: the
    weights are; matrices: of products for one visit of all pairs."""
    sweeps += loss.presweep() is not None
    if sweeps > _ONE_SWEEP and not loss.two_sweeps_pay:
        return False
    visits = 2 if loss.combined else 1
    rows = visits * matrices + (1 if symmetric else 2)
    return _HALF * matrices * (sweeps + 1) + 2 * _HALF < rows


def _labelled(problem: Problem) -> bool:
    """Whether classes say which blocks may be left out: not of listed pairs; those of a teacher are whole."""
    return isinstance(problem.relation, LabelRelation) and problem.teacher_problem is None


def _share(problem: Problem) -> float:
    """Of all pairs, how many a pass among positives visits once classes lie together."""
    if not _labelled(problem):
        return 1.0
    return share_among_positives(problem.relation.rows, _rows(problem), problem.classes)


def _together(problem: Problem) -> Tensor | None:
    """int64 [N] samples in an order in which classes lie together; None where they do, or where no pass is
    among positives alone."""
    form, _ = _form(problem)
    if not _labelled(problem) or True not in form.among_positives or problem.whole is not None:
        return None
    classes = problem.classes.col_class
    changes = int((classes.diff() != 0).sum())
    return None if changes == int(classes.max()) else classes.argsort(stable=True)


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


def _rows(problem: Problem, widths: int = 1) -> int:
    """Rows of a trapezoid: within the workspace, which holds one of every width."""
    n = problem.relation.rows
    size = torch.finfo(problem.statistic).bits // 8
    held = size * (widths if problem.teacher is None else widths + 1)
    if not isinstance(problem.relation, LabelRelation):
        held += _MASKS
    return min(_ROWS, rows_within(block_limit("cpu", n, held, True), n, held, n))


class _Ends:
    """Statistics, weights and results of a problem whose pairs are visited once for both their ends."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.form, members = _form(problem)
        self.members = list(members)
        self.x = problem.anchors
        self.n = self.x.shape[0]
        self.pieces = torch.get_num_threads()
        self.swapped: TupleRelation | None = None
        self.counts: Tensor | None = None
        if isinstance(problem.relation, TupleRelation):
            self.swapped = problem.relation.swapped()
            positives, negatives = problem.relation.counts(without_own=True)
            self.counts = (positives + negatives).to(self.x.dtype)
        self.statistics = self.empty(sum(self.form.statistics), self.n)

    def empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape)

    @property
    def several(self) -> bool:
        return self.problem.loss.outputs > 1 and not self.problem.loss.counted

    def visit(
        self,
        s: Tensor,
        teacher: Tensor | None,
        start: int,
        sweep: int,
        known: Tensor | None,
        partial: Tensor | None,
    ) -> None:
        """Folds the products of blocks into partial, or makes weights of those of one, in place."""
        problem, metric = self.problem, self.problem.loss.metric
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

    def codes(self, start: int, s: Tensor) -> Tensor | None:
        """uint8, as a trapezoid: what listed pairs are (csrc/cpu/stream.h: Code)."""
        if self.swapped is None:
            return None
        found = torch.zeros_like(s, dtype=torch.uint8)
        bit = 1
        for relation in (self.problem.relation, self.swapped):
            for mask in relation.masks(start, start + s.shape[0]):
                found += mask[:, start:] * torch.tensor(bit, dtype=torch.uint8, device=s.device)
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

    def partial(self, sweep: int, count: int) -> Tensor:
        """What threads fold a pass's pairs into, as before any pair."""
        found = self.empty(self.pieces, count, self.n)
        torch.ops.fastdml_native.stream_gather_(self.form.id, sweep, found, None)
        return found

    def result(self, wanted: Wanted) -> Result:
        """Outputs, and derivatives by what only rows read."""
        problem = self.problem
        out = Result.of(problem, wanted)
        self.rows(-1, loss=out.outputs, d_scalars=out.d_scalars, d_row_values=out.d_row_values)
        if not self.several:
            for d in (out.d_scalars, out.d_row_values):
                if d is not None:
                    d *= problem.weight
                    if problem.row_weight is not None:
                        d *= problem.row_weight.reshape(-1, 1)
        out.finish(problem)
        return out


class _Products:
    """Blocks of products of one set, of the leading dimensions that its problems see, widest last: those of
    a width are those of the width before and of the slice between."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.widest = problems[-1]
        self.x = self.widest.anchors
        self.n = self.x.shape[0]
        self.slices = slices_of(problems)
        self.size = _rows(self.widest, len(problems))
        self.blocks = all_pairs(self.n, self.size)
        self.held = self._buffer("similarity")
        self.copies = [self._buffer(f"similarity of width {k}") for k in range(len(problems) - 1)]
        self.teacher = None if self.widest.teacher is None else self._buffer("teacher")
        self.left: tuple[Block, Tensor, Tensor | None] | None = None  # what the workspace holds

    @lazy
    def among_positives(self) -> list[Block]:
        classes = self.widest.classes if _labelled(self.widest) else None
        return among_positives(self.n, self.size, classes)

    def _buffer(self, name: str) -> Tensor:
        return buffer(name, self.size * self.n, self.x)

    def _part(self, held: Tensor, block: Block) -> Tensor:
        return held[: math.prod(block.shape)].view(block.shape)

    def order(self) -> list[Block]:
        """The blocks of all pairs, from the one that the workspace holds."""
        backwards = self.left is not None and self.left[0] == self.blocks[-1]
        return self.blocks[::-1] if backwards else self.blocks

    def at(self, block: Block) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Of every width its number and the products of a block, which are those of the next then, and what
        its pairs are to the teacher."""
        if self.left is not None and self.left[0] == block and not self.copies:
            yield 0, *self.left[1:]
            return
        self.left = None
        s, t = self._part(self.held, block), None
        if self.teacher is not None:
            assert self.widest.teacher_problem is not None
            t = self._part(self.teacher, block)
            self.widest.teacher_problem.similarities(block.start, block.stop, t, block.start)
        rows, columns = block.of(self.x)
        for k, part in enumerate(self.slices):
            grow(s, rows, columns, part)
            yield k, s, t
        self.left = block, s, t

    def own(self, k: int, s: Tensor, block: Block) -> Tensor:
        """The products of width k, to be made weights of: a copy, where a wider one needs them."""
        return self._part(self.copies[k], block).copy_(s) if k < len(self.copies) else s

    def spread(self, d: Tensor, block: Block, weights: Sequence[Tensor]) -> None:
        """Adds a block's products of weights, of its rows and of its columns, which are rows too."""
        rows, columns = block.rows, block.columns
        spread(weights, self.slices, self.x[rows], self.x[columns], d[rows], d[columns])


class Run:
    """Problems of the leading dimensions of one set, widest last, all of one form. (Derivatives by embeddings
    are those of all, in the widest's result.)"""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.each = [_Ends(p) for p in problems]
        self.products = _Products(problems)
        self.form = self.each[-1].form
        self.swept = 0  # passes whose statistics are known

    def sweep(
        self, k: int, known: Sequence[Tensor | None], count: int, into: Sequence[Tensor]
    ) -> None:
        """A pass over all pairs, or over blocks of positives, whose statistics [count, N] go into tensors,
        one a problem."""
        partials = [ends.partial(k, count) for ends in self.each]
        narrow = k < len(self.form.among_positives) and self.form.among_positives[k]
        for block in self.products.among_positives if narrow else self.products.order():
            for i, s, t in self.products.at(block):
                self.each[i].visit(s, t, block.start, k, known[i], partials[i])
        for ends, partial, found in zip(self.each, partials, into, strict=True):
            torch.ops.fastdml_native.stream_gather_(ends.form.id, k, partial, found)

    def known(self, sweep: int) -> list[Tensor | None]:
        return [ends.known(sweep) for ends in self.each]

    def gather(self, passes: int) -> None:
        counts = self.form.statistics
        for k in range(self.swept, passes):
            before = sum(counts[:k])
            into = [ends.statistics[before : before + counts[k]] for ends in self.each]
            self.sweep(k, self.known(k), counts[k], into)
        self.swept = max(self.swept, passes)

    def run(self, wanted: Wanted) -> list[Result]:
        form = self.form
        if not form.settled:
            self.swept = 0
        passes = len(form.statistics)
        self.gather(passes if wanted else form.needed)
        results = [ends.result(wanted) for ends in self.each]
        if not wanted:
            return results
        known = self.known(passes)
        slopes = [r.d_col_values[: form.slopes] for r in results if r.d_col_values is not None]
        if form.slopes and slopes:
            self.sweep(passes, known, form.slopes, slopes)
        if wanted.anchors or wanted.candidates:
            results[-1].d_anchors = self.gradient(known)
        return results

    def gradient(self, known: Sequence[Tensor | None]) -> Tensor:
        problem, x = self.products.widest, self.products.x
        metric, n = problem.loss.metric, x.shape[0]
        d = torch.zeros_like(x)
        total = x.new_zeros(n) if metric.needs_totals else None
        several = len(self.each) > 1
        radial = None
        if several and metric.normalized:
            radial = Radial([ends.problem for ends in self.each], rows=True, columns=True)
        for block in self.products.order():
            weights, start = [], block.start
            for k, s, t in self.products.at(block):
                h = self.products.own(k, s, block)
                self.each[k].visit(h, t, start, len(self.form.statistics), known[k], None)
                if radial is not None and h is not s:
                    radial.add(k, start, h, s, start)
                weights.append(h)
            self.products.left = None
            if total is not None:
                scale, h = problem.row_scale, weights[-1]
                over = torch.ones_like(total) if scale is None else scale.reciprocal()
                total[block.rows] += h @ over[block.columns]
                total[block.columns] += h.t() @ over[block.rows]
            self.products.spread(d, block, weights)
        if radial is not None:
            radial.take_out(d, None)
        if not several:
            metric.finish_(d, x, problem.row_scale, total)
        return d


def _outputs(problem: Problem) -> Tensor:
    """The outputs of a presweep's rows."""
    executors = (Symmetric(), Native(), Chunked())
    executor = next(e for e in executors if e.refuses(problem) is None)
    return executor.run(problem, Wanted()).outputs
