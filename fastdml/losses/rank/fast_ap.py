"""Average precision from soft histograms: FastAP and SoftBin-AP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.registry import register
from ...mining.batch import Batch
from ..base import PRODUCTS, SampleLoss
from . import triangles

__all__ = ["FastAPLoss", "SoftBinAPLoss"]


_MOST = 256  # csrc/cpu/block.h: kLongestList


@dataclasses.dataclass(frozen=True)
class HistogramAP(RowLoss):
    """Average precision over triangular bins on similarities in [-1, 1]."""

    outputs = 2
    counted = True
    spec_bytes = triangles.BYTES

    bins: int = 10

    def __post_init__(self) -> None:
        check.integer(self.bins, "num_bins", 1, _MOST)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(bins=3)]

    def memberships(self, s: Tensor) -> triangles.Members:
        """Soft memberships of similarities [R, N]; centres are counted from 1 down."""
        # A sample is at similarity 1 to itself and to its copies however the last digits fell.
        top = 1 - 8 * torch.finfo(s.dtype).eps
        s = torch.where(s > top, torch.ones_like(s), s.clamp(min=-1))
        return triangles.memberships(s, self.bins, first=1)

    def mass(self, own: Tensor, count: Tensor) -> Tensor:
        """[R] what a row's positives [R, bins + 1] add up to: their number, 1 at least."""
        return count.clamp(min=1)

    def spec(self, rows: Rows) -> Tensor:
        members = self.memberships(rows.s)
        own = triangles.histogram(members, rows.positive, self.bins)
        # 1 - AP as what each bin loses to the negatives before it: exactly 0 where there are none.
        positives = own.cumsum(1)
        negatives = triangles.histogram(members, rows.negative, self.bins).cumsum(1)
        both = positives + negatives
        lost = torch.where(both > 0, negatives / both.clamp(min=1e-30), torch.zeros_like(both))
        count = rows.positive.sum(1)
        loss = (own * lost).sum(1) / self.mass(own, count)
        present = (count > 0).to(rows.s.dtype)
        return torch.stack([loss * present, present], dim=1)

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        loss, present = self.spec(rows).unbind(1)
        return {"loss": Piece("element", loss[:, None], present[:, None] > 0)}


@register
@dataclasses.dataclass(frozen=True)
class FastAP(HistogramAP):
    """SPEC 3.3. `bins` + 1 centres on the squared distance in [0, 4], which is 2 - 2 s."""

    name = "fast_ap"
    provenance = "released code"
    tuples = "weights"


@register
@dataclasses.dataclass(frozen=True)
class SoftBinAP(HistogramAP):
    """SPEC 3.5. `bins` + 1 centres on the similarity; the query is its own positive."""

    name = "soft_bin_ap"
    provenance = "released code"
    self_pair = "keep"

    bins: int = 19


@dataclasses.dataclass(frozen=True)
class ReleasedSoftBinAP(SoftBinAP):
    """The same with the derivative that automatic differentiation finds in the released code where a
    similarity is exactly 1. Two lines of the first bin meet there and it halves the slope of the one that
    rises, but not of the one that falls in the next bin. No compiled functor has it.
    """

    def memberships(self, s: Tensor) -> triangles.Members:
        nothing = torch.where(s == 1, s - s.detach(), torch.zeros_like(s)) * (self.bins / 2)
        (first, mine), (second, next_one) = super().memberships(s)
        return [(first, mine + nothing / 2), (second, next_one - nothing)]

    def mass(self, own: Tensor, count: Tensor) -> Tensor:
        return own.sum(1).clamp(min=1e-30)


class FastAPLoss(SampleLoss):
    """FastAP loss: average precision from a soft histogram of squared distances.

    *Deep Metric Learning to Rank*, Cakir et al., CVPR 2019, equations 5 to 7, on cosine similarities
    (whose squared distances lie in [0, 4]): 1 - the mean over the queries with a positive of

        (1/|P|) sum_l h+_l H+_l / H_l

    h+_l and h_l are the soft counts of positives and of all in bin l, H+_l and H_l those up to l.

    Args:
        num_bins: 1 to 256. There are num_bins + 1 centres, from 0 to 4.
        reference_scale: the released code's hand-written gradient is B/2 times the true one (B
            queries). True reproduces it, so that published learning rates carry over; the value is
            the same. It cannot be had with reduction="none".

    Other arguments: see `SampleLoss`.
    """

    function = "fast_ap"
    similarities = (*PRODUCTS, "squared_distance")
    distances = {"squared_distance": "cosine"}  # the same bins
    mean_over = "queries with a positive"

    def __init__(self, num_bins: int = 10, reference_scale: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = num_bins
        self.reference_scale = reference_scale
        self.description()  # checks the parameters
        if reference_scale and self.reduction == "none":
            raise ValueError("reference_scale: expected False with reduction='none'")

    def description(self) -> FastAP:
        # Bins of the squared distance 2 - 2 s are bins of s.
        known = "cosine" if self.similarity == "squared_distance" else self.similarity
        return FastAP(check.integer(self.num_bins, "num_bins", 1, _MOST), similarity=known)

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        call = super().sample_call(description, batch, **fields)
        return call.replace(finish=_released(batch)) if self.reference_scale else call


class SoftBinAPLoss(SampleLoss):
    """Average precision from a soft histogram of similarities.

    *Learning with Average Precision: Training Image Retrieval with a Listwise Loss*, Revaud et al.,
    ICCV 2019 (arXiv 1906.07589), equations 6 to 9, on cosine similarities: as `FastAPLoss`, but a
    query counts among its own positives.

    Args:
        num_bins: 2 to 257 bin centres on [-1, 1].
        variant: "paper", or "released": where a similarity is exactly 1, as of some samples with
            themselves, the derivative that automatic differentiation finds in the released code, which
            the loss has on neither side. It lies along the embedding, so cosines have none of it; it runs
            in torch.

    Other arguments: see `SampleLoss`.
    """

    function = "soft_bin_ap"
    similarities = PRODUCTS
    mean_over = "queries with a positive"

    def __init__(self, num_bins: int = 20, variant: str = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_bins = num_bins
        self.variant = variant
        self.description()  # checks the parameters

    def description(self) -> SoftBinAP:
        centres = check.integer(self.num_bins, "num_bins", 2, _MOST + 1)
        check.variant(self.variant)
        kind = ReleasedSoftBinAP if self.variant == "released" else SoftBinAP
        return kind(centres - 1, similarity=self.similarity)


def _released(batch: Batch) -> Callable[[Tensor], Tensor]:
    """Of a loss, the same value with the released gradient: half the number of queries times the true
    one, and only those with a positive are queries."""
    factor = batch.with_positives() / 2

    def scaled(loss: Tensor) -> Tensor:
        return loss * factor - (loss * (factor - 1)).detach()

    return scaled
