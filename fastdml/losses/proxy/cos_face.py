"""CosFace."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...engine import check
from .proxies import ProxyLoss, proxy_row_loss
from .softmax_cross_entropy import SoftmaxCrossEntropy

__all__ = ["CosFaceLoss", "cos_face"]


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

    def description(self) -> SoftmaxCrossEntropy:
        return _describe(self.margin, self.scale, self.similarity)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return super().get_logits(embeddings) * self.scale


def _describe(margin: float, scale: float, similarity: str) -> SoftmaxCrossEntropy:
    check.positive(scale, "scale")
    return SoftmaxCrossEntropy(scale, margin, similarity=similarity)


def cos_face(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    indices_tuple: object = None,
    *,
    margin: float = 0.35,
    scale: float = 64,
    similarity: str = "cosine",
    **options: Any,
) -> Tensor:
    """CosFace loss of embeddings [B, D] and proxies [C, D]; see `CosFaceLoss`.

    options: see `proxy_row_loss`.
    """
    description = _describe(margin, scale, similarity)
    return proxy_row_loss(description, embeddings, labels, proxies, indices_tuple, **options)
