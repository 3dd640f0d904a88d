"""Multi-proxies anchor loss. Inferred: no code was released, and the paper could not be re-read."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from .proxies import ProxyLoss, proxy_row_loss
from .proxy_anchor import ProxyAnchor
from ..terms import log_sum_exp_with_one, softmax_mean

__all__ = ["MultiProxyAnchorLoss", "multi_proxy_anchor"]


@register
@dataclasses.dataclass(frozen=True)
class MultiProxyAnchor(RowLoss):
    """SPEC 2.13. Rows are proxies, `size` consecutive ones per class, pooled over them.

    The first row of a class has the class's loss, times `size`, and the others 0, so that the mean over
    rows is that over classes.
    """

    name = "multi_proxy_anchor"
    provenance = "inferred"
    rows = "proxies"

    size: int = 10
    alpha: float = 32.0
    margin: float = 0.1
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check.count(self.size, "proxies_per_class")
        check.positive(self.alpha, "alpha")
        check.finite(self.margin, "margin")
        check.positive(self.gamma, "gamma")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(3), cls(1)]

    @property
    def columns_per_class(self) -> int:
        return self.size

    @property
    def rows_together(self) -> int:
        return self.size

    scalars = ProxyAnchor.scalars  # rows over rows whose class is present: K cancels

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        s = softmax_mean(rows.s.t(), self.size, self.gamma).t()  # [classes, N]
        positive, negative = rows.positive[:: self.size], rows.negative[:: self.size]
        pull = log_sum_exp_with_one(-self.alpha * (s - self.margin), positive)
        push = log_sum_exp_with_one(self.alpha * (s + self.margin), negative)
        loss = self.size * (rows.scalars[0] * pull + push)
        rest = loss.new_zeros(loss.shape[0], self.size - 1)
        return torch.cat([loss[:, None], rest], dim=1).flatten()


class MultiProxyAnchorLoss(ProxyLoss):
    """Multi-proxies anchor loss (inferred).

    *Multi Proxy Anchor Family Loss for Several Types of Gradients*, Saeki et al., 2021 (arXiv
    2110.03997): Proxy-Anchor on the similarities of a sample to the classes, each the mean of those to
    the class's K proxies weighted by their softmax, S_c = sum_k softmax_k(s_ck / gamma) s_ck, as in
    SoftTriple. No code was released and the text could not be re-read: the form is inferred from the
    abstract and its relatives; the paper's other variants are not known.

    Args:
        num_classes, embedding_size: C and D.
        proxies_per_class: K; the parameter is `proxies` [C K, D], those of a class in a row.
        margin, alpha: see `ProxyAnchorLoss`. gamma: > 0.

    With reduction="none" the result has one value per class. Other arguments: see `ProxyLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        proxies_per_class: int = 10,
        margin: float = 0.1,
        alpha: float = 32,
        gamma: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, proxies_per_class=proxies_per_class, **kwargs)
        self.margin = margin
        self.alpha = alpha
        self.gamma = gamma
        self.description()  # checks the parameters

    @staticmethod
    def initialize(weight: Tensor) -> Any:
        return nn.init.kaiming_normal_(weight, mode="fan_out")

    def description(self) -> MultiProxyAnchor:
        return MultiProxyAnchor(
            self.proxies_per_class, self.alpha, self.margin, self.gamma, similarity=self.similarity
        )

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return softmax_mean(super().get_logits(embeddings), self.proxies_per_class, self.gamma)

    def losses(self, embeddings: Tensor, labels: Tensor, indices_tuple: object) -> Tensor:
        if indices_tuple is not None:
            raise ValueError("indices_tuple: multi-proxies anchor has no such form; expected None")
        return multi_proxy_anchor(
            embeddings,
            labels,
            self.proxies,  # type: ignore[arg-type]
            proxies_per_class=self.proxies_per_class,
            margin=self.margin,
            alpha=self.alpha,
            gamma=self.gamma,
            similarity=self.similarity,
            **self.options(),
        )


def multi_proxy_anchor(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    proxies_per_class: int = 10,
    margin: float = 0.1,
    alpha: float = 32,
    gamma: float = 0.1,
    similarity: str = "cosine",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """Multi-proxies anchor loss of embeddings [B, D] and proxies [C K, D].

    See `MultiProxyAnchorLoss`; options: backend, validate.
    """
    description = MultiProxyAnchor(proxies_per_class, alpha, margin, gamma, similarity=similarity)
    if reduction == "nonzero":
        raise ValueError("reduction: expected 'mean', 'sum' or 'none', got 'nonzero'")
    found = proxy_row_loss(description, embeddings, labels, proxies, reduction=reduction, **options)
    # A class has its loss times K in the first of its K rows.
    if reduction == "none":
        return found[::proxies_per_class] / proxies_per_class
    return found / proxies_per_class if reduction == "sum" else found
