"""Losses of triplets one by one, for what rows cannot make: listed and drawn triplets, and swaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from ...engine import check
from ...engine.call import statistic_type
from ...engine.loss import RowLoss
from ...engine.similarity import Metric
from ...mining.batch import Batch
from ...mining.steps import Steps
from ...mining.triplets import Stream, Triplets, drawn, listed
from ..base import SampleLoss

# Numbers of one temporary: beyond, triplets come in blocks, computed again in the backward pass.
_AT_ONCE = 1 << 20
Listed = tuple[Tensor, Tensor, Tensor]  # [T] losses, what each counts in the mean, and anchors


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """A part of a loss that torch evaluates triplet by triplet: `function` of all that comes before it.

    count: what the mean divides by: what the triplets count, or "rows".
    """

    description: Any
    batch: Batch
    triplets: Triplets | None
    function: Callable[[Any, Batch, Triplets | None], Listed]
    reduction: str
    backend: str
    by_rows: bool = False
    weight: float = 1.0

    def evaluate(self) -> Tensor:
        """The reduced loss. ValueError where another backend is forced."""
        reason = self.refuses(self.backend)
        if reason is not None:
            raise ValueError(
                f"backend: {self.backend!r} cannot run {self.description.name!r}: {reason}"
            )
        loss, count, anchors = self.function(self.description, self.batch, self.triplets)
        rows = self.batch.embeddings.shape[0]
        return reduced(loss, rows if self.by_rows else count, anchors, rows, self.reduction)

    def elements(self, name: str) -> dict[str, Any]:
        """The triplets' losses as a list, for a reducer object."""
        if self.triplets is None:
            raise ValueError(
                "reducer: all swapped triplets are summed by anchor; expected AvgNonZeroReducer, MeanReducer or "
                "SumReducer, or a miner's list"
            )
        loss, count, _ = self.function(self.description, self.batch, self.triplets)
        t = self.triplets
        index = (t.a, t.p, t.n)
        if t.valid is not None:
            loss, index = loss[t.valid], (t.a[t.valid], t.p[t.valid], t.n[t.valid])
        info = {"losses": loss, "indices": index, "reduction_type": "triplet", "divisor": count.sum()}
        return {name: info}

    def refuses(self, backend: str) -> str | None:
        """Why a backend cannot run this, or None."""
        if backend in ("auto", "chunked", "dense"):
            return None
        return "triplets one by one run in torch; expected backend 'auto', 'chunked' or 'dense'"

    @property
    def plan(self) -> str:
        """What runs, in words."""
        kind = (
            "positive pairs with their negatives"
            if self.triplets is None
            else "triplets one by one"
        )
        return f"{kind}, in blocks of bounded memory, in torch"


def wide(batch: Batch) -> tuple[Tensor, Tensor]:
    """Anchors and candidates in the type of the loss."""
    kind = statistic_type(batch.embeddings, batch.ref_emb)
    x = batch.embeddings.to(kind)
    return x, x if batch.ref_emb is None else batch.ref_emb.to(kind)


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

    # A functional form is not counted: it draws the same numbers again.
    input_defaults = {"step": 0}

    step: Tensor

    def __init__(self, triplets_per_anchor: str | int, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.triplets_per_anchor = triplets_per_anchor
        self.seed = check.seed(seed, "seed")
        zero = torch.zeros((), dtype=torch.int64)
        self.register_buffer("step", zero, persistent=self.draws)
        self._steps = Steps()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.draws:
            state_dict.setdefault(prefix + "step", self.step)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def draws(self) -> bool:
        return self.triplets_per_anchor != "all"

    def stream(self, batch: Batch, step: int | Tensor | None) -> Stream:
        """Seed and step of a call; in training mode the next call has another step. step: given one."""
        if step is not None:
            return self.seed, step
        if not self.draws:
            return self.seed, 0
        if not self.training:
            return self.seed, self.step % check.STREAMS
        return self.seed, self._steps.take(self.step, batch.need_labels())

    def listed(
        self, description: RowLoss, batch: Batch, step: int | Tensor | None, join: bool = False
    ) -> Triplets | None:
        """The triplets of a call that rows cannot make; None where they can."""
        if step is not None:
            check.seed(step, "step")
        if batch.listed:
            return listed(batch, join)
        number = self.triplets_per_anchor
        if isinstance(number, str) or batch.predicate is not None or batch.stream is not None:
            return None
        return drawn(batch, number, self.stream(batch, step))

    def one_by_one(
        self,
        description: Any,
        batch: Batch,
        function: Callable[[Any, Batch, Triplets | None], Listed],
        triplets: Triplets | None = None,
    ) -> OneByOne:
        """The part of a loss that `function` makes of triplets."""
        by_rows = getattr(description, "normalizer", None) == "anchors"
        return OneByOne(
            description, batch, triplets, function, self.reduction, self.backend, by_rows
        )
