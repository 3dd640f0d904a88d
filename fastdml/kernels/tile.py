"""A loss as the Triton kernels see it."""

from __future__ import annotations

import dataclasses
from typing import Any

# Statistic -> (contributions a fold returns for it, values it leaves per row).
KINDS: dict[str, tuple[int, int]] = {
    "sum": (1, 1),
    "min": (1, 1),
    "max": (1, 1),
    "lse": (1, 1),
    "lse_split": (1, 2),
    "lse_mean": (2, 2),
}

Jit = Any  # a function under @triton.jit; not named so that this file needs no triton


@dataclasses.dataclass(frozen=True)
class Pass:
    """One sweep over the columns.

    kinds: the row statistics, from:
        "sum", "min", "max"  of the returned tile (identities: 0, inf, -inf);
        "lse"                log2 of the sum of 2**z; return z, -inf where a pair does not count;
        "lse_split"          the same separately over positives and negatives, at one exponential a
                             pair; leaves (positives, negatives);
        "lse_mean"           return (z, v): log2 of the sum of 2**z, and the mean of v under the
                             softmax of z.
    fold: `fold(s, t, positive, row, p)` -> tuple of tiles, one (lse_mean: two) per kind.
    positives_only: negatives contribute nothing, so that tiles without positives are not visited.
    """

    kinds: tuple[str, ...]
    fold: Jit
    positives_only: bool = False

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds: expected statistics from {sorted(KINDS)}, got {kind!r}")

    @property
    def values(self) -> int:
        return sum(KINDS[kind][1] for kind in self.kinds)

    @property
    def merge_kinds(self) -> tuple[str, ...]:
        """The statistics that merge partial ones: a pair of sums of exponentials is just two."""
        parts = (("lse", "lse") if kind == "lse_split" else (kind,) for kind in self.kinds)
        return tuple(kind for part in parts for kind in part)


@dataclasses.dataclass(frozen=True)
class TileLoss:
    """A pair loss as statistics of a row and the weight of a pair.

    The functions are `@triton.jit` and elementwise in what they are given. `s` is a tile of
    similarities (or distances) in float32, `t` the tile of the second matrix, or the tuple of the
    column's values, or 0; `positive` the tile of equal labels, `p` the tuple of parameters. `row` and
    `state` are tuples of float32 vectors that broadcast against the tile. A tile may lie either way
    round (rows of the loss along either axis), which an elementwise function cannot notice.

    passes: sweeps over the columns; a fold sees the statistics of the passes before it as `row`.
    finish: `finish(stats, p)` -> (row loss, *states): once per row, with the statistics of all passes.
    weight: `weight(s, t, positive, state, p)` -> the derivative of the row's loss with respect to s,
        divided by `gain`. Must be finite for any finite s, and 0 for a pair that does not count.
    gain: `gain(p)` -> constant that brings the weights to order one (float16 would lose them), or
        None for 1.
    states: how many values `finish` returns last, that `weight` reads.
    inputs: how many vectors of one value per row the caller hands in; `row` and `stats` start with
        them.
    groups: centres per class along the columns: "softmax" replaces the similarities of a class by
        their mean under the softmax of s * p[-1] (in base 2; the last parameter), "max" by the largest.
        None: one column per class or sample.
    sparse: most weights are exactly 0, so tiles without any are skipped.
    heavy: its folds need many registers: from this dimension on their tiles are narrower; 0: nowhere.
    teacher: whether there is a second matrix `t`.
    column_values: how many values every column has; `t` is then their tuple.
    outputs: values of a row. More than one: `finish` returns them first, and `state` starts with the
        derivative of the whole by each of them.
    linear: `weight` is linear in `state`: of one set a call for the sum of both rows' is that of both.
    scalars: how many learnable parameters there are, the last ones of p (before the call's own).
        `finish` then returns, after the outputs, the derivative of the row's loss by each.
    slopes: of how many of the inputs `finish` returns the derivative of the row's loss, after those.
    column_slopes: `column_slopes(s, t, positive, state, p)` -> a tile for each of the column's values:
        what the pair adds to the derivative of the row's loss by it, divided by `gain`; None: they get
        no gradient.

    Exponentials and logarithms are to base 2 throughout: fold log2(e) into the parameters.
    """

    name: str
    passes: tuple[Pass, ...]
    finish: Jit
    weight: Jit
    states: int
    gain: Jit | None = None
    inputs: int = 0
    groups: str | None = None
    sparse: bool = False
    heavy: int = 0
    teacher: bool = False
    column_values: int = 0
    outputs: int = 1
    linear: bool = False
    scalars: int = 0
    slopes: int = 0
    column_slopes: Jit | None = None

    def __post_init__(self) -> None:
        if self.groups not in (None, "softmax", "max"):
            raise ValueError(f"groups: expected None, 'softmax' or 'max', got {self.groups!r}")
        if self.teacher and self.column_values:
            raise ValueError("column_values: expected 0 for a loss with a second matrix")
        if self.linear and self.column_values:
            raise ValueError("linear: expected False for a loss with column values")
        if self.column_slopes is not None and (not self.column_values or self.groups):
            raise ValueError("column_slopes: expected None without column values of single columns")

    @property
    def derivatives(self) -> int:
        """Values `finish` returns between the outputs and the states."""
        return self.scalars + self.slopes

    @property
    def light(self) -> bool:
        """Whether its folds leave room for wide tiles: few statistics, and no mean under a softmax."""
        few = all(len(one.kinds) <= 2 and "lse_mean" not in one.kinds for one in self.passes)
        return few and not self.teacher and self.groups is None

    @property
    def wide(self) -> bool:
        """Whether its weights leave room for wide tiles."""
        plain = not (self.teacher or self.column_values or self.groups or self.rides)
        return plain and self.states <= 6 and (self.outputs == 1 or self.linear)

    @property
    def rides(self) -> bool:
        """Whether a row is found by sums of its pairs that the sweep for weights can make too: these read
        nothing of the row. More than three sums do not fit the registers beside a gradient."""
        kinds = [kind for one in self.passes for kind in one.kinds]
        known = self.states == 0 and self.inputs == 0 and len(self.passes) == 1
        return known and len(kinds) <= 3 and set(kinds) == {"sum"}

    @property
    def values(self) -> int:
        """Statistics per row, the caller's inputs included."""
        return self.inputs + sum(one.values for one in self.passes)

    @property
    def weight_states(self) -> int:
        """Values per row that `weight` reads."""
        return self.states + (self.outputs if self.outputs > 1 else 0)

    @property
    def slots(self) -> int:
        """Thresholds of a row: none. (ListLoss has some.)"""
        return 0
