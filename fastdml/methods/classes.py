"""Samples by class, without a loop over classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import check


def place_in_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """([B] how many earlier samples have the same label, [B] how many samples have it in all)."""
    order, start, count = _groups(labels)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(labels), device=labels.device) - start
    size = torch.empty_like(order)
    size[order] = count
    return place, size


def ordered_pairs(labels: Tensor, last: int | None = None) -> tuple[Tensor, Tensor]:
    """(i, j) of all ordered pairs of equal labels [B], (i, i) included.

    Pairs of one class come with i ascending, then j. last: only the last so many samples of each class
    are an i.
    """
    order, start, count = _groups(labels)
    if last is not None:
        place = torch.arange(len(labels), device=labels.device) - start
        keep = place >= count - last
        order_first, start, count = order[keep], start[keep], count[keep]
    else:
        order_first = order
    first = order_first.repeat_interleave(count)
    begin = count.cumsum(0) - count
    offset = torch.arange(len(first), device=labels.device) - begin.repeat_interleave(count)
    return first, order[start.repeat_interleave(count) + offset]


def _groups(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(order, start, count), each [B]: samples sorted by class, and of each in that order where its
    class begins and how many it has."""
    found, order = labels.sort(stable=True)
    _, which, sizes = torch.unique_consecutive(found, return_inverse=True, return_counts=True)
    return order, (sizes.cumsum(0) - sizes)[which], sizes[which]


def class_sums(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[C, D] sums of values [B, D] over the samples of each class 0 ... C - 1, in the order of the batch."""
    order = labels.sort(stable=True).indices
    lengths = torch.bincount(labels, minlength=classes)
    return torch.segment_reduce(values[order], "sum", lengths=lengths, axis=0, initial=0)


def draw_each_class(labels: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """[C, count] indices of samples of each class, drawn independently and uniformly.

    labels: [N], each of 0 ... C - 1 at least once.
    """
    labels = check.labels(labels, len(labels), labels.device, "labels", "the data set")
    order = labels.sort(stable=True).indices
    sizes = torch.bincount(labels.clamp(min=0))
    if bool((labels < 0).any()) or not bool((sizes > 0).all()):
        raise ValueError("labels: expected a sample of every class 0 ... C - 1, and no others")
    start = (sizes.cumsum(0) - sizes)[:, None]
    chance = torch.rand(len(sizes), count, generator=generator, dtype=torch.float64, device=labels.device)
    return order[start + (chance * sizes[:, None]).long()]
