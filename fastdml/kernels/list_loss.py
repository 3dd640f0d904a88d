"""A loss whose row owns a list of thresholds, its positives, as the Triton kernels see it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from .tile import Jit

# Thresholds of a row stay in registers: more do not fit.
MOST = 16


def slots_for(longest: int) -> int:
    """The number of places for lists of up to `longest` thresholds: a power of two."""
    return max(4, 1 << (max(1, longest) - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class ListLoss:
    """A row compares every negative with each of its positives t_1 ... t_P, P <= slots.

    The functions are `@triton.jit`; `p` is the tuple of parameters.

    compare: `compare(d, p)` -> `values` tiles, elementwise in d = s - t_k of a negative s. Their sums
        over the negatives are a row's statistics.
    finish: `finish(sums, t, valid, count, negatives, columns, p)` -> (outputs, push, direct), once per
        row. sums: a tuple of `values` [rows, slots], t the thresholds [rows, slots], of which
        `valid` says which there are; count, negatives: numbers [rows] of positives and negatives,
        `columns` that of all columns. outputs: a tuple of [rows]. push [rows, slots]: factor of
        `slope` in the derivative by a negative; direct [rows, slots]: the derivative by a threshold,
        all told. Both over `gain`, and 0 where not valid.
    slope: `slope(d, p)` -> tile. The derivative of the row's loss by a negative s is the sum over k
        of push_k slope(s - t_k).
    gain: `gain(p)` -> constant that brings the weights to order one, or None for 1.
    values: see compare.
    outputs: 2: a loss, and a number of things that it sums, without a derivative.
    own: the pair of a row with itself, where it is no positive, is compared like a negative.
    sparse: most weights are exactly 0, so tiles without any are skipped.
    slots: places for thresholds, a power of two.
    """

    name: str
    compare: Jit
    finish: Jit
    slope: Jit
    gain: Jit | None = None
    values: int = 2
    outputs: int = 1
    own: bool = False
    sparse: bool = False
    slots: int = MOST

    # What only TileLoss has.
    groups: ClassVar[None] = None
    teacher: ClassVar[bool] = False
    column_values: ClassVar[int] = 0
    scalars: ClassVar[int] = 0
    derivatives: ClassVar[int] = 0
    inputs: ClassVar[int] = 0
    column_slopes: ClassVar[None] = None
    linear: ClassVar[bool] = False
    heavy: ClassVar[int] = 0
    light: ClassVar[bool] = False
    wide: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.slots & (self.slots - 1) or not 4 <= self.slots <= MOST:
            raise ValueError(f"slots: expected 4, 8 or {MOST}, got {self.slots}")

    @property
    def weight(self) -> Jit:
        return self.slope

    @property
    def states(self) -> int:
        """Values of a row that kernel 2 reads: thresholds, push and direct."""
        return 3 * self.slots

    @property
    def weight_states(self) -> int:
        return self.states
