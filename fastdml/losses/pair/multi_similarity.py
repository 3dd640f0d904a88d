"""Multi-similarity loss with its miner fused."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.lazy import lazy
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, amax, amin, log, log_sum_exp
from ...language.described import Described, Positive
from ..duplicates import DroppingDuplicates

__all__ = ["MultiSimilarityLoss"]

_INF = float("inf")


@register
@dataclasses.dataclass(frozen=True)
class MultiSimilarity(Described):
    """SPEC 2.11. `epsilon` None: every pair counts; else pairs are mined within it."""

    name = "multi_similarity"
    provenance = "released code"
    graded = True

    derived = ("away",)

    alpha: Positive = 2.0
    beta: Positive = 50.0
    base: float = 0.5
    epsilon: float | None = None
    max_positive: float = _INF

    def __post_init__(self) -> None:
        check.positive(self.alpha, "alpha")
        check.positive(self.beta, "beta")
        check.finite(self.base, "base")
        if self.epsilon is not None:
            check.finite(self.epsilon, "epsilon")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        mined = cls(epsilon=0.1)
        return [cls(), mined, cls(5.0, 20.0, 0.3, -0.05, 1 - 1e-5), cls(similarity="distance")]

    @lazy
    def away(self) -> bool:
        """Whether numbers are distances."""
        return self.metric.sign < 0

    def row(self, p: Row) -> Any:
        # Of distances, where what is smaller is nearer, all signs turn.
        s, base = (-p.s, -self.base) if self.away else (p.s, self.base)
        positive, negative = p.positive & (s < self.max_positive), p.negative
        if self.epsilon is not None:
            hardest_positive = amin(s, where=positive)
            hardest_negative = amax(s, where=negative)
            positive = positive & (s < hardest_negative + self.epsilon)
            negative = negative & (s > hardest_positive - self.epsilon)
        pull = log_sum_exp(
            log(p.grade) - self.alpha * (s - base), where=positive, one=True
        )
        push = log_sum_exp(self.beta * (s - base), where=negative, one=True)
        return pull / self.alpha + push / self.beta


class MultiSimilarityLoss(DroppingDuplicates):
    """Multi-similarity loss.

    *Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning*, Wang et al., CVPR
    2019 (arXiv 1904.06627), equations 15 and 16, with its mining, equations 11 and 12, on cosine
    similarities s:

        (1/B) sum_i (1/alpha) log(1 + sum_P exp(-alpha (s - base)))
                  + (1/beta) log(1 + sum_N exp(beta (s - base)))

    Args:
        alpha, beta: sharpness of positives and negatives, > 0.
        base: the similarity (on distances, of which all signs turn, the distance) around which pairs are
            weighted.
        epsilon: width of the mining band: keeps the positives below the hardest negative + epsilon
            and the negatives above the hardest positive - epsilon. The paper uses 0.1. None (the
            default, as in pytorch-metric-learning, whose `MultiSimilarityMiner` may be handed in as
            `indices_tuple`) mines nothing.
        variant: "paper", or "released" for the authors' code, which also drops positives of
            similarity 1 - 1e-5 and above (duplicates).
        reduction: "mean" divides by B, skipped anchors included; "nonzero" by the anchors kept.

    Rows without any pair have a loss of 0. Other arguments: see `SampleLoss`.
    """

    function = "multi_similarity"
    describes = MultiSimilarity
    open = ("alpha", "beta", "base", "epsilon")

    def __init__(
        self,
        alpha: float = 2,
        beta: float = 50,
        base: float = 0.5,
        epsilon: float | None = None,
        *,
        variant: str = "paper",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon
        self.variant = variant
        self.description()  # checks the parameters
