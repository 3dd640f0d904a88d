"""Which candidates are right for a query: those of its class, those that share a label, or what a function
says.

A relation is read a block of queries at a time, as lists of gallery rows: no matrix of all pairs exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..engine import check
from . import inputs


@dataclasses.dataclass(frozen=True)
class Right:
    """Right candidates of a block of q queries.

    Attributes:
        ids: gallery rows, list after list.
        jobs: ``[J, 4]`` (first query, last + 1, first of ids, last + 1): these queries share this list.
            Jobs are in the order of their queries, and every query is in one.
        own: ``[q]`` gallery row of the query itself, which its list may name and which never counts.
        start: ``[q + 1]`` where a query's candidates begin once its own is left out.
        gains: how much each of these is worth, float32, in their order; None: all the same.
    """

    ids: np.ndarray
    jobs: np.ndarray
    own: np.ndarray
    start: np.ndarray
    gains: np.ndarray | None = None

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(query of the block, gallery row) of every right candidate, own ones left out."""
        queries, rows = [], []
        for first, last, begin, end in self.jobs:
            queries.append(np.repeat(np.arange(first, last), end - begin))
            rows.append(np.tile(self.ids[begin:end], last - first))
        query, row = np.concatenate(queries), np.concatenate(rows)
        keep = self.own[query] != row
        return query[keep], row[keep]


class Relation:
    """Base of the three kinds.

    Attributes:
        count: ``[Q]`` right candidates of each query, its own left out.
        order: ``[Q]`` an order of the queries in which those that share a list are neighbours.
        label: ``[Q]`` class number of every query for results by class, or None.
        classes: the labels these numbers stand for.
        symmetric: whether j is right for i exactly where i is for j, in one set.
    """

    count: np.ndarray
    order: np.ndarray
    label: np.ndarray | None = None
    classes: np.ndarray | None = None
    symmetric = True

    def block(self, queries: np.ndarray) -> Right:
        raise NotImplementedError


