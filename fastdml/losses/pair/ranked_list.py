"""Ranked list loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.distances import metric_of
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, amax, detach, exp, maximum, sum, where
from ...language.described import Described
from ..base import SampleLoss

__all__ = ["RankedListLoss"]


_FLOOR = 1e-5  # added to a sum of weights, once per candidate, by the ports in use


@register
@dataclasses.dataclass(frozen=True)
class RankedList(Described):
    """Weighted means of the hinges of positives beyond `inner` and negatives within `outer`."""

    name = "ranked_list"
    unlisted = True
    provenance = "pytorch-metric-learning"
    numbers = ("detach_weights",)

    inner: float = 1.0
    outer: float = 1.4
    positive_temperature: float = 0.0
    negative_temperature: float = 10.0
    imbalance: float = 0.5
    detach_weights: bool = False
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.inner, "margin")
        check.finite(self.outer, "alpha")
        check.finite(self.positive_temperature, "Tp")
        check.finite(self.negative_temperature, "Tn")
        check.fraction(self.imbalance, "imbalance")

    @property
    def detaches(self) -> bool:  # type: ignore[override]
        return self.detach_weights

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.8, 1.3, 3.0, 5.0, 0.3, True), cls(0.8, 1.3, -2.0, -10.0)]

    def row(self, p: Row) -> Any:
        def part(excess: Any, mask: Any, temperature: Any) -> Any:
            active = mask & (excess > 0)
            # The largest exponent is taken out of all of them.
            most = detach(maximum(amax(excess, where=mask), 0.0))
            # Of a negative temperature that of a pair at the margin: 0.
            top = where(temperature > 0, most, 0.0)
            # Of a pair that does not count it may be of any size, and 0 times infinity no number.
            weight = exp(where(active, temperature * (excess - top), 0.0))
            weight = weight + self.detach_weights * (detach(weight) - weight)
            floor = _FLOOR * p.columns * exp(-temperature * top)
            total = sum(weight, where=active) + floor
            # Without an active pair the floor may underflow; the sum is 0 all the same.
            total = where(most > 0, total, 1.0)
            return sum(weight * excess, where=active) / total

        pull = part(p.s - self.inner, p.positive, self.positive_temperature)
        push = part(self.outer - p.s, p.negative, self.negative_temperature)
        return (1 - self.imbalance) * pull + self.imbalance * push


class RankedListLoss(SampleLoss):
    """Ranked list loss.

    *Ranked List Loss for Deep Metric Learning*, Wang et al., CVPR 2019 (arXiv 1903.03238), equations 4
    to 9, on Euclidean distances d of normalised embeddings. Of an anchor's positives those with d >
    alpha - margin count, with weights exp(Tp (d - (alpha - margin))); of its negatives those with d <
    alpha, with weights exp(Tn (alpha - d)). The loss is the mean over rows of

        (1 - imbalance) * weighted mean of [d - (alpha - margin)]_+ over positives
        + imbalance * weighted mean of [alpha - d]_+ over negatives

    Args:
        margin: between the positives' radius and the negatives'.
        Tn, Tp: temperatures of the weights; negative ones weigh what is nearest to its margin most.
        imbalance: in [0, 1], share of the negatives.
        alpha: the negatives' radius; None: 1 + margin / 2.
        detach_weights: False: the gradient is that of the value, as in pytorch-metric-learning. True: the
            weights are constants for the gradient, as in the paper. The value is the same.

    A sum of weights is increased by 1e-5 per candidate, as in the ports in use. Other arguments: see
    `SampleLoss`.
    """

    function = "ranked_list"
    open = ("Tn", "Tp", "imbalance")
    default_similarity = "distance"

    def __init__(
        self,
        margin: float,
        Tn: float,
        imbalance: float = 0.5,
        alpha: float | None = None,
        Tp: float = 0,
        detach_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.Tn = Tn
        self.imbalance = imbalance
        self.alpha = alpha
        self.Tp = Tp
        self.detach_weights = detach_weights
        self.description()  # checks the parameters

    def description(self) -> RankedList:
        if metric_of(self.similarity).sign > 0:
            raise ValueError(f"similarity: expected a kind of distance, got {self.similarity!r}")
        check.finite(self.margin, "margin")
        outer = 1 + self.margin / 2 if self.alpha is None else check.finite(self.alpha, "alpha")
        return RankedList(
            outer - self.margin,
            outer,
            self.Tp,
            self.Tn,
            self.imbalance,
            self.detach_weights,
            similarity=self.similarity,
        )
