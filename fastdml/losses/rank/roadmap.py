"""ROADMAP: SupAP and the calibration of its scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...engine import check
from ..pair.contrastive import Calibration
from .sup_ap import SupAPLoss

__all__ = ["ROADMAPLoss"]


class ROADMAPLoss(SupAPLoss):
    """ROADMAP loss: average precision that decomposes over batches.

    *Robust and Decomposable Average Precision for Image Retrieval*, Ramzi et al., NeurIPS 2021 (arXiv
    2110.01445), equation 8:

        ap_weight * SupAP + calibration_weight * calibration

    See `SupAPLoss` and `CalibrationLoss`. The default weights are those of the released code;
    the paper's (1 - lambda) and lambda with lambda = 0.5 are half of them.

    Args:
        temperature, rho, delta, offset, start, sort: of SupAP; so is similarity, while the calibration
            is always on cosine similarities.
        pos_margin, neg_margin: of the calibration, in cosine similarity.
        ap_weight, calibration_weight: >= 0.

    There are no row losses: reduction is "mean". Other arguments: see `SampleLoss`.
    """

    function = "roadmap"
    mean_over = "queries, and pairs of each kind above 0"
    reductions = ("mean",)

    def __init__(
        self,
        temperature: float = 0.01,
        rho: float = 100,
        delta: float = 0.05,
        offset: float = 1.44,
        start: float = 0.5,
        pos_margin: float = 0.9,
        neg_margin: float = 0.6,
        ap_weight: float = 1.0,
        calibration_weight: float = 1.0,
        *,
        sort: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, rho, delta, offset, start, sort, **kwargs)
        self.pos_margin = check.finite(pos_margin, "pos_margin")
        self.neg_margin = check.finite(neg_margin, "neg_margin")
        self.ap_weight = check.non_negative(ap_weight, "ap_weight")
        self.calibration_weight = check.non_negative(calibration_weight, "calibration_weight")

    def calls(self, *batch: Any, own: int | Tensor | None = None) -> list[Any]:
        ranking, found = self.resolved(*batch, own=own)
        calibration = Calibration(self.pos_margin, self.neg_margin)
        return [
            self.sample_call(ranking, found, weight=self.ap_weight),
            self.sample_call(calibration, found, weight=self.calibration_weight),
        ]
