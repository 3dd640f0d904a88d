"""NT-Xent: every positive pair against its anchor's negatives."""

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
from ..terms import log_sum_exp, masked_sum, rows_per, softplus

__all__ = ["NTXentLoss"]


@register
@dataclasses.dataclass(frozen=True)
class NTXent(RowLoss):
    """Sum over a row's positives, times rows / positive pairs: the mean over rows is that over pairs."""

    name = "nt_xent"
    provenance = "pytorch-metric-learning"

    temperature: float = 0.07

    def __post_init__(self) -> None:
        check.positive(self.temperature, "temperature")

    @property
    def scale(self) -> float:
        return self.metric.sign / self.temperature

    def parameters(self) -> tuple[float, ...]:
        return (self.scale,)

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return rows_per(positives)

    def row(self, p: Row) -> Any:
        z = self.scale * p.s
        level = of.log_sum_exp(z, where=p.negative)
        return p.scalar(0) * of.sum(of.softplus(level - z), where=p.positive)

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        z = self.scale * rows.s
        level = log_sum_exp(z, rows.negative)[:, None]
        # Without negatives the gap is hugely negative, and its softplus 0.
        return rows.scalars[0] * masked_sum(softplus(level - z), rows.positive)


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
    mean_over = "positive pairs"
    describes = NTXent

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.description()  # checks the parameters
