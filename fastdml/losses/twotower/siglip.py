"""SigLIP: the sigmoid loss of image and text pairs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from .paired import PairedLoss, paired_loss

__all__ = ["SigLIPLoss", "siglip"]


@register
@dataclasses.dataclass(frozen=True)
class SigLIP(RowLoss):
    """SPEC 3.7. Learnable scalars: scale and bias."""

    name = "siglip"
    provenance = "released code"
    learnable = (10.0, -10.0)
    symmetric = True

    def parameters(self) -> tuple[float, ...]:
        return (0.0,)

    def spec(self, rows: Rows) -> Tensor:
        assert rows.scalars is not None
        u = rows.scalars[0] * rows.s + rows.scalars[1]
        # Not softplus, which torch cuts off: beyond 20 it is wrong by 1e-9.
        terms = F.logsigmoid(u) * rows.positive + F.logsigmoid(-u) * rows.negative
        return -terms.sum(1)


def siglip(
    embeddings: Tensor,
    ref_emb: Tensor,
    scale: Tensor | float = 10.0,
    bias: Tensor | float = -10.0,
    *,
    similarity: str = "cosine",
    **options: Any,
) -> Tensor:
    """Sigmoid loss of paired embeddings [B, D] and [B, D]; see `SigLIPLoss`.

    scale and bias may be tensors of one element that want a gradient. options: see `paired_loss`.
    """
    description = SigLIP(similarity=similarity)
    return paired_loss(description, embeddings, ref_emb, {"scale": scale, "bias": bias}, **options)


class SigLIPLoss(PairedLoss):
    """Sigmoid loss of image and text pairs.

    *Sigmoid Loss for Language Image Pre-Training*, Zhai et al., ICCV 2023 (arXiv 2303.15343),
    equation 1: (1/B) sum_ij softplus(-z_ij (t s_ij + b)), z = 1 for a pair and -1 otherwise.

    Args:
        init_scale, init_bias: initial t > 0 and b. Learnable as `log_scale` and `bias`.

    Other arguments: see `SampleLoss`.
    """

    def __init__(self, init_scale: float = 10.0, init_bias: float = -10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(check.positive(init_scale, "init_scale")))
        )
        self.bias = nn.Parameter(torch.tensor(check.finite(init_bias, "init_bias")))

    def description(self) -> SigLIP:
        return SigLIP(similarity=self.similarity)

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss of row i of embeddings [B, D] paired with row i of ref_emb [B, D]."""
        return siglip(embeddings, ref_emb, self.log_scale.exp(), self.bias, **self.options())  # type: ignore[arg-type]
