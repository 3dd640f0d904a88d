"""ArcFace (Deng et al., CVPR 2019) and its form with several centres per class: SPEC 2.8. Rows are samples,
columns classes.

p: scale in base 2, ln 2, scale, cosine and sine of the margin, margin times sine.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss
from .common import LN2, LOG2E


def parameters(loss: Any) -> tuple[float, ...]:
    """margin: an angle in radians."""
    cosine, sine = math.cos(loss.margin), math.sin(loss.margin)
    return (loss.scale * LOG2E, LN2, loss.scale, cosine, sine, loss.margin * sine)


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
    turned = s * p[3] - tl.where(known, sine, 0.0) * p[4]
    return tl.where(positive, tl.where(s < -p[3], s - p[5], turned), s)


@triton.jit
def sums(s, t, positive, row, p):
    z = _logit(s, positive, p)
    one = tl.full(z.shape, 1.0, tl.float32)
    return z * p[0], tl.where(positive, z, 0.0), one, tl.where(positive, 1.0, 0.0)


@triton.jit
def finish(stats, p):
    # A row whose class has no column, or is the only one, has no loss: its normaliser is infinite.
    counts = (stats[3] > 0.0) & (stats[2] > stats[3])
    loss = stats[0] * p[1] - p[2] * stats[1]
    normaliser = tl.where(counts, stats[0], float("inf"))
    return tl.where(counts, loss, 0.0), normaliser, tl.where(counts, 1.0, 0.0)


@triton.jit
def weight(s, t, positive, state, p):
    known, sine = _sine(s)
    slope = p[3] + tl.where(known, s / sine, 0.0) * p[4]
    slope = tl.where(positive & (s >= -p[3]), slope, 1.0)
    share = tl.exp2(_logit(s, positive, p) * p[0] - state[0])
    return (share - tl.where(positive, state[1], 0.0)) * slope


@triton.jit
def gain(p):
    return p[2]


KINDS = ("lse", "sum", "sum", "sum")
ONE = TileLoss("arc_face", (Pass(KINDS, sums),), finish, weight, 2, gain, heavy=129)
NEAREST = dataclasses.replace(ONE, groups="max")
