"""SigLIP: the sigmoid loss of image and text pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.registry import register
from ...language import Row, softplus, sum
from ...language.described import Described
from ..base import total
from .paired import PairedLoss, as_scalars, check_sets

__all__ = ["SigLIPLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SigLIP(Described):
    """SPEC 3.7. Learnable scalars: scale and bias."""

    name = "siglip"
    provenance = "released code"
    learnable = (10.0, -10.0)
    graded = True
    additive = True

    def row(self, p: Row) -> Any:
        u = p.scalar(0) * p.s + p.scalar(1)
        pull = sum(p.grade * softplus(-u), where=p.positive)
        return pull + sum(softplus(u), where=p.negative)


class SigLIPLoss(PairedLoss):
    """Sigmoid loss of image and text pairs.

    *Sigmoid Loss for Language Image Pre-Training*, Zhai et al., ICCV 2023 (arXiv 2303.15343),
    equation 1: (1/B) sum_ij softplus(-z_ij (t s_ij + b)), z = 1 for a pair and -1 otherwise.

    Args:
        init_scale, init_bias: initial t > 0 and b. Learnable as `log_scale` and `bias`.

    Other arguments: see `SampleLoss`.
    """

    function = "siglip"
    mean_over = "pairs"
    describes = SigLIP
    positional = ("embeddings", "ref_emb", "scale", "bias")
    inputs = {"scale": ("init_scale",), "bias": ("init_bias",)}

    log_scale: Tensor
    bias: Tensor

    def __init__(self, init_scale: float = 10.0, init_bias: float = -10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        scale, bias = check.positive(init_scale, "init_scale"), check.finite(init_bias, "init_bias")
        self.learn("log_scale", torch.tensor(math.log(scale), dtype=torch.float64))
        self.learn("bias", torch.tensor(bias, dtype=torch.float64))

    def calls(
        self,
        embeddings: Tensor,
        ref_emb: Tensor,
        *,
        scale: Tensor | float | None = None,
        bias: Tensor | float | None = None,
        positives: Callable[..., Any] | None = None,
    ) -> list[Any]:
        scalars = {
            "scale": self.log_scale.exp() if scale is None else scale,
            "bias": self.bias if bias is None else bias,
        }
        if positives is None:
            return [self.paired_call(self.description(), embeddings, ref_emb, scalars)]
        check.function(positives, "positives")
        check_sets(embeddings, ref_emb, "embeddings", "ref_emb", self.validate)
        numbers = as_scalars(scalars, embeddings, ref_emb)
        return [
            self.call(
                self.description(), embeddings, candidates=ref_emb, predicate=positives, scalars=numbers
            )
        ]

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, ref_emb: Tensor, *, positives: Callable[..., Any] | None = None
    ) -> Tensor:
        """The loss of embeddings [B, D] and ref_emb [B, D], row by row.

        positives: with it ref_emb is [N, D], and a function of indices says which pairs are positives and
            how much they weigh (`fastdml.labels.LabelSets`, docs/labels.md): several of a row.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, ref_emb, positives=positives))
