"""Tuplet margin loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.counting import row_counts
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.registry import register
from ...language import words as of
from ...language.row import Row
from ..base import SampleLoss
from ..terms import softplus

__all__ = ["TupletMarginLoss"]


@register
@dataclasses.dataclass(frozen=True)
class TupletMargin(RowLoss):
    """Every positive, its angle reduced by a slack, against all negatives of the anchor."""

    name = "tuplet_margin"
    provenance = "pytorch-metric-learning"
    outputs = 2
    counted = True

    margin: float = math.radians(5.73)
    scale: float = 64.0

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")
        check.positive(self.scale, "scale")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.0, 8.0)]

    def row(self, p: Row) -> Any:
        negatives = of.count(where=p.negative)
        level = of.log_sum_exp(self.scale * p.s, where=p.negative)
        square = 1 - p.s * p.s
        some = square > 2 * of.rounding(p.s)
        height = of.where(some, of.sqrt(of.where(some, square, 1.0)), 0.0)
        eased = p.s * math.cos(self.margin) + height * math.sin(self.margin)
        excess = of.softplus(of.where(negatives > 0, level, 0.0) - self.scale * eased)
        loss = of.where(negatives > 0, of.sum(excess, where=p.positive), 0.0)
        return loss, of.count(where=p.positive)

    def spec(self, rows: Rows) -> Tensor:
        loss = self.excess(rows)
        loss = torch.where(rows.positive, loss, torch.zeros_like(loss)).sum(1)
        return torch.stack([loss, row_counts(rows.positive).to(loss.dtype)], dim=1)

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        return {"loss": Piece("pos_pair", self.excess(rows), rows.positive)}

    def excess(self, rows: Rows) -> Tensor:
        """[R, N] the losses of positive pairs."""
        s = rows.s
        # log sum over negatives; rows without any have no loss.
        total = (self.scale * s).masked_fill(~rows.negative, -torch.inf)
        any_negative = rows.negative.any(1)
        total = torch.where(any_negative[:, None], total, torch.zeros_like(total)).logsumexp(1)
        square = 1 - s * s
        # What is left of two nearly equal numbers is rounding, and the root would magnify it.
        some = square > 16 * torch.finfo(s.dtype).eps
        height = torch.where(some, square, torch.ones_like(s)).sqrt() * some
        eased = s * math.cos(self.margin) + height * math.sin(self.margin)
        excess = softplus(total[:, None] - self.scale * eased)
        return torch.where(any_negative[:, None], excess, torch.zeros_like(excess))


class TupletMarginLoss(SampleLoss):
    """Tuplet margin loss.

    *Deep Metric Learning with Tuplet Margin Loss*, Yu and Tao, ICCV 2019, equation 6, on cosine
    similarities: the mean over all pairs of an anchor and a positive p of

        log(1 + sum_{n in N} exp(scale (cos theta_n - cos(theta_p - margin))))

    Args:
        margin: the slack, in degrees.
        scale: > 0.

    Two embeddings that coincide have an angle of 0, whose derivative is taken to be that of its
    cosine alone. reduction="none" returns the sum over each row's positives. Other arguments: see
    `SampleLoss`.
    """

    function = "tuplet_margin"
    mean_over = "positive pairs"
    reducers = {"MeanReducer": "mean", "SumReducer": "sum"}
    similarities = ("cosine",)  # whose angles it needs

    def __init__(self, margin: float = 5.73, scale: float = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.scale = scale
        self.description()  # checks the parameters

    def description(self) -> TupletMargin:
        margin = math.radians(check.finite(self.margin, "margin"))
        return TupletMargin(margin, self.scale)
