"""Multi-proxies anchor loss. Inferred: no code was released, and the paper could not be re-read."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ..base import PRODUCTS
from ..terms import log_sum_exp_with_one, softmax_mean
from .proxies import ProxyLoss
from .proxy_anchor import ProxyAnchor, ProxyAnchorLoss

__all__ = ["MultiProxyAnchorLoss"]


@register
@dataclasses.dataclass(frozen=True)
class MultiProxyAnchor(RowLoss):
    """SPEC 2.13. Rows are proxies, `proxies_per_class` consecutive ones, pooled over them.

    The first row of a class has the class's loss, times their number, and the others 0, so that the mean over
    rows is that over classes.
    """

    name = "multi_proxy_anchor"
    provenance = "inferred"
    rows = "proxies"

    proxies_per_class: int = 10
    alpha: float = 32.0
    margin: float = 0.1
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check.count(self.proxies_per_class, "proxies_per_class")
        check.positive(self.alpha, "alpha")
        check.finite(self.margin, "margin")
        check.positive(self.gamma, "gamma")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(3), cls(1)]

    @property
    def columns_per_class(self) -> int:
        return self.proxies_per_class

    @property
    def rows_together(self) -> int:
        return self.proxies_per_class

    label_scalars = ProxyAnchor.label_scalars  # rows over rows whose class is present: K cancels

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        size = self.proxies_per_class
        s = softmax_mean(rows.s.t(), size, self.gamma).t()  # [classes, N]
        positive, negative = rows.positive[::size], rows.negative[::size]
        pull = log_sum_exp_with_one(-self.alpha * (s - self.margin), positive)
        push = log_sum_exp_with_one(self.alpha * (s + self.margin), negative)
        loss = size * (rows.scalars[0] * pull + push)
        rest = loss.new_zeros(loss.shape[0], size - 1)
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

    function = "multi_proxy_anchor"
    describes = MultiProxyAnchor
    similarities = PRODUCTS
    mean_over = "classes that are present, and all classes"
    reductions = ("mean", "sum", "none")

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
        super().__init__(num_classes, embedding_size, _proxies_per_class=proxies_per_class, **kwargs)
        self.margin = margin
        self.alpha = alpha
        self.gamma = gamma
        self.description()  # checks the parameters

    initialize = staticmethod(ProxyAnchorLoss.initialize)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return softmax_mean(super().get_logits(embeddings), self.proxies_per_class, self.gamma)

    def proxy_calls(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor, indices_tuple: object
    ) -> list[Any]:
        if indices_tuple is not None:
            raise ValueError("indices_tuple: multi-proxies anchor has no such form; expected None")
        # A class has its loss times K in the first of its K rows.
        size = self.proxies_per_class
        call = self.proxy_call(embeddings, labels, proxies)
        if self.reduction == "none":
            return [call.replace(finish=lambda rows: rows[::size] / size)]
        return [call.replace(weight=1 / size if self.reduction == "sum" else 1.0)]
