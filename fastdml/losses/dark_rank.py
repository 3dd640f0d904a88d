"""DarkRank: the order of the teacher's nearest neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.similarity import unit
from ..engine.workspace import rows_within, workspace_limit
from .relations import RelationalLoss, check_teacher

__all__ = ["DarkRankLoss", "dark_rank"]


class DarkRankLoss(RelationalLoss):
    """Hard DarkRank.

    *DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer*, Chen et al.,
    AAAI 2018 (arXiv 1707.01220), equation 6: minus the log-likelihood, under the Plackett-Luce model
    with the student's scores -alpha d^beta, d the Euclidean distance of normalised embeddings, of the
    order of the teacher's nearest neighbours of every sample. The released transfer code adds a triplet
    loss of margin 0.2.

    The neighbours are found a block of rows at a time; O(B D neighbors) memory.

    Args:
        alpha: > 0. beta: >= 1.
        neighbors: how many of the teacher's nearest neighbours; fewer where the batch has no more.

    Other arguments: see `RelationalLoss`; the computation is torch's on every backend.
    """

    def __init__(
        self, alpha: float = 3.0, beta: float = 3.0, neighbors: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = check.positive(alpha, "alpha")
        self.beta = _exponent(beta)
        self.neighbors = check.count(neighbors, "neighbors")

    def function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        own = {"alpha": self.alpha, "beta": self.beta, "neighbors": self.neighbors}
        return dark_rank, own


def _exponent(beta: float) -> float:
    if not 1 <= beta < float("inf"):
        raise ValueError(f"beta: expected a number of at least 1, got {beta}")
    return float(beta)


@torch.no_grad()
def _nearest(x: Tensor, count: int) -> Tensor:
    """[B, count] rows with the largest cosine to each row of x, itself left out, nearest first."""
    direction = unit(x)
    size = x.shape[0]
    step = rows_within(workspace_limit(x.device.type), size, 2 * x.element_size(), size)
    found = []
    for start in range(0, size, step):
        s = direction[start : start + step] @ direction.t()
        own = torch.arange(s.shape[0], device=x.device)
        s[own, own + start] = -torch.inf
        found.append(s.topk(count, dim=1).indices)
    return torch.cat(found)


# To a compiled graph one call: how many blocks there are depends on the batch.
_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define("nearest(Tensor x, int count) -> Tensor")
_library.impl("nearest", _nearest, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fastdml::nearest",
    lambda x, count: x.new_empty((x.shape[0], count), dtype=torch.int64),
    lib=_library,
)


def dark_rank(
    embeddings: Tensor,
    teacher: Tensor,
    *,
    alpha: float = 3.0,
    beta: float = 3.0,
    neighbors: int = 4,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Hard DarkRank of embeddings [B, D] and a teacher's [B, E]; see `DarkRankLoss`."""
    check.reduction(reduction)
    check.positive(alpha, "alpha")
    _exponent(beta)
    check.count(neighbors, "neighbors")
    check_teacher(embeddings, teacher, "teacher", validate)
    kind = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    index = torch.ops.fastdml.nearest(
        teacher.detach().to(kind), min(neighbors, teacher.shape[0] - 1)
    )
    x = unit(embeddings.to(kind))
    scores = []
    for k in range(index.shape[1]):
        square = (x - x[index[:, k]]).square().sum(1)
        # d^beta of the squared distance: no root, whose derivative at 0 is not finite.
        scores.append(-alpha * square.pow(beta / 2) if beta >= 2 else _power(square, beta, alpha))
    losses = x.new_zeros(x.shape[0]) + 0 * x.sum(1)
    if scores:
        z = torch.stack(scores, dim=1)
        # Of the k-th neighbour against those that are left: k, k + 1, ...
        left = z.flip(1).logcumsumexp(1).flip(1)
        losses = (left - z).sum(1)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if reduction == "nonzero":
        return losses.sum() / (losses > 0).sum().clamp(min=1)
    return losses.mean()


def _power(square: Tensor, beta: float, alpha: float) -> Tensor:
    """-alpha d^beta for beta below 2; equal embeddings have a derivative of 0."""
    apart = square > 0
    safe = torch.where(apart, square, torch.ones_like(square)).pow(beta / 2)
    return -alpha * torch.where(apart, safe, torch.zeros_like(safe))
