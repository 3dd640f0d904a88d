"""Proxy-Anchor with a number per sample, its column's value, that is added to its exponents."""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual
from . import proxy_anchor
from .proxy_anchor import PARAMETERS, exponent, parameters

__all__ = ["PARAMETERS", "TILE", "USUAL", "parameters", "tile"]
USUAL = Usual(two_sets=True)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def shifted(s, t, positive, p):
    return exponent(s, positive, p) + t[0] * 1.4426950408889634


@triton.jit
def sums(s, t, positive, row, p):
    return (shifted(s, t, positive, p),)


@triton.jit
def weight(s, t, positive, state, p):
    e = tl.exp2(shifted(s, t, positive, p) - tl.where(positive, state[0], state[1]))
    return tl.where(positive, -e, e * (1.0 / p[4]))


TILE = dataclasses.replace(
    proxy_anchor.TILE,
    name="weighted_proxy_anchor",
    passes=(Pass(("lse_split",), sums),),
    weight=weight,
    column_values=1,
)
