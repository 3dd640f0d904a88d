"""Multi-similarity loss with its miner fused."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...language import words as of
from ...language.row import Row
from ..base import SampleLoss
from ..terms import duplicate_ceiling, log_sum_exp_with_one, log_weighted

__all__ = ["MultiSimilarityLoss"]

_INF = float("inf")


@register
@dataclasses.dataclass(frozen=True)
class MultiSimilarity(RowLoss):
    """SPEC 2.11. `epsilon` None: every pair counts; else pairs are mined within it."""

    name = "multi_similarity"
    provenance = "released code"
    graded = True

    alpha: float = 2.0
    beta: float = 50.0
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
        return [cls(), cls(epsilon=0.1), cls(5.0, 20.0, 0.3, -0.05, 1 - 1e-5)]

    def parameters(self) -> tuple[float, ...]:
        mined = self.epsilon is not None
        epsilon = self.epsilon if self.epsilon is not None else 0.0
        return (self.alpha, self.beta, self.base, epsilon, float(mined), self.max_positive)

    def row(self, p: Row) -> Any:
        positive, negative = p.positive & (p.s < self.max_positive), p.negative
        if self.epsilon is not None:
            hardest_positive = of.amin(p.s, where=positive)
            hardest_negative = of.amax(p.s, where=negative)
            positive = positive & (p.s < hardest_negative + self.epsilon)
            negative = negative & (p.s > hardest_positive - self.epsilon)
        pull = of.log_sum_exp(-self.alpha * (p.s - self.base), where=positive, one=True)
        push = of.log_sum_exp(self.beta * (p.s - self.base), where=negative, one=True)
        return pull / self.alpha + push / self.beta

    def spec(self, rows: Rows) -> Tensor:
        s = rows.s
        positive, negative = rows.positive & (s < self.max_positive), rows.negative
        if self.epsilon is not None:
            hardest_positive = s.masked_fill(~positive, _INF).amin(1, keepdim=True)
            hardest_negative = s.masked_fill(~negative, -_INF).amax(1, keepdim=True)
            positive = positive & (s < hardest_negative + self.epsilon)
            negative = negative & (s > hardest_positive - self.epsilon)
        return (
            log_sum_exp_with_one(log_weighted(-self.alpha * (s - self.base), rows.weight), positive)
            / self.alpha
            + log_sum_exp_with_one(self.beta * (s - self.base), negative) / self.beta
        )


class MultiSimilarityLoss(SampleLoss):
    """Multi-similarity loss.

    *Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning*, Wang et al., CVPR
    2019 (arXiv 1904.06627), equations 15 and 16, with its mining, equations 11 and 12, on cosine
    similarities s:

        (1/B) sum_i (1/alpha) log(1 + sum_P exp(-alpha (s - base)))
                  + (1/beta) log(1 + sum_N exp(beta (s - base)))

    Args:
        alpha, beta: sharpness of positives and negatives, > 0.
        base: the similarity around which pairs are weighted.
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

    def description(self) -> MultiSimilarity:
        return MultiSimilarity(
            self.alpha,
            self.beta,
            self.base,
            self.epsilon,
            duplicate_ceiling(self.variant),
            similarity=self.similarity,
        )
