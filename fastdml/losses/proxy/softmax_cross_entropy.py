"""Softmax cross-entropy over proxies, and the smoothed form with a bias."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, count, log_sum_exp, maximum, softplus, sum, where
from ...language.described import Described
from ..representation import learnt
from .proxies import ProxyLoss

__all__ = ["SmoothedCrossEntropyLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SoftmaxCrossEntropy(Described):
    """SPEC 2.6, 2.8, 2.16. Rows are samples; logits are scale * s plus the column's bias.

    The target's logit is scale * (s - margin); `smoothing` of its probability is spread evenly over the
    other classes; `constant` is added to every row's loss. With `among` false the target is not in
    the denominator. Rows whose label no column has, or with no other class, have a loss of 0.
    """

    name = "softmax_cross_entropy"
    provenance = "released code"
    columns = "proxies"
    column_bias = True
    numbers = ("among",)

    scale: float = 1.0
    margin: float = 0.0
    smoothing: float = 0.0
    among: bool = True
    constant: float = 0.0
    biased: bool = False

    def __post_init__(self) -> None:
        check.finite(self.scale, "scale")
        check.finite(self.margin, "margin")
        check.share(self.smoothing, "smoothing")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(20.0),
            cls(18.0, smoothing=0.1),
            cls(18.0, among=False),
            cls(64.0, 0.35),
            cls(smoothing=0.1, biased=True, similarity="dot"),
        ]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"col_values": torch.linspace(-1, 1, columns)[None]} if self.biased else {}

    def row(self, p: Row) -> Any:
        z = self.scale * p.s + p.column(0) if self.biased else self.scale * p.s
        others = count(where=p.negative)
        valid = (count(where=p.positive) > 0) & (others > 0)
        target = sum(z, where=p.positive) - self.scale * self.margin
        gap = log_sum_exp(z, where=p.negative) - target
        loss = where(self.among > 0, softplus(gap), gap)
        spread = sum(z, where=p.negative) / maximum(others, 1)
        return where(valid, loss + self.smoothing * (target - spread), 0.0) + self.constant


class SmoothedCrossEntropyLoss(ProxyLoss):
    """Cross-entropy of a linear classifier on embeddings as they are, with label smoothing.

    *A Unifying Mutual Information View of Metric Learning: Cross-Entropy vs. Pairwise Losses*, Boudiaf
    et al., ECCV 2020 (arXiv 2003.08983), equation 1: logits z_c = x . w_c + b_c of unnormalised
    embeddings, target probability 1 - smoothing, smoothing / (C - 1) for every other class. The
    value is the divergence of targets and softmax, as released: cross-entropy less the targets'
    entropy, a constant, so that a perfect fit is 0.

    Args:
        num_classes, embedding_size: C and D. `weight` [C, D] starts at 0, as released, and `bias` [C]
            at 0.
        smoothing: in [0, 1).
        bias: whether there is one.

    Rows are samples. Other arguments: see `ProxyLoss`.
    """

    function = "smoothed_cross_entropy"
    learnt = ("bias",)
    inputs = {**ProxyLoss.inputs, "bias": ("bias",)}
    positional = ("embeddings", "labels", "proxies", "bias", "indices_tuple")  # type: ignore[assignment]
    default_similarity = "dot"
    parameter_name = "weight"

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        smoothing: float = 0.1,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.smoothing = smoothing
        biased = check.flag(bias, "bias")
        self.bias = learnt(torch.zeros(self.num_classes)) if biased else None
        self.description()  # checks the parameters

    @staticmethod
    def initialize(weight: Tensor) -> Any:
        return nn.init.zeros_(weight)

    def description(self) -> SoftmaxCrossEntropy:
        return _describe(self.num_classes, self.smoothing, self.bias is not None, self.similarity)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        logits = super().get_logits(embeddings)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        proxies: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> list[Any]:
        own = proxies is None
        parts = super().calls(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, proxies=proxies
        )
        call = parts[0]
        bias = self.bias if own else bias
        classes = call.candidates.shape[0]
        if bias is not None:
            check.shape(bias, "bias", [classes], ", one number per row of proxies")
        # Of its own proxies a loss may have some only, and knows how many there are.
        all_classes = self.num_classes if own else classes
        description = _describe(all_classes, self.smoothing, bias is not None, self.similarity)
        columns = None if bias is None else bias[None]
        return [call.replace(loss=description, col_values=columns), *parts[1:]]


def _describe(classes: int, smoothing: float, biased: bool, similarity: str) -> SoftmaxCrossEntropy:
    check.larger_for_alike(similarity)
    if biased and similarity != "dot":
        raise ValueError(f"bias: expected None with similarity {similarity!r}; only 'dot' has one")
    entropy = 0.0
    if check.share(smoothing, "smoothing") > 0 and classes > 1:
        entropy = smoothing * math.log(smoothing / (classes - 1))
        entropy += (1 - smoothing) * math.log1p(-smoothing)
    return SoftmaxCrossEntropy(
        smoothing=smoothing, constant=entropy, biased=biased, similarity=similarity
    )
