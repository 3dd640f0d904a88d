"""NT-Xent with any number of positives, each against all negatives: a mean over pairs.

Pass 1: the sum over the negatives. Pass 2: each positive against it, which touches positives only. The
last parameter is the call's own: rows per positive pair.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import sigmoid2, softplus2
from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 4


def parameters(loss: Any) -> tuple[float, ...]:
    """scale: 1 / temperature, negative on distances."""
    return (LOG2E * loss.scale, LN2, loss.scale)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def negatives(s, t, positive, row, p):
    return (tl.where(positive, float("-inf"), s * p[0]),)


@triton.jit
def positives(s, t, positive, row, p):
    z = row[0] - s * p[0]
    return tl.where(positive, softplus2(z), 0.0), tl.where(positive, sigmoid2(z), 0.0)


@triton.jit
def finish(stats, p):
    # The weight of a negative carries what all positives together lose to the negatives.
    some = stats[2] > 0.0
    normaliser = tl.where(some, stats[0] - tl.log2(tl.where(some, stats[2], 1.0)), float("inf"))
    return stats[1] * p[3] * p[1], stats[0], normaliser


@triton.jit
def weight(s, t, positive, state, p):
    z = s * p[0]
    return tl.where(positive, -sigmoid2(state[0] - z), tl.exp2(z - state[1]))


@triton.jit
def gain(p):
    return p[2] * p[3]


TILE = TileLoss(
    "nt_xent",
    (Pass(("lse",), negatives), Pass(("sum",) * 2, positives, positives_only=True)),
    finish,
    weight,
    states=2,
    gain=gain,
    heavy=1,
)
