"""SupCon: supervised contrastive loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.loss import Learnt
from ...engine.registry import register
from ..base import SampleLoss
from .row_cross_entropy import RowCrossEntropy

__all__ = ["SupConLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SupCon(RowCrossEntropy):
    """SPEC 3.7: the target is spread over the row's positives; rows without one have a loss of 0."""

    name = "sup_con"
    provenance = "released code"


class SupConLoss(SampleLoss):
    """Supervised contrastive loss.

    *Supervised Contrastive Learning*, Khosla et al., NeurIPS 2020 (arXiv 2004.11362), equation 2 (the
    sum over positives outside the logarithm), on cosine similarities s:

        (t / base) (log sum_{j != i} exp(s_ij / t) - mean_P s_ip / t)

    Args:
        temperature: t > 0.
        base_temperature: base > 0; None: t, which makes the factor 1.
        reduction: "nonzero" (the default, as in pytorch-metric-learning) averages the rows with a
            loss above 0; "mean", the released code's, all rows: those without positives have 0.

    Other arguments: see `SampleLoss`.
    """

    function = "sup_con"
    open = ("temperature",)

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        base_temperature: float | None = None,
        reduction: str = "nonzero",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, **kwargs)
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.description()  # checks the parameters

    def description(self) -> SupCon:
        check.positive(self.temperature, "temperature")
        factor = 1.0
        if self.base_temperature is not None:
            if isinstance(self.temperature, Learnt):
                raise ValueError(
                    "base_temperature: expected None with a temperature that is a tensor, got "
                    f"{self.base_temperature!r}"
                )
            factor = self.temperature / check.positive(self.base_temperature, "base_temperature")
        return SupCon(self.temperature, factor, factor, similarity=self.similarity)
