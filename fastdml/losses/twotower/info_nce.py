"""InfoNCE of pairs, and CLIP's form over rows and columns."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from .paired import PairedLoss, paired_loss
from ..presweeps import LogSumExp
from ..terms import log_sum_exp, masked_sum

__all__ = ["CLIPLoss", "InfoNCELoss", "info_nce"]


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

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        symmetric: bool = False,
        learnable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _reduction(self.reduction)
        self.symmetric = symmetric
        self.learnable = learnable
        value = torch.tensor(-math.log(check.positive(temperature, "temperature")))
        if learnable:
            self.log_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_scale", value)

    def description(self) -> InfoNCE:
        return _describe(self.symmetric, self.similarity)

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss of row i of embeddings [B, D] paired with row i of ref_emb [B, D]."""
        return info_nce(
            embeddings,
            ref_emb,
            self.log_scale.exp(),
            symmetric=self.symmetric,
            **self.options(),  # type: ignore[arg-type]
        )


class CLIPLoss(InfoNCELoss):
    """CLIP's loss: symmetric InfoNCE with a learnable scale; see `InfoNCELoss`."""

    def __init__(self, temperature: float = 0.07, *, learnable: bool = True, **kwargs: Any) -> None:
        super().__init__(temperature, symmetric=True, learnable=learnable, **kwargs)


def _describe(symmetric: bool, similarity: str) -> InfoNCE:
    share = 0.5 if symmetric else 0.0
    return InfoNCE(1 - share, share, similarity=similarity)


def _reduction(kind: str) -> None:
    if kind not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {kind!r}")


def info_nce(
    embeddings: Tensor,
    ref_emb: Tensor,
    scale: Tensor | float = 1 / 0.07,
    *,
    symmetric: bool = False,
    similarity: str = "cosine",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """InfoNCE of paired embeddings [B, D] and [B, D] with scale 1 / temperature; see `InfoNCELoss`.

    scale may be a tensor of one element that wants a gradient. options: see `paired_loss`.
    """
    _reduction(reduction)
    given = {"scale": scale}
    if symmetric and reduction == "none":
        # Rows of any weight: the two directions apart.
        one = _describe(False, similarity)
        sides = ((embeddings, ref_emb), (ref_emb, embeddings))
        found = [paired_loss(one, a, b, given, reduction="none", **options) for a, b in sides]
        return (found[0] + found[1]) / 2
    description = _describe(symmetric, similarity)
    return paired_loss(description, embeddings, ref_emb, given, reduction=reduction, **options)
