"""What losses of paired embeddings share: row i of one set belongs to row i of the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...engine import autograd, check
from ...engine.loss import RowLoss
from ...engine.op import statistic_type
from ...engine.registry import handle
from ..options import check_options
from ..representation import arguments


def paired_loss(
    description: RowLoss,
    embeddings: Tensor,
    ref_emb: Tensor,
    scalars: Mapping[str, Tensor | float],
    *,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """A loss of pairs [B, D] and [B, D]. scalars, by the names of the arguments that they are, may be
    tensors of one element that want a gradient."""
    check_options(reduction, backend, description.similarity)
    check_pairs(embeddings, ref_emb, "embeddings", "ref_emb", validate)
    kind = statistic_type(embeddings, ref_emb)
    values = [
        torch.as_tensor(
            check.scalar(v, name, embeddings), dtype=kind, device=embeddings.device
        ).reshape(())
        for name, v in scalars.items()
    ]
    pairs = torch.arange(embeddings.shape[0], device=embeddings.device)
    return autograd.row_loss(
        embeddings,
        ref_emb,
        pairs,
        pairs,
        loss=handle(description),
        scalars=torch.stack(values),
        backend=backend,
        reduction=reduction,
    )


def check_pairs(a: Tensor, b: Tensor, a_name: str, b_name: str, validate: bool) -> None:
    """Two sets of embeddings, row by row."""
    check.embeddings(a, a_name, validate)
    check.embeddings(b, b_name, validate)
    check.same_space(a, b, a_name, b_name)
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{b_name}: expected {a.shape[0]} rows, one per row of {a_name}, got {b.shape[0]}"
        )


class PairedLoss(nn.Module):
    """A loss called as `loss(embeddings [B, D], ref_emb [B, D])`. Keyword arguments: `SampleLoss`."""

    def __init__(
        self,
        *,
        reduction: str = "mean",
        similarity: str = "cosine",
        backend: str = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_options(reduction, backend, similarity)
        self.reduction = reduction
        self.similarity = similarity
        self.backend = backend
        self.validate = validate

    def options(self) -> dict[str, object]:
        """Arguments of the functional form."""
        names = ("reduction", "similarity", "backend", "validate")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return arguments(self)
