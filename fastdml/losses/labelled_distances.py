"""What losses over continuous labels share: label distances for one anchor or for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine import autograd, check
from ..engine.dispatch import check_backend
from ..engine.loss import RowLoss
from ..engine.registry import handle
from .relations import relational_loss


def check_distances(embeddings: Tensor, distance: Tensor, validate: bool) -> None:
    """The label distances of the first sample to the others."""
    check.embeddings(embeddings, "embeddings", validate)
    expected = (embeddings.shape[0] - 1,)
    if not isinstance(distance, Tensor) or tuple(distance.shape) != expected:
        got = tuple(distance.shape) if isinstance(distance, Tensor) else type(distance).__name__
        raise ValueError(
            f"label_distance: expected shape {list(expected)}, from the first sample to each other "
            f"one, got {got}"
        )
    if expected[0] == 0:
        raise ValueError("embeddings: expected an anchor and at least one other sample, got 1 row")


def rounded_share(embeddings: Tensor, variant: str) -> float:
    """A factor of the loss: the released code rounds one over the number of pairs to float32."""
    if variant not in ("paper", "released"):
        raise ValueError(f"variant: expected 'paper' or 'released', got {variant!r}")
    others = embeddings.shape[0] - 1
    pairs = max(1, others * (others - 1) // 2)
    return pairs * torch.tensor(1 / pairs, dtype=torch.float32).item() if variant == "released" else 1.0


def one_anchor(
    description: RowLoss,
    embeddings: Tensor,
    distance: Tensor,
    *,
    backend: str = "auto",
    reduction: str = "mean",
    validate: bool = False,
) -> Tensor:
    """The loss of the first sample as anchor; distance: [B - 1] label distances to the others."""
    check.reduction(reduction)
    check_backend(backend)
    check_distances(embeddings, distance, validate)
    everything = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
    return autograd.row_loss(
        embeddings[:1],
        embeddings[1:],
        everything[:1],
        everything[1:],
        loss=handle(description),
        col_values=distance.detach()[None],
        backend=backend,
        reduction=reduction,
    )


def all_anchors(description: RowLoss, embeddings: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The mean over all samples as anchors; labels: [B] numbers or [B, E] vectors."""
    if isinstance(labels, Tensor) and labels.dim() == 1:
        labels = labels[:, None]
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        labels = labels.to(torch.float64 if embeddings.dtype == torch.float64 else torch.float32)
    return relational_loss(description, embeddings, labels, name="labels", **options)
