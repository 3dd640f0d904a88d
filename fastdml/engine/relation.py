"""Which pairs are positives, negatives, or neither. Never a matrix of all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import library
from .counting import row_counts
from .lazy import lazy
from .places import places

Masks = tuple[Tensor, Tensor]  # (positive, negative), bool [R, N]
Counts = tuple[Tensor, Tensor]  # of positives and negatives, int64 [M]
# Of anchor indices [R] and candidate indices [N]: masks, and weights of the positives if there are any.
Predicate = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


@dataclass
class ClassIndex:
    """Labels as dense class numbers, for the compiled executors. int32, on the labels' device."""

    # The four below, one after the other: a small batch feels every tensor. The first is read in groups,
    # which on CUDA should start on 16 bytes.
    packed: Tensor
    rows: int
    columns: int
    longest: int  # columns of the largest class, or a bound
    matched: int | Tensor  # how many anchors have a candidate of their label

    @lazy
    def col_class(self) -> Tensor:
        """[N]"""
        return self.packed[: self.columns]

    @lazy
    def row_class(self) -> Tensor:
        """[M], -1 where no candidate has the label."""
        return self.packed[self.columns : self.columns + self.rows]

    @lazy
    def start(self) -> Tensor:
        """[classes + 1 or more] into order."""
        return self.packed[self.rows + self.columns : -self.columns]

    @lazy
    def order(self) -> Tensor:
        """[N] columns by class, ascending within one."""
        return self.packed[-self.columns :]


