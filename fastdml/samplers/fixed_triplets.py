"""Triplets drawn once, for when comparisons are all that is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine import check
from . import arguments
from .deck import Classes
from .epochs import EpochSampler


class FixedSetOfTriplets(EpochSampler):
    """Draws ``num_triplets`` triplets when it is made, and yields these and no others, in random order.

    A triplet is an anchor, another item of its class, and an item of another class. The class of the
    anchor is drawn uniformly from those of at least two items, that of the negative uniformly from the
    others, items uniformly from their class. They follow each other, anchor, positive, negative, as
    three indices: let the batch size be a multiple of 3.

    Args:
        labels: ``[N]`` class of each item.
        num_triplets: how many, at least 1.
        seed: of the triplets and of their order; see :class:`.EpochSampler`.
        rank: which share of the triplets of an epoch this process yields.
        num_replicas: number of shares; triplets left over are left out, others in each epoch.

    Attributes:
        fixed_set_of_triplets: ``[num_triplets, 3]`` int64, the triplets of all ranks.

    Raises:
        ValueError: an argument is out of range, or no triplet can be made of the labels.
    """

    def __init__(
        self,
        labels: arguments.Labels,
        num_triplets: int,
        *,
        seed: int | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        super().__init__(seed, rank, num_replicas)
        found = arguments.labels(labels)
        self.num_triplets = check.whole(num_triplets, "num_triplets", self.num_replicas)
        classes = Classes(found)
        if len(classes) < 2 or classes.counts.max() < 2:
            raise ValueError(
                "labels: expected two classes or more, one of them with two items, got "
                f"{len(classes)} classes of at most {classes.counts.max()} items"
            )
        self._items = len(found)
        self._classes = classes
        self.fixed_set_of_triplets = self._triplets()

    def _triplets(self) -> np.ndarray:
        random = np.random.default_rng([self._seed])
        classes, count = self._classes, self.num_triplets
        own = random.choice(np.flatnonzero(classes.counts >= 2), count)
        other = random.integers(0, len(classes) - 1, count)
        other += other >= own  # all but the anchor's
        anchor = random.integers(0, classes.counts[own])
        positive = random.integers(0, classes.counts[own] - 1)
        positive += positive >= anchor
        negative = random.integers(0, classes.counts[other])
        return np.stack(
            [
                classes.pick(of, which)
                for of, which in ((own, anchor), (own, positive), (other, negative))
            ],
            axis=1,
        )

    def __len__(self) -> int:
        return self.num_triplets // self.num_replicas * 3

    def _settings(self) -> dict[str, Any]:
        return {
            "items": self._items,
            "classes": len(self._classes),
            "labels": self._classes.digest,
            "num_triplets": self.num_triplets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.fixed_set_of_triplets = self._triplets()

    def _draw(self, epoch: int) -> Iterator[int]:
        order = np.random.default_rng([self._seed, epoch]).permutation(self.num_triplets)
        own = order[self.rank :: self.num_replicas][: len(self) // 3]
        yield from self.fixed_set_of_triplets[own].reshape(-1).tolist()
