"""The softmax family over proxies: SPEC 2.6, 2.8. Rows are samples, columns classes.

Normalised and smoothed softmax, Proxy-NCA with its positive inside or outside the denominator, CosFace
(an additive margin on the target). With a bias, the value of a column is added
to its product.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual
from .softmax import KINDS, OWN, finish, gain, shared, sums_of, weight_of

PARAMETERS = OWN + 1
USUAL = Usual({"among": True}, two_sets=True)


def parameters(loss: Any) -> tuple[float, ...]:
    """scale: of the similarities; smoothing: of the targets; margin: on the target's similarity."""
    return (*shared(loss.scale, loss.smoothing, loss.constant), loss.margin)


def tile(loss: Any) -> TileLoss:
    if getattr(loss, "biased", False):
        if loss.scale != 1.0 or not loss.among:
            raise NotImplementedError("a bias beside a scale, or without the target among the rest")
        return BIASED
    return AMONG if loss.among else OUTSIDE


@triton.jit
def _logit(s, positive, p):
    return tl.where(positive, s - p[5], s)


@triton.jit
def among_sums(s, t, positive, row, p):
    z = _logit(s, positive, p)
    return sums_of(z, z * p[0], positive)


@triton.jit
def outside_sums(s, t, positive, row, p):
    return sums_of(_logit(s, positive, p), tl.where(positive, float("-inf"), s * p[0]), positive)


@triton.jit
def among_weight(s, t, positive, state, p):
    return weight_of(_logit(s, positive, p) * p[0], positive, state)


@triton.jit
def outside_weight(s, t, positive, state, p):
    return weight_of(tl.where(positive, float("-inf"), s * p[0]), positive, state)


@triton.jit
def biased_sums(s, t, positive, row, p):
    return among_sums(s + t[0], t, positive, row, p)


@triton.jit
def biased_weight(s, t, positive, state, p):
    return among_weight(s + t[0], t, positive, state, p)


NAME = "softmax_cross_entropy"
AMONG = TileLoss(NAME, (Pass(KINDS, among_sums),), finish, among_weight, 3, gain, heavy=257)
OUTSIDE = TileLoss(NAME, (Pass(KINDS, outside_sums),), finish, outside_weight, 3, gain, heavy=257)
BIASED = dataclasses.replace(
    AMONG, passes=(Pass(KINDS, biased_sums),), weight=biased_weight, column_values=1
)
