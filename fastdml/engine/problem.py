"""A call as an executor sees it: its tensors detached and in the types of products and statistics."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from . import conditioning
from .call import Call, Whole, statistic_type
from .lazy import lazy
from .loss import RowLoss, Rows
from .products import multiply, widens
from .registry import interned
from .relation import ClassIndex, LabelRelation, PredicateRelation, Relation, TupleRelation
from .similarity import PRODUCT


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of similarities in the workspace, and of the teacher's: rows [start, start + size)."""

    start: int
    size: int  # the last block may have fewer
    s: Tensor
    teacher: Tensor | None
    products: bool = False  # s holds products still


# Embeddings stored by columns are copied by rows up to this size, and used as they are beyond it.
_COPIED = 16 << 20


@dataclasses.dataclass(eq=False)
class Problem:
    loss: RowLoss
    anchors: Tensor  # [M, D]
    candidates: Tensor  # [N, D]; the same object as anchors where there is one set
    relation: Relation
    statistic: torch.dtype  # of losses, weights and accumulated gradients
    row_weight: Tensor | None = None  # [M] or [M, outputs] weights in the result, or None for 1
    weight: float = 1.0  # times this
    teacher: tuple[Tensor, Tensor] | None = None
    scalars: Tensor | None = None  # [n] of the call
    row_values: Tensor | None = None  # [M, k]
    col_values: Tensor | None = None  # [k, N]
    device: torch.device | None = None  # where it would run; None: where the anchors are
    presweep_done: bool = False  # col_values hold what the loss's presweep found
    computed: Tensor | None = None  # what `computed_scalars` are, where these rows do not tell
    whole: Whole | None = None  # all rows, of which these are a share
    last_block: Block | None = None  # what a visit of the matrix has in the workspace, for the next
    # Of a presweep: whether the problem that it serves visits the same matrix.
    serves_same_matrix: bool | None = None
    # Whether embeddings have been made fit for products, and by which powers of two [M], [N] their rows were
    # multiplied for that.
    conditioned: bool = False
    anchor_factor: Tensor | None = None
    candidate_factor: Tensor | None = None
    # Inverse norms of sets that stayed as they are, NaN where that does not do.
    unfit: tuple[Tensor, ...] = ()

    @staticmethod
    def of(
        call: Call, device: torch.device | None = None, like: Problem | None = None
    ) -> Problem:
        """The problem of a call; device: only to see what would run there, with embeddings as they are.

        like: a problem of the same pairs, whose class numbers serve this one too; embeddings as they are.
        """
        anchors, candidates = call.anchors, call.candidates
        statistic = statistic_type(anchors, candidates)
        # Products in the input's type on NVIDIA's GPUs, in the type of the statistics elsewhere: on the CPU
        # half-precision products are neither faster nor accurate.
        mixed = candidates is not None and candidates.dtype != anchors.dtype
        compute = anchors.dtype if widens(anchors.device) and not mixed else statistic

        def values(x: Tensor | None) -> Tensor | None:
            return None if x is None else in_type(x.detach(), statistic).contiguous()

        as_it_is = device is not None or like is not None

        def plain(x: Tensor) -> Tensor:
            return x.detach() if as_it_is else _dense(in_type(x.detach(), compute))

        # A classifier's weight [D, C] comes in as its transpose: a million classes are not copied.
        a = plain(anchors if as_it_is else anchors.contiguous())
        c = a if candidates is None else plain(candidates)
        exact = bool(call.teacher) and call.loss.teacher_from_differences
        theirs = [t.detach() if exact else plain(t.contiguous()) for t in call.teacher]
        return Problem(
            loss=interned(call.loss),
            anchors=a,
            candidates=c,
            relation=relation_of(call) if like is None else like.relation,
            statistic=statistic,
            row_weight=values(call.row_weight),
            teacher=(theirs[0], theirs[-1]) if theirs else None,
            scalars=values(call.scalars),
            row_values=values(call.row_values),
            col_values=joined(values(call.col_values), values(call.swept)),
            presweep_done=call.swept is not None,
            computed=values(call.computed),
            whole=call.whole,
            device=device,
        )

    def condition(self) -> None:
        """Makes the embeddings fit for products (`conditioning`), the teacher's too, once. Derivatives by
        them become those by the given ones through `unconditioned`."""
        if self.conditioned:
            return
        self.conditioned = True
        metric = self.loss.metric
        if metric.in_torch:
            pass
        elif metric.normalized or metric.clipped:
            self._bring_into_range()
        elif metric.kind != PRODUCT and not metric.from_differences:
            origin = conditioning.centre(self.anchors, self.candidates)
            if origin is not None:
                a, c = self.anchors, self.candidates
                self.anchors = a - origin
                self.candidates = self.anchors if c is a else c - origin
        elif not metric.from_differences:
            conditioning.refuse_products(self.anchors, self.candidates)
        if self.teacher_problem is not None:
            self.teacher_problem.condition()

    def _bring_into_range(self) -> None:
        metric, one_set = self.loss.metric, self.one_set
        scales = [] if metric.raw_anchors else [self.row_scale]
        scales += [] if one_set else [self.col_scale]
        if self.device_type == "cpu" and not any(
            s is not None and conditioning.outside(s, self.anchors) for s in scales
        ):
            return

        def fit(x: Tensor) -> tuple[Tensor, Tensor | None]:
            return (
                conditioning.in_range(x, not metric.clipped) if conditioning.fits(x) else (x, None)
            )

        if not metric.raw_anchors:
            self.anchors, self.anchor_factor = fit(self.anchors)
        if one_set:
            self.candidates, self.candidate_factor = self.anchors, self.anchor_factor
        else:
            self.candidates, self.candidate_factor = fit(self.candidates)
        if self.anchor_factor is not None or self.candidate_factor is not None:
            for name in ("row_scale", "col_scale", "row_square", "col_square"):
                self.__dict__.pop(name, None)
        for name, x in (("row_scale", self.anchors), ("col_scale", self.candidates)):
            scale = getattr(self, name)
            if scale is not None and not conditioning.fits(x):
                self.__dict__[name] = conditioning.poisoned(scale, x)
                self.unfit = (*self.unfit, self.__dict__[name])

    def unconditioned(self, d_anchors: Tensor | None, d_candidates: Tensor | None) -> None:
        """Turns derivatives by the conditioned embeddings into those by the given ones, in place."""
        for d, factor in ((d_anchors, self.anchor_factor), (d_candidates, self.candidate_factor)):
            if d is not None and factor is not None:
                d.mul_(factor[:, None])

    @lazy
    def where(self) -> torch.device:
        return self.device or self.anchors.device

    @lazy
    def device_type(self) -> str:
        return self.where.type

    @property
    def one_set(self) -> bool:
        # What is another vector as an anchor than as a candidate is two sets, a teacher's samples too.
        return self.anchors is self.candidates and not self.loss.metric.raw_anchors

    @property
    def symmetric(self) -> bool:
        """Whether the matrix of weights is."""
        # Weights of rows that come from `combine` treat rows alike, if the loss says so; those that a
        # caller gives need not, nor need the pairs of a list.
        even = self.row_weight is None or self.loss.combined
        related = isinstance(self.relation, LabelRelation) and self.relation.one_set
        return self.one_set and self.loss.symmetric and even and related

    @property
    def revisited(self) -> bool:
        """Whether the matrix is visited twice, row by row."""
        if self.serves_same_matrix is not None:
            return self.serves_same_matrix
        return self.loss.combines_all or (self.one_set and self.loss.before is not None)

    @property
    def excludes_own(self) -> bool:
        """Whether own copies are taken out of the rows."""
        return _excludes_own(self.loss, self.relation)

    @property
    def own_offset(self) -> int:
        """Row i's own copy, which is taken out, is column i + this; -1: see `own_index`."""
        own = self.relation.own
        return own if isinstance(own, int) and self.excludes_own else -1

    @lazy
    def own_index(self) -> Tensor | None:
        """int32 [M] columns of own copies that are taken out, -1 where a row has none; None: `own_offset`."""
        own = self.relation.own
        return own.to(torch.int32) if isinstance(own, Tensor) and self.excludes_own else None

    @lazy
    def row_scale(self) -> Tensor | None:
        return self.loss.metric.scale(self.anchors, self.statistic, anchors=True)

    @lazy
    def col_scale(self) -> Tensor | None:
        if self.one_set:
            return self.row_scale
        return self.loss.metric.scale(self.candidates, self.statistic)

    @lazy
    def row_square(self) -> Tensor | None:
        return self.loss.metric.square(self.anchors, self.row_scale, self.statistic)

    @lazy
    def col_square(self) -> Tensor | None:
        if self.one_set:
            return self.row_square
        return self.loss.metric.square(self.candidates, self.col_scale, self.statistic)

    @lazy
    def poison(self) -> Tensor:
        """0, or NaN where an embedding, of a teacher too, holds NaN or infinity, or is too long.

        Added to the outputs of every executor: minima, comparisons and hinges would lose a NaN, and a
        network that has diverged would seem to have a loss of 0.
        """
        parts = self._own_poison
        if self.teacher_problem is not None:
            parts = parts + self.teacher_problem._own_poison
        poison = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
        self._refuse_long_rows(poison)
        return poison

    def _refuse_long_rows(self, poison: Tensor) -> None:
        """ValueError where it is the squared length of a finite embedding that is poison, on the CPU."""
        if poison.device.type != "cpu" or torch.compiler.is_compiling() or not math.isnan(float(poison)):
            return
        for problem in (self, self.teacher_problem):
            if problem is None or not all(bool(x.isfinite().all()) for x in problem._sets):
                continue
            conditioning.refuse_distances(problem._raw_squares)

    @property
    def _sets(self) -> list[Tensor]:
        return [self.anchors] if self.one_set else [self.anchors, self.candidates]

    @property
    def _raw_squares(self) -> list[Tensor]:
        """Squared lengths of which those of distances are made, where they may overflow."""
        metric = self.loss.metric
        # Those of rows that are brought into the ball tell of nothing that was outside.
        bounded = metric.normalized or metric.clipped
        if metric.kind == PRODUCT or bounded or metric.from_differences or metric.in_torch:
            return []
        squares = [self.row_square] if self.one_set else [self.row_square, self.col_square]
        return [q for q in squares if q is not None]

    @property
    def _own_poison(self) -> list[Tensor]:
        double = self.anchors.dtype == torch.float64
        kind = torch.float64 if double else self.statistic
        # Squared lengths tell of their rows.
        parts = [x.sum(dtype=kind) for x in (*(self._raw_squares or self._sets), *self.unfit)]
        return [part.to(self.statistic) * 0 for part in parts]

    @lazy
    def epsilon(self) -> float:
        return self.loss.distance_epsilon(self.anchors.shape[1])

    @lazy
    def all_scalars(self) -> Tensor | None:
        """Scalars of the call, then those the description computes from labels and counts."""
        theirs = self.computed
        if theirs is None:
            theirs = computed_scalars(self.loss, self.relation, self.anchors.device, self.statistic)
        return joined(self.scalars, theirs)

    @lazy
    def teacher_problem(self) -> Problem | None:
        """The teacher's pairs as a problem of their own: for its scales and norms."""
        if self.teacher is None:
            return None
        a, c = self.teacher
        # No loss, and so no `distance_epsilon`, which is for distances that are differentiated.
        described = RowLoss(similarity=self.loss.teacher_similarity or self.loss.similarity)
        return Problem(described, a, c, self.relation, self.statistic)

    def reordered(self, order: Tensor) -> Problem:
        """The samples of a conditioned problem of one set with labels, int64 [M] of them in turn."""
        assert self.one_set and isinstance(self.relation, LabelRelation)

        def taken(x: Tensor) -> Tensor:
            return x.index_select(0, order)

        def maybe(x: Tensor | None) -> Tensor | None:
            return None if x is None else in_order(x, order)

        anchors, labels = taken(self.anchors), taken(self.relation.anchor_labels)
        made = dataclasses.replace(
            self,
            anchors=anchors,
            candidates=anchors,
            relation=LabelRelation(labels, labels, self.relation.own),
            row_weight=maybe(self.row_weight),
            row_values=maybe(self.row_values),
            col_values=None if self.col_values is None else self.col_values.index_select(1, order),
            last_block=None,
            unfit=tuple(map(taken, self.unfit)),
        )
        if "row_scale" in self.__dict__:
            made.__dict__["row_scale"] = maybe(self.row_scale)
        return made

    def swapped(self, loss: RowLoss) -> Problem:
        """Candidates against anchors."""
        if self.loss.metric.raw_anchors:
            raise ValueError(
                f"similarity: {self.loss.similarity!r} treats samples and candidates differently, "
                f"which {self.loss.name!r} cannot; expected another one"
            )
        return Problem(
            loss,
            self.candidates,
            self.anchors,
            self.relation.swapped(),
            self.statistic,
            scalars=self.scalars,
            device=self.device,
            serves_same_matrix=self.one_set,
            conditioned=self.conditioned,
        )

    def embeddings_of(self, start: int, rows: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Those of a block's rows and of its columns, for the distances of near pairs, on the CPU."""
        if self.loss.metric.kind == PRODUCT or self.device_type != "cpu":
            return None, None
        whole = rows == self.anchors.shape[0]  # a small batch feels every slice
        return self.anchors if whole else self.anchors[start : start + rows], self.candidates

    def similarities(
        self, start: int, stop: int, out: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """[R, N - first] what the pairs of rows [start, stop) and columns from `first` on are, in `out`; for
        what no functor sees."""
        self.condition()
        a, c, metric = self.anchors[start:stop], self.candidates[first:], self.loss.metric
        if metric.in_torch:
            return metric.dense(a, c, self.epsilon)
        if out is None:
            out = torch.empty(a.shape[0], c.shape[0], dtype=self.statistic, device=a.device)
        if metric.from_differences:
            return metric.differences(a, c, out)
        near = metric.kind != PRODUCT and self.device_type == "cpu"
        return metric.apply_(
            multiply(a, c.t(), out),
            None if self.row_scale is None else self.row_scale[start:stop],
            None if self.col_scale is None else self.col_scale[first:],
            None if self.row_square is None else self.row_square[start:stop],
            None if self.col_square is None else self.col_square[first:],
            self.epsilon,
            *((a, c) if near else ()),
        )

    @lazy
    def classes(self) -> ClassIndex:
        assert isinstance(self.relation, LabelRelation)
        return self.relation.class_index

    @lazy
    def longest(self) -> int:
        """Columns of the largest class, or a bound: what compiled rows have room for. Rows that are taken
        together on the CPU keep a number of each of their pairs, and so need as much as a longer class."""
        stacked = self.loss.rows_together if self.device_type == "cpu" else 1
        if stacked == 1 or self.loss.grouped:  # `combine` reads those together, not the rows
            return self.classes.longest
        # Of 32 numbers a column of a class (csrc/cpu/block.h: arena_size); the last vector may be half empty.
        return max(self.classes.longest, -(-stacked * (self.relation.columns + 16) // 32))

    def rows(self, s: Tensor, start: int, stop: int, teacher: Tensor | None = None) -> Rows:
        """The block [start, stop) as the spec sees it; s is [stop - start, N]."""
        positive, negative = self.relation.masks(start, stop)
        weight = self.relation.weights(start, stop)
        if weight is not None and not self.loss.graded:
            raise ValueError(
                f"indices_tuple: {self.loss.name!r} knows no weights of positives; expected a function that "
                "returns masks alone"
            )
        own = self.relation.own_pairs(start, stop, s.device)
        pair = None
        if own is not None and self.excludes_own:
            pair = ~own
            positive, negative = positive & pair, negative & pair
        elif own is not None and not isinstance(self.relation, LabelRelation):
            # Labels say so already; a list or a function need not name it.
            positive, negative = positive | own, negative & ~own
            weight = None if weight is None else weight.masked_fill(own, 1.0)
        return Rows(
            s,
            positive,
            negative,
            pair,
            teacher,
            self.all_scalars,
            None if self.row_values is None else self.row_values[start:stop],
            self.col_values,
            weight=weight,
            first=start,
        )


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """What rows have, [M, ...], of int64 [M] of them in turn; or one row's, that stands for all."""
    return x if x.shape[0] == 1 else x.index_select(0, order)


def in_type(x: Tensor, kind: torch.dtype) -> Tensor:
    """x.to(kind), which takes its time even where x is of that type."""
    return x if x.dtype == kind else x.to(kind)


def _dense(x: Tensor) -> Tensor:
    """x without gaps: by rows, or, where a copy would cost memory, by columns if it comes so."""
    if x.shape[1] != 1 and x.is_contiguous():
        return x
    if x.shape[1] == 1:  # counts as contiguous with any stride of its second dimension
        return x[:, 0].contiguous()[:, None]
    large = x.numel() * x.element_size() > _COPIED
    return x if large and x.t().is_contiguous() else x.contiguous()


def relation_of(call: Call) -> Relation:
    """What the pairs of a call are."""
    one_set = call.candidates is None
    rows = call.anchors.shape[0]
    columns = rows if call.candidates is None else call.candidates.shape[0]
    own = 0 if one_set else call.own
    if call.pairs:
        return TupleRelation(tuple(call.pairs), rows, columns, own)
    if call.predicate is not None:
        return PredicateRelation(call.predicate, rows, columns, call.anchors.device, own)
    assert call.anchor_labels is not None
    labels = call.anchor_labels.contiguous()
    theirs = labels if call.candidate_labels is None else call.candidate_labels.contiguous()
    return LabelRelation(labels, theirs, own)


def computed_scalars(
    loss: RowLoss, relation: Relation, device: torch.device, kind: torch.dtype
) -> Tensor | None:
    """Values of a call that the description computes from labels and counts, in this type; None: none."""
    of_labels = of_counts = None
    if isinstance(relation, LabelRelation):
        of_labels = _statistics(loss.label_scalars(relation), device, kind)
    if type(loss).count_scalars is not RowLoss.count_scalars:
        counts = relation.counts(_excludes_own(loss, relation))
        of_counts = _statistics(loss.count_scalars(*counts), device, kind)
    return joined(of_labels, of_counts)


def joined(some: Tensor | None, others: Tensor | None) -> Tensor | None:
    """Values of the call, or of its columns, and further ones after them."""
    if some is None or others is None:
        return others if some is None else some
    return torch.cat([some, others])


def _statistics(
    values: Tensor | list[float] | None, device: torch.device, kind: torch.dtype
) -> Tensor | None:
    if values is None:
        return None
    if not isinstance(values, list):
        return values.to(kind)
    if device.type == "cpu":
        return torch.tensor(values, dtype=kind, device=device)
    # Filled on the device: a copy from the host would not be captured in a CUDA graph.
    return torch.cat([torch.full((1,), value, dtype=kind, device=device) for value in values])


def _excludes_own(loss: RowLoss, relation: Relation) -> bool:
    return relation.own is not None and loss.self_pair == "exclude"
