"""InfoNCE of pairs, and CLIP's form over rows and columns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ..presweeps import LogSumExp
from ..terms import log_sum_exp, masked_sum
from .paired import PairedLoss

__all__ = ["CLIPLoss", "InfoNCELoss"]


@register
@dataclasses.dataclass(frozen=True)
class InfoNCE(RowLoss):
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

    rows_weight: float = 0.5
    columns_weight: float = 0.5

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(1.0, 0.0)]

    def parameters(self) -> tuple[float, ...]:
        return (self.rows_weight, self.columns_weight, self.metric.sign)

    def presweep(self) -> RowLoss | None:
        if self.columns_weight == 0:
            return None
        return LogSumExp(self.metric.sign, learnable_scale=True, similarity=self.similarity)

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        members = rows.positive | rows.negative
        z = self.metric.sign * rows.scalars[0] * rows.s
        count = rows.positive.sum(1)
        target = masked_sum(z, rows.positive)
        level = torch.where(count > 0, log_sum_exp(z, members), torch.zeros_like(target))
        loss = self.rows_weight * (count * level - target)
        if self.columns_weight == 0:
            return loss
        assert rows.col_values is not None
        levels, counts = (v.expand_as(z) for v in rows.col_values[-2:])
        own = masked_sum(levels, rows.positive)
        gap = torch.where(members & (counts > 0), z - levels, torch.zeros_like(z))
        mass = masked_sum(counts * gap.exp(), members)
        return loss + self.columns_weight * (own - target + mass - count)


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
    constants = ("log_scale",)

    log_scale: Tensor

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
        log_scale = torch.tensor(value, dtype=torch.float64)
        if learnable:
            self.learn("log_scale", log_scale)
        else:
            # Of one dimension: a compiled graph takes one number of double precision for Python's own, and is
            # then made twice.
            self.register_buffer("log_scale", log_scale.reshape(1))

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
    sets = ("symmetric",)

    def __init__(self, temperature: float = 0.07, *, learnable: bool = True, **kwargs: Any) -> None:
        super().__init__(
            temperature, symmetric=True, learnable=learnable, **self.unset(kwargs)
        )
