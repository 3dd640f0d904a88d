"""ArcFace (Deng et al., CVPR 2019) and its form with several centres per class: SPEC 2.8."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual
from .softmax import KINDS, OWN, finish, gain, shared, sums_of, weight_of

PARAMETERS = OWN + 3
USUAL = Usual({"sub_centers": 1}, two_sets=True)


def parameters(loss: Any) -> tuple[float, ...]:
    """margin: an angle in radians."""
    sine = math.sin(loss.margin)
    return (*shared(loss.scale), math.cos(loss.margin), sine, loss.margin * sine)


def tile(loss: Any) -> TileLoss:
    return NEAREST if loss.sub_centers > 1 else ONE


@triton.jit
def _sine(s):
    # Where its square is no more than the rounding of s, the angle is 0 and has no direction.
    square = (1.0 - s) * (1.0 + s)
    known = square > 9.5367431640625e-7
    return known, tl.sqrt(tl.where(known, square, 1.0))


@triton.jit
def _logit(s, positive, p):
    """cos(theta + margin), and s - margin sin(margin) where the angle would pass pi."""
    known, sine = _sine(s)
    turned = s * p[5] - tl.where(known, sine, 0.0) * p[6]
    return tl.where(positive, tl.where(s < -p[5], s - p[7], turned), s)


@triton.jit
def sums(s, t, positive, row, p):
    z = _logit(s, positive, p)
    return sums_of(z, z * p[0], positive)


@triton.jit
def weight(s, t, positive, state, p):
    known, sine = _sine(s)
    slope = p[5] + tl.where(known, s / sine, 0.0) * p[6]
    slope = tl.where(positive & (s >= -p[5]), slope, 1.0)
    return weight_of(_logit(s, positive, p) * p[0], positive, state) * slope


ONE = TileLoss("arc_face", (Pass(KINDS, sums),), finish, weight, 3, gain, heavy=129)
NEAREST = dataclasses.replace(ONE, groups="max")
