"""NT-Xent with any number of positives, each against all negatives.

Pass 1: the sum over the negatives. Pass 2: each positive against it, which touches positives only.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import sigmoid2, softplus2
from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 3


def parameters(loss: Any) -> tuple[float, ...]:
    return (LOG2E / loss.temperature, LN2, 1.0 / loss.temperature)


def tile(loss: Any) -> TileLoss:
    if hasattr(loss, "count_scalars"):  # the public loss is a mean over all pairs of the batch
        raise NotImplementedError("a mean over pairs instead of over rows")
    return TILE


@triton.jit
def negatives(s, t, positive, row, p):
    return (tl.where(positive, float("-inf"), s * p[0]),)


@triton.jit
def positives(s, t, positive, row, p):
    z = row[0] - s * p[0]
    one = positive.to(tl.float32)
    return tl.where(positive, softplus2(z), 0.0), tl.where(positive, sigmoid2(z), 0.0), one


@triton.jit
def finish(stats, p):
    share = 1.0 / tl.maximum(stats[3], 1.0)
    # The weight of a negative carries what all positives together lose to the negatives.
    lost = stats[2] * share
    some = lost > 0.0
    normaliser = tl.where(some, stats[0] - tl.log2(tl.where(some, lost, 1.0)), float("inf"))
    return stats[1] * share * p[1], stats[0], normaliser, share


@triton.jit
def weight(s, t, positive, state, p):
    z = s * p[0]
    pull = -sigmoid2(state[0] - z) * state[2]
    return tl.where(positive, pull, tl.exp2(z - state[1]))


@triton.jit
def gain(p):
    return p[2]


TILE = TileLoss(
    "nt_xent",
    (Pass(("lse",), negatives), Pass(("sum",) * 3, positives, positives_only=True)),
    finish,
    weight,
    states=3,
    gain=gain,
    heavy=True,
)
