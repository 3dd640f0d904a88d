"""Positive pairs one by one, for losses whose rows they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.places import pairs_within
from ..engine.relation import LabelRelation, Relation, TupleRelation
from .batch import Batch
from .lazy import LazyPairs


def positive_pairs(batch: Batch, once: bool = False) -> tuple[Tensor, Tensor]:
    """int64 (anchors, positives) [P] of a batch: those it lists, each once, or all of equal labels; but own
    copies.

    once: of one set, (i, j) without (j, i). O(P) memory.
    """
    if batch.pairs:
        a1, p, _, _ = distinct_pairs(batch)
        return a1, p
    if batch.predicate is not None:
        return _of_function(batch)
    labels, columns = batch.need_labels(), batch.column_labels
    assert columns is not None
    if batch.ref_emb is None:
        i, j = pairs_within(labels)
        return (i, j) if once else (torch.cat([i, j]), torch.cat([j, i]))
    found, order = columns.sort(stable=True)
    rows = labels.contiguous()
    start = torch.searchsorted(found, rows)
    count = torch.searchsorted(found, rows, right=True) - start
    a = torch.arange(rows.shape[0], device=rows.device).repeat_interleave(count)
    before = (count.cumsum(0) - count)[a]
    p = order[start[a] + torch.arange(a.shape[0], device=a.device) - before]
    if batch.own is None:
        return a, p
    kept = p != batch.own_columns()[a]
    return a[kept], p[kept]


def _of_function(batch: Batch) -> tuple[Tensor, Tensor]:
    found = []
    for start, _, positive, _ in batch.by_function().blocks():
        i, j = positive.nonzero(as_tuple=True)
        found.append((i + start, j))
    return torch.cat([i for i, _ in found]), torch.cat([j for _, j in found])


def distinct_pairs(batch: Batch) -> tuple[Tensor, ...]:
    """(a1, p, a2, n) that a batch lists, each pair once, and none of a row with its own copy."""
    own = 0 if batch.ref_emb is None else batch.own
    rows, columns = batch.embeddings.shape[0], batch.columns.shape[0]
    return TupleRelation(batch.pairs, rows, columns, own).distinct()


def all_pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a1, p, a2, n) of a batch: those it lists, or all, row by row. O(pairs) memory, as lists are."""
    if batch.pairs:
        a1, p, a2, n = batch.pairs
        return a1, p, a2, n
    relation: Relation
    if batch.predicate is not None:
        relation = batch.by_function()
    else:
        labels, columns = batch.need_labels(), batch.column_labels
        assert columns is not None
        relation = LabelRelation(labels, columns, 0 if batch.ref_emb is None else batch.own)
    found: list[tuple[Tensor, ...]] = []
    for start, _, positive, negative in relation.blocks():
        a1, p = positive.nonzero(as_tuple=True)
        a2, n = negative.nonzero(as_tuple=True)
        found.append((a1 + start, p, a2 + start, n))
    a1, p, a2, n = (torch.cat(t) for t in zip(*found, strict=True))
    return a1, p, a2, n


def mined(
    miner: Callable[..., Any],
    embeddings: Tensor,
    labels: Any,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: int | Tensor | None = None,
) -> Any:
    """What a miner chooses of a batch; no row's own copy, which `own` names among other candidates."""
    batch = (embeddings, labels, ref_emb, ref_labels)
    if own is None:
        return miner(*batch)
    try:
        found = miner(*batch, own=own)
    except TypeError as error:
        if "own" not in str(error):
            raise
        found = miner(*batch)
    # A miner of another library, or one that takes `own` and does not heed it, lists own copies too.
    if isinstance(found, LazyPairs) or callable(found):
        return found
    if not isinstance(own, Tensor):
        own = torch.arange(own, own + embeddings.shape[0], device=embeddings.device)
    return without_own(found, own)


def without_own(pairs: Sequence[Tensor], own: Tensor) -> tuple[Tensor, ...]:
    """(a1, p, a2, n) or (a, p, n) without a row and its own copy; own: int64 [B], its place or -1."""
    a, p, *rest = pairs
    own = own.to(a.device)
    kept = own[a] != p
    if len(rest) == 1:
        kept = kept & (own[a] != rest[0])
        return a[kept], p[kept], rest[0][kept]
    a2, n = rest
    also = own[a2] != n
    return a[kept], p[kept], a2[also], n[also]
