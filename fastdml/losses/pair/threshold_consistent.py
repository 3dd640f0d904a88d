"""Threshold-consistent margin loss."""

from __future__ import annotations

from typing import Any

from ...engine import check
from ..base import SampleLoss
from .contrastive import Contrastive, aggregation_of

__all__ = ["ThresholdConsistentMarginLoss"]


class ThresholdConsistentMarginLoss(SampleLoss):
    """Threshold-consistent margin loss, a regulariser beside another loss.

    *Threshold-Consistent Margin Loss for Open-World Deep Metric Learning*, Zhang et al., ICLR 2024 (arXiv
    2307.04047), equation 5, on cosine similarities s:

        lambda_plus * mean of margin_plus - s over the positive pairs with s < margin_plus
        + lambda_minus * mean of s - margin_minus over the negative pairs with s > margin_minus

    Args:
        lambda_plus, lambda_minus: weights of both means.
        margin_plus, margin_minus: as above.
        reduction: "nonzero" (the default), the means above; "mean" divides by all pairs of the kind; "sum"
            does not divide.

    Other arguments: see `SampleLoss`.
    """

    function = "threshold_consistent_margin"
    mean_over = "pairs of each kind"
    reductions = ("nonzero", "mean", "sum")  # of two sums of the batch, which are no rows
    similarities = ("cosine",)
    # It is one number: objects change nothing, as in pytorch-metric-learning.
    one_number = "nonzero"

    def __init__(
        self,
        lambda_plus: float = 1.0,
        lambda_minus: float = 1.0,
        margin_plus: float = 0.9,
        margin_minus: float = 0.5,
        *,
        reduction: str = "nonzero",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, **kwargs)
        self.lambda_plus = lambda_plus
        self.lambda_minus = lambda_minus
        self.margin_plus = margin_plus
        self.margin_minus = margin_minus
        self.description()  # checks the parameters

    def description(self) -> Contrastive:
        kind = aggregation_of(self.reduction)
        return Contrastive(
            check.finite(self.margin_plus, "margin_plus"),
            check.finite(self.margin_minus, "margin_minus"),
            kind,
            kind,
            pos_weight=check.finite(self.lambda_plus, "lambda_plus"),
            neg_weight=check.finite(self.lambda_minus, "lambda_minus"),
            similarity=self.similarity,
        )
