"""Contrastive losses as a balance of a positive and an entropy term."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ..base import SIGNED, SampleLoss
from ..pair.contrastive import AGGREGATIONS, Contrastive
from .row_cross_entropy import RowCrossEntropy

__all__ = [
    "BalancedContrastiveLoss",
    "BalancedNTXentLoss",
]

_PER = {"batch": "row", "pairs": "pairs", "rows": "positives"}


@register
@dataclasses.dataclass(frozen=True)
class BalancedNTXent(RowCrossEntropy):
    """SPEC 2.18, the softmax form: rows without positives still have their entropy."""

    name = "balanced_nt_xent"
    provenance = "inferred"

    temperature: float = 0.07
    pull: float = 0.5
    push: float = 0.5
    per: Literal["positives", "candidates", "pairs", "row"] = "pairs"
    needs_positive: bool = False

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls(0.5, 0.7, 0.3, "row", log_mean=True),
            cls(0.3, 0.3, 0.7, "positives", negatives_only=True),
        ]


@register
@dataclasses.dataclass(frozen=True)
class BalancedContrastive(Contrastive):
    """SPEC 2.18, the margin form."""

    name = "balanced_contrastive"
    provenance = "inferred"

    pos_aggregation: str = "pairs"
    neg_aggregation: str = "pairs"
    squared: bool = True
    pos_weight: float = 0.5
    neg_weight: float = 0.5

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls(0.1, 1.2, "rows", "active", True, 0.3, 0.7),
            cls(0.2, 2.0, "batch", "rows", False, similarity="squared_distance"),
        ]


class BalancedNTXentLoss(SampleLoss):
    """NT-Xent with its two terms balanced: (1 - w) positive term + w entropy term.

    After *Simple and Effective Balance of Contrastive Losses*, Sors et al., 2021 (arXiv 2112.11743); no
    code of it is known, and what the abstract leaves open is inferred:

        (1 - w) (-mean over positive pairs of s_ip / t) + w mean_i log sum_{j != i} exp(s_ij / t)

    Twice the loss at w = 1/2 with aggregation "rows" is SupCon's, where every row has a positive.

    Args:
        temperature: t > 0.
        entropy_weight: w in [0, 1].
        aggregation: of the positive term: "pairs" (mean over all positive pairs), "rows" (mean per row,
            then over the batch) or "batch" (sum over pairs / batch size). The entropy term has one
            element per row, for which these are the same.
        log_mean: logarithm of the mean instead of the sum: the value then does not grow with the batch.
        decoupled: both terms times t, so that the size of gradients does not depend on it.
        negatives_only: positives are left out of the sum, as in *Decoupled Contrastive Learning*, Yeh
            et al., ECCV 2022 (arXiv 2110.06848).

    Other arguments: see `SampleLoss`.
    """

    function = "balanced_nt_xent"
    reductions = SIGNED
    mean_over = "samples; positives by their aggregation"

    def __init__(
        self,
        temperature: float = 0.07,
        entropy_weight: float = 0.5,
        *,
        aggregation: str = "pairs",
        log_mean: bool = False,
        decoupled: bool = False,
        negatives_only: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.entropy_weight = entropy_weight
        self.aggregation = aggregation
        self.log_mean = log_mean
        self.decoupled = decoupled
        self.negatives_only = negatives_only
        self.description()  # checks the parameters

    def description(self) -> BalancedNTXent:
        check.one_of(self.aggregation, "aggregation", sorted(_PER))
        check.positive(self.temperature, "temperature")
        factor = self.temperature if self.decoupled else 1.0
        w = check.fraction(self.entropy_weight, "entropy_weight")
        return BalancedNTXent(
            self.temperature,
            pull=(1 - w) * factor,
            push=w * factor,
            per=_PER[self.aggregation],  # type: ignore[arg-type]
            negatives_only=self.negatives_only,
            log_mean=self.log_mean,
            similarity=self.similarity,
        )


class BalancedContrastiveLoss(SampleLoss):
    """The contrastive margin loss with its two terms balanced.

    After Sors et al., 2021 (arXiv 2112.11743), inferred as in `BalancedNTXentLoss`: (1 - w) times the
    positives' [d - pos_margin]_+^2 plus w times the negatives' [neg_margin - d]_+^2, each aggregated by
    itself.

    Args:
        pos_margin, neg_margin: in units of `similarity` ("distance" by default).
        entropy_weight: w in [0, 1].
        pos_aggregation, neg_aggregation: "pairs" (mean over all pairs of the kind), "active" (over
            those with a term above 0), "rows" (mean per row, then over the rows that have such a pair)
            or "batch" (sum over pairs / batch size).
        squared: False for the terms themselves instead of their squares.

    reduction: "mean" (as above) or "sum". Other arguments: see `SampleLoss`.
    """

    function = "balanced_contrastive"
    mean_over = "what the aggregation of each kind says"
    reductions = ("mean", "sum")  # of two sums of the batch, which are no rows
    default_similarity = "distance"

    def __init__(
        self,
        pos_margin: float = 0,
        neg_margin: float = 1,
        entropy_weight: float = 0.5,
        *,
        pos_aggregation: str = "pairs",
        neg_aggregation: str = "pairs",
        squared: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.entropy_weight = entropy_weight
        self.pos_aggregation = pos_aggregation
        self.neg_aggregation = neg_aggregation
        self.squared = squared
        self.description()  # checks the parameters

    def description(self) -> BalancedContrastive:
        check.one_of(self.pos_aggregation, "pos_aggregation", AGGREGATIONS)
        check.one_of(self.neg_aggregation, "neg_aggregation", AGGREGATIONS)
        check.flag(self.squared, "squared")
        w = check.fraction(self.entropy_weight, "entropy_weight")
        return BalancedContrastive(
            self.pos_margin,
            self.neg_margin,
            self.pos_aggregation,
            self.neg_aggregation,
            self.squared,
            pos_weight=1 - w,
            neg_weight=w,
            similarity=self.similarity,
        )
