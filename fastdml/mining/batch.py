"""What a loss over samples is called with, checked, and a miner's result in it taken into the loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.loss import RowLoss
from ..engine.relation import LabelRelation, Predicate, PredicateRelation, own_rows
from .identity import equal_labels, same_memory
from .label_sets import LabelSets
from .lazy import LazyPairs


@dataclasses.dataclass(eq=False)
class Batch:
    """The arguments of `SampleLoss.forward`, checked.

    ref_emb is None where it was the very tensor `embeddings`: then there is one set.
    pairs: (a1, p, a2, n), or nothing. listed: how many tensors the tuple had, 3 or 4; 0: there was none.
    own: see `engine.call.Call`. stream: seed and step of a miner's draws that the loss repeats.
    """

    embeddings: Tensor
    labels: Tensor | None
    ref_emb: Tensor | None
    ref_labels: Tensor | None
    pairs: tuple[Tensor, ...] = ()
    listed: int = 0
    predicate: Predicate | None = None
    own: int | Tensor | None = None
    stream: tuple[int | Tensor, int | Tensor] | None = None
    row_weight: Tensor | None = None  # [B] of the rows' losses

    def replace(self, **fields: Any) -> Batch:
        """The same batch with other fields."""
        return dataclasses.replace(self, **fields)

    @property
    def columns(self) -> Tensor:
        """The candidates."""
        return self.embeddings if self.ref_emb is None else self.ref_emb

    @property
    def column_labels(self) -> Tensor | None:
        """The candidates' labels."""
        return self.labels if self.ref_emb is None else self.ref_labels

    def own_columns(self) -> Tensor:
        """int64 [B] candidates that are the rows' own copies; -1 for none."""
        if isinstance(self.own, Tensor):
            return self.own
        rows, columns = self.embeddings.shape[0], self.columns.shape[0]
        index = torch.arange(rows, device=self.embeddings.device)
        if self.ref_emb is None:
            return index
        if self.own is None:
            return torch.full_like(index, -1)
        return (index + self.own).masked_fill_(index + self.own >= columns, -1)

    def has_own_copies(self) -> bool:
        """Whether a row has a copy of its own among other candidates."""
        return self.own is not None and bool((self.own_columns() >= 0).any())

    def own_of_candidates(self) -> Tensor | None:
        """int64 [N] rows that are candidates' own copies, -1 for none; None: there are none."""
        if self.own is None:
            return None
        return own_rows(self.own_columns(), self.columns.shape[0])

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many positives and negatives every row has, its own copy not among them: int64 [B]."""
        own = 0 if self.ref_emb is None else self.own
        if self.predicate is not None:
            return self.by_function().counts(without_own=True)
        labels, columns = self.need_labels(), self.column_labels
        assert columns is not None
        return LabelRelation(labels, columns, own).counts(without_own=True)

    def by_function(self) -> PredicateRelation:
        """The pairs that the caller's function names."""
        assert self.predicate is not None
        rows, columns = self.embeddings.shape[0], self.columns.shape[0]
        own = 0 if self.ref_emb is None else self.own
        return PredicateRelation(self.predicate, rows, columns, self.embeddings.device, own)

    def with_positives(self) -> Tensor:
        """How many rows have a positive other than their own copy: a scalar."""
        return (self.counts()[0] > 0).sum()

    def need_labels(self) -> Tensor:
        """The labels, for what cannot do without."""
        if self.labels is None:
            raise ValueError("labels: expected one label per row of embeddings, got sets of them or None")
        return self.labels


def checked(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: int | Tensor | None = None,
    validate: bool = False,
) -> Batch:
    """ValueError unless these are arguments of `SampleLoss.forward`."""
    check.embeddings(embeddings, "embeddings", validate)
    alone = indices_tuple is None and ref_emb is None and ref_labels is None and own is None
    if alone and isinstance(labels, Tensor) and labels.dim() == 1:  # what a small batch feels
        labels = check.labels(labels, embeddings.shape[0], embeddings.device, "labels", "embeddings")
        return Batch(embeddings, labels, None, None)
    if ref_emb is not None:
        check.embeddings(ref_emb, "ref_emb", validate)
        check.same_space(embeddings, ref_emb, "embeddings", "ref_emb")
    columns = embeddings if ref_emb is None else ref_emb
    if isinstance(labels, Tensor) and labels.dim() == 2 and labels.dtype == torch.bool:
        sets = LabelSets(labels, ref_labels)
        indices_tuple = sets if indices_tuple is None else indices_tuple
        labels = ref_labels = None
    pairs: tuple[Tensor, ...] = ()
    predicate = None
    listed = 0
    if isinstance(indices_tuple, LazyPairs):
        indices_tuple = indices_tuple.listed()
    if callable(indices_tuple):
        check.mined(indices_tuple)
        if isinstance(indices_tuple, LabelSets):
            apart = ref_emb is not None and not same_memory(embeddings, ref_emb)
            indices_tuple.expect(embeddings.shape[0], columns.shape[0], apart)
        predicate = indices_tuple
    elif indices_tuple is not None:
        pairs = tuple(check.pairs(indices_tuple, embeddings.shape[0], columns.shape[0], embeddings))
        listed = len(indices_tuple)  # type: ignore[arg-type]
    elif labels is None:
        raise ValueError("labels: expected labels or indices_tuple, got neither")
    if labels is not None:
        labels = check.labels(
            labels, embeddings.shape[0], embeddings.device, "labels", "embeddings"
        )
    if ref_labels is not None and ref_emb is not None:
        ref_labels = check.labels(
            ref_labels, ref_emb.shape[0], ref_emb.device, "ref_labels", "ref_emb"
        )
    if ref_emb is not None and ref_labels is None and not listed and predicate is None:
        raise ValueError("ref_labels: expected one label per row of ref_emb, got None")
    if ref_emb is None and ref_labels is not None:
        raise ValueError("ref_emb: expected embeddings with ref_labels, got None")
    if ref_emb is None and own is not None:
        raise ValueError("own: expected None without ref_emb, as every sample is its own copy then")
    if own is not None:
        own = check.own(own, embeddings, columns.shape[0])
    elif ref_emb is not None and same_memory(embeddings, ref_emb):
        own = 0
        if ref_emb is embeddings and equal_labels(labels, ref_labels):
            ref_emb, ref_labels, own = None, None, None
    return Batch(embeddings, labels, ref_emb, ref_labels, pairs, listed, predicate, own)


def resolved(
    description: RowLoss,
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    own: int | Tensor | None = None,
    validate: bool = False,
) -> tuple[Any, Batch]:
    """The loss and the batch, with the rule of a lazy miner's result in the loss where it knows it."""
    stream = None
    if isinstance(indices_tuple, LazyPairs):
        fused = indices_tuple.fuse(description, embeddings, labels, ref_emb, ref_labels)
        if fused is not None:
            description, stream = fused, indices_tuple.stream
            own = indices_tuple.own if own is None else own
            _, labels, _, ref_labels = indices_tuple.mined
            indices_tuple = None
    batch = checked(embeddings, labels, indices_tuple, ref_emb, ref_labels, own, validate)
    return description, batch if stream is None else batch.replace(stream=stream)
