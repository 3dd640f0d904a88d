"""SigLIP: the sigmoid loss of image and text pairs."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine import autograd, check
from ..engine.dispatch import check_backend
from ..engine.loss import RowLoss, Rows
from ..engine.registry import handle, register

__all__ = ["SigLIPLoss", "siglip"]


@register
@dataclasses.dataclass(frozen=True)
class SigLIP(RowLoss):
    """SPEC 3.7. Learnable scalars: scale and bias."""

    name = "siglip"
    provenance = "released code"
    learnable = (10.0, -10.0)

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
    reduction: str = "mean",
    similarity: str = "cosine",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Sigmoid loss of paired embeddings [B, D] and [B, D]; see `SigLIPLoss`.

    scale and bias may be tensors of one element that want a gradient.
    """
    check.reduction(reduction)
    check_backend(backend)
    check.embeddings(embeddings, "embeddings", validate)
    check.embeddings(ref_emb, "ref_emb", validate)
    check.same_space(embeddings, ref_emb, "embeddings", "ref_emb")
    if embeddings.shape[0] != ref_emb.shape[0]:
        raise ValueError(
            f"ref_emb: expected {embeddings.shape[0]} rows, one per row of embeddings, "
            f"got {ref_emb.shape[0]}"
        )
    kind = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    scalars = torch.stack(
        [
            torch.as_tensor(v, dtype=kind, device=embeddings.device).reshape(())
            for v in (scale, bias)
        ]
    )
    pairs = torch.arange(embeddings.shape[0], device=embeddings.device)
    return autograd.row_loss(
        embeddings,
        ref_emb,
        pairs,
        pairs,
        loss=handle(SigLIP(similarity=similarity)),
        scalars=scalars,
        backend=backend,
        reduction=reduction,
    )


class SigLIPLoss(nn.Module):
    """Sigmoid loss of image and text pairs.

    *Sigmoid Loss for Language Image Pre-Training*, Zhai et al., ICCV 2023 (arXiv 2303.15343),
    equation 1: (1/B) sum_ij softplus(-z_ij (t s_ij + b)), z = 1 for a pair and -1 otherwise.

    Args:
        init_scale, init_bias: initial t > 0 and b. Learnable as `log_scale` and `bias`.
        reduction, similarity, backend, validate: see `SampleLoss`.
    """

    def __init__(
        self,
        init_scale: float = 10.0,
        init_bias: float = -10.0,
        *,
        reduction: str = "mean",
        similarity: str = "cosine",
        backend: str = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check.reduction(reduction)
        check.similarity(similarity)
        check_backend(backend)
        self.reduction = reduction
        self.similarity = similarity
        self.backend = backend
        self.validate = validate
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(check.positive(init_scale, "init_scale")))
        )
        self.bias = nn.Parameter(torch.tensor(check.finite(init_bias, "init_bias")))

    def description(self) -> SigLIP:
        return SigLIP(similarity=self.similarity)

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss of row i of embeddings [B, D] paired with row i of ref_emb [B, D]."""
        return siglip(
            embeddings,
            ref_emb,
            self.log_scale.exp(),
            self.bias,
            reduction=self.reduction,
            similarity=self.similarity,
            backend=self.backend,
            validate=self.validate,
        )