class Relation:
    """Pairs of anchors (rows) and candidates (columns).

    own: which column is a row's own copy: None, no row has one; k >= 0, row i is column i + k; or int64
        [rows], -1 where there is none.
    """

    rows: int
    columns: int
    own: int | Tensor | None = None

    def masks(self, start: int, stop: int) -> Masks:
        """Positives and negatives of anchors [start, stop), their own copies like any other."""
        raise NotImplementedError

    def weights(self, start: int, stop: int) -> Tensor | None:
        """[R, N] weights of the positives of anchors [start, stop), >= 0; None: 1."""
        return None

    def own_columns(self, start: int, stop: int, device: torch.device) -> Tensor | None:
        """int64 [R] columns of the own copies of rows [start, stop), -1 where a row has none."""
        if self.own is None:
            return None
        if isinstance(self.own, Tensor):
            return self.own[start:stop]
        found = torch.arange(start + self.own, stop + self.own, device=device)
        return found.masked_fill_(found >= self.columns, -1)

    def own_pairs(self, start: int, stop: int, device: torch.device) -> Tensor | None:
        """bool [R, N] of the own pairs of rows [start, stop), or None where no row has one."""
        own = self.own_columns(start, stop, device)
        if own is None or self.columns == 0:
            return None
        at = torch.zeros(stop - start, self.columns, dtype=torch.bool, device=device)
        return at.scatter_(1, own.clamp(min=0)[:, None], (own >= 0)[:, None])

    def blocks(
        self, without_own: bool = True, at_once: int = 1 << 22
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """(first row, the one after the last, positives, negatives) of blocks of at most so many pairs; of no
        rows, as a rank may have, one block."""
        step = max(1, at_once // max(1, self.columns))
        for start in range(0, max(1, self.rows), step):
            stop = min(self.rows, start + step)
            positive, negative = self.masks(start, stop)
            own = self.own_pairs(start, stop, positive.device) if without_own else None
            if own is not None:
                positive, negative = positive & ~own, negative & ~own
            yield start, stop, positive, negative

    def counts(self, without_own: bool) -> Counts:
        """How many positives and negatives every row has; without_own: its own copy not among them."""
        positives, negatives = [], []
        for _, _, positive, negative in self.blocks(without_own):
            positives.append(row_counts(positive))
            negatives.append(row_counts(negative))
        return torch.cat(positives).long(), torch.cat(negatives).long()

    def _own_swapped(self, device: torch.device) -> int | Tensor | None:
        """Of candidates: which anchor is their own copy."""
        if self.own is None or (isinstance(self.own, int) and self.own == 0):
            return self.own
        own = self.own_columns(0, self.rows, device)
        assert own is not None
        return own_rows(own, self.columns)

    def swapped(self) -> Relation:
        """The same pairs with candidates as rows."""
        raise ValueError("indices_tuple: this loss needs labels")


class LabelRelation(Relation):
    """Equal labels are positives, different ones negatives."""

    def __init__(
        self, anchor_labels: Tensor, candidate_labels: Tensor, own: int | Tensor | None = None
    ) -> None:
        self.own = own
        self.anchor_labels = anchor_labels
        self.candidate_labels = candidate_labels
        self.rows = anchor_labels.shape[0]
        self.columns = candidate_labels.shape[0]

    def masks(self, start: int, stop: int) -> Masks:
        positive = self.anchor_labels[start:stop, None] == self.candidate_labels[None, :]
        return positive, ~positive

    def counts(self, without_own: bool) -> Counts:
        rows = self.anchor_labels.contiguous()
        traced = torch.compiler.is_compiling()
        if self.one_set and rows.is_cpu and not traced and library.load() is not None:
            # Class numbers are made anyway, and tell the sizes of classes.
            index = self.class_index
            same = index.start.diff().index_select(0, index.row_class).long()
        else:
            # Sorted labels instead of a table of them: no host synchronisation, and any values.
            found = self.candidate_labels.sort().values
            same = torch.searchsorted(found, rows, right=True) - torch.searchsorted(found, rows)
        if not without_own or self.own is None:
            return same, self.columns - same
        if self.one_set and isinstance(self.own, int) and self.own == 0:
            return same - 1, torch.rsub(same, self.columns)
        if self.columns == 0:
            return same, same
        own = self.own_columns(0, self.rows, rows.device)
        assert own is not None
        alike = (self.candidate_labels[own.clamp(min=0)] == rows) & (own >= 0)
        unlike = ~alike & (own >= 0)
        return same - alike.long(), self.columns - same - unlike.long()

    @property
    def one_set(self) -> bool:
        """Whether anchors and candidates are the same samples, as far as labels tell."""
        return self.anchor_labels is self.candidate_labels

    @property
    def matched(self) -> int | Tensor:
        """How many anchors have a candidate of their label: for proxies, the classes that are present."""
        if self.candidate_labels.device.type == "cpu" and library.load() is not None:
            return self.class_index.matched
        return (self.counts(without_own=False)[0] > 0).sum()

    def swapped(self) -> LabelRelation:
        own = self._own_swapped(self.candidate_labels.device)
        return LabelRelation(self.candidate_labels, self.anchor_labels, own)

    @lazy
    def class_index(self) -> ClassIndex:
        """Class numbers: by a hash table on the CPU, by a sort and without a wait elsewhere."""
        library.load()
        rows, columns = self.anchor_labels, self.candidate_labels
        if not columns.is_cpu:
            return sorted_class_index(rows, columns)
        packed, longest, matched = torch.ops.fastdml_native.class_index(rows, columns)
        return ClassIndex(packed, self.rows, self.columns, longest, matched)


def sorted_class_index(rows: Tensor, columns: Tensor) -> ClassIndex:
    """Class numbers in the order of the labels. How many there are stays on the device.

    So `start` has more entries than classes, all beyond them equal to the number of columns, and
    `longest` is a bound: the number of columns.
    """
    count = columns.shape[0]
    found, order = columns.sort(stable=True)
    fresh = torch.ones(count, dtype=torch.int32, device=columns.device)
    fresh[1:] = found[1:] != found[:-1]
    number = fresh.cumsum(0, dtype=torch.int32) - 1
    col_class = torch.empty_like(number).scatter_(0, order, number)
    ids = torch.arange(count + 1, dtype=torch.int32, device=columns.device)
    start = torch.searchsorted(number, ids, out_int32=True)
    row_class = col_class
    if rows is not columns:
        at = torch.searchsorted(found, rows).clamp_(max=count - 1)
        row_class = torch.where(found[at] == rows, number[at], -1)
    matched = (row_class >= 0).sum()
    packed = torch.cat([col_class, row_class, start, order.to(torch.int32)])
    return ClassIndex(packed, rows.shape[0], count, count, matched)


class TupleRelation(Relation):
    """Index tuples (a1, p, a2, n), as miners of other libraries return them. Repeats count once."""

    def __init__(
        self,
        indices: tuple[Tensor, ...],
        rows: int,
        columns: int,
        own: int | Tensor | None = None,
    ) -> None:
        self.own = own
        self.rows, self.columns = rows, columns
        self.indices = tuple(t.contiguous() for t in indices)
        self._by_rows: dict[tuple[bool, bool], tuple[Tensor, Tensor]] = {}

    @lazy
    def _positive(self) -> tuple[Tensor, Tensor, list[int]]:
        a1, p, _, _ = self.indices
        return _by_anchor(a1, p, self.rows)

    @lazy
    def _negative(self) -> tuple[Tensor, Tensor, list[int]]:
        _, _, a2, n = self.indices
        return _by_anchor(a2, n, self.rows)

    def masks(self, start: int, stop: int) -> Masks:
        return (
            _scatter(self._positive, start, stop, self.columns),
            _scatter(self._negative, start, stop, self.columns),
        )

    def by_rows(self, keep_own: bool, own: bool = True) -> tuple[Tensor, Tensor]:
        """On the CPU, by the compiled library: (int64 [2 M + 1] starts, int32 columns) of each row's distinct
        negatives, then of its positives. Its own copy is in neither, or, with keep_own, a positive; own:
        False: a pair like any other."""
        key = keep_own, own
        if key not in self._by_rows:
            copy = self.own_columns(0, self.rows, self.indices[0].device) if own else None
            self._by_rows[key] = torch.ops.fastdml_native.list_rows(
                *self.indices, self.rows, self.columns, copy, keep_own
            )
        return self._by_rows[key]

    def counts(self, without_own: bool) -> Counts:
        if self.indices[0].device.type != "cpu" or library.load() is None:
            return super().counts(without_own)
        count = self.by_rows(keep_own=False, own=without_own)[0].diff()
        return count[1::2], count[::2]

    def distinct(self) -> tuple[Tensor, ...]:
        """(a1, p, a2, n) of the listed pairs, each once, without those of rows and their own copies."""
        a1, p, a2, n = self.indices
        device = a1.device
        if (
            device.type == "cpu"
            and not torch.compiler.is_compiling()
            and library.load() is not None
        ):
            start, column = self.by_rows(keep_own=False)
            rows = torch.arange(start.shape[0] - 1, device=device)
            which = rows.repeat_interleave(start.diff())
            row, column, positive = which // 2, column.long(), which % 2 == 1
            return row[positive], column[positive], row[~positive], column[~positive]
        own = self.own_columns(0, self.rows, device)
        kept = (_first_of_each(i, j, self.columns, own) for i, j in ((a1, p), (a2, n)))
        positives, negatives = map(places, kept)
        return a1[positives], p[positives], a2[negatives], n[negatives]

    @lazy
    def disjoint(self) -> bool:
        """Whether no pair is both a positive and a negative."""
        # Of triplets, the distinct pairs are few.
        a1, p, a2, n = self.distinct()
        return not bool(
            torch.isin(a1 * self.columns + p, a2 * self.columns + n, assume_unique=True).any()
        )

    def swapped(self) -> TupleRelation:
        a1, p, a2, n = self.indices
        own = self._own_swapped(a1.device)
        return TupleRelation((p, a1, n, a2), self.columns, self.rows, own)


class PredicateRelation(Relation):
    """A user's function of (anchor indices [R], candidate indices [N]) -> (positive, negative), or with
    weights of the positives. A positive of weight 0 is none."""

    def __init__(
        self,
        predicate: Predicate,
        rows: int,
        columns: int,
        device: torch.device,
        own: int | Tensor | None = None,
    ) -> None:
        self.own = own
        self.predicate = predicate
        self.rows, self.columns = rows, columns
        self._index = torch.arange(max(rows, columns), device=device)
        self._weight: tuple[tuple[int, int], Tensor | None] | None = None  # of the latest block

    def masks(self, start: int, stop: int) -> Masks:
        positive, negative, weight = masks_of(
            self.predicate, self._index[start:stop], self._index[: self.columns]
        )
        self._weight = (start, stop), weight
        return positive, negative

    def weights(self, start: int, stop: int) -> Tensor | None:
        if self._weight is None or self._weight[0] != (start, stop):
            self.masks(start, stop)
        assert self._weight is not None
        return self._weight[1]


def _weights(weight: Tensor, positive: Tensor) -> Tensor:
    """Those of the positives, 0 elsewhere, whatever the function says there."""
    shape = tuple(positive.shape)
    message = f"indices_tuple: expected the function to return weights of at least 0 of shape {shape}, got "
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or tuple(weight.shape) != shape:
        known = isinstance(weight, Tensor)
        got = f"{weight.dtype} of shape {tuple(weight.shape)}" if known else repr(weight)
        raise ValueError(message + got)
    weight = weight.masked_fill(~positive, 0.0)
    if weight.device.type == "cpu" and not bool(((weight >= 0) & (weight < torch.inf)).all()):
        raise ValueError(message + "negative or infinite ones")
    return weight


def masks_of(
    predicate: Predicate, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a user's function says of rows [R] and columns [N]: positives, negatives, and weights of the
    positives, if any. ValueError unless these are two masks, or two and weights."""
    found = predicate(rows, columns)
    shape = (rows.shape[0], columns.shape[0])
    if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
        raise ValueError(
            "indices_tuple: expected the function to return two bool masks, of positives and of "
            f"negatives, or these and weights, got {type(found).__name__}"
        )
    for mask, name in zip(found, ("positive", "negative")):
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if not fits or tuple(mask.shape) != shape:
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else mask
            raise ValueError(
                f"indices_tuple: expected the function to return a bool {name} mask of shape "
                f"{shape}, got {got}"
            )
    if len(found) == 2:
        return found[0], found[1], None
    weight = _weights(found[2], found[0])
    return weight > 0, found[1], weight


def own_rows(own: Tensor, columns: int) -> Tensor:
    """int64 [columns] rows whose own copies they are, -1 for none; own: int64 [rows], the rows' copies.

    ValueError, on the CPU, where a column is the own copy of several rows, which a column can name one of.
    """
    found = own.new_full((columns + 1,), -1)
    # Rows without a copy write to one place beyond the last.
    at = torch.where(own < 0, columns, own)
    found = found.scatter_(0, at, torch.arange(own.shape[0], device=own.device))[:columns]
    readable = own.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and int((own >= 0).sum()) != int((found >= 0).sum()):
        raise ValueError(
            "own: expected each row of ref_emb as the own copy of one row of embeddings in this loss, got "
            "one that is the copy of several"
        )
    return found


def _first_of_each(rows: Tensor, columns: Tensor, size: int, own: Tensor | None) -> Tensor:
    """bool [T]: of listed pairs that are alike the first, and none of a row and its own copy, own [rows];
    size: how many columns there are."""
    found, order = (rows * size + columns).sort(stable=True)
    first = torch.ones_like(found, dtype=torch.bool)
    first[1:] = found[1:] != found[:-1]
    kept = torch.empty_like(first).scatter_(0, order, first)
    return kept if own is None else kept & (own[rows] != columns)


def _by_anchor(anchors: Tensor, others: Tensor, rows: int) -> tuple[Tensor, Tensor, list[int]]:
    order = anchors.argsort(stable=True)
    counts = torch.bincount(anchors, minlength=rows)
    return anchors[order], others[order], [0, *counts.cumsum(0).tolist()]


def _scatter(
    pairs: tuple[Tensor, Tensor, list[int]], start: int, stop: int, columns: int
) -> Tensor:
    anchors, others, bounds = pairs
    chosen = slice(bounds[start], bounds[stop])
    mask = torch.zeros(stop - start, columns, dtype=torch.bool, device=anchors.device)
    mask[anchors[chosen] - start, others[chosen]] = True
    return mask
