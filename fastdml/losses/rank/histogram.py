"""Histogram loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Before, Call, statistic_type
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...mining.batch import Batch
from ..base import SampleLoss
from . import triangles

__all__ = ["HistogramLoss"]

_MOST = 255  # centres are bins + 1; csrc/cpu/block.h: kLongestList


@register
@dataclasses.dataclass(frozen=True)
class Histogram(RowLoss):
    """Sums of a value per bin over soft memberships: bins + 1 values for positives, then for negatives."""

    name = "histogram"
    provenance = "pytorch-metric-learning"
    additive = True
    spec_bytes = triangles.BYTES

    bins: int = 100

    def __post_init__(self) -> None:
        check.integer(self.bins, "n_bins", 1, _MOST)

    @property
    def learnable(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple((k * 7 % 5 - 2) / 3 for k in range(2 * (int(self.bins) + 1)))

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(5)]  # bins of whose corners no pair of the tests' batches is within rounding

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        members = triangles.memberships(rows.s.clamp(-1, 1), self.bins, first=-1)
        mine = triangles.histogram(members, rows.positive, self.bins)
        theirs = triangles.histogram(members, rows.negative, self.bins)
        return torch.cat([mine, theirs], dim=1) @ rows.scalars


class HistogramLoss(SampleLoss):
    """Histogram loss.

    *Learning Deep Embeddings with Histogram Loss*, Ustinova and Lempitsky, NIPS 2016 (arXiv 1611.00822),
    equations 2 to 4: the probability that a negative pair's cosine similarity exceeds a positive pair's,
    sum_r h-_r sum_{q <= r} h+_q, with h+ and h- histograms of all positive and all negative pairs,
    each pair shared out between the two nearest of the bin centres from -1 to 1.

    Args:
        n_bins: distances between neighbouring centres, 1 to 255; 100 if neither it nor delta is given.
        delta: 2 / n_bins.

    Two passes over the similarities, of which no list is kept. Batches without a positive or without a
    negative pair have a loss of 0. There are no row losses: reduction is "mean". Other arguments: see
    `SampleLoss`.
    """

    function = "histogram"
    mean_over = "one number of the batch"
    reductions = ("mean",)
    similarities = ("cosine",)

    def __init__(
        self, n_bins: int | None = None, delta: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        bins = n_bins
        if delta is not None:
            delta = check.positive(delta, "delta")
            bins = round(2 / delta)
            if bins < 1 or abs(bins * delta - 2) > 1e-6 or n_bins not in (None, bins):
                raise ValueError(f"delta: expected 2 / n_bins, got {delta} with n_bins={n_bins}")
        self.n_bins = 100 if bins is None else check.integer(bins, "n_bins", 1, _MOST)

    def description(self) -> Histogram:
        return Histogram(self.n_bins)

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        bins = 2 * (self.n_bins + 1)
        kind = statistic_type(batch.embeddings)
        zeros = torch.zeros(bins, dtype=kind, device=batch.embeddings.device)
        # The loss is linear in the counts of the bins, whose slopes depend on the counts themselves.
        linear = super().sample_call(description, batch, reduction="sum", scalars=zeros, **fields)
        return linear.replace(before=Before((linear,), _with_slopes, slopes=True))


def _with_slopes(linear: Call, counted: list[Tensor]) -> Call:
    """The call whose derivatives are the loss's, and its value; counted: [bins of both kinds]."""
    counts = counted[0].double().reshape(2, -1)
    total = counts.sum(1, keepdim=True)
    share = counts / total.clamp(min=1e-30)
    # The probability that a positive is not nearer than a negative of bin r is upto[r].
    upto = share[0].cumsum(0)
    from_here = share[1].flip(0).cumsum(0).flip(0)
    both = (total > 0).all()
    value = torch.where(both, (share[1] * upto).sum(), 0.0).to(counted[0].dtype)
    slopes = torch.stack([from_here, upto]) / total.clamp(min=1e-30)
    slopes = torch.where(both, slopes, 0.0).reshape(-1).to(counted[0].dtype)
    return linear.replace(scalars=slopes, finish=lambda v: value + (v - v.detach()))
