"""Which pairs are positives, negatives, or neither. Never a matrix of all pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import library
from .lazy import lazy

Masks = tuple[Tensor, Tensor]  # (positive, negative), bool [R, N]
Counts = tuple[Tensor, Tensor]  # of positives and negatives, int64 [M]
Predicate = Callable[[Tensor, Tensor], Masks]  # of anchor indices [R] and candidate indices [N]


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
    """Pairs of anchors (rows) and candidates (columns)."""

    rows: int
    columns: int

    def masks(self, start: int, stop: int) -> Masks:
        """Positives and negatives of anchors [start, stop), the self pair not yet taken out."""
        raise NotImplementedError

    def counts(self, excludes_self: bool) -> Counts:
        """How many positives and negatives every row has."""
        positives, negatives = [], []
        step = max(1, (1 << 22) // max(1, self.columns))
        for start in range(0, self.rows, step):
            stop = min(self.rows, start + step)
            positive, negative = self.masks(start, stop)
            if excludes_self:
                index = torch.arange(self.columns, device=positive.device)
                other = index[start:stop, None] != index
                positive, negative = positive & other, negative & other
            positives.append(positive.sum(1))
            negatives.append(negative.sum(1))
        return torch.cat(positives), torch.cat(negatives)

    def swapped(self) -> Relation:
        """The same pairs with candidates as rows."""
        raise ValueError("indices_tuple: this loss needs labels")


class LabelRelation(Relation):
    """Equal labels are positives, different ones negatives."""

    def __init__(self, anchor_labels: Tensor, candidate_labels: Tensor) -> None:
        self.anchor_labels = anchor_labels
        self.candidate_labels = candidate_labels
        self.rows = anchor_labels.shape[0]
        self.columns = candidate_labels.shape[0]

    def masks(self, start: int, stop: int) -> Masks:
        positive = self.anchor_labels[start:stop, None] == self.candidate_labels[None, :]
        return positive, ~positive

    def counts(self, excludes_self: bool) -> Counts:
        # Sorted labels instead of a table of them: no host synchronisation, and any values.
        found = self.candidate_labels.sort().values
        rows = self.anchor_labels.contiguous()
        same = torch.searchsorted(found, rows, right=True) - torch.searchsorted(found, rows)
        return same - int(excludes_self), self.columns - same

    @property
    def one_set(self) -> bool:
        """Whether anchors and candidates are the same samples, as far as labels tell."""
        return self.anchor_labels is self.candidate_labels

    @property
    def matched(self) -> int | Tensor:
        """How many anchors have a candidate of their label: for proxies, the classes that are present."""
        if self.candidate_labels.device.type == "cpu" and library.load() is not None:
            return self.class_index.matched
        return (self.counts(excludes_self=False)[0] > 0).sum()

    def swapped(self) -> LabelRelation:
        return LabelRelation(self.candidate_labels, self.anchor_labels)

    @lazy
    def class_index(self) -> ClassIndex:
        """Class numbers: by a hash table on the CPU, by a sort and without a wait elsewhere."""
        library.load()
        rows, columns = self.anchor_labels, self.candidate_labels
        if columns.device.type != "cpu":
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

    def __init__(self, indices: tuple[Tensor, ...], rows: int, columns: int) -> None:
        a1, p, a2, n = indices
        self.rows, self.columns = rows, columns
        self._positive = _by_anchor(a1, p, rows)
        self._negative = _by_anchor(a2, n, rows)

    def masks(self, start: int, stop: int) -> Masks:
        return (
            _scatter(self._positive, start, stop, self.columns),
            _scatter(self._negative, start, stop, self.columns),
        )


class PredicateRelation(Relation):
    """A user's function of (anchor indices [R], candidate indices [N]) -> (positive, negative)."""

    def __init__(self, predicate: Predicate, rows: int, columns: int, device: torch.device) -> None:
        self.predicate = predicate
        self.rows, self.columns = rows, columns
        self._index = torch.arange(max(rows, columns), device=device)

    def masks(self, start: int, stop: int) -> Masks:
        found = self.predicate(self._index[start:stop], self._index[: self.columns])
        shape = (stop - start, self.columns)
        for mask, name in zip(found, ("positive", "negative"), strict=True):
            if mask.dtype != torch.bool or tuple(mask.shape) != shape:
                raise ValueError(
                    f"relation: expected a bool {name} mask of shape {shape}, got "
                    f"{mask.dtype} of shape {tuple(mask.shape)}"
                )
        return found[0], found[1]


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
