"""SoftTriple, and the regulariser that merges its centres."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...engine.similarity import unit, without_autocast
from ..base import Term
from ..terms import cross_entropy, softmax_mean
from .proxies import ProxyLoss

__all__ = ["SoftTripleLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SoftTriple(RowLoss):
    """SPEC 3.4. Rows are samples, columns proxies, `size` consecutive ones per class."""

    name = "soft_triple"
    provenance = "released code"
    columns = "proxies"

    size: int = 10
    scale: float = 20.0
    gamma: float = 0.1
    margin: float = 0.01

    def __post_init__(self) -> None:
        check.count(self.size, "centers_per_class")
        check.positive(self.scale, "la")
        check.positive(self.gamma, "gamma")
        check.finite(self.margin, "margin")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(3, 10.0, 0.5, 0.1)]

    @property
    def columns_per_class(self) -> int:
        return self.size

    def parameters(self) -> tuple[float, ...]:
        return (float(self.size), self.scale, 1 / self.gamma, self.margin)

    def spec(self, rows: Rows) -> Tensor:
        pooled = softmax_mean(rows.s, self.size, self.gamma)
        positive = rows.positive[:, :: self.size]
        z = self.scale * pooled
        target = (z * positive).sum(1) - self.scale * self.margin
        return cross_entropy(z, target, positive)


class SoftTripleLoss(ProxyLoss):
    """SoftTriple loss.

    *SoftTriple Loss: Deep Metric Learning Without Triplet Sampling*, Qian et al., ICCV 2019 (arXiv
    1909.05235), equations 7 and 9, on the cosine similarities s_ck of a sample and the K centres of
    class c:

        S_c = sum_k softmax_k(s_ck / gamma) s_ck,   loss = CE(la (S_c - margin [c = y]), y)
            + tau sum_c sum_{k < l} |w_ck - w_cl| / (C K (K - 1))

    Args:
        num_classes, embedding_size: C and D.
        centers_per_class: K; the parameter is `fc` [D, C K], those of a class in a row.
        la, gamma: > 0. margin: in units of similarity.
        tau: weight of the second term, which merges centres; 0.2 in the paper, 0 by default, as
            in pytorch-metric-learning, where it is a weight regularizer.

    Rows are samples. Other arguments: see `ProxyLoss`.
    """

    function = "soft_triple"
    parameter_name = "fc"
    by_columns = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int = 10,
        la: float = 20,
        gamma: float = 0.1,
        margin: float = 0.01,
        *,
        tau: float = 0.0,
        **kwargs: Any,
    ) -> None:
        centers = check.count(centers_per_class, "centers_per_class")
        super().__init__(num_classes, embedding_size, _proxies_per_class=centers, **kwargs)
        self.centers_per_class = centers
        self.la = la
        self.gamma = gamma
        self.margin = margin
        self.tau = check.non_negative(tau, "tau")
        self.description()  # checks the parameters

    @staticmethod
    def initialize(weight: Tensor) -> Any:
        return nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def description(self) -> SoftTriple:
        check.larger_for_alike(self.similarity)
        return SoftTriple(
            self.centers_per_class, self.la, self.gamma, self.margin, similarity=self.similarity
        )

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return softmax_mean(super().get_logits(embeddings), self.centers_per_class, self.gamma)

    def proxy_calls(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor, indices_tuple: object
    ) -> list[Any]:
        parts = super().proxy_calls(embeddings, labels, proxies, indices_tuple)
        if self.tau:
            parts.append(Term(center_distance, (proxies, self.centers_per_class), self.tau))
        return parts


def center_distance(proxies: Tensor, size: int) -> Tensor:
    """Sum over classes of the distances between their normalised proxies, over C K (K - 1).

    proxies: [C K, D]. The root has 1e-5 added to its argument, as released.
    """
    if size == 1:
        return proxies.sum() * 0
    with without_autocast(proxies.device):
        directions = unit(proxies).unflatten(0, (-1, size))
        s = torch.bmm(directions, directions.transpose(1, 2))
    first, second = torch.triu_indices(size, size, 1, device=proxies.device)
    d = (2 + 1e-5 - 2 * s[:, first, second]).clamp(min=1e-5).sqrt()
    return d.sum() / (proxies.shape[0] * (size - 1))
