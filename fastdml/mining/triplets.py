"""Triplets one by one, listed by the caller or drawn."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .batch import Batch
from .pairs import distinct_pairs
from .philox import philox

Stream = tuple[int | Tensor, int | Tensor]  # seed and step of draws


@dataclasses.dataclass(frozen=True)
class Triplets:
    """int64 [T] anchors, positives, negatives; valid: bool [T], which of them count. None: all."""

    a: Tensor
    p: Tensor
    n: Tensor
    valid: Tensor | None = None

    def part(self, where: slice) -> Triplets:
        """Some of them."""
        valid = None if self.valid is None else self.valid[where]
        return Triplets(self.a[where], self.p[where], self.n[where], valid)

    def masked(self, z: Tensor) -> Tensor:
        """z [T], 0 where a triplet does not count."""
        return z if self.valid is None else torch.where(self.valid, z, torch.zeros_like(z))

    def any(self) -> Tensor:
        """Whether one counts: a bool scalar."""
        counts = torch.ones_like(self.a, dtype=torch.bool) if self.valid is None else self.valid
        return counts.any()


def check_per_anchor(value: str | int, *names: str) -> None:
    """ValueError unless value is one of the names or a number of triplets."""
    number = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31
    if not number and not (isinstance(value, str) and value in names):
        raise ValueError(
            f"triplets_per_anchor: expected one of {names} or a positive integer, got {value!r}"
        )


def listed(batch: Batch, join: bool) -> Triplets | None:
    """The triplets that a batch lists: a tuple (a, p, n), whose triplets do not mix; join: and every
    positive with every negative of an anchor in (a1, p, a2, n). None: rows can make them."""
    if batch.listed == 3:
        a, p, _, n = batch.pairs
        return Triplets(a, p, n)
    return Triplets(*joined(*distinct_pairs(batch))) if batch.listed and join else None


def joined(a1: Tensor, p: Tensor, a2: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(a, p, n): every positive of an anchor with every negative of it."""
    order = a2.argsort(stable=True)
    found = a2[order]
    start, stop = torch.searchsorted(found, a1), torch.searchsorted(found, a1, right=True)
    partners = stop - start
    first = torch.arange(a1.shape[0], device=a1.device).repeat_interleave(partners)
    before = (partners.cumsum(0) - partners)[first]
    second = order[start[first] + torch.arange(first.shape[0], device=a1.device) - before]
    return a1[first], p[first], n[second]


def drawn(batch: Batch, count: int, stream: Stream) -> Triplets:
    """`count` triplets of every anchor that has both kinds, each of a positive and a negative drawn
    uniformly with replacement. O(B count) numbers, and no wait for the device."""
    labels, columns = batch.need_labels(), batch.column_labels
    assert columns is not None
    if columns.shape[0] == 0:
        return Triplets(*[columns] * 3)
    found, order = columns.sort(stable=True)
    start = torch.searchsorted(found, labels.contiguous())
    stop = torch.searchsorted(found, labels.contiguous(), right=True)
    others = columns.shape[0] - (stop - start)
    # An own copy is not drawn: its place among its class's columns is skipped.
    copy = batch.own_columns()
    alike = (copy >= 0) & (columns[copy.clamp(min=0)] == labels)
    positives = stop - start - alike.long()
    row = torch.arange(labels.shape[0], device=labels.device)
    seed, step = (torch.as_tensor(v, dtype=torch.int64, device=labels.device) for v in stream)
    number = torch.arange(count, device=labels.device)
    zero = torch.zeros_like(number)
    # The last word keeps these apart from the draws by distance with the same seed.
    words = philox((number, row[:, None], zero, zero + 1), (seed, step))
    rank = words[0] * positives.clamp(min=1)[:, None] >> 32
    other = words[1] * others.clamp(min=1)[:, None] >> 32
    index = torch.arange(columns.shape[0], device=labels.device)
    place = torch.empty_like(order).scatter_(0, order, index)[copy.clamp(min=0)] - start
    rank = rank + (alike[:, None] & (rank >= place[:, None]))
    other = other + torch.where(other >= start[:, None], (stop - start)[:, None], 0)
    last = columns.shape[0] - 1
    p, n = order[(start[:, None] + rank).clamp(max=last)], order[other.clamp(max=last)]
    valid = ((positives > 0) & (others > 0))[:, None].expand_as(p)
    return Triplets(
        row[:, None].expand_as(p).reshape(-1), p.reshape(-1), n.reshape(-1), valid.reshape(-1)
    )