def _lists(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


class SameClass(Relation):
    """Right is what has the query's label."""

    def __init__(
        self, queries: np.ndarray, gallery: np.ndarray, classes: np.ndarray, own: np.ndarray
    ) -> None:
        self.label, self.classes, self._own = queries, classes, own
        sizes = np.bincount(gallery, minlength=len(classes))
        self._start = _lists(sizes)
        self._rows = np.argsort(gallery, kind="stable")
        inside = own >= 0
        same = np.zeros(len(queries), dtype=bool)
        same[inside] = gallery[own[inside]] == queries[inside]
        self.count = sizes[queries] - same
        self.order = np.argsort(queries, kind="stable")

    def block(self, queries: np.ndarray) -> Right:
        assert self.label is not None
        label = self.label[queries]
        first = np.flatnonzero(np.concatenate([[True], label[1:] != label[:-1]]))
        last = np.append(first[1:], len(label))
        begin, end = self._start[label[first]], self._start[label[first] + 1]
        at = _lists(end - begin)
        # The ids of one class after another: ranges of the sorted gallery.
        ids = self._rows[np.arange(at[-1]) + np.repeat(begin - at[:-1], end - begin)]
        jobs = np.stack([first, last, at[:-1], at[1:]], axis=1)
        return Right(ids, jobs, self._own[queries], _lists(self.count[queries]))


class SharedLabels(Relation):
    """Right is what has a label in common with the query; its gain is how many they share."""

    def __init__(
        self,
        queries: tuple[np.ndarray, np.ndarray],
        gallery: tuple[np.ndarray, np.ndarray],
        classes: int,
        own: np.ndarray,
    ) -> None:
        """Sets as (start ``[N + 1]``, class numbers)."""
        self._queries, self._own = queries, own
        start, numbers = gallery
        item = np.repeat(np.arange(len(start) - 1), np.diff(start))
        by_class = np.argsort(numbers, kind="stable")
        self._items = item[by_class]
        self._of_class = _lists(np.bincount(numbers, minlength=classes))
        self.order = np.arange(len(queries[0]) - 1)
        self.count = np.array([len(self._found(int(q))[0]) for q in self.order], dtype=np.int64)

    def _found(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        start, numbers = self._queries
        members = [
            self._items[self._of_class[c] : self._of_class[c + 1]]
            for c in numbers[start[query] : start[query + 1]]
        ]
        if not members:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        rows, shared = np.unique(np.concatenate(members), return_counts=True)
        keep = rows != self._own[query]
        return rows[keep], shared[keep]

    def block(self, queries: np.ndarray) -> Right:
        found = [self._found(int(q)) for q in queries]
        return _own_lists(found, self._own[queries])


class ByFunction(Relation):
    """Right is what a function of (query indices, gallery indices) gives a positive gain."""

    symmetric = False  # nobody knows

    def __init__(
        self,
        function: Callable[[torch.Tensor, torch.Tensor], Any],
        queries: int,
        candidates: int,
        own: np.ndarray,
        label: np.ndarray | None = None,
        classes: np.ndarray | None = None,
    ) -> None:
        self._function, self._candidates, self._own = function, candidates, own
        self._all = torch.arange(candidates, device="cpu")
        self.label, self.classes = label, classes
        self.order = np.arange(queries)
        self.count = np.zeros(queries, dtype=np.int64)
        for rows in self._few(self.order):
            self.count[rows] = (self._gains(rows) > 0).sum(axis=1)

    def _few(self, queries: np.ndarray) -> Iterator[np.ndarray]:
        """So many queries at a time as the function may be asked about: a block of a sweep may be of more."""
        step = max(1, (1 << 22) // self._candidates)
        for first in range(0, len(queries), step):
            yield queries[first : first + step]

    def _gains(self, queries: np.ndarray) -> np.ndarray:
        found = self._function(torch.from_numpy(queries), self._all)
        gains = check.array(found) if isinstance(found, torch.Tensor) else np.asarray(found)
        if gains.shape != (len(queries), self._candidates) or gains.dtype.kind not in "biuf":
            raise ValueError(
                f"relevance: expected a matrix [{len(queries)}, {self._candidates}] of bool or numbers, "
                f"got {gains.dtype} of shape {gains.shape}"
            )
        gains = gains.astype(np.float32)
        if not (np.isfinite(gains).all() and gains.min() >= 0):
            raise ValueError("relevance: expected finite gains of at least 0")
        own = self._own[queries]
        inside = np.flatnonzero(own >= 0)
        gains[inside, own[inside]] = 0
        return gains

    def block(self, queries: np.ndarray) -> Right:
        found = []
        for rows in self._few(queries):
            for gains in self._gains(rows):
                at = np.flatnonzero(gains > 0)
                found.append((at, gains[at]))
        return _own_lists(found, self._own[queries])


def _own_lists(found: Sequence[tuple[np.ndarray, np.ndarray]], own: np.ndarray) -> Right:
    """A list for every query, none of which names its own."""
    start = _lists(np.array([len(ids) for ids, _ in found], dtype=np.int64))
    query = np.arange(len(found))
    jobs = np.stack([query, query + 1, start[:-1], start[1:]], axis=1)
    ids = np.concatenate([ids for ids, _ in found]).astype(np.int64)
    gains = np.concatenate([g for _, g in found]).astype(np.float32)
    return Right(ids, jobs, own, start, gains)


def relation(
    labels: Any,
    gallery_labels: Any,
    relevance: Callable[[torch.Tensor, torch.Tensor], Any] | None,
    queries: int,
    candidates: int,
    own: np.ndarray,
) -> Relation:
    """The relation of labels, sets of labels or a function; gallery_labels None: the queries'."""
    if relevance is not None and not callable(relevance):
        raise ValueError(
            "relevance: expected a function of (query indices, gallery indices), got "
            f"{type(relevance).__name__}"
        )
    if relevance is not None and labels is None:
        return ByFunction(relevance, queries, candidates, own)
    if inputs.is_sets(labels) and relevance is None:
        return _of_sets(labels, gallery_labels, queries, candidates, own)
    mine = inputs.labels(labels, queries, "labels")
    theirs = None
    if gallery_labels is not None:
        theirs = inputs.labels(gallery_labels, candidates, "ref_labels")
    query_class, gallery_class, classes = inputs.numbered(mine, theirs, ("labels", "ref_labels"))
    if relevance is not None:
        return ByFunction(relevance, queries, candidates, own, query_class, classes)
    return SameClass(query_class, gallery_class, classes, own)


def _of_sets(
    labels: Any, gallery_labels: Any, queries: int, candidates: int, own: np.ndarray
) -> SharedLabels:
    mine = members(labels, queries, "labels")
    theirs = mine
    if gallery_labels is not None:
        theirs = members(gallery_labels, candidates, "ref_labels")
        if inputs.is_marks(labels) and inputs.is_marks(gallery_labels):
            classes, got = labels.shape[1], gallery_labels.shape[1]
            if got != classes:
                raise ValueError(f"ref_labels: expected {classes} classes, as in labels, got {got}")
    if (mine[1].dtype.kind in "US") != (theirs[1].dtype.kind in "US"):
        raise ValueError("ref_labels: expected sets of the type of those in labels")
    known, numbers = np.unique(np.concatenate([mine[1], theirs[1]]), return_inverse=True)
    cut = len(mine[1])
    return SharedLabels(
        (mine[0], numbers[:cut]), (theirs[0], numbers[cut:]), len(known), own
    )


def members(values: Any, count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sets of labels as (start ``[count + 1]``, members), each member once."""
    if len(values) != count:
        raise ValueError(f"{name}: expected {count} sets of labels, got {len(values)}")
    if inputs.is_marks(values):
        row, column = np.nonzero(check.array(values) if isinstance(values, torch.Tensor) else values)
        return _lists(np.bincount(row, minlength=count)), column
    if not all(isinstance(v, (set, frozenset, list, tuple)) for v in values):
        raise ValueError(f"{name}: expected a set of labels for every row, got a mixture")
    sets = [list(dict.fromkeys(v)) for v in values]
    start = _lists(np.array([len(s) for s in sets], dtype=np.int64))
    flat = [label for s in sets for label in s]
    if not flat:
        raise ValueError(f"{name}: expected at least one label")
    return start, inputs.labels(flat, len(flat), name)
