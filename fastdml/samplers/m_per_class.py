"""So many items of every class in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine import check
from . import arguments
from .deck import Classes, Deck, ItemDecks
from .epochs import EpochSampler

_MOST = 1 << 16  # items of a class in a batch


class MPerClassSampler(EpochSampler):
    """Draws ``m`` items of each class it visits, so that every anchor has ``m - 1`` positives.

    With ``batch_size`` set, each run of ``batch_size`` indices holds ``batch_size // m`` different
    classes; pass the same ``batch_size`` to the ``DataLoader`` (``sampler=``), or say ``batches=True``
    and pass the sampler as its ``batch_sampler=``. Without ``batch_size`` each pass visits every class
    once in random order.

    The classes of a batch are a uniform draw without replacement, and so are the items of a class in a
    batch; a class of fewer than ``m`` items brings each of them ``m // size`` times, and some of them
    once more. Within an epoch all is dealt from shuffled decks: no class, and no item of a class, comes
    again before the others have come, but for what a batch may not hold twice.

    Args:
        labels: ``[N]`` class of each item of the data set: integers (tensor, array or list), or
            any values numpy can sort, such as class names.
        m: items drawn per class, 1 to 65,536.
        batch_size: indices per batch of one rank, a multiple of ``m`` with at most as many classes as
            exist.
        length_before_new_iter: indices per epoch over all ranks, cut down to whole batches on each
            (whole passes over the classes when ``batch_size`` is None, never less than one).
        batches: yield lists of ``batch_size`` indices, and count them in ``len``.
        seed: makes the sequence reproducible. By default it is drawn from torch's global
            generator, so ``torch.manual_seed`` governs it; with several replicas it is 0.
        rank: which of the ``num_replicas`` batches of every step this process takes. They have no
            class in common where there are enough, and no item in any case if classes are large enough.
        num_replicas: processes that share the draws.

    Successive iterations differ; :meth:`set_epoch` returns to a known point of the sequence, and
    :meth:`state_dict` keeps a point within an epoch.

    Raises:
        ValueError: an argument is out of range or ``labels`` is empty or not 1-D.
    """

    def __init__(
        self,
        labels: arguments.Labels,
        m: int,
        batch_size: int | None = None,
        length_before_new_iter: int = 100000,
        *,
        batches: bool = False,
        seed: int | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        super().__init__(seed, rank, num_replicas)
        found = arguments.labels(labels)
        self.m_per_class = check.whole(m, "m", 1, _MOST)
        self.batch_size = (
            None if batch_size is None else check.whole(batch_size, "batch_size", 1)
        )
        length = check.whole(length_before_new_iter, "length_before_new_iter", 1)
        if batches and self.batch_size is None:
            raise ValueError("batch_size: expected with batches=True, got None")
        self.batches = bool(batches)
        self._items = len(found)
        self._classes = Classes(found)

        every = self.m_per_class * len(self._classes)
        if self.batch_size is not None:
            if self.batch_size % self.m_per_class:
                raise ValueError(
                    f"batch_size: expected a multiple of m={self.m_per_class}, "
                    f"got {self.batch_size}"
                )
            if self.batch_size > every:
                raise ValueError(
                    f"batch_size: expected at most m * number of classes = {self.m_per_class} * "
                    f"{len(self._classes)} = {every}, got {self.batch_size}"
                )
            if self.batch_size * self.num_replicas > length:
                raise ValueError(
                    f"length_before_new_iter: expected at least batch_size={self.batch_size}"
                    + (f" on each of {self.num_replicas} ranks" if self.num_replicas > 1 else "")
                    + f", got {length}"
                )
        self._group = self.batch_size or every
        self._steps = max(1, length // (self._group * self.num_replicas))

    def __len__(self) -> int:
        return self._steps if self.batches else self._steps * self._group

    def _settings(self) -> dict[str, Any]:
        return {
            "items": self._items,
            "classes": len(self._classes),
            "labels": self._classes.digest,
            "m": self.m_per_class,
            "batch_size": self.batch_size,
            "batches": self.batches,
        }

    def _draw(self, epoch: int) -> Iterator[Any]:
        random = np.random.default_rng([self._seed, epoch])
        classes = Deck(len(self._classes), random)
        items = ItemDecks(self._classes, random)
        wanted = self._group // self.m_per_class
        for step in range(self._steps):
            for rank in range(self.num_replicas):
                # Ranks deal for each other: that is how they know what the others have.
                dealt = [
                    items.deal(of, self.m_per_class, step)
                    for of in classes.deal(wanted, step).tolist()
                ]
                if rank != self.rank:
                    continue
                group = np.concatenate(dealt).tolist()
                if self.batches:
                    yield group
                else:
                    if step == 0:
                        group[0] = Index(group[0])
                    yield from group


class Index(int):
    """The first index of an epoch: where it is taken for a batch of indices, the name of its type says what
    is wrong, as such an error has it: '...' object is not iterable.

    (With an `__iter__` that says so it would be a list to pandas, whose `iloc` many data sets read items by.)
    """


# Pickles go by the qualified name, which stays.
Index.__name__ = (
    "single index (MPerClassSampler yields single indices: pass it to the DataLoader as sampler=, with the "
    "same batch_size=; or make it with batches=True and pass it as batch_sampler=)"
)
