"""Dense triplets: all pairs that labels put in order around an anchor."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.dispatch import check_backend
from ..engine.loss import RowLoss, Rows
from ..engine.registry import register
from .labelled_distances import all_anchors, one_anchor, rounded_share

__all__ = ["DenseTripletLoss", "dense_triplet"]


@register
@dataclasses.dataclass(frozen=True)
class DenseTriplet(RowLoss):
    """SPEC 1.3. Rows hold squared distances; label distances as in `LogRatio`.

    The mean over pairs (j, k) with a smaller label distance of j. A row without any has a loss of 0.
    """

    name = "dense_triplet"
    provenance = "released code"
    threshold_list = True  # as much memory per pair

    margin: float = 0.03
    given: bool = False
    similarity: str = dataclasses.field(default="squared_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.5, True)]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"col_values": torch.linspace(4, 0.1, columns)[None]} if self.given else {}

    @property
    def teacher_similarity(self) -> str | None:  # type: ignore[override]
        return None if self.given else "raw_distance"

    def distance_epsilon(self, dimension: int) -> float:
        return 1e-4 / dimension

    def spec(self, rows: Rows) -> Tensor:
        y = rows.teacher
        if self.given:
            assert rows.col_values is not None
            y = rows.col_values[0].expand_as(rows.s)
        assert y is not None
        ordered = y[:, :, None] < y[:, None, :]
        if rows.pair is not None:
            ordered = ordered & rows.pair[:, :, None] & rows.pair[:, None, :]
        cost = (rows.s[:, :, None] - rows.s[:, None, :] + self.margin).relu()
        total = torch.where(ordered, cost, torch.zeros_like(cost)).sum((1, 2))
        return total / ordered.sum((1, 2)).clamp(min=1)


class DenseTripletLoss(nn.Module):
    """Dense triplet loss.

    The baseline of *Deep Metric Learning Beyond Binary Supervision*, Kim et al., CVPR 2019 (arXiv
    1904.09626): of an anchor a, the mean over pairs (j, k) of other samples with Y_aj < Y_ak of
    [d_aj - d_ak + margin]_+, d squared distances of normalised embeddings, Y distances of labels. Equal
    label distances are in no order.

    O(B^2) time per anchor and as much memory in all, on the chunked executor.

    Args:
        margin: in units of squared distance.
        normalize: whether embeddings are normalised.
        reduction: "mean" over anchors, "sum" or "none".
        backend, validate: see `SampleLoss`.
    """

    def __init__(
        self,
        margin: float = 0.03,
        normalize: bool = True,
        *,
        reduction: str = "mean",
        backend: str = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check.reduction(reduction)
        check_backend(backend)
        self.margin = check.finite(margin, "margin")
        self.normalize = normalize
        self.reduction = reduction
        self.backend = backend
        self.validate = validate

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        label_distance: Tensor | None = None,
    ) -> Tensor:
        """The loss; arguments as `LogRatioLoss.forward`."""
        return dense_triplet(
            embeddings,
            labels,
            label_distance,
            margin=self.margin,
            normalize=self.normalize,
            reduction=self.reduction,
            backend=self.backend,
            validate=self.validate,
        )


def dense_triplet(
    embeddings: Tensor,
    labels: Tensor | None = None,
    label_distance: Tensor | None = None,
    *,
    margin: float = 0.03,
    normalize: bool = True,
    variant: str = "paper",
    **options: Any,
) -> Tensor:
    """Dense triplet loss as a function; see `DenseTripletLoss`. options: reduction, backend, validate.

    variant "released", with label_distance: one over the number of pairs is rounded to float32.
    """
    check.embeddings(embeddings, "embeddings")
    share = rounded_share(embeddings, variant)
    if (labels is None) == (label_distance is None):
        raise ValueError("labels: expected either labels or label_distance")
    kind = "squared_distance" if normalize else "raw_squared_distance"
    if label_distance is not None:
        description = DenseTriplet(margin, True, similarity=kind)
        loss = one_anchor(description, embeddings, label_distance, **options)
        return loss if share == 1 else share * loss
    assert labels is not None
    return all_anchors(DenseTriplet(margin, similarity=kind), embeddings, labels, **options)
