"""InfoNCE of pairs, and CLIP's form over rows and columns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.lazy import lazy
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, count, detach, exp, log_sum_exp, sum, where
from ...language.described import Described
from ..presweeps import LogSumExp
from .paired import PairedLoss

__all__ = ["CLIPLoss", "InfoNCELoss"]


@register
@dataclasses.dataclass(frozen=True)
class InfoNCE(Described):
    """Cross-entropy of every row's softmax, and of every column's where `columns` is not 0.

    Learnable scalar: 1 / temperature. Over positive pairs (i, p), with C_j the log of sum of column j:

        sum_(i, p) rows (LSE_i - z_ip) + columns (C_p - z_ip)

    No derivative is followed through C. Instead row i also has columns (sum_j n_j exp(z_ij - C_j) - n_i),
    n_j the number of positives of column j: over all rows that is 0, its derivative by z_ij is that
    through C_j, and the whole is stationary in C. Rows must weigh the same for that (`reduction` "mean"
    or "sum").
    """

    name = "info_nce"
    learnable = (10.0,)
    derived = ("sign", "columnwise")

    rows_weight: float = 0.5
    columns_weight: float = 0.5

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(1.0, 0.0)]

    @lazy
    def columnwise(self) -> bool:
        return self.columns_weight != 0

    def presweep(self) -> RowLoss | None:
        if not self.columnwise:
            return None
        return LogSumExp(self.metric.sign, learnable_scale=True, similarity=self.similarity)

    def row(self, p: Row) -> Any:
        z = self.sign * p.scalar(0) * p.s
        positives = count(where=p.positive)
        target = sum(z, where=p.positive)
        level = where(positives > 0, log_sum_exp(z, where=p.pair), 0.0)
        loss = self.rows_weight * (positives * level - target)
        if not self.columnwise:
            return loss
        level_of_column, number = detach(p.column(0)), detach(p.column(1))
        own = sum(level_of_column, where=p.positive)
        # In a column without positives nobody asked for its level.
        gap = where(number > 0, z - level_of_column, 0.0)
        mass = sum(number * exp(gap), where=p.pair & (number > 0))
        return loss + self.columns_weight * (own - target + mass - positives)


class InfoNCELoss(PairedLoss):
    """InfoNCE loss of pairs.

    *Representation Learning with Contrastive Predictive Coding*, van den Oord et al., 2018 (arXiv
    1807.03748), equation 4: the cross-entropy of softmax_j(s_ij / t) with the target j = i, averaged
    over i; symmetric, the mean of that over rows and over columns, as in *Learning Transferable Visual
    Models From Natural Language Supervision* (CLIP), Radford et al., ICML 2021 (arXiv 2103.00020).

    Args:
        temperature: initial t > 0.
        symmetric: rows and columns instead of rows alone.
        learnable: the scale 1 / t is learned, as `log_scale` (its logarithm, which is unbounded).

    reduction: "mean", "sum" or "none" ([B], the two directions averaged per pair). Other arguments: see
    `SampleLoss`.
    """

    function: ClassVar[str | None] = "info_nce"
    mean_over = "pairs"
    inputs = {"scale": ("temperature", "learnable")}
    positional = ("embeddings", "ref_emb", "scale")
    reductions = ("mean", "sum", "none")

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        symmetric: bool = False,
        learnable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.symmetric = symmetric
        self.learnable = learnable
        value = -math.log(check.positive(temperature, "temperature"))
        if learnable:
            self.log_scale = nn.Parameter(torch.tensor(value))
        else:
            # In double precision: float32 would round what the caller gave.
            self.register_buffer("log_scale", torch.tensor(value, dtype=torch.float64))

    def description(self) -> InfoNCE:
        share = 0.5 if self.symmetric else 0.0
        return InfoNCE(1 - share, share, similarity=self.similarity)

    def calls(
        self, embeddings: Tensor, ref_emb: Tensor, *, scale: Tensor | float | None = None
    ) -> list[Any]:
        scalars = {"scale": self.log_scale.exp() if scale is None else scale}
        if not (self.symmetric and self.reduction == "none"):
            return [self.paired_call(self.description(), embeddings, ref_emb, scalars)]
        # Rows of any weight: the two directions apart.
        one = InfoNCE(1.0, 0.0, similarity=self.similarity)
        sides = ((embeddings, ref_emb), (ref_emb, embeddings))
        return [self.paired_call(one, a, b, scalars, weight=0.5) for a, b in sides]


class CLIPLoss(InfoNCELoss):
    """CLIP's loss: symmetric InfoNCE with a learnable scale; see `InfoNCELoss`."""

    function = None

    def __init__(self, temperature: float = 0.07, *, learnable: bool = True, **kwargs: Any) -> None:
        super().__init__(temperature, symmetric=True, learnable=learnable, **kwargs)
