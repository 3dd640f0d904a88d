"""Proxy-Anchor loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.loss import Piece, Rows
from ...engine.registry import register
from ...engine.relation import LabelRelation
from ...language import Row, log_sum_exp
from ...language.described import Described, Positive
from ...mining.sample_weights import sample_weights
from ..base import PRODUCTS
from ..terms import log_sum_exp_with_one
from .proxies import ProxyLoss

__all__ = ["ProxyAnchorLoss"]


@register
@dataclasses.dataclass(frozen=True)
class ProxyAnchor(Described):
    """SPEC 1.1. Rows are proxies; the mean over rows is the published normaliser."""

    name = "proxy_anchor"
    provenance = "released code"
    rows = "proxies"

    alpha: Positive = 32.0
    margin: float = 0.1

    def __post_init__(self) -> None:
        check.positive(self.alpha, "alpha")
        check.finite(self.margin, "margin")

    def label_scalars(self, relation: LabelRelation) -> Tensor | list[float]:
        present = relation.matched
        if isinstance(present, int):
            return [relation.rows / max(1, present)]
        return (relation.rows / present.double().clamp(min=1)).reshape(1)

    def row(self, p: Row) -> Any:
        pull = log_sum_exp(-self.alpha * (p.s - self.margin), where=p.positive, one=True)
        push = log_sum_exp(self.alpha * (p.s + self.margin), where=p.negative, one=True)
        return p.scalar(0) * pull + push

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        weight = 0.0 if rows.col_values is None else rows.col_values[0]
        pull = log_sum_exp_with_one(weight - self.alpha * (rows.s - self.margin), rows.positive)
        push = log_sum_exp_with_one(weight + self.alpha * (rows.s + self.margin), rows.negative)
        every = torch.ones_like(pull, dtype=torch.bool)[:, None]
        present = rows.positive.any(1)
        return {
            "pos_loss": Piece("element", pull[:, None], every, present),
            "neg_loss": Piece("element", push[:, None], every, torch.ones_like(pull)),
        }


@register
@dataclasses.dataclass(frozen=True)
class WeightedProxyAnchor(ProxyAnchor):
    """The same with a number per sample that is added to its exponents: column value 0."""

    name = "weighted_proxy_anchor"

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"col_values": torch.linspace(-0.9, 0, columns)[None]}

    def row(self, p: Row) -> Any:
        pull = p.column(0) - self.alpha * (p.s - self.margin)
        push = p.column(0) + self.alpha * (p.s + self.margin)
        return p.scalar(0) * log_sum_exp(pull, where=p.positive, one=True) + log_sum_exp(
            push, where=p.negative, one=True
        )


class ProxyAnchorLoss(ProxyLoss):
    """Proxy-Anchor loss.

    *Proxy Anchor Loss for Deep Metric Learning*, Kim et al., CVPR 2020 (arXiv 2003.13911), equation
    4, on cosine similarities s of samples and proxies:

        (1/|C+|) sum_{c in C+} log(1 + sum_{y_i = c} exp(-alpha (s - margin)))
        + (1/C) sum_c log(1 + sum_{y_i != c} exp(alpha (s + margin)))

    C+ are the classes present in the batch. One learnable proxy per class, `proxies` [C, D],
    initialised as Kaiming-normal (fan-out). Give them a learning rate about 100 times the network's.

    Args:
        num_classes: C. Labels are 0 ... C - 1.
        embedding_size: D.
        margin, alpha: as above.

    With reduction="none" the result has one value per proxy, [C], whose mean is the loss. With an
    index tuple, weight - 1 is added to a sample's exponents, its weight being how often the tuple
    names it relative to the most frequent sample. Other arguments: see `ProxyLoss`.
    """

    function = "proxy_anchor"
    similarities = PRODUCTS
    open = ("margin", "alpha")
    mean_over = "classes that are present, and all classes"
    reducers = {"DivisorReducer": "mean"}
    part_names = ("pos_loss", "neg_loss")
    describes = ProxyAnchor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.margin = margin
        self.alpha = alpha
        self.description()  # checks the parameters

    @staticmethod
    def initialize(weight: Tensor) -> Any:
        return nn.init.kaiming_normal_(weight, mode="fan_out")

    def proxy_calls(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor, indices_tuple: object
    ) -> list[Any]:
        weight = sample_weights(indices_tuple, embeddings)
        if weight is None:
            return [self.proxy_call(embeddings, labels, proxies)]
        plain: Any = self.described_once()  # whose numbers may be learnt
        weighted = WeightedProxyAnchor(plain.alpha, plain.margin, similarity=plain.similarity)
        values = weight[None] - 1
        return [
            self.proxy_call(embeddings, labels, proxies, description=weighted, col_values=values)
        ]
