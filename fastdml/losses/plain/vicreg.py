"""VICReg: variance, invariance and covariance of two views."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import statistic_type
from ...engine.similarity import without_autocast
from ..base import Loss, total
from ..twotower.paired import check_sets

__all__ = ["VICRegLoss"]


@dataclasses.dataclass(frozen=True)
class Parts:
    """The weighted terms of two views: [B] of the samples, [D] of the dimensions twice, and a number."""

    loss: VICRegLoss
    embeddings: Tensor
    ref_emb: Tensor

    def terms(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = statistic_type(self.embeddings, self.ref_emb)
        with without_autocast(self.embeddings.device):
            x, y = self.embeddings.to(kind), self.ref_emb.to(kind)
            loss = self.loss
            invariance = loss.invariance_lambda * (x - y).square().mean(1)
            spread = [loss.variance_mu * _short_of_one(v, loss.eps) for v in (x, y)]
            return invariance, spread[0], spread[1], loss.covariance_v * (_covariances(x) + _covariances(y))

    def evaluate(self) -> Tensor:
        invariance, first, second, covariance = self.terms()
        return invariance.mean() + first.mean() + second.mean() + covariance

    def elements(self, name: str) -> dict[str, Any]:
        """The lists of reducer objects."""
        names = ("invariance_loss", "variance_loss1", "variance_loss2")
        *lists, covariance = self.terms()
        found: dict[str, Any] = {}
        for part, losses in zip(names, lists, strict=True):
            index = torch.arange(losses.shape[0], device=losses.device)
            found[part] = {"losses": losses, "indices": index, "reduction_type": "element"}
        found["covariance_loss"] = {
            "losses": covariance, "indices": None, "reduction_type": "already_reduced",
        }  # fmt: skip
        return found


def _short_of_one(x: Tensor, eps: float) -> Tensor:
    """[D] half of what the deviations of the dimensions of x [B, D] are short of 1."""
    return (1 - (x.var(0) + eps).sqrt()).relu() / 2


def _covariances(x: Tensor) -> Tensor:
    """Squares of the covariances of different dimensions of x [B, D], over D. min(B, D)^2 memory."""
    rows, size = x.shape
    x = x - x.mean(0)
    # |X^T X|^2 is |X X^T|^2.
    product = x.t() @ x if size <= rows else x @ x.t()
    every = product.square().sum() - x.square().sum(0).square().sum()
    return every / (rows - 1) ** 2 / size


class VICRegLoss(Loss):
    """VICReg of two views of a batch.

    *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning*, Bardes et al., ICLR
    2022 (arXiv 2105.04906), equation 6, with halves as in pytorch-metric-learning: invariance_lambda times
    the mean of (x - y)^2, plus, for each view, variance_mu / 2 times the mean over dimensions of
    [1 - sqrt(var + eps)]_+, plus covariance_v / D times the squares of the covariances of different
    dimensions.

    Args:
        invariance_lambda, variance_mu, covariance_v: weights. eps: > 0, added to variances.

    Called as `loss(embeddings, ref_emb=ref_emb)`, both [B, D], B >= 2, row i of both a sample's two views; no
    labels, no indices. Embeddings are taken as they are. reducer: of samples, dimensions (twice) and the
    covariances: see `Loss`.
    """

    function = "vicreg"
    in_torch = "in torch, with the covariances of all dimensions or the products of all samples"
    mean_over = "samples, and dimensions"
    reductions = ("mean",)
    reducers = {"MeanReducer": "mean"}
    part_names = ("invariance_loss", "variance_loss1", "variance_loss2", "covariance_loss")
    default_similarity = "raw_squared_distance"
    similarities = ("raw_squared_distance",)

    def __init__(
        self,
        invariance_lambda: float = 25,
        variance_mu: float = 25,
        covariance_v: float = 1,
        eps: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        for name in ("distance", "embedding_regularizer"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: expected None for VICRegLoss")
        super().__init__(**kwargs)
        self.invariance_lambda = check.finite(invariance_lambda, "invariance_lambda")
        self.variance_mu = check.finite(variance_mu, "variance_mu")
        self.covariance_v = check.finite(covariance_v, "covariance_v")
        self.eps = check.positive(eps, "eps")

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> list[Any]:
        for value, name in (
            (labels, "labels"), (indices_tuple, "indices_tuple"), (ref_labels, "ref_labels"),
        ):  # fmt: skip
            if value is not None:
                raise ValueError(f"{name}: VICReg compares two views row by row; expected None")
        if ref_emb is None:
            raise ValueError("ref_emb: expected the other view, shape [batch, dim], got None")
        check_sets(embeddings, ref_emb, self.validate)
        if ref_emb.shape != embeddings.shape or embeddings.shape[0] < 2:
            raise ValueError(
                f"ref_emb: expected at least 2 rows, one per row of embeddings {tuple(embeddings.shape)}, "
                f"got {tuple(ref_emb.shape)}"
            )
        return [Parts(self, embeddings, ref_emb)]

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        return total(self.parts(embeddings, labels, indices_tuple, ref_emb, ref_labels))
