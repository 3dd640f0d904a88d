"""CosFace."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..base import PRODUCTS
from .proxies import ProxyLoss
from .softmax_cross_entropy import SoftmaxCrossEntropy

__all__ = ["CosFaceLoss"]


class CosFaceLoss(ProxyLoss):
    """Large margin cosine loss.

    *CosFace: Large Margin Cosine Loss for Deep Face Recognition*, Wang et al., CVPR 2018 (arXiv
    1801.09414), equation 4: softmax cross-entropy with logits scale (s_y - margin) for the sample's
    class and scale s_c for the others, s the cosine similarity to the class's weight.

    Args:
        num_classes, embedding_size: C and D; the parameter is `W` [D, C], normally distributed.
        margin: in units of similarity. scale: > 0.

    Rows are samples. Other arguments: see `ProxyLoss`.
    """

    function = "cos_face"
    similarities = PRODUCTS
    open = ("margin", "scale")
    describes = SoftmaxCrossEntropy
    parameter_name = "W"
    by_columns = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.35,
        scale: float = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.margin = margin
        self.scale = scale
        self.description()  # checks the parameters

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return super().get_logits(embeddings) * self.scale
