"""NT-Xent: every positive pair against its anchor's negatives."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ...engine import check
from ...engine.loss import Piece, Rows
from ...engine.registry import register
from ...language import Row, count, log_sum_exp, softplus, sum, where
from ...language.described import Described, Positive
from ..base import SampleLoss
from ..terms import rows_per

__all__ = ["NTXentLoss"]


@register
@dataclasses.dataclass(frozen=True)
class NTXent(Described):
    """Sum over a row's positives, times rows / positive pairs: the mean over rows is that over pairs."""

    name = "nt_xent"
    provenance = "pytorch-metric-learning"
    derived = ("sign",)
    two_sweeps_pay = True

    temperature: Positive = 0.07

    def __post_init__(self) -> None:
        check.positive(self.temperature, "temperature")

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return rows_per(positives)

    def row(self, p: Row) -> Any:
        z = self.sign / self.temperature * p.s
        level = log_sum_exp(z, where=p.negative)
        loss = p.scalar(0) * sum(softplus(level - z), where=p.positive)
        return where(count(where=p.negative) > 0, loss, 0.0)

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        z = self.sign / self.temperature * rows.s
        level = log_sum_exp(z, where=rows.negative)
        return {"loss": Piece("pos_pair", softplus(level - z), rows.positive)}


class NTXentLoss(SampleLoss):
    """NT-Xent loss, the normalised and temperature-scaled cross-entropy.

    *A Simple Framework for Contrastive Learning of Visual Representations*, Chen et al., ICML 2020
    (arXiv 2002.05709), equation 1, with labels as in pytorch-metric-learning: the mean over all positive
    pairs (i, p) of

        -log( exp(s_ip / t) / (exp(s_ip / t) + sum_N exp(s_in / t)) )

    so that positives do not compete with each other (in `SupConLoss` they do). Computed as
    softplus(log sum_N exp(s_in / t) - s_ip / t), which has a gradient at any temperature.

    Args:
        temperature: t > 0.

    On distances, s is minus the distance. Pairs of rows without negatives count with a loss of 0. With
    reduction="none" the result has one value per row whose mean is the loss. Other arguments: see
    `SampleLoss`.
    """

    function = "nt_xent"
    # Rows come divided by how many of them, or of their pairs, count: not to be divided again.
    reductions = ("mean", "sum", "none")
    open = ("temperature",)
    mean_over = "positive pairs"
    reducers = {"MeanReducer": "mean"}
    describes = NTXent

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.description()  # checks the parameters
