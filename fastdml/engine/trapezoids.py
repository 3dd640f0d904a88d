"""Blocks of the pairs of one set, rows against the columns from the first of them on: all pairs once, or
those that hold every positive."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .relation import ClassIndex

# Rows of a block among positives, at least: the fewer, the fewer other pairs it holds.
_NARROW = 32
# How many pairs as many as they need blocks may have to be of one shape: one call runs them all then.
_PADDED = 2.0


class Block(NamedTuple):
    """Rows [start, stop) against columns [start, reach), `times` over: each as many rows further down the
    diagonal as it has."""

    start: int
    stop: int
    reach: int
    times: int = 1

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def columns(self) -> slice:
        return slice(self.start, self.reach)

    @property
    def shape(self) -> tuple[int, ...]:
        one = self.stop - self.start, self.reach - self.start
        return one if self.times == 1 else (self.times, *one)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Its rows and its columns of x [N, D]: views, of several blocks [times, ., D]."""
        if self.times == 1:
            return x[self.rows], x[self.columns]
        _, height, width = self.shape
        row, column = x.stride()
        start = x.storage_offset() + self.start * row
        strides = height * row, row, column
        return (
            x.as_strided((self.times, height, x.shape[1]), strides, start),
            x.as_strided((self.times, width, x.shape[1]), strides, start),
        )


def all_pairs(n: int, size: int) -> list[Block]:
    return [Block(start, min(n, start + size), n) for start in range(0, n, size)]


def among_positives(n: int, size: int, classes: ClassIndex | None) -> list[Block]:
    """Blocks up to the last positive of any of their rows, each of no more than `size` rows of n columns.
    classes: None, where nobody knows."""
    if classes is None:
        return all_pairs(n, size)
    height = _height(size, classes)
    blocks = all_pairs(n, height)
    last = classes.order[_ends(classes, classes.col_class)]
    reach = _reach(last, height).tolist()
    blocks = [block._replace(reach=k) for block, k in zip(blocks, reach, strict=True)]
    width = max(block.reach - block.start for block in blocks)
    # (Those at the end have fewer columns.)
    count = max(0, n - width) // height
    together = count * height * width
    if count < 2 or together > size * n or together > _PADDED * sum(map(_pairs, blocks[:count])):
        return blocks
    return [Block(0, height, width, count), *blocks[count:]]


def share_among_positives(n: int, size: int, classes: ClassIndex) -> float:
    """Of all pairs, how many blocks among positives have once classes lie together."""
    height = _height(size, classes)
    start = torch.arange(0, n, height, device=classes.order.device)
    rows = (n - start).clamp(max=height)
    reach = _reach(_ends(classes, classes.col_class[classes.order]), height)
    return float((rows * (reach - start)).sum() / (rows * (n - start)).sum())


def _height(size: int, classes: ClassIndex) -> int:
    """Rows of a block among positives: of large classes more, whose columns are as many for any."""
    return min(size, max(_NARROW, classes.longest))


def _ends(classes: ClassIndex, numbers: Tensor) -> Tensor:
    """Where in `order` the columns of these classes end, the last of each."""
    return classes.start[1:][numbers] - 1


def _reach(last: Tensor, height: int) -> Tensor:
    """[blocks] where the columns of blocks of rows end, of which each has its last one at `last` [N]."""
    padded = torch.nn.functional.pad(last, (0, -last.shape[0] % height))
    return padded.view(-1, height).amax(1) + 1


def _pairs(block: Block) -> int:
    return math.prod(block.shape)
