"""NCA: neighbourhood component analysis."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ...engine import check
from ...engine.loss import Piece, Rows
from ...engine.registry import register
from ...language import Row, count, log, log_sum_exp, softplus, where
from ...language.described import Described, Positive
from ...language.row import TensorRow
from ..base import SampleLoss
from ..terms import rows_per

__all__ = ["NCALoss"]


@register
@dataclasses.dataclass(frozen=True)
class NCA(Described):
    """-log of the softmax mass on positives, times rows / rows that have one."""

    name = "nca"
    provenance = "pytorch-metric-learning"
    tuples = "weights"
    graded = True
    derived = ("sign",)

    softmax_scale: Positive = 1.0
    similarity: str = dataclasses.field(default="squared_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.positive(self.softmax_scale, "softmax_scale")

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return rows_per(positives > 0)

    def gap(self, p: Row) -> Any:
        """Of the log of the sum over negatives above that over positives."""
        z = self.sign * self.softmax_scale * p.s
        own = log_sum_exp(z + log(p.grade), where=p.positive)
        return log_sum_exp(z, where=p.negative) - own

    def row(self, p: Row) -> Any:
        gap = self.gap(p)
        kept = (count(where=p.positive) > 0) & (count(where=p.negative) > 0)
        return where(kept, p.scalar(0) * softplus(where(kept, gap, 0.0)), 0.0)

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        loss = softplus(self.gap(TensorRow(rows)))
        return {"loss": Piece("element", loss, rows.positive.any(1, keepdim=True))}


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
    # Rows come divided by how many of them, or of their pairs, count: not to be divided again.
    reductions = ("mean", "sum", "none")
    open = ("softmax_scale",)
    mean_over = "samples with a positive"
    reducers = {"MeanReducer": "mean"}
    describes = NCA
    default_similarity = "squared_distance"

    def __init__(self, softmax_scale: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.softmax_scale = softmax_scale
        self.description()  # checks the parameters
