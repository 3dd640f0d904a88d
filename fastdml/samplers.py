"""Samplers that make a batch worth comparing: every class drawn brings several of its items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

# Random class choices are drawn for many batches at once; this bounds that table, in entries.
_BLOCK_ENTRIES = 1 << 21


class MPerClassSampler(Sampler[int]):
    """Draws ``m`` items of each class it visits, so that every anchor has ``m - 1`` positives.

    With ``batch_size`` set, each run of ``batch_size`` indices holds ``batch_size // m`` different
    classes, drawn uniformly without replacement; pass the same ``batch_size`` to the
    ``DataLoader``. Without it, each pass visits every class once in random order. Items of one
    class are drawn without replacement when the class has at least ``m`` of them, and with
    replacement otherwise.

    Args:
        labels: ``[N]`` class of each item of the data set: integers (tensor, array or list), or
            any values numpy can sort, such as class names.
        m: items drawn per class, at least 1.
        batch_size: indices per batch, a multiple of ``m`` with at most as many classes as exist.
        length_before_new_iter: indices per iteration, cut down to whole batches (whole passes
            over the classes when ``batch_size`` is None, never less than one).
        seed: makes the sequence reproducible. By default it is drawn from torch's global
            generator, so ``torch.manual_seed`` governs it.

    Successive iterations differ; :meth:`set_epoch` returns to a known point of the sequence.

    Raises:
        ValueError: an argument is out of range or ``labels`` is empty or not 1-D.
    """

    def __init__(
        self,
        labels: torch.Tensor | np.ndarray | Sequence,
        m: int,
        batch_size: int | None = None,
        length_before_new_iter: int = 100000,
        *,
        seed: int | None = None,
    ) -> None:
        if isinstance(labels, torch.Tensor):
            labels = labels.detach().cpu().numpy()
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.size == 0:
            raise ValueError(
                f"labels: expected a non-empty 1-D sequence, got shape {tuple(labels.shape)}"
            )
        self.m_per_class = _at_least_one("m", m)
        self.batch_size = None if batch_size is None else _at_least_one("batch_size", batch_size)
        length = _at_least_one("length_before_new_iter", length_before_new_iter)

        # Items sorted by class: class c owns _order[_start[c] : _start[c] + _count[c]].
        _, inverse, self._count = np.unique(labels, return_inverse=True, return_counts=True)
        self._order = np.argsort(inverse, kind="stable")
        self._start = np.cumsum(self._count) - self._count

        num_classes = len(self._count)
        group = self.m_per_class * num_classes
        if self.batch_size is not None:
            if self.batch_size % self.m_per_class:
                raise ValueError(
                    f"batch_size: expected a multiple of m={self.m_per_class}, "
                    f"got {self.batch_size}"
                )
            if self.batch_size > group:
                raise ValueError(
                    f"batch_size: expected at most m * number of classes = {self.m_per_class} * "
                    f"{num_classes} = {group}, got {self.batch_size}"
                )
            if self.batch_size > length:
                raise ValueError(
                    f"length_before_new_iter: expected at least batch_size={self.batch_size}, "
                    f"got {length}"
                )
            group = self.batch_size
        self._classes_per_group = group // self.m_per_class
        self._num_groups = max(1, length // group)

        self._seed = seed if seed is not None else int(torch.randint(2**62, ()).item())
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration a function of ``(seed, epoch)`` alone."""
        if epoch < 0:
            raise ValueError(f"epoch: expected a non-negative integer, got {epoch}")
        self._epoch = int(epoch)
        self._iterations = 0

    def __len__(self) -> int:
        return self._num_groups * self._classes_per_group * self.m_per_class

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch, self._iterations])
        self._iterations += 1
        return self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> Iterator[int]:
        num_classes, wanted = len(self._count), self._classes_per_group
        per_block = max(1, _BLOCK_ENTRIES // max(num_classes, wanted * self.m_per_class))
        for first in range(0, self._num_groups, per_block):
            groups = min(per_block, self._num_groups - first)
            # The classes with the smallest random keys are a uniform draw without replacement.
            keys = rng.random((groups, num_classes), dtype=np.float32)
            if wanted < num_classes:
                classes = np.argpartition(keys, wanted, axis=1)[:, :wanted]
            else:
                classes = np.argsort(keys, axis=1)
            yield from self._items(rng, classes.reshape(-1)).tolist()

    def _items(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """``m`` items of every class listed, concatenated."""
        count, m = self._count[classes], self.m_per_class
        chosen = np.empty((len(classes), m), dtype=np.int64)
        # Floyd's sampling without replacement, one step for all classes at a time: draw from the
        # first `top + 1` items; whoever draws an item it already holds takes item `top` instead.
        for step in range(m):
            top = count - m + step
            draw = rng.integers(0, np.maximum(top, 0) + 1)
            taken = (chosen[:, :step] == draw[:, None]).any(axis=1)
            chosen[:, step] = np.where(taken, top, draw)
        small = count < m
        chosen[small] = rng.integers(0, count[small, None], size=(int(small.sum()), m))
        return self._order[self._start[classes][:, None] + chosen].reshape(-1)


def _at_least_one(name: str, value: int) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return int(value)
