"""Intra-pair variance loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ..base import SampleLoss, checked, sample_loss
from ..pair_means import mean_similarities
from ..terms import masked_sum, rows_per

__all__ = ["IntraPairVarianceLoss", "intra_pair_variance"]


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

    def __init__(self, pos_eps: float = 0.01, neg_eps: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_eps = pos_eps
        self.neg_eps = neg_eps
        self.description()  # checks the parameters

    def description(self) -> IntraPairVariance:
        return _describe(self.pos_eps, self.neg_eps, self.similarity)

    def losses(self, *batch: Any) -> Tensor:
        return intra_pair_variance(
            *batch,
            pos_eps=self.pos_eps,
            neg_eps=self.neg_eps,
            **self.options(),
        )


def _describe(pos_eps: float, neg_eps: float, similarity: str) -> IntraPairVariance:
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"similarity: expected 'cosine' or 'dot', got {similarity!r}")
    return IntraPairVariance(pos_eps, neg_eps, similarity=similarity)


def intra_pair_variance(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_eps: float = 0.01,
    neg_eps: float = 0.01,
    similarity: str = "cosine",
    **options: Any,
) -> Tensor:
    """Intra-pair variance as a function; see `IntraPairVarianceLoss`. options: see `sample_loss`."""
    description = _describe(pos_eps, neg_eps, similarity)
    validate = bool(options.get("validate", False))
    call = checked(embeddings, labels, indices_tuple, ref_emb, ref_labels, validate)
    means = mean_similarities(call, normalized=similarity == "cosine")
    return sample_loss(
        description,
        embeddings,
        labels,
        indices_tuple,
        ref_emb,
        ref_labels,
        scalars=torch.stack(means),
        **options,
    )
