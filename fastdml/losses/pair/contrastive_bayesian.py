"""Contrastive Bayesian loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, amax, amin, count, exp, log_sum_exp, mean, square, sum, where
from ...language.described import Described, Positive
from ..base import PRODUCTS
from ..duplicates import DroppingDuplicates

__all__ = ["ContrastiveBayesianLoss"]

FORMS = ("log", "sqrt", "constant")


@register
@dataclasses.dataclass(frozen=True)
class ContrastiveBayesian(Described):
    """SPEC 2.5."""

    name = "contrastive_bayesian"
    provenance = "released code"
    two_sweeps_pay = True

    pos_a: float = 0.5
    pos_b: Positive = 0.5
    neg_a: float = 1.0
    neg_b: Positive = 0.01
    mining_margin: float = 0.1
    variance_weight: float = 1.0
    mean_mix: float = 0.2
    form: str = "log"
    max_positive: float = float("inf")

    def __post_init__(self) -> None:
        check.positive(self.pos_b, "pos_b")
        check.positive(self.neg_b, "neg_b")
        for name in ("pos_a", "neg_a", "mining_margin", "variance_weight", "mean_mix"):
            check.finite(getattr(self, name), name)
        check.one_of(self.form, "form", FORMS)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls(0.4, 0.3, 0.8, 0.2, 0.5, 0.5, 0.1),
            cls(neg_b=0.1, mining_margin=0.4, form="sqrt", max_positive=1 - 1e-5),
            cls(neg_b=0.1, mining_margin=-0.1, form="constant"),
        ]

    def term(self, log: Any) -> Any:
        """What log f adds to the loss, f = 1 + a sum of exponentials."""
        if self.form == "log":
            return log
        return exp(log / 2) if self.form == "sqrt" else 0.75 + exp(log) / 4

    def row(self, p: Row) -> Any:
        positive, negative = p.positive & (p.s < self.max_positive), p.negative
        hardest_p, hardest_n = amin(p.s, where=positive), amax(p.s, where=negative)
        mined_p = positive & (p.s < hardest_n + self.mining_margin)
        mined_n = negative & (p.s > hardest_p - self.mining_margin)
        pull = log_sum_exp((self.pos_a - p.s) / self.pos_b, where=mined_p, one=True)
        push = log_sum_exp((p.s - self.neg_a) / self.neg_b, where=mined_n, one=True)
        h = self.mean_mix
        middle = h * mean(p.s, where=positive) + (1 - h) * mean(p.s, where=negative)
        variance = sum(square(p.s - middle), where=negative)
        some = (count(where=positive) > 0) & (count(where=negative) > 0)
        some = some & (hardest_p - self.mining_margin < hardest_n)
        loss = self.term(pull) + self.term(push) + self.variance_weight * variance
        return where(some, loss, 0.0)


class ContrastiveBayesianLoss(DroppingDuplicates):
    """Contrastive Bayesian loss.

    *Contrastive Bayesian Analysis for Deep Metric Learning*, Kan et al., TPAMI 2022 (arXiv 2210.04402),
    on cosine similarities: with mined positives P' and negatives N',

        f_p = 1 + sum_P' exp((pos_a - s) / pos_b),  f_n = 1 + sum_N' exp((s - neg_a) / neg_b)
        (1/B) sum_i log f_p + log f_n + variance_weight sum_N (s - mean)^2

    where mean = mean_mix mean_P s + (1 - mean_mix) mean_N s, over unmined pairs. Mining keeps the
    positives below the hardest negative + mining_margin and the negatives above the hardest positive
    - mining_margin; a row with none of either has a loss of 0.

    Args:
        form: "log" as above, "sqrt" for the roots of f_p and f_n, "constant" for 1 + (f - 1) / 4.
        pos_a, pos_b, neg_a, neg_b: place and width of the two slopes, widths > 0.
        mining_margin: as above.
        variance_weight: of the variance term, which is a sum over negatives.
        mean_mix: share of the positives in the mean.
        variant: "paper", or "released" for the authors' code, which also drops positives of
            similarity 1 - 1e-5 and above (duplicates).

    The released code's option to keep the 100 largest negatives instead of mining is not here. Other
    arguments: see `SampleLoss`.
    """

    function = "contrastive_bayesian"
    describes = ContrastiveBayesian
    similarities = PRODUCTS
    open = ("pos_a", "pos_b", "neg_a", "neg_b", "mining_margin", "variance_weight", "mean_mix")

    def __init__(
        self,
        form: str = "log",
        *,
        pos_a: float = 0.5,
        pos_b: float = 0.5,
        neg_a: float = 1.0,
        neg_b: float = 0.01,
        mining_margin: float = 0.1,
        variance_weight: float = 1.0,
        mean_mix: float = 0.2,
        variant: str = "paper",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.form = form
        self.pos_a = pos_a
        self.pos_b = pos_b
        self.neg_a = neg_a
        self.neg_b = neg_b
        self.mining_margin = mining_margin
        self.variance_weight = variance_weight
        self.mean_mix = mean_mix
        self.variant = variant
        self.description()  # checks the parameters
