"""SigLIP (Zhai et al., ICCV 2023): SPEC 3.7. Learnable scale and bias come last among the parameters."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual
from .common import LN2, LOG2E

PARAMETERS = 4
USUAL = Usual(two_sets=True)


def parameters(loss: Any) -> tuple[float, ...]:
    return (LOG2E, LN2)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def _logit(s, positive, p):
    u = (s * p[2] + p[3]) * p[0]
    return tl.where(positive, -u, u)


@triton.jit
def sums(s, t, positive, row, p):
    z = _logit(s, positive, p)
    e = tl.exp2(-tl.abs(z))
    term = tl.maximum(z, 0.0) + tl.log2(1.0 + e)
    slope = tl.where(z > 0.0, 1.0, e) / (1.0 + e)
    slope = tl.where(positive, -slope, slope)
    return term, slope * s, slope


@triton.jit
def finish(stats, p):
    return stats[0] * p[1], stats[1], stats[2]


@triton.jit
def weight(s, t, positive, state, p):
    z = _logit(s, positive, p)
    slope = 1.0 / (1.0 + tl.exp2(-z))
    return tl.where(positive, -slope, slope)


@triton.jit
def gain(p):
    return p[2]


TILE = TileLoss(
    "siglip", (Pass(("sum",) * 3, sums),), finish, weight, states=0, gain=gain, scalars=2
)
