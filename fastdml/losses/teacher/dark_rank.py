"""DarkRank: the order of the teacher's nearest neighbours."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from .relations import RelationalLoss

__all__ = ["DarkRankLoss"]


@register
@dataclasses.dataclass(frozen=True)
class DarkRank(RowLoss):
    """SPEC 1.2. Rows hold squared distances, where below 0 counts as 0; the teacher's, cosines."""

    name = "dark_rank"
    provenance = "paper"
    teacher_similarity = "cosine"

    alpha: float = 3.0
    beta: float = 3.0
    neighbors: int = 4
    similarity: str = dataclasses.field(default="squared_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.positive(self.alpha, "alpha")
        check.number(self.beta, "beta", "a number of at least 1", lambda v: 1 <= v < float("inf"))
        check.count(self.neighbors, "neighbors")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.7, 2.0, 100)]

    def spec(self, rows: Rows) -> Tensor:
        assert rows.teacher is not None
        near = rows.teacher
        if rows.pair is not None:
            near = near.masked_fill(~rows.pair, -torch.inf)
        count = min(self.neighbors, near.shape[1] - (rows.pair is not None))
        index = near.sort(dim=1, descending=True, stable=True).indices[:, :count]
        z = -self.alpha * _power(rows.s.gather(1, index), self.beta / 2)
        # Of the k-th neighbour against those that are left: k, k + 1, ...
        left = z.flip(1).logcumsumexp(1).flip(1)
        return (left - z).sum(1)


def _power(x: Tensor, exponent: float) -> Tensor:
    """x to a power; where that has no derivative at 0, it counts as 0."""
    if exponent >= 1:
        return x.clamp(min=0).pow(exponent)
    apart = x > 0
    safe = torch.where(apart, x, torch.ones_like(x)).pow(exponent)
    return torch.where(apart, safe, torch.zeros_like(safe))


class DarkRankLoss(RelationalLoss):
    """Hard DarkRank.

    *DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer*, Chen et al.,
    AAAI 2018 (arXiv 1707.01220), equation 6: minus the log-likelihood, under the Plackett-Luce model
    with the student's scores -alpha d^beta, d the Euclidean distance of normalised embeddings, of the
    order of the teacher's nearest neighbours (by cosine) of every sample. The released transfer code adds
    a triplet loss of margin 0.2.

    Args:
        alpha: > 0. beta: >= 1.
        neighbors: how many of the teacher's nearest neighbours; fewer where the batch has no more.

    Other arguments: see `RelationalLoss`.
    """

    function = "dark_rank"
    describes = DarkRank
    default_similarity = "squared_distance"
    similarities = ("squared_distance",)

    def __init__(
        self, alpha: float = 3.0, beta: float = 3.0, neighbors: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.beta = beta
        self.neighbors = neighbors
        self.description()  # checks the parameters
