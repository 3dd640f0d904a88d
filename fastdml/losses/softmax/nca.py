"""NCA: neighbourhood component analysis."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.registry import register
from ...language import words as of
from ...language.row import Row
from ..base import SampleLoss
from ..terms import log_sum_exp, log_weighted, rows_per, softplus

__all__ = ["NCALoss"]


@register
@dataclasses.dataclass(frozen=True)
class NCA(RowLoss):
    """-log of the softmax mass on positives, times rows / rows that have one."""

    name = "nca"
    provenance = "pytorch-metric-learning"
    tuples = "weights"
    graded = True

    softmax_scale: float = 1.0
    similarity: str = dataclasses.field(default="squared_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.positive(self.softmax_scale, "softmax_scale")

    @property
    def scale(self) -> float:
        return self.metric.sign * self.softmax_scale

    def parameters(self) -> tuple[float, ...]:
        return (self.scale,)

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return rows_per(positives > 0)

    def row(self, p: Row) -> Any:
        z = self.scale * p.s
        own, others = of.count(where=p.positive), of.count(where=p.negative)
        kept = (own > 0) & (others > 0)
        gap = of.log_sum_exp(z, where=p.negative) - of.log_sum_exp(z, where=p.positive)
        return of.where(kept, p.scalar(0) * of.softplus(of.where(kept, gap, 0.0)), 0.0)

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        z = self.scale * rows.s
        gap = log_sum_exp(z, rows.negative) - log_sum_exp(log_weighted(z, rows.weight), rows.positive)
        loss = rows.scalars[0] * softplus(gap)
        kept = rows.positive.any(1) & rows.negative.any(1)
        return torch.where(kept, loss, torch.zeros_like(loss))

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        z = self.scale * rows.s
        loss = softplus(log_sum_exp(z, rows.negative) - log_sum_exp(z, rows.positive))
        return {"loss": Piece("element", loss[:, None], rows.positive.any(1, keepdim=True))}


class NCALoss(SampleLoss):
    """NCA loss.

    *Neighbourhood Components Analysis*, Goldberger et al., NIPS 2004, in the form with logarithms
    (equation 6): the mean over the samples that have a positive of

        -log( sum_P exp(-scale d^2) / sum_{j != i} exp(-scale d^2) )

    with d Euclidean between normalised embeddings.

    Args:
        softmax_scale: > 0.
        similarity: "squared_distance" (the default), another distance, or a similarity, whose sign is
            then turned.

    A batch without any positive has a loss of 0. With reduction="none" the result has one value per row
    whose mean is the loss. Other arguments: see `SampleLoss`.
    """

    function = "nca"
    mean_over = "samples with a positive"
    reducers = {"MeanReducer": "mean"}
    describes = NCA
    default_similarity = "squared_distance"

    def __init__(self, softmax_scale: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.softmax_scale = softmax_scale
        self.description()  # checks the parameters
