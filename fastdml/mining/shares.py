"""Miners that keep a share of all pairs of a kind: the hardest, or some of every distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.distances import metric_of
from .batch import Batch, checked
from .miners import DrawingMiner, Miner, by_rows
from .pairs import without_own
from .philox import philox
from .triplets import Stream


def _with_numbers(miner: Miner, batch: Batch) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
    """(anchors, others, what they compare as) of all positives, and of all negatives, row by row."""

    def select(s: Tensor, positive: Tensor, negative: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for mask in (positive, negative):
            found += [*mask.nonzero(as_tuple=True), s[mask]]
        return tuple(found)

    a1, p, near, a2, n, far = by_rows(batch, select, (0, 3), 6, miner.similarity, miner.at_once)
    return (a1, p, near), (a2, n, far)


class HDCMiner(Miner):
    """The hardest share of all positive pairs and of all negative pairs of the batch.

    *Hard-Aware Deeply Cascaded Embedding*, Yuan et al., ICCV 2017 (arXiv 1611.05720).

    Args:
        filter_percentage: in (0, 1], the share of each kind that is kept, rounded up.
        distance: Euclidean, of normalised embeddings, unless another one is given; see `Miner`.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily
    `(a1, p, a2, n)`, the hardest first; all pairs are listed on the way. Pairs to choose from may be given
    (`set_idx_externally`), as in a cascade: every call then leaves a share of those that the last one left,
    until `reset_idx`.
    """

    def __init__(self, filter_percentage: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filter_percentage = check.number(
            filter_percentage, "filter_percentage", "a number in (0, 1]", lambda v: 0 < v <= 1
        )
        self.reset_idx()

    def set_idx_externally(self, external_indices_tuple: Any, labels: Tensor) -> None:
        """Pairs to choose from: (a1, p, a2, n) or (a, p, n) of a batch with these labels."""
        size = len(labels)
        self._set(check.pairs(tuple(external_indices_tuple), size, size))
        self.was_set_externally = True

    def _set(self, pairs: Sequence[Tensor | None]) -> None:
        self.a1, self.p, self.a2, self.n = pairs

    def reset_idx(self) -> None:
        """All pairs are to choose from again."""
        self._set((None,) * 4)
        self.was_set_externally = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        if self.was_set_externally:
            # The next call chooses from these, asked for or not.
            self._set(tuple(found))
        return found

    def found(self, batch: Batch, stream: Stream | None) -> tuple[Tensor, ...]:
        if self.was_set_externally:
            assert self.a1 is not None and self.p is not None
            assert self.a2 is not None and self.n is not None
            listed = (self.a1, self.p, self.a2, self.n)
            # They may be of a larger batch.
            check.pairs(listed, batch.embeddings.shape[0], batch.columns.shape[0])
            pairs = listed[:2], listed[2:]
            both = [(a, b, self._numbers(batch, a, b)) for a, b in pairs]
        else:
            both = list(_with_numbers(self, batch))
        kept: list[Tensor] = []
        for (a, b, s), hardest_is_near in zip(both, (False, True), strict=True):
            k = math.ceil(self.filter_percentage * s.shape[0])
            largest = hardest_is_near == (self.sign > 0)
            at = s.topk(k, largest=largest).indices
            kept += [a[at], b[at]]
        return tuple(kept)

    def _numbers(self, batch: Batch, a: Tensor, b: Tensor) -> Tensor:
        return metric_of(self.similarity).paired(batch.embeddings[a], batch.columns[b])


class UniformHistogramMiner(DrawingMiner):
    """Pairs of every distance alike: some drawn from each bin that has any, with replacement.

    *Hardness-aware sampling* of pytorch-metric-learning: bins between the least and the largest distance of
    the pairs of a kind.

    Args:
        num_bins: of each kind. pos_per_bin, neg_per_bin: pairs drawn from a bin that has any.
        seed: below 2^24. The draws are a function of the seed and the number of the call (`step`, in the
            state), on any device.
        distance: Euclidean, of normalised embeddings, unless another one is given; see `Miner`.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily
    `(a1, p, a2, n)`, bin by bin; all pairs are listed on the way.
    """

    def __init__(
        self,
        num_bins: int = 100,
        pos_per_bin: int = 10,
        neg_per_bin: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_bins = check.count(num_bins, "num_bins")
        self.pos_per_bin = check.count(pos_per_bin, "pos_per_bin")
        self.neg_per_bin = check.count(neg_per_bin, "neg_per_bin")

    def found(self, batch: Batch, stream: Stream | None) -> tuple[Tensor, ...]:
        assert stream is not None
        kept: list[Tensor] = []
        both = _with_numbers(self, batch)
        for kind, ((a, b, s), number) in enumerate(zip(both, (self.pos_per_bin, self.neg_per_bin))):
            at = _drawn(s, self.num_bins, number, stream, kind) if s.shape[0] else torch.zeros_like(a)
            kept += [a[at], b[at]]
        return tuple(kept)


def _drawn(s: Tensor, bins: int, number: int, stream: Stream, kind: int) -> Tensor:
    """Places of `number` numbers drawn from each bin of s [T] that has any."""
    low, high = s.aminmax()
    edges = torch.lerp(low, high, torch.linspace(0, 1, bins + 1, dtype=s.dtype, device=s.device))
    bin = (torch.searchsorted(edges, s, right=True) - 1).clamp(0, bins - 1)
    order = bin.argsort(stable=True)
    size = torch.bincount(bin, minlength=bins)
    start = size.cumsum(0) - size
    some = size.nonzero()[:, 0]
    index = torch.arange(number, device=s.device)
    zero = torch.zeros_like(index)
    seed, step = (torch.as_tensor(v, dtype=torch.int64, device=s.device) for v in stream)
    # The last two words keep these apart from other draws with the same seed.
    words = philox((index, some[:, None], zero + kind, zero + 2), (seed, step))[0]
    return order[(start[some, None] + (words * size[some, None] >> 32)).flatten()]


class EmbeddingsAlreadyPackagedAsTriplets(Miner):
    """Triplets (a, p, n) of batches that come as a, p, n, a, p, n, ... ."""

    anchors = (0,)
    tensors = 3

    def found(self, batch: Batch, stream: Stream | None) -> tuple[Tensor, ...]:
        rows = batch.embeddings.shape[0]
        if rows % 3:
            raise ValueError(f"embeddings: expected a multiple of 3 rows, got {rows}")
        index = torch.arange(rows, device=batch.embeddings.device)
        return index[0::3], index[1::3], index[2::3]


class BaseMiner(Miner):
    """A miner that a user derives: `mine(embeddings, labels, ref_emb, ref_labels)` returns index tensors
    (a1, p, a2, n) or (a, p, n), without gradients. Called as other miners; its result is there at once.

    num_pos_pairs, num_neg_pairs, num_triplets: of the latest call.
    """

    _counts: tuple[int, ...] = ()

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Any:
        """The indices. Without other candidates ref_emb is embeddings, and ref_labels labels."""
        raise NotImplementedError

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> Any:
        batch = checked(embeddings, labels, None, ref_emb, ref_labels, own)
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        assert ref_labels is not None
        with torch.no_grad():
            found = self.mine(embeddings, labels, ref_emb, ref_labels)
        check.pairs(found, embeddings.shape[0], ref_emb.shape[0])
        if batch.has_own_copies():  # `mine` knows of none
            found = without_own(found, batch.own_columns())
        self._counts = tuple(len(t) for t in found)
        return found

    def _counted(self, places: dict[int, int]) -> int:
        at = places.get(len(self._counts))
        return 0 if at is None else self._counts[at]
