"""Triplets one by one, listed by the caller or drawn, for losses whose rows else make all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.op import statistic_type
from ...mining.philox import philox
from ...engine.similarity import Metric
from ...mining.miners import LazyPairs
from ..base import Call, SampleLoss, checked

Stream = tuple[int | Tensor, int | Tensor]  # seed and step of draws
Batch = tuple[Any, ...]  # the arguments of `SampleLoss.forward`
# Numbers of one temporary: beyond, triplets come in blocks, computed again in the backward pass.
_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Triplets:
    """int64 [T] anchors, positives, negatives; valid: bool [T], which of them count. None: all."""

    a: Tensor
    p: Tensor
    n: Tensor
    valid: Tensor | None = None

    def masked(self, z: Tensor) -> Tensor:
        """z [T], 0 where a triplet does not count."""
        return z if self.valid is None else torch.where(self.valid, z, torch.zeros_like(z))

    def any(self) -> Tensor:
        """Whether one counts: a bool scalar."""
        counts = torch.ones_like(self.a, dtype=torch.bool) if self.valid is None else self.valid
        return counts.any()


def one_by_one(
    description: RowLoss,
    batch: Batch,
    triplets_per_anchor: str | int,
    stream: Stream,
    *,
    join: bool = False,
    validate: bool = False,
) -> tuple[Call, Triplets] | None:
    """The triplets of a call that rows cannot make; None where they can.

    These are a list (a, p, n), whose triplets do not mix, and those drawn with triplets_per_anchor a
    number. join: pairs (a1, p, a2, n) too, every positive of an anchor with every negative of it.

    Args:
        batch: the arguments of `SampleLoss.forward`. stream: of the draws.
    """
    embeddings, labels, indices, ref_emb, ref_labels = batch
    if isinstance(indices, LazyPairs):
        fused = indices.fuse(description, embeddings, labels, ref_emb, ref_labels)
        if fused is not None and not join:
            return None
        indices = tuple(indices)
    if indices is None and triplets_per_anchor == "all":
        return None
    call = checked(embeddings, labels, indices, ref_emb, ref_labels, validate)
    if indices is None:
        assert call.labels is not None
        return call, drawn(call.labels, call.ref_labels, int(triplets_per_anchor), stream)
    a1, p, a2, n = call.pairs
    if len(indices) == 3:
        return call, Triplets(a1, p, n)
    if not join:
        return None
    return call, _joined(a1, p, a2, n)


def _joined(a1: Tensor, p: Tensor, a2: Tensor, n: Tensor) -> Triplets:
    """Every positive pair with every negative pair of the same anchor."""
    order = a2.argsort(stable=True)
    found = a2[order]
    start, stop = torch.searchsorted(found, a1), torch.searchsorted(found, a1, right=True)
    partners = stop - start
    first = torch.arange(a1.shape[0], device=a1.device).repeat_interleave(partners)
    before = (partners.cumsum(0) - partners)[first]
    second = order[start[first] + torch.arange(first.shape[0], device=a1.device) - before]
    return Triplets(a1[first], p[first], n[second])


def drawn(labels: Tensor, ref_labels: Tensor | None, count: int, stream: Stream) -> Triplets:
    """`count` triplets of every anchor that has both kinds, each of a positive and a negative drawn
    uniformly with replacement. O(B count) numbers, and no wait for the device."""
    columns = labels if ref_labels is None else ref_labels
    found, order = columns.sort(stable=True)
    start = torch.searchsorted(found, labels.contiguous())
    stop = torch.searchsorted(found, labels.contiguous(), right=True)
    own, others = stop - start, columns.shape[0] - (stop - start)
    if ref_labels is None:
        own = own - 1  # not the anchor itself, whose place in its class's columns is skipped
    row = torch.arange(labels.shape[0], device=labels.device)
    seed, step = (torch.as_tensor(v, dtype=torch.int64, device=labels.device) for v in stream)
    number = torch.arange(count, device=labels.device)
    zero = torch.zeros_like(number)
    # The last word keeps these apart from the draws by distance with the same seed.
    words = philox((number, row[:, None], zero, zero + 1), (seed, step))
    rank = words[0] * own.clamp(min=1)[:, None] >> 32
    other = words[1] * others.clamp(min=1)[:, None] >> 32
    if ref_labels is None:
        place = torch.empty_like(order).scatter_(0, order, row) - start
        rank = rank + (rank >= place[:, None])
    other = other + torch.where(other >= start[:, None], (stop - start)[:, None], 0)
    last = columns.shape[0] - 1
    p, n = order[(start[:, None] + rank).clamp(max=last)], order[other.clamp(max=last)]
    valid = ((own > 0) & (others > 0))[:, None].expand_as(p)
    return Triplets(
        row[:, None].expand_as(p).reshape(-1), p.reshape(-1), n.reshape(-1), valid.reshape(-1)
    )


def wide(call: Call) -> tuple[Tensor, Tensor]:
    """Anchors and candidates in the type of the loss."""
    kind = statistic_type(call.embeddings, call.ref_emb)
    x = call.embeddings.to(kind)
    return x, x if call.ref_emb is None else call.ref_emb.to(kind)


def distances(
    metric: Metric, x: Tensor, y: Tensor, i: Tensor, j: Tensor, epsilon: float = 0.0
) -> Tensor:
    """[T] similarities or distances of rows i of x and j of y."""

    def block(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return metric.paired(rows_of(x, i), rows_of(y, j), epsilon)

    return in_blocks(block, x, y, (i, j), x.shape[1])


def in_blocks(
    function: Callable[..., Tensor], x: Tensor, y: Tensor, index: tuple[Tensor, ...], width: int
) -> Tensor:
    """function(x, y, *index) of index tensors [T], joined from blocks of them; width: how many numbers
    it needs per index. Only one block's temporaries exist at a time, in the backward pass too."""
    size = max(1, _AT_ONCE // width)
    if index[0].shape[0] <= size:
        return function(x, y, *index)
    blocks = zip(*(t.split(size) for t in index), strict=True)
    return torch.cat([checkpoint(function, x, y, *b, use_reentrant=False) for b in blocks])


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """x[index] of x [B, D], whose gradient is summed in one order however many threads there are."""
    return embedding(index, x)


def reduced(
    loss: Tensor, count: Tensor | float, anchors: Tensor, rows: int, reduction: str
) -> Tensor:
    """Losses [T] of triplets or pairs of `anchors` [T] as a row loss is reduced.

    count: [T] things that they sum, or one number: what the mean divides by.
    """
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        total = count.sum().clamp(min=1) if isinstance(count, Tensor) else count
        return loss.sum() / total
    order = anchors.argsort(stable=True)
    lengths = torch.bincount(anchors, minlength=rows)
    by_row = torch.segment_reduce(loss[order], "sum", lengths=lengths, unsafe=True, initial=0.0)
    if reduction == "none":
        return by_row
    return by_row.sum() / (by_row > 0).sum().clamp(min=1)


class TripletLoss(SampleLoss):
    """A loss over triplets, some of whose forms draw them: then every call in training mode takes the
    next numbers, by `step`, which is in the state. A state without it (that of
    pytorch-metric-learning) loads too."""

    step: Tensor

    def __init__(self, triplets_per_anchor: str | int, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.triplets_per_anchor = triplets_per_anchor
        self.seed = check.seed(seed, "seed")
        zero = torch.zeros((), dtype=torch.int64)
        self.register_buffer("step", zero, persistent=self.draws)
        self.register_load_state_dict_pre_hook(_keep_the_step)

    @property
    def draws(self) -> bool:
        return self.triplets_per_anchor != "all"

    def stream(self) -> dict[str, Any]:
        """Seed and step of a call; in training mode the next call has another step."""
        if not self.draws:
            return {"seed": self.seed, "step": 0}
        step = self.step % check.STREAMS
        if self.training:
            step = step.clone()
            self.step += 1
        return {"seed": self.seed, "step": step}


def _keep_the_step(module: TripletLoss, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if module.draws:
        state.setdefault(prefix + "step", module.step)


def check_per_anchor(value: str | int, *names: str) -> None:
    """ValueError unless value is one of the names or a number of triplets."""
    number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not number and value not in names:
        raise ValueError(
            f"triplets_per_anchor: expected one of {names} or a positive integer, got {value!r}"
        )
