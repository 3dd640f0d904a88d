"""ArcFace, and its form with several proxies per class."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...engine.similarity import unit, without_autocast
from ...language import words as of
from ...language.row import Row
from ..rows import cross_entropy_of
from ..terms import cross_entropy
from .proxies import ProxyLoss

__all__ = ["ArcFaceLoss", "SubCenterArcFaceLoss"]


@register
@dataclasses.dataclass(frozen=True)
class ArcFace(RowLoss):
    """Rows are samples, columns proxies, `sub_centers` consecutive ones per class. margin in radians."""

    name = "arc_face"
    provenance = "pytorch-metric-learning"
    columns = "proxies"

    margin: float = math.radians(28.6)
    scale: float = 64.0
    sub_centers: int = 1

    def __post_init__(self) -> None:
        check.positive(self.scale, "scale")
        check.count(self.sub_centers, "sub_centers")
        if not 0 <= self.margin < math.pi:
            raise ValueError(
                f"margin: expected an angle in [0, 180), got {math.degrees(self.margin)}"
            )

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(2.5, 8.0), cls(0.5, 30.0, 3)]

    @property
    def columns_per_class(self) -> int:
        return self.sub_centers

    def parameters(self) -> tuple[float, ...]:
        sine = math.sin(self.margin)
        return (
            self.scale,
            math.cos(self.margin),
            sine,
            self.margin * sine,
            float(self.sub_centers),
        )

    def row(self, p: Row) -> Any:
        own = of.sum(p.s, where=p.positive)
        cosine, sine = math.cos(self.margin), math.sin(self.margin)
        square = (1 - own) * (1 + own)
        known = square > of.rounding(p.s)
        turned = own * cosine - of.where(known, of.sqrt(of.where(known, square, 1.0)), 0.0) * sine
        target = of.where(own < -cosine, own - self.margin * sine, turned)
        return cross_entropy_of(p, self.scale * p.s, self.scale * target)

    def spec(self, rows: Rows) -> Tensor:
        s, positive = rows.s, rows.positive
        if self.sub_centers > 1:
            s = nearest(s, self.sub_centers)
            positive = positive[:, :: self.sub_centers]
        own = (s * positive).sum(1)
        cosine, sine = math.cos(self.margin), math.sin(self.margin)
        square = (1 - own) * (1 + own)
        # Where that is not more than the rounding of s, the angle is 0 and has no direction.
        known = square > 8 * torch.finfo(own.dtype).eps
        other = torch.where(known, square, torch.ones_like(square)).sqrt()
        turned = own * cosine - torch.where(known, other, torch.zeros_like(other)) * sine
        target = torch.where(own < -cosine, own - self.margin * sine, turned)
        return cross_entropy(self.scale * s, self.scale * target, positive)


def nearest(s: Tensor, size: int) -> Tensor:
    """[R, C] similarity of the nearest of `size` consecutive proxies; of equal ones the first."""
    grouped = s.unflatten(1, (-1, size))
    return grouped.gather(2, grouped.argmax(2, keepdim=True))[:, :, 0]


class ArcFaceLoss(ProxyLoss):
    """Additive angular margin loss.

    *ArcFace: Additive Angular Margin Loss for Deep Face Recognition*, Deng et al., CVPR 2019 (arXiv
    1801.07698), equation 3: softmax cross-entropy with logits scale cos(theta_y + margin) for the
    sample's class and scale cos(theta_c) for the others, theta the angle to the class's weight. Beyond
    theta_y = 180 - margin the target's logit goes on as scale (cos(theta_y) - margin sin(margin)).

    Args:
        num_classes, embedding_size: C and D; the parameter is `W` [D, C], normally distributed.
        margin: degrees, in [0, 180). scale: > 0.

    An embedding equal to its class's weight has no direction to be turned in: its gradient is 0, not
    infinite. Rows are samples. Other arguments: see `ProxyLoss`.
    """

    function = "arc_face"
    similarities = ("cosine",)
    parameter_name = "W"
    by_columns = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.margin = margin
        self.scale = scale
        self.description()  # checks the parameters

    def description(self) -> ArcFace:
        margin = math.radians(check.finite(self.margin, "margin"))
        return ArcFace(margin, self.scale, self.proxies_per_class)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return nearest(super().get_logits(embeddings), self.proxies_per_class) * self.scale


class SubCenterArcFaceLoss(ArcFaceLoss):
    """ArcFace with several proxies per class, of which the nearest one counts.

    *Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces*, Deng et al., ECCV
    2020, equation 3.

    Args:
        num_classes, embedding_size: C and D; the parameter is `W` [D, C sub_centers], those of a class
            in a row.
        margin, scale: see `ArcFaceLoss`.
        sub_centers: proxies per class.
    """

    function = "sub_center_arc_face"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64,
        sub_centers: int = 3,
        **kwargs: Any,
    ) -> None:
        sub_centers = check.count(sub_centers, "sub_centers")
        super().__init__(
            num_classes, embedding_size, margin, scale, _proxies_per_class=sub_centers, **kwargs
        )
        self.sub_centers = sub_centers

    @torch.no_grad()
    def get_outliers(
        self,
        embeddings: Tensor,
        labels: Tensor,
        threshold: float = 75,
        return_dominant_centers: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Samples far from their class's dominant centre: the one nearest to most samples of the class.

        Args:
            embeddings: [B, D]. labels: [B] in [0, C).
            threshold: degrees; samples at a larger angle from the dominant centre are outliers.

        Returns:
            Indices [outliers] by class, and (if return_dominant_centers) the centres [D, C]; 0 for a
            class without samples.
        """
        check.embeddings(embeddings, "embeddings", self.validate)
        labels = check.labels(
            labels, embeddings.shape[0], embeddings.device, "labels", "embeddings"
        )
        check.class_range(labels, self.num_classes, "labels", self.validate)
        size, classes = self.proxies_per_class, self.num_classes
        centers = self.all_proxies.detach().to(embeddings.dtype).unflatten(0, (classes, size))
        own = unit(centers.flatten(0, 1)).view_as(centers)[labels]
        with without_autocast(own.device):
            s = torch.einsum("bkd,bd->bk", own, unit(embeddings))
        votes = torch.zeros(classes, size, device=embeddings.device)
        votes.index_put_((labels, s.argmax(1)), torch.ones_like(labels, dtype=votes.dtype), True)
        dominant = votes.argmax(1)
        far = s.gather(1, dominant[labels, None])[:, 0] < math.cos(math.radians(threshold))
        order = labels.argsort(stable=True)
        outliers = order[far[order]]
        if not return_dominant_centers:
            return outliers
        chosen = centers[torch.arange(classes, device=centers.device), dominant]
        return outliers, (chosen * (votes.sum(1) > 0)[:, None]).t()
