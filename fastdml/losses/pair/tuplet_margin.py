"""Tuplet margin loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, cos, count, log_sum_exp, rounding, sin, softplus, sqrt, sum, where
from ...language.described import Described, Positive
from ..base import SampleLoss

__all__ = ["TupletMarginLoss"]


@register
@dataclasses.dataclass(frozen=True)
class TupletMargin(Described):
    """Every positive, its angle reduced by a slack, against all negatives of the anchor."""

    name = "tuplet_margin"
    provenance = "pytorch-metric-learning"
    outputs = 2
    counted = True

    margin: float = math.radians(5.73)
    scale: Positive = 64.0

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")
        check.positive(self.scale, "scale")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.0, 8.0)]

    def row(self, p: Row) -> Any:
        level = log_sum_exp(self.scale * p.s, where=p.negative)
        square = 1 - p.s * p.s
        # What is left of two nearly equal numbers is rounding, and the root would magnify it.
        height = where(square > 2 * rounding(p.s), sqrt(square), 0.0)
        eased = p.s * cos(self.margin) + height * sin(self.margin)
        excess = softplus(level - self.scale * eased)
        some = count(where=p.negative) > 0
        return where(some, sum(excess, where=p.positive), 0.0), count(where=p.positive)


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
    similarities = ("cosine",)  # whose angles it needs

    def __init__(self, margin: float = 5.73, scale: float = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.scale = scale
        self.description()  # checks the parameters

    def description(self) -> TupletMargin:
        margin = math.radians(check.finite(self.margin, "margin"))
        return TupletMargin(margin, self.scale)
