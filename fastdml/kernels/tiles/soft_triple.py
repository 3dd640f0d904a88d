"""SoftTriple (Qian et al., ICCV 2019): SPEC 3.4, without its regulariser, which has no pairs.

Columns are centres, several per class; the similarity of a class is the mean of its centres' under
their softmax. The last parameter is that softmax's sharpness.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss
from .common import LN2, LOG2E


def parameters(loss: Any) -> tuple[float, ...]:
    return (loss.scale * LOG2E, LN2, loss.scale, loss.margin, LOG2E / loss.gamma)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def _logit(s, positive, p):
    return tl.where(positive, s - p[3], s)


@triton.jit
def sums(s, t, positive, row, p):
    z = _logit(s, positive, p)
    return z * p[0], tl.where(positive, z, 0.0)


@triton.jit
def finish(stats, p):
    return stats[0] * p[1] - stats[1] * p[2], stats[0]


@triton.jit
def weight(s, t, positive, state, p):
    q = tl.exp2(_logit(s, positive, p) * p[0] - state[0])
    return tl.where(positive, q - 1.0, q)


@triton.jit
def gain(p):
    return p[2]


TILE = TileLoss(
    "soft_triple", (Pass(("lse", "sum"), sums),), finish, weight, 1, gain, groups="softmax"
)
