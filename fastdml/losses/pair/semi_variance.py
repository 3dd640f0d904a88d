"""Semi-variance of positive and negative similarities."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, count, relu, square, sum
from ...language.described import Described
from ...mining.batch import Batch
from ..base import SampleLoss
from ..pair_means import mean_similarities

__all__ = ["SemiVarianceLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SemiVariance(Described):
    """Scalars of the call: the mean similarity of positives and of negatives, whose derivatives count."""

    name = "semi_variance"
    provenance = "released code"
    learnable = (0.5, 0.1)
    outputs = 4
    symmetric = True
    unread = ("pos_weight", "neg_weight")

    pos_weight: float = 1.0
    neg_weight: float = 5.0

    def __post_init__(self) -> None:
        check.non_negative(self.pos_weight, "pos_weight")
        check.non_negative(self.neg_weight, "neg_weight")

    def row(self, p: Row) -> Any:
        parts = ((p.scalar(0) - p.s, p.positive), (p.s - p.scalar(1), p.negative))
        sums = [sum(square(relu(x)), where=mask) for x, mask in parts]
        counts = [count(where=mask & (x > 0)) for x, mask in parts]
        return (*sums, *counts)

    def combine(self, outputs: Tensor, reduction: str) -> Tensor:
        pull, push, pulls, pushes = outputs.double().sum(0).unbind(0)
        if reduction == "mean":
            pull = pull / pulls.detach().clamp(min=1)
            push = push / pushes.detach().clamp(min=1)
        return (self.pos_weight * pull + self.neg_weight * push).to(outputs.dtype)


class SemiVarianceLoss(SampleLoss):
    """Semi-variance of similarities, the regulariser of SOPRC.

    *Exploring the Algorithm-Dependent Generalization of AUPRC Optimization with List Stability*, Wen et
    al., NeurIPS 2022 (arXiv 2209.13262), on cosine similarities s, over all pairs of the batch:

        pos_weight mean over the positives below their mean of (mean_P s - s)^2
        + neg_weight mean over the negatives above their mean of (s - mean_N s)^2

    The gradient goes through the inner means too.

    Args:
        pos_weight, neg_weight: >= 0.
        similarity: "cosine" (the default) or "dot".

    There are no row losses: reduction is "mean" or "sum". Other arguments: see `SampleLoss`.
    """

    reductions = ("mean", "sum")
    similarities = ("cosine", "dot")
    function = "semi_variance"
    mean_over = "positives below their mean, and negatives above theirs"
    describes = SemiVariance

    def __init__(self, pos_weight: float = 1.0, neg_weight: float = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight
        self.description()  # checks the parameters

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        means = mean_similarities(batch, normalized=self.similarity == "cosine")
        return super().sample_call(description, batch, scalars=torch.stack(means), **fields)
