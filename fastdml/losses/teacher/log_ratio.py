"""Log-ratio loss: continuous labels."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from .labelled_distances import LabelledLoss

__all__ = ["LogRatioLoss"]


@register
@dataclasses.dataclass(frozen=True)
class LogRatio(RowLoss):
    """SPEC 1.3. Rows hold distances; label distances are column value 0 if `given`, else the teacher's.

    A row of fewer than two pairs has a loss of 0.
    """

    name = "log_ratio"
    provenance = "released code"

    epsilon: float = 1e-6
    given: bool = False
    squared_label: bool = dataclasses.field(default=False, kw_only=True)
    # Added to squared distances; None: 1e-4 over the dimension, or 1e-10 for normalised embeddings.
    floor: float | None = dataclasses.field(default=None, kw_only=True)
    similarity: str = dataclasses.field(default="raw_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.positive(self.epsilon, "epsilon")
        check.distance(self.similarity)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        # The published constants amplify the rounding of a distance near 0 by 1e3 and more; tests of the
        # published values have them.
        tame: dict[str, Any] = {"epsilon": 0.1, "floor": 0.01}
        return [
            cls(**tame),
            cls(given=True, **tame),
            cls(**tame, similarity="squared_distance", squared_label=True),
        ]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"col_values": torch.linspace(0.1, 4, columns)[None]} if self.given else {}

    @property
    def teacher_similarity(self) -> str | None:  # type: ignore[override]
        if self.given:
            return None
        return "label_squared_distance" if self.squared_label else "label_distance"

    def distance_epsilon(self, dimension: int) -> float:
        if self.floor is not None:
            return self.floor
        return 1e-4 / dimension if "raw" in self.similarity else 1e-10

    def parameters(self) -> tuple[float, ...]:
        return (self.epsilon, float(self.given))

    def spec(self, rows: Rows) -> Tensor:
        y = rows.col_values[0] if self.given and rows.col_values is not None else rows.teacher
        assert y is not None
        u = (rows.s + self.epsilon).log() - (y + self.epsilon).log()
        pair = torch.ones_like(u, dtype=torch.bool) if rows.pair is None else rows.pair
        n = pair.sum(1, keepdim=True)
        zero = torch.zeros_like(u)
        mean = torch.where(pair, u, zero).sum(1, keepdim=True) / n.clamp(min=1)
        spread = torch.where(pair, u - mean, zero).square().sum(1)
        return 2 * spread / (n[:, 0] - 1).clamp(min=1)


class LogRatioLoss(LabelledLoss):
    """Log-ratio loss.

    *Deep Metric Learning Beyond Binary Supervision*, Kim et al., CVPR 2019 (arXiv 1904.09626),
    equation 3: of an anchor a, the mean over pairs (j, k) of other samples of
    (log(D_aj / D_ak) - log(Y_aj / Y_ak))^2, D distances of embeddings, Y distances of labels. That is
    twice the variance of log D - log Y over the samples: O(B) per anchor, O(B^2) for all.

    Args:
        squared_embedding, squared_label: take squared distances, of embeddings or labels. The paper
            writes squares for both, the released code takes none; both at once only multiply the
            loss by 4.
        normalize: whether embeddings are normalised; the released code does not.
        reduction: "mean" over anchors, "sum" or "none".
        backend, validate: see `SampleLoss`.
    """

    function = "log_ratio"
    default_similarity = "raw_distance"

    def __init__(
        self,
        squared_embedding: bool = False,
        squared_label: bool = False,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.squared_embedding = squared_embedding
        self.squared_label = squared_label
        self.normalize = normalize
        self.settle_similarity()

    def described(self, given: bool) -> LogRatio:
        kind = "squared_distance" if self.squared_embedding else "distance"
        # Label distances that are given come as squares.
        return LogRatio(
            squared_label=self.squared_label and not given,
            given=given,
            similarity=kind if self.normalize else f"raw_{kind}",
        )

    def given_distances(self, distance: Tensor) -> Tensor:
        return distance.square() if self.squared_label else distance
