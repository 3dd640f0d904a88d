"""Large-margin softmax and SphereFace: the angle to the own class is multiplied."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...engine.relation import LabelRelation
from ...engine.similarity import lengths
from ...language import words as of
from ...language.row import Row
from ...mining.sample_weights import sample_weights
from ..rows import cross_entropy_of
from ..terms import cross_entropy
from .proxies import ProxyLoss

__all__ = ["LargeMarginSoftmaxLoss", "SphereFaceLoss"]

_LARGEST_MARGIN = 64  # a sample's time grows with it; papers take 1 to 4


@register
@dataclasses.dataclass(frozen=True)
class MultipleAngleSoftmax(RowLoss):
    """Rows are samples, columns proxies. Row value 0: the product with the own proxy at angle 0."""

    name = "multiple_angle_softmax"
    provenance = "pytorch-metric-learning"
    columns = "proxies"

    scale: float = 1.0
    margin: int = 4
    similarity: str = dataclasses.field(default="projection", kw_only=True)

    def __post_init__(self) -> None:
        check.positive(self.scale, "scale")
        check.integer(self.margin, "margin", 1, _LARGEST_MARGIN)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(2.0, 3), cls(0.05, 1, similarity="dot")]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"row_values": torch.linspace(0.5, 9, rows)[:, None]}

    def label_scalars(self, relation: LabelRelation) -> list[float] | None:
        return [math.cos(math.pi * k / self.margin) for k in range(1, self.margin)] or None

    def row(self, p: Row) -> Any:
        length, own = p.row_value(0), of.sum(p.s, where=p.positive)
        if self.margin == 1:
            return cross_entropy_of(p, self.scale * p.s, self.scale * own)
        cosine = of.where(length > 0, own / of.maximum(length, 1e-38), 0.0)
        before, t = of.lift(1.0), cosine
        for _ in range(1, self.margin):
            before, t = t, 2 * cosine * t - before
        psi = t
        for k in range(1, self.margin):
            turned = (t if k % 2 == 0 else -t) - 2 * k
            psi = of.where(cosine <= math.cos(math.pi * k / self.margin), turned, psi)
        return cross_entropy_of(p, self.scale * p.s, self.scale * length * psi)

    def spec(self, rows: Rows) -> Tensor:
        assert rows.row_values is not None
        length = rows.row_values[:, 0]
        own = (rows.s * rows.positive).sum(1)
        if self.margin == 1:  # whatever the length
            return cross_entropy(self.scale * rows.s, self.scale * own, rows.positive)
        cosine = torch.where(length > 0, own / length.clamp(min=torch.finfo(own.dtype).tiny), 0.0)
        target = self.scale * length * self.psi(cosine, rows.scalars)
        return cross_entropy(self.scale * rows.s, target, rows.positive)

    def psi(self, cosine: Tensor, turns_at: Tensor | None) -> Tensor:
        """(-1)^k cos(margin angle) - 2k, where the angle lies in [k, k + 1] pi / margin."""
        before, t = torch.ones_like(cosine), cosine
        for _ in range(1, self.margin):
            before, t = t, 2 * cosine * t - before
        if turns_at is None:
            return t
        k = (cosine[:, None] <= turns_at).sum(1)
        return torch.where(k % 2 == 0, t, -t) - 2 * k


class SphereFaceLoss(ProxyLoss):
    """SphereFace: softmax cross-entropy in which the angle to the own class is multiplied.

    *SphereFace: Deep Hypersphere Embedding for Face Recognition*, Liu et al., CVPR 2017 (arXiv
    1704.08063), equation 7: logits scale |x| psi(theta_y) for the sample's class and scale |x|
    cos(theta_c) for the others, psi(theta) = (-1)^k cos(margin theta) - 2k for theta in [k, k + 1]
    pi / margin. The weights are normalised, the embeddings are not.

    Args:
        num_classes, embedding_size: C and D; the parameter is `W` [D, C], normally distributed.
        margin: factor of the angle, an integer from 1 to 64. scale: > 0.

    An embedding of length 0 has no angle: with a margin above 1 its own class does not pull it. Rows are
    samples. Other arguments: see `ProxyLoss`.
    """

    function = "sphere_face"
    describes = MultipleAngleSoftmax
    default_similarity = "projection"
    similarities = ("projection",)
    distances = {"cosine": "projection"}  # of which lengths are made again
    parameter_name = "W"
    by_columns = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: int = 4,
        scale: float = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.margin = check.integer(margin, "margin", 1, _LARGEST_MARGIN)
        self.scale = scale
        self.description()  # checks the parameters

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return super().get_logits(embeddings) * self.scale

    def proxy_calls(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor, indices_tuple: object
    ) -> list[Any]:
        weight = sample_weights(indices_tuple, embeddings)
        row_values = lengths(embeddings)
        if self.similarity == "dot":
            row_values = row_values * lengths(proxies)[labels]
        return [
            self.proxy_call(embeddings, labels, proxies, row_weight=weight, row_values=row_values)
        ]


class LargeMarginSoftmaxLoss(SphereFaceLoss):
    """Large-margin softmax: as SphereFace, with weights that are not normalised.

    *Large-Margin Softmax Loss for Convolutional Neural Networks*, Liu et al., ICML 2016 (arXiv
    1612.02295), equation 4: logits scale |w_y| |x| psi(theta_y) and scale x . w_c; psi as in
    `SphereFaceLoss`.

    Args:
        num_classes, embedding_size: C and D; the parameter is `W` [D, C], normally distributed.
        margin: factor of the angle, an integer from 1 to 64. scale: > 0.

    Rows are samples. Other arguments: see `ProxyLoss`.
    """

    function = "large_margin_softmax"
    default_similarity = "dot"
    similarities = ("dot",)
    distances = {"cosine": "dot"}
