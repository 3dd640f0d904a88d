"""Proxy-Anchor (Kim et al., CVPR 2020): SPEC 1.1. Rows are proxies, columns the batch.

The last parameter is C / |C+|, which the description computes for the call.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import softplus2
from ..tile import Pass, TileLoss, Usual
from .common import LN2, LOG2E

PARAMETERS = 5
USUAL = Usual(two_sets=True)


def parameters(loss: Any) -> tuple[float, ...]:
    a = loss.alpha * LOG2E
    return (a, a * loss.margin, LN2, loss.alpha)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def exponent(s, positive, p):
    return tl.where(positive, -s, s) * p[0] + p[1]


@triton.jit
def sums(s, t, positive, row, p):
    return (exponent(s, positive, p),)


@triton.jit
def finish(stats, p):
    pull = softplus2(stats[0])
    push = softplus2(stats[1])
    return (p[4] * pull + push) * p[2], pull, push


@triton.jit
def weight(s, t, positive, state, p):
    e = tl.exp2(exponent(s, positive, p) - tl.where(positive, state[0], state[1]))
    return tl.where(positive, -e, e * (1.0 / p[4]))


@triton.jit
def gain(p):
    return p[3] * p[4]


TILE = TileLoss("proxy_anchor", (Pass(("lse_split",), sums),), finish, weight, states=2, gain=gain)
