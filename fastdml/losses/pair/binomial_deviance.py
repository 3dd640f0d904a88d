"""Binomial deviance loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, mean, share, softplus, sum
from ...language.described import Described, Positive
from ..base import PRODUCTS
from ..duplicates import DroppingDuplicates

__all__ = ["BinomialDevianceLoss"]


@register
@dataclasses.dataclass(frozen=True)
class BinomialDeviance(Described):
    """SPEC 2.11."""

    name = "binomial_deviance"
    graded = True

    alpha: Positive = 2.0
    beta: Positive = 25.0
    base: float = 0.5
    max_positive: float = float("inf")

    def __post_init__(self) -> None:
        check.positive(self.alpha, "alpha")
        check.positive(self.beta, "beta")
        check.finite(self.base, "base")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(3.0, 10.0, 0.2, 0.97)]

    def row(self, p: Row) -> Any:
        kept = p.positive & (p.s < self.max_positive)
        pull = sum(p.graded(softplus(-self.alpha * (p.s - self.base))), where=kept)
        pull = share(pull, sum(p.grade, where=kept))
        return pull + mean(softplus(self.beta * (p.s - self.base)), where=p.negative)


class BinomialDevianceLoss(DroppingDuplicates):
    """Binomial deviance loss.

    *Deep Metric Learning for Person Re-Identification*, Yi et al., ICPR 2014, on cosine similarities s,
    with each row's positives and negatives averaged:

        (1/B) sum_i mean_P log(1 + exp(-alpha (s - base))) + mean_N log(1 + exp(beta (s - base)))

    Args:
        alpha, beta: sharpness of positives and negatives, > 0.
        base: the similarity around which pairs are weighted.
        variant: "paper", or "released" for code that also drops positives of similarity 1 and above
            (duplicates).

    The mean over no pair is 0. Other arguments: see `SampleLoss`.
    """

    function = "binomial_deviance"
    describes = BinomialDeviance
    duplicate = 1.0
    similarities = PRODUCTS
    open = ("alpha", "beta", "base")

    def __init__(
        self,
        alpha: float = 2,
        beta: float = 25,
        base: float = 0.5,
        *,
        variant: str = "paper",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.variant = variant
        self.description()  # checks the parameters
