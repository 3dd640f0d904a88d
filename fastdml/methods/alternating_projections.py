"""Alternating projections: pairs with one representative of each class, exchanged now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from ..engine import check
from ..metrics import nearest_neighbours
from ..mining.steps import recomputing
from .proximal import ProximalTerm


class RepresentativeSampler(Sampler[list[int]]):
    """Batches of N classes, each with its representative and M - 1 other samples.

    A `batch_sampler` for a DataLoader. For `lifetime` batches every class has one representative, a random
    sample of it; then all are drawn anew. A batch is the N representatives and then the N (M - 1)
    fresh samples, sample-major: first one of every class, then another of every class. Fresh samples are not
    the representative, and differ from each other, where a class is large enough.

    With `embed`, classes are mined: a batch holds a random class and its N - 1 nearest ones, by the
    cosine of the representatives' embeddings at the beginning of the period (inferred: the paper's rule
    is not known).

    Args:
        labels: [samples] integers.
        classes_per_batch, per_class: N and M, both at least 2.
        lifetime: in batches.
        length: batches of an epoch; None: as many as show every sample about once.
        embed: called with the [C] indices of the representatives, classes in ascending order, for their
            embeddings [C, D]; or None.
        seed: of the draws.

    `state_dict` holds how many batches were made, and of the latest two periods the representatives and
    neighbours of classes. Batch k is a function of seed, k and embeddings alone, so sampling resumes in the
    middle of an epoch. With workers a DataLoader asks ahead: save the number of batches trained as `batches`
    (of a period longer ago than those two, classes are mined anew).
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        per_class: int,
        lifetime: int,
        length: int | None = None,
        *,
        embed: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(labels, Tensor) or labels.dim() != 1 or len(labels) == 0:
            raise ValueError("labels: expected a tensor [samples] of integers")
        names, sizes = labels.cpu().unique(return_counts=True)
        self.num_classes = len(names)
        self.classes_per_batch = check.integer(
            classes_per_batch, "classes_per_batch", 2, self.num_classes
        )
        self.per_class = check.integer(per_class, "per_class", 2, len(labels))
        self.lifetime = check.count(lifetime, "lifetime")
        whole = max(1, len(labels) // (self.classes_per_batch * self.per_class))
        self.length = whole if length is None else check.count(length, "length")
        self.seed = int(check.seed(seed, "seed"))
        self.embed = embed
        self._order = labels.cpu().sort(stable=True).indices.numpy()
        self._size = sizes.numpy()
        self._start = np.cumsum(self._size) - self._size
        self.batches = 0  # made since the beginning
        # Of the latest periods [C], and [C, N - 1] where classes are mined.
        self.periods: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return self.length - self.batches % self.length

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of the epoch."""
        while True:
            self.batches += 1
            yield self._batch(self.batches - 1)
            if self.batches % self.length == 0:
                return

    @property
    def representatives(self) -> Tensor:
        """[C] of the latest period."""
        if not self.periods:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        return self.periods[max(self.periods)][0]

    def _batch(self, number: int) -> list[int]:
        period = number // self.lifetime
        if period not in self.periods:
            self.periods[period] = self._begin_period(period)
            self.periods = {k: self.periods[k] for k in sorted(self.periods)[-2:] if k <= period}
        representatives, neighbours = self.periods[period]
        rng = np.random.default_rng([self.seed, 1, number])
        if neighbours is None:
            classes = rng.permutation(self.num_classes)[: self.classes_per_batch]
        else:
            first = int(rng.integers(self.num_classes))
            classes = np.array([first, *neighbours[first].tolist()])
        shown = representatives.numpy()[classes]
        fresh = [self._others(rng, c, shown[k]) for k, c in enumerate(classes)]
        return [*shown.tolist(), *np.stack(fresh, axis=1).reshape(-1).tolist()]

    def _others(self, rng: np.random.Generator, of: int, shown: int) -> np.ndarray:
        """M - 1 samples of a class."""
        own = self._order[self._start[of] : self._start[of] + self._size[of]]
        others = own[own != shown] if len(own) > 1 else own
        return rng.choice(others, self.per_class - 1, replace=len(others) < self.per_class - 1)

    def _begin_period(self, period: int) -> tuple[Tensor, Tensor | None]:
        rng = np.random.default_rng([self.seed, 0, period])
        chosen = self._start + (rng.random(self.num_classes) * self._size).astype(np.int64)
        representatives = torch.from_numpy(self._order[chosen])
        if self.embed is None:
            return representatives, None
        with torch.no_grad():
            embeddings = self.embed(representatives)
        if len(embeddings) != self.num_classes:
            raise ValueError(f"embed: expected {self.num_classes} embeddings, got {len(embeddings)}")
        return representatives, nearest_neighbours(embeddings, self.classes_per_batch - 1).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "periods": dict(self.periods)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = int(state["batches"])
        self.periods = dict(state["periods"])


class AlternatingProjections(nn.Module):
    """The rectangular loss of representatives and fresh samples, near the last period's weights.

    *Deep Metric Learning with Alternating Projections onto Feasible Sets*, Can, Gurbuz, Alatan, ICIP 2021
    (arXiv 1907.07585). The pairs of a class's samples with one fixed representative relax the constraints of
    all pairs; training projects onto the set that the representatives of a period stand for, and a
    proximal term keeps the weights near those at the end of the period before. Inferred in part: abstract
    and the same authors' released samplers; lifetime and mining of classes are not known.

        sampler = RepresentativeSampler(labels, 32, 4, lifetime=200)
        method = AlternatingProjections(model, MultiSimilarityLoss(), sampler.classes_per_batch, 200)
        loss = method(model(images), labels) + method.proximal()

    Args:
        model: the network, whose parameters the proximal term holds.
        loss: called as `loss(rows, labels, None, ref_emb, ref_labels)`.
        classes_per_batch: N: the first N rows of a batch are the representatives.
        lifetime: steps of a period, as the sampler's.
        proximal_weight: of the term; there is none in the first period.
        between: weight of the loss among representatives, at least 0.

    State: the proximal term and the number of steps.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        classes_per_batch: int,
        lifetime: int,
        *,
        proximal_weight: float = 2e-4,
        between: float = 0.0,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.classes_per_batch = check.count(classes_per_batch, "classes_per_batch")
        self.lifetime = check.count(lifetime, "lifetime")
        self.between = check.non_negative(between, "between")
        self.proximal = ProximalTerm(model, proximal_weight)
        self.steps = 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch of `RepresentativeSampler`: embeddings [N M, D], labels [N M].

        A step: in training mode, the first of a period fixes the proximal term's weights.
        """
        check.embeddings(embeddings, "embeddings")
        n = self.classes_per_batch
        if len(embeddings) <= n:
            raise ValueError(
                f"embeddings: expected more than {n} rows, the representatives and fresh samples, "
                f"got {len(embeddings)}"
            )
        if self.training and not recomputing():
            if self.steps and self.steps % self.lifetime == 0:
                self.proximal.move()
            self.steps += 1
        shown, fresh = embeddings[:n], embeddings[n:]
        total = self.loss(shown, labels[:n], None, fresh, labels[n:])
        if self.between:
            total = total + self.between * self.loss(shown, labels[:n])
        return total

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: Any) -> None:
        self.steps = int(state["steps"])
