"""Normalised softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...engine import check
from ...engine.distances import metric_of
from .proxies import ProxyLoss
from .softmax_cross_entropy import SoftmaxCrossEntropy

__all__ = ["NormalizedSoftmaxLoss"]


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

    function = "normalized_softmax"
    parameter_name = "W"
    by_columns = True
    # An object says what happens to the embeddings; the weights are normalised in any case.
    distances = {"dot": "projection"}

    def __init__(
        self, num_classes: int, embedding_size: int, temperature: float = 0.05, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.temperature = temperature
        self.description()  # checks the parameters

    def _similarity_of(self, distance: object) -> str:
        found = super()._similarity_of(distance)
        if isinstance(distance, nn.Module) and not metric_of(found).normalized and found != "projection":
            raise ValueError(
                f"distance: expected one of normalised embeddings, or the dot product, got {distance!r}"
            )
        return found

    def description(self) -> SoftmaxCrossEntropy:
        scale = 1 / check.positive(self.temperature, "temperature")
        away = metric_of(self.similarity).sign < 0
        return SoftmaxCrossEntropy(-scale if away else scale, similarity=self.similarity)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return super().get_logits(embeddings) * self.description().scale
