"""ROADMAP: SupAP and the calibration of its scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...engine import check
from ..base import SampleLoss
from ..pair.contrastive import contrastive
from .sup_ap import SupAP, sup_ap

__all__ = ["ROADMAPLoss", "calibration", "roadmap"]


def calibration(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.9,
    neg_margin: float = 0.6,
    similarity: str = "cosine",
    **options: Any,
) -> Tensor:
    """The calibration half of ROADMAP: contrastive loss on cosine similarities, over active pairs.

    The mean of [pos_margin - s]_+ over the positives where it is above 0, plus the mean of
    [s - neg_margin]_+ over the negatives where it is. No such pair: 0. options: see `sample_loss`.
    """
    return contrastive(
        embeddings,
        labels,
        indices_tuple,
        ref_emb,
        ref_labels,
        pos_margin=pos_margin,
        neg_margin=neg_margin,
        similarity=similarity,
        **options,
    )


class ROADMAPLoss(SampleLoss):
    """ROADMAP loss: average precision that decomposes over batches.

    *Robust and Decomposable Average Precision for Image Retrieval*, Ramzi et al., NeurIPS 2021 (arXiv
    2110.01445), equation 8:

        ap_weight * SupAP + calibration_weight * calibration

    See `SupAPLoss` and `functional.calibration`. The default weights are those of the released code;
    the paper's (1 - lambda) and lambda with lambda = 0.5 are half of them.

    Args:
        temperature, rho, delta, offset, start, sort: of SupAP; so is similarity, while the calibration
            is always on cosine similarities.
        pos_margin, neg_margin: of the calibration, in cosine similarity.
        ap_weight, calibration_weight: >= 0.

    There are no row losses: reduction is "mean". Other arguments: see `SampleLoss`.
    """

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
        super().__init__(**kwargs)
        _only_mean(self.reduction)
        self.temperature = temperature
        self.rho = rho
        self.delta = delta
        self.offset = offset
        self.start = start
        self.sort = sort
        self.pos_margin = check.finite(pos_margin, "pos_margin")
        self.neg_margin = check.finite(neg_margin, "neg_margin")
        self.ap_weight = check.non_negative(ap_weight, "ap_weight")
        self.calibration_weight = check.non_negative(calibration_weight, "calibration_weight")
        self.description()  # checks the parameters

    def description(self) -> SupAP:
        """The ranking half; the calibration is a `ContrastiveLoss`."""
        return SupAP(
            self.temperature,
            self.rho,
            self.delta,
            self.offset,
            self.start,
            similarity=self.similarity,
            sort=self.sort,
        )

    def losses(self, *batch: Any) -> Tensor:
        pairs = calibration(
            *batch, pos_margin=self.pos_margin, neg_margin=self.neg_margin, backend=self.backend
        )
        ranking = super().losses(*batch)
        return self.ap_weight * ranking + self.calibration_weight * pairs


def _only_mean(reduction: str) -> None:
    if reduction != "mean":
        raise ValueError(f"reduction: expected 'mean', the only one, got {reduction!r}")


def roadmap(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.9,
    neg_margin: float = 0.6,
    ap_weight: float = 1.0,
    calibration_weight: float = 1.0,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
    **ranking: Any,
) -> Tensor:
    """ROADMAP loss as a function; see `ROADMAPLoss`. ranking: arguments of `sup_ap`."""
    _only_mean(reduction)
    check.finite(pos_margin, "pos_margin")
    check.finite(neg_margin, "neg_margin")
    check.non_negative(ap_weight, "ap_weight")
    check.non_negative(calibration_weight, "calibration_weight")
    given = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
    return ap_weight * sup_ap(*given, backend=backend, validate=validate, **ranking) + (
        calibration_weight
        * calibration(*given, pos_margin=pos_margin, neg_margin=neg_margin, backend=backend)
    )
