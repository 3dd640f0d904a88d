"""Manifold similarity to proxies drawn as meta-classes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.call import statistic_type
from ...engine.distances import metric_of
from ...engine.similarity import without_autocast
from ..base import Loss, Term, total
from ..representation import learnt

__all__ = ["ManifoldLoss"]


class ManifoldLoss(Loss):
    """Manifold similarity of samples and learnable proxies.

    *Ensemble Deep Manifold Similarity Learning Using Hard Proxies*, Aziere and Todorovic, CVPR 2019,
    equations 4 to 9: similarities of samples and proxies are spread by a random walk on their graph; every
    sample's own proxy should be nearest, by that similarity (intrinsic) and by the context of similarities.

    Args:
        l: D. K: number of proxies, meta-classes.
        lambdaC: >= 0, weight of the context's term; infinity: that term alone.
        alpha: in (0, 1), of the random walk. margin: of the losses.

    One learnable parameter, `proxies` [K, D]. Called as `loss(embeddings, indices_tuple=None)`: embeddings
    [B, D]; indices_tuple: int64 [B], the samples' meta-classes in [0, K); None: drawn from torch's generator,
    each at least once, so B >= K. No labels. The walk needs the inverse of a matrix of B + K rows:
    O((B + K)^2) memory, O((B + K)^3) time, in the type of the embeddings (at least float32).
    """

    function = "manifold"
    in_torch = "in torch, with the inverse of a matrix of all samples and proxies"
    mean_over = "samples"
    reductions = ("mean",)
    one_number = "mean"
    inputs = {"proxies": ("l", "K")}
    positional = ("embeddings", "proxies", "indices_tuple")
    similarities = ("cosine", "dot")

    def __init__(
        self,
        l: int,  # noqa: E741
        K: int = 50,
        lambdaC: float = 1.0,
        alpha: float = 0.8,
        margin: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.l = check.count(l, "l")
        self.K = check.count(K, "K")
        self.lambdaC = check.number(lambdaC, "lambdaC", "a number of at least 0", lambda v: v >= 0)
        self.alpha = check.number(alpha, "alpha", "a number in (0, 1)", lambda v: 0 < v < 1)
        self.margin = check.finite(margin, "margin")
        self.proxies = learnt(torch.randn(self.K, self.l))

    def reset_parameters(self) -> None:
        """Draws the proxies anew."""
        nn.init.normal_(self.proxies)

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        proxies: Tensor | None = None,
    ) -> list[Any]:
        for value, name in ((labels, "labels"), (ref_emb, "ref_emb"), (ref_labels, "ref_labels")):
            if value is not None:
                raise ValueError(f"{name}: a manifold loss draws meta-classes for one batch; expected None")
        proxies = self.proxies if proxies is None else proxies
        check.embeddings(embeddings, "embeddings", self.validate)
        check.embeddings(proxies, "proxies", self.validate)
        check.same_space(embeddings, proxies, "embeddings", "proxies")
        own = self._meta_classes(embeddings, proxies, indices_tuple)
        return [Term(self._value, (embeddings, proxies, own))]

    def _meta_classes(self, embeddings: Tensor, proxies: Tensor, given: Any) -> Tensor:
        rows, classes = embeddings.shape[0], proxies.shape[0]
        if given is not None:
            found = check.labels(given, rows, embeddings.device, "indices_tuple", "embeddings")
            check.class_range(found, classes, "indices_tuple", self.validate)
            return found
        if rows < classes:
            raise ValueError(f"embeddings: expected at least {classes} rows, one per proxy, got {rows}")
        others = torch.randint(0, classes, (rows - classes,), device="cpu")
        drawn = torch.cat([torch.arange(classes, device="cpu"), others])
        return drawn[torch.randperm(rows, device="cpu")].to(embeddings.device)

    def _value(self, embeddings: Tensor, proxies: Tensor, own: Tensor) -> Tensor:
        kind = statistic_type(embeddings)
        rows = embeddings.shape[0]
        with without_autocast(embeddings.device):
            every = torch.cat([embeddings.to(kind), proxies.to(kind)])
            near = metric_of(self.similarity).dense(every, every, 0.0).clamp(min=0) / 0.5
            eye = torch.eye(every.shape[0], dtype=kind, device=every.device)
            near = near.masked_fill(eye > 0, -torch.inf)
            # Exponentials over the roots of their rows' and of their columns' sums.
            half = near.logsumexp(1) / 2
            walk = eye - self.alpha * (near - half[:, None] - half).exp()
            spread = (1 - self.alpha) * torch.linalg.inv(walk)
            of_samples, of_proxies = spread[:rows], spread[rows:]
            context = _unit(of_samples) @ _unit(of_proxies).t()
            found = _beyond(context, own, self.margin)
            if self.lambdaC == math.inf:
                return found
            return _beyond(of_samples[:, rows:], own, self.margin) + self.lambdaC * found

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        return total(self.parts(embeddings, labels, indices_tuple, ref_emb, ref_labels))


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-8)


def _beyond(similarity: Tensor, own: Tensor, margin: float) -> Tensor:
    """The mean over samples of log(1 + sum of exp of the excess of other proxies over the own one), where
    there is an excess; similarity [B, K]."""
    excess = similarity - similarity.gather(1, own[:, None]) + margin
    others = torch.ones_like(excess, dtype=torch.bool).scatter_(1, own[:, None], False)
    some = others & ~(excess.detach() < 0)  # a NaN stays one
    return torch.where(some, excess.exp(), torch.zeros_like(excess)).sum(1).log1p().mean()
