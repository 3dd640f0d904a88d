"""What a step of a wrapped loss sends and holds, on every rank: formulas, which tests compare with counts.

Sizes: rows n of a rank (padded to the largest rank's for collectives), W ranks, dimension D, bytes b of a
number of the embeddings.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..engine.loss import RowLoss
from .arguments import NUMBERS_TOLD
from .ring import rounds

_LABEL = 8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A batch that is shared out evenly. labelled: how many arguments are labels."""

    ranks: int
    rows: int
    dimension: int
    bytes: int = 4
    labelled: int = 1

    @property
    def block(self) -> int:
        """Bytes of a rank's embeddings of one set."""
        return self.rows * self.dimension * self.bytes


@dataclasses.dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends for one step, forwards and backwards."""

    forward: int
    backward: int


def told(sizes: Sizes) -> int:
    """Bytes of shapes, types and labels, which every rank gets of all others."""
    others = sizes.ranks - 1
    return others * (NUMBERS_TOLD * 8 + sizes.labelled * sizes.rows * _LABEL)


def gathered(sizes: Sizes) -> Sent:
    """The exchange of "gather", of a loss of rows without sweeps of columns or combined rows: an all-gather
    of the candidates, and a reduce-scatter of their derivatives; and the value."""
    others = sizes.ranks - 1
    each = others * sizes.block
    return Sent(told(sizes) + each + value(sizes), each)


def ring(sizes: Sizes, loss: RowLoss) -> Sent:
    """The exchange of "ring": blocks go round once for every sweep; their derivatives go home."""
    others = sizes.ranks - 1
    sweeps = rounds(loss) * others * sizes.block
    home = sizes.ranks * sizes.rows * sizes.dimension * max(4, sizes.bytes) if others else 0
    return Sent(told(sizes) + sweeps + home + value(sizes), 0)


def value(sizes: Sizes) -> int:
    """Of the all-reduce of one number in double precision, as a ring of 2 (W - 1) / W of its bytes."""
    return 2 * (sizes.ranks - 1) * 8 // sizes.ranks


def held(sizes: Sizes, schedule: str, workspace: int, own_block: int = 0, **_: Any) -> int:
    """Bytes of a rank beside its own rows and their gradient, at the most.

    workspace: of the block of similarities. own_block: bytes a pair block of a ring's statistics takes.
    """
    everything = sizes.ranks * sizes.block
    wide = sizes.rows * sizes.dimension * max(4, sizes.bytes)
    if schedule == "gather":
        # All rows, their derivatives, and what the exchange of either keeps beside it.
        return 3 * everything + workspace + 2 * wide
    return 6 * wide + workspace + own_block
