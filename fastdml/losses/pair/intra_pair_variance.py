"""Intra-pair variance loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...mining.batch import Batch
from ..base import SampleLoss
from ..pair_means import mean_similarities
from ..terms import masked_sum, rows_per

__all__ = ["IntraPairVarianceLoss"]


@register
@dataclasses.dataclass(frozen=True)
class IntraPairVariance(RowLoss):
    """Scalars of the call: the mean similarity of positives and of negatives, whose derivatives count."""

    name = "intra_pair_variance"
    provenance = "pytorch-metric-learning"
    learnable = (0.5, 0.1)

    pos_eps: float = 0.01
    neg_eps: float = 0.01

    def __post_init__(self) -> None:
        check.finite(self.pos_eps, "pos_eps")
        check.finite(self.neg_eps, "neg_eps")

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return torch.cat([rows_per(positives), rows_per(negatives)])

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        mean_p, mean_n, share_p, share_n = rows.scalars
        low = ((1 - self.pos_eps) * mean_p - rows.s).relu().square()
        high = (rows.s - (1 + self.neg_eps) * mean_n).relu().square()
        return share_p * masked_sum(low, rows.positive) + share_n * masked_sum(high, rows.negative)


class IntraPairVarianceLoss(SampleLoss):
    """Intra-pair variance loss.

    *Deep Metric Learning with Tuplet Margin Loss*, Yu and Tao, ICCV 2019, equation 9, on cosine
    similarities s:

        mean_P [(1 - pos_eps) mean_P s - s]_+^2 + mean_N [s - (1 + neg_eps) mean_N s]_+^2

    with means over all pairs of the batch. The gradient goes through the inner means too.

    Args:
        pos_eps, neg_eps: as above.
        similarity: "cosine" (the default) or "dot".

    The inner means come from sums over classes, so that one pass over the pairs is enough. With
    reduction="none" the result has one value per row whose mean is the loss. Other arguments: see
    `SampleLoss`.
    """

    similarities = ("cosine", "dot")
    function = "intra_pair_variance"
    # Rows come divided by how many of them, or of their pairs, count: not to be divided again.
    reductions = ("mean", "sum", "none")
    reducers = {"MeanReducer": "mean"}
    mean_over = "pairs of each kind"
    describes = IntraPairVariance

    def __init__(self, pos_eps: float = 0.01, neg_eps: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_eps = pos_eps
        self.neg_eps = neg_eps
        self.description()  # checks the parameters

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        means = mean_similarities(batch, normalized=self.similarity == "cosine")
        return super().sample_call(description, batch, scalars=torch.stack(means), **fields)
