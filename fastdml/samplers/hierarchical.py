"""Batches of a few super-classes, whose classes are hard to tell from each other."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ..engine import check
from . import arguments
from .deck import Classes, Deck, ItemDecks
from .epochs import EpochSampler


class HierarchicalSampler(EpochSampler):
    """A batch sampler: ``DataLoader(..., batch_sampler=HierarchicalSampler(...))``.

    An epoch makes ``batches_per_super_tuple`` batches of every combination of
    ``super_classes_per_batch`` super-classes, in random order (hierarchical sampling of Cakir et al.,
    Deep Metric Learning to Rank, CVPR 2019). Each super-class fills an equal part of the batch with
    ``samples_per_class`` items of each of its classes; where it has fewer classes than that takes, all
    of them, and the batch is smaller. Classes and items are dealt from shuffled decks, as in
    :class:`.MPerClassSampler`.

    Args:
        labels: ``[N, levels]`` one row per item, one column per level of the hierarchy.
        batch_size: largest number of items in a batch, a multiple of ``super_classes_per_batch``.
        samples_per_class: items of each class, a divisor of the super-class's part of the batch; or
            "all": whole classes, as many as fit (those larger than the part never do).
        batches_per_super_tuple: batches of each combination in an epoch.
        super_classes_per_batch: super-classes in a batch.
        inner_label: the column of the classes.
        outer_label: the column of the super-classes.
        seed: see :class:`.EpochSampler`.
        rank: which of the ``num_replicas`` batches of every step this process takes.
        num_replicas: processes that share the batches; those left over are left out.

    Raises:
        ValueError: an argument is out of range, or not a batch can be made.
    """

    _younger = frozenset({"owners"})

    def __init__(
        self,
        labels: arguments.Labels,
        batch_size: int,
        samples_per_class: int | Literal["all"],
        batches_per_super_tuple: int = 4,
        super_classes_per_batch: int = 2,
        inner_label: int = 0,
        outer_label: int = 1,
        *,
        seed: int | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        super().__init__(seed, rank, num_replicas)
        found = arguments.labels(labels, 2, "array [items, levels]")
        self.batch_size = check.whole(batch_size, "batch_size", 1)
        self.super_classes_per_batch = check.whole(
            super_classes_per_batch, "super_classes_per_batch", 1
        )
        self.batches_per_super_tuple = check.whole(
            batches_per_super_tuple, "batches_per_super_tuple", 1
        )
        levels = found.shape[1] - 1
        inner = check.whole(inner_label, "inner_label", 0, levels)
        outer = check.whole(outer_label, "outer_label", 0, levels)
        if self.batch_size % self.super_classes_per_batch:
            raise ValueError(
                "batch_size: expected a multiple of super_classes_per_batch="
                f"{self.super_classes_per_batch}, got {self.batch_size}"
            )
        self._part = self.batch_size // self.super_classes_per_batch
        self.samples_per_class: int | Literal["all"] = "all"
        if not (isinstance(samples_per_class, str) and samples_per_class == "all"):
            self.samples_per_class = _divisor(samples_per_class, self._part)

        # A class is a pair (super-class, class): names may recur under another super-class.
        supers, of_item = np.unique(found[:, outer], return_inverse=True)
        _, class_of_item = np.unique(found[:, inner], return_inverse=True)
        pairs = of_item.reshape(-1) * (class_of_item.max() + 1) + class_of_item.reshape(-1)
        self._classes = Classes(pairs)
        owner = self._classes.names // (class_of_item.max() + 1)
        self._of_super = [np.flatnonzero(owner == s) for s in range(len(supers))]
        self._owners = zlib.crc32(owner.astype(np.int64).tobytes())
        self._items = len(found)
        if len(supers) < self.super_classes_per_batch:
            raise ValueError(
                f"super_classes_per_batch: expected at most the {len(supers)} super-classes of "
                f"labels, got {self.super_classes_per_batch}"
            )
        if self.samples_per_class == "all":
            for name, classes in zip(supers, self._of_super, strict=True):
                if (smallest := self._classes.counts[classes].min()) > self._part:
                    raise ValueError(
                        "batch_size: expected a super-class's part of it to hold one of its classes, "
                        f"but the smallest of {name} has {smallest} items and the part {self._part}"
                    )
        self._combinations = math.comb(len(supers), self.super_classes_per_batch)
        self._total = self._combinations * self.batches_per_super_tuple
        if self._total < self.num_replicas:
            raise ValueError(
                f"num_replicas: expected at most the {self._total} batches of an epoch, "
                f"got {self.num_replicas}"
            )

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        return self._total // self.num_replicas

    def _settings(self) -> dict[str, Any]:
        return {
            "items": self._items,
            "classes": len(self._classes),
            "labels": self._classes.digest,
            "super-classes": len(self._of_super),
            "owners": self._owners,
            "batch_size": self.batch_size,
            "samples_per_class": self.samples_per_class,
            "batches_per_super_tuple": self.batches_per_super_tuple,
            "super_classes_per_batch": self.super_classes_per_batch,
        }

    def _draw(self, epoch: int) -> Iterator[list[int]]:
        random = np.random.default_rng([self._seed, epoch])
        classes = [Deck(len(own), random) for own in self._of_super]
        items = ItemDecks(self._classes, random)
        order = random.permutation(self._total)
        for number in range(len(self) * self.num_replicas):
            step, rank = divmod(number, self.num_replicas)
            chosen = _combination(
                int(order[number]) % self._combinations,
                len(self._of_super),
                self.super_classes_per_batch,
            )
            parts = [part for s in chosen for part in self._fill(s, classes[s], items, step)]
            batch = random.permutation(np.concatenate(parts))
            if rank == self.rank:
                yield batch.tolist()

    def _fill(self, of: int, deck: Deck, items: ItemDecks, step: int) -> Iterator[np.ndarray]:
        """Items of each class that one super-class brings."""
        own = self._of_super[of]
        if self.samples_per_class != "all":
            count = min(self._part // self.samples_per_class, len(own))
            for c in own[deck.deal(count, step)].tolist():
                yield items.deal(c, self.samples_per_class, step)
            return
        sizes = self._classes.counts[own]
        for c in own[deck.deal_fitting(sizes, self._part)].tolist():
            yield self._classes.items(c)


def _divisor(value: Any, part: int) -> int:
    try:
        number = check.whole(value, "samples_per_class", 1)
    except ValueError as error:
        raise ValueError(f"{error}; 'all' takes whole classes") from None
    if part % number:
        raise ValueError(
            "samples_per_class: expected a divisor of batch_size / super_classes_per_batch = "
            f"{part}, got {number}"
        )
    return number


def _combination(index: int, size: int, count: int) -> list[int]:
    """The combination of that number, of all in lexical order, without listing the others."""
    found: list[int] = []
    for card in range(size):
        if len(found) == count:
            break
        with_it = math.comb(size - card - 1, count - len(found) - 1)
        if index < with_it:
            found.append(card)
        else:
            index -= with_it
    return found
