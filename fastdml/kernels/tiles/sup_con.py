"""SupCon (Khosla et al., NeurIPS 2020), and with one positive a row NT-Xent and InfoNCE: SPEC 3.7."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual
from .common import LN2, LOG2E

PARAMETERS = 3
USUAL = Usual({"push": 1.0, "pull": 1.0})


def parameters(loss: Any) -> tuple[float, ...]:
    """push, pull: factor of the loss, one number."""
    return (loss.scale * LOG2E, LN2 * loss.push, loss.scale * loss.push)


def tile(loss: Any) -> TileLoss:
    if loss.push != loss.pull:
        raise NotImplementedError("pull and push that differ")
    return TILE


@triton.jit
def sums(s, t, positive, row, p):
    return s * p[0], tl.where(positive, s, 0.0), positive.to(tl.float32)


@triton.jit
def finish(stats, p):
    count = stats[2]
    share = 1.0 / tl.maximum(count, 1.0)
    loss = stats[0] * p[1] - stats[1] * p[2] * share
    # A row without positives is 0: an infinite normaliser makes its weights so as well.
    counts = count > 0.0
    normaliser = tl.where(counts, stats[0], float("inf"))
    return tl.where(counts, loss, 0.0), normaliser, tl.where(counts, share, 0.0)


@triton.jit
def weight(s, t, positive, state, p):
    return tl.exp2(s * p[0] - state[0]) - tl.where(positive, state[1], 0.0)


@triton.jit
def gain(p):
    return p[2]


TILE = TileLoss(
    "sup_con",
    (Pass(("lse", "sum", "sum"), sums),),
    finish,
    weight,
    states=2,
    gain=gain,
    heavy=1,
)
