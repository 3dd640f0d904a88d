"""CCP: deep metric learning with chance constraints."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses
from ..engine import check
from ..engine.similarity import exact_distances, unit, wide_type
from .proximal import ProximalTerm

DrawPool = Callable[[int], Tensor]


class ChanceConstraints(nn.Module):
    """A sequence of proxy problems, each with proxies relocated to fresh embeddings.

    *Deep Metric Learning with Chance Constraints*, Gurbuz et al., 2022 (arXiv 2209.09060), section 4 and
    algorithm 1. A problem is trained until the validation score has stopped to improve; then the
    weights that scored best become the point to stay near, and every class's proxies move to those of
    a pool of fresh embeddings that best cover the class.

        ccp = ChanceConstraints(model, num_classes, embedding_size)
        ccp.relocate(draw)                                   # unless random proxies shall start
        loss = ccp(embeddings, labels); loss.backward(); ccp.proximal.add_to_gradients()
        ccp.evaluated(validation_score, draw)                # every epoch

    `draw(b)` returns [C, b, D]: embeddings of b images of each class by the network as it is, in
    evaluation mode; `draw_each_class` chooses the images.

    Args:
        model: the network, whose parameters the proximal term holds.
        num_classes, embedding_size: C and D; labels are 0 ... C - 1.
        loss: the host, called as `loss(rows, labels, None, ref_emb, ref_labels)` and `loss(embeddings,
            labels)`; None: the paper's two-margin contrastive loss of distances in the unit ball with
            margins 0 and 0.3841 (its settings for CUB).
        proxies_per_class: K.
        pool_size: b, fresh embeddings of each class; below K it is b K; 1 means K independent draws.
        proximal_weight, decay: the proximal term of problem i weighs proximal_weight decay^i; that of
            problem 0 nothing.
        patience: evaluations without improvement that end a problem.
        min_evaluations: of a problem before its scores are looked at.
        min_improvement: by which a score must exceed the best one.
        sample_weight, proxy_weight: of the loss of sample pairs and of proxy-sample pairs.
        normalize_pool: whether covering is measured between normalised embeddings.

    As in the released code, live weights are not rewound to the best ones, the optimiser is not reset,
    and the new proxies are the pool's vectors as they are. (Its comparison with the patience is an
    equality, which a patience lowered in the middle of a run passes by; here it is "at least".)

    State: `proxies` [K C, D] (a parameter; proxy k of all classes, then proxy k + 1), the best weights
    and proxies, the proximal term, and the counters.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        embedding_size: int,
        loss: nn.Module | None = None,
        *,
        proxies_per_class: int = 8,
        pool_size: int = 12,
        proximal_weight: float = 2e-4,
        decay: float = 1.0,
        patience: int = 3,
        min_evaluations: int = 1,
        min_improvement: float = 1e-5,
        sample_weight: float = 0.1,
        proxy_weight: float = 1.0,
        normalize_pool: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = check.count(num_classes, "num_classes")
        self.embedding_size = check.count(embedding_size, "embedding_size")
        self.proxies_per_class = check.count(proxies_per_class, "proxies_per_class")
        self.pool_size = check.count(pool_size, "pool_size")
        self.proximal_weight = check.non_negative(proximal_weight, "proximal_weight")
        self.decay = check.positive(decay, "decay")
        self.patience = check.count(patience, "patience")
        self.min_evaluations = check.count(min_evaluations, "min_evaluations")
        self.min_improvement = check.non_negative(min_improvement, "min_improvement")
        self.sample_weight = check.non_negative(sample_weight, "sample_weight")
        self.proxy_weight = check.non_negative(proxy_weight, "proxy_weight")
        self.normalize_pool = normalize_pool
        if loss is None:
            loss = losses.ContrastiveLoss(0, 0.3841, similarity="ball_distance")
        self.loss = loss
        self.proximal = ProximalTerm(model, 0.0)
        rows = self.num_classes * self.proxies_per_class
        self.proxies = nn.Parameter(torch.empty(rows, self.embedding_size))
        nn.init.kaiming_normal_(self.proxies)
        self.register_buffer(
            "proxy_labels", torch.arange(self.num_classes).repeat(self.proxies_per_class), False
        )
        self.register_buffer("best_proxies", self.proxies.detach().clone())
        for k, p in enumerate(self.proximal.of):
            self.register_buffer(f"best_{k}", p.detach().clone())
        self.problem = 0  # how many relocations there were
        self.evaluations = 0  # of this problem
        self.without_improvement = 0
        self.best_score = -math.inf

    proxy_labels: Tensor
    best_proxies: Tensor

    @property
    def best(self) -> list[Tensor]:
        """The weights that scored best in this problem, in the order of the network's parameters."""
        return [self.get_buffer(f"best_{k}") for k in range(len(self.proximal.of))]

    @property
    def drawn(self) -> int:
        """How many embeddings of each class a relocation asks for."""
        few = self.pool_size < self.proxies_per_class
        return self.pool_size * self.proxies_per_class if few else self.pool_size

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings [B, D] with labels [B] in [0, C), without the proximal term.

        Rows of the proxies' part are the proxies: it is a [K C, B] problem.
        """
        check.embeddings(embeddings, "embeddings")
        labels = check.labels(labels, len(embeddings), embeddings.device, "labels", "embeddings")
        check.class_range(labels, self.num_classes, "labels", False)
        total = embeddings.new_zeros(())
        if self.sample_weight:
            total = total + self.sample_weight * self.loss(embeddings, labels)
        if self.proxy_weight:
            proxies = self.proxies.to(embeddings.dtype)
            against = self.loss(proxies, self.proxy_labels, None, embeddings, labels)
            total = total + self.proxy_weight * against
        return total

    def evaluated(self, score: float, draw: DrawPool) -> bool:
        """Tells of a validation score (larger is better); True where that began the next problem."""
        score = check.finite(score, "score")  # Python's own, as the state keeps the best
        self.evaluations += 1
        if self.evaluations < self.min_evaluations:
            return False
        if score > self.best_score + self.min_improvement:
            self.without_improvement, self.best_score = 0, score
            self._keep()
        else:
            self.without_improvement += 1
        if self.without_improvement < self.patience:
            return False
        self.problem += 1
        self.proximal.move(self.best)
        self.proximal.weight = self.proximal_weight * self.decay**self.problem
        self.relocate(draw)
        self.evaluations = self.without_improvement = 0
        self.best_score = -math.inf
        return True

    @torch.no_grad()
    def _keep(self) -> None:
        self.best_proxies.copy_(self.proxies)
        for kept, p in zip(self.best, self.proximal.of, strict=True):
            kept.copy_(p)

    @torch.no_grad()
    def relocate(self, draw: DrawPool) -> None:
        """New proxies: those of a fresh pool that best cover their class beside the best proxies."""
        pool = draw(self.drawn)
        expected = (self.num_classes, self.drawn, self.embedding_size)
        if not isinstance(pool, Tensor) or pool.shape != expected:
            got = tuple(pool.shape) if isinstance(pool, Tensor) else type(pool).__name__
            raise ValueError(f"draw: expected a tensor of shape {expected}, got {got}")
        k = self.proxies_per_class
        if self.pool_size == 1:
            chosen = pool
        else:
            existing = self.best_proxies.view(k, self.num_classes, -1).transpose(0, 1)
            chosen = greedy_k_centers(pool, existing, k, normalize=self.normalize_pool)
        self.proxies.copy_(chosen.transpose(0, 1).reshape(self.proxies.shape))

    _COUNTERS = ("problem", "evaluations", "without_improvement", "best_score")

    def get_extra_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._COUNTERS}

    def set_extra_state(self, state: Any) -> None:
        for name in self._COUNTERS:
            setattr(self, name, state[name])


@torch.no_grad()
def greedy_k_centers(pool: Tensor, centers: Tensor, k: int, *, normalize: bool = False) -> Tensor:
    """Of every pool k points, each in turn the one farthest from its nearest center so far.

    Args:
        pool: [C, b, D]. centers: [C, any number, D], where each class begins.
        k: at least 1; more than b repeat points.
        normalize: whether distances are between normalised points; what is returned is not.

    Returns:
        [C, k, D], in the order of picking. Of equal distances the first in the pool.
    """
    check.count(k, "k")
    at, start = (_directions(x) if normalize else x for x in (pool, centers))
    classes, size = pool.shape[:2]
    nearest = at.new_full((classes, size), torch.inf)
    if start.shape[1]:
        nearest = exact_distances(at, start).amin(2)
    between = exact_distances(at, at)  # [C, b, b]
    every, picks = torch.arange(classes, device=pool.device), []
    for _ in range(k):
        pick = nearest.argmax(1)
        picks.append(pick)
        nearest = torch.minimum(nearest, between[every, pick])
    return pool[every[:, None], torch.stack(picks, 1)]


def _directions(x: Tensor) -> Tensor:
    """[C, b, D] at length 1, with the digits of float32 at least."""
    return unit(x.flatten(0, 1).to(wide_type(x))).view(x.shape)
