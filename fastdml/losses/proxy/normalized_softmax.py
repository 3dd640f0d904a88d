"""Normalised softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...engine import check
from .proxies import ProxyLoss, proxy_row_loss
from .softmax_cross_entropy import SoftmaxCrossEntropy

__all__ = ["NormalizedSoftmaxLoss", "normalized_softmax"]


class NormalizedSoftmaxLoss(ProxyLoss):
    """Softmax cross-entropy over normalised class weights.

    *Classification is a Strong Baseline for Deep Metric Learning*, Zhai and Wu, BMVC 2019 (arXiv
    1811.12649), equation 3: logits x . w_c / (|x| |w_c| temperature). With similarity="projection"
    the embeddings are taken as they are.

    Args:
        num_classes, embedding_size: C and D; the parameter is `W` [D, C], normally distributed.
        temperature: > 0.

    Rows are samples. Other arguments: see `ProxyLoss`.
    """

    parameter_name = "W"
    by_columns = True

    def __init__(
        self, num_classes: int, embedding_size: int, temperature: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.temperature = temperature
        self.description()  # checks the parameters

    def description(self) -> SoftmaxCrossEntropy:
        return _describe(self.temperature, self.similarity)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return super().get_logits(embeddings) * self.description().scale


def _describe(temperature: float, similarity: str) -> SoftmaxCrossEntropy:
    scale = 1 / check.positive(temperature, "temperature")
    away = "distance" in similarity
    return SoftmaxCrossEntropy(-scale if away else scale, similarity=similarity)


def normalized_softmax(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    indices_tuple: object = None,
    *,
    temperature: float = 0.05,
    similarity: str = "cosine",
    **options: Any,
) -> Tensor:
    """Normalised softmax of embeddings [B, D] and proxies [C, D]; see `NormalizedSoftmaxLoss`.

    options: see `proxy_row_loss`.
    """
    description = _describe(temperature, similarity)
    return proxy_row_loss(description, embeddings, labels, proxies, indices_tuple, **options)
