"""The softmax family over proxies: SPEC 2.6, 2.8. Rows are samples, columns classes.

Normalised and smoothed softmax, Proxy-NCA with its positive inside or outside the denominator, CosFace
(an additive margin on the target) and ArcFace (an angular one).
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 6


def parameters(loss: Any) -> tuple[float, ...]:
    """scale: factor of the similarities; smoothing: of the targets; margin: of CosFace, or the angle."""
    margin = float(loss.margin)
    return (loss.scale * LOG2E, LN2, loss.scale, loss.smoothing, math.cos(margin) if loss.angular
            else margin, math.sin(margin))  # fmt: skip


def tile(loss: Any) -> TileLoss:
    if loss.angular:
        return ARC
    return PLAIN if loss.positive_in_denominator else OUTSIDE


@triton.jit
def _cos_logit(s, positive, p):
    return tl.where(positive, s - p[4], s)


@triton.jit
def _arc_logit(s, positive, p):
    """cos(theta + margin), and s - margin sin(margin) where the angle would pass pi."""
    sine = tl.sqrt(tl.maximum(1.0 - s * s, 0.0))
    turned = tl.where(s > -p[4], s * p[4] - sine * p[5], s - p[5] * p[5])
    return tl.where(positive, turned, s)


@triton.jit
def cos_sums(s, t, positive, row, p):
    z = _cos_logit(s, positive, p)
    return z * p[0], z, tl.where(positive, z, 0.0), tl.full(s.shape, 1.0, tl.float32)


@triton.jit
def arc_sums(s, t, positive, row, p):
    z = _arc_logit(s, positive, p)
    return z * p[0], z, tl.where(positive, z, 0.0), tl.full(s.shape, 1.0, tl.float32)


@triton.jit
def outside_sums(s, t, positive, row, p):
    z = tl.where(positive, float("-inf"), s * p[0])
    return z, s, tl.where(positive, s, 0.0), tl.full(s.shape, 1.0, tl.float32)


@triton.jit
def finish(stats, p):
    # Targets: 1 - smoothing for the class, an equal share of the rest for each other one.
    other = p[3] / tl.maximum(stats[3] - 1.0, 1.0)
    loss = stats[0] * p[1] - p[2] * ((1.0 - p[3] - other) * stats[2] + other * stats[1])
    return loss, stats[0], other


@triton.jit
def cos_weight(s, t, positive, state, p):
    q = tl.exp2(_cos_logit(s, positive, p) * p[0] - state[0])
    return q - tl.where(positive, 1.0 - p[3], state[1])


@triton.jit
def outside_weight(s, t, positive, state, p):
    q = tl.where(positive, 0.0, tl.exp2(s * p[0] - state[0]))
    return q - tl.where(positive, 1.0 - p[3], state[1])


@triton.jit
def arc_weight(s, t, positive, state, p):
    q = tl.exp2(_arc_logit(s, positive, p) * p[0] - state[0])
    # The slope of the angle is infinite at s = 1, where the sample is its own class centre.
    sine = tl.sqrt(tl.maximum(1.0 - s * s, 1e-6))
    slope = tl.where(positive & (s > -p[4]), p[4] + p[5] * s / sine, 1.0)
    return (q - tl.where(positive, 1.0 - p[3], state[1])) * slope


@triton.jit
def gain(p):
    return p[2]


_KINDS = ("lse", "sum", "sum", "sum")
PLAIN = TileLoss("proxy_softmax", (Pass(_KINDS, cos_sums),), finish, cos_weight, 2, gain)
OUTSIDE = TileLoss("proxy_softmax", (Pass(_KINDS, outside_sums),), finish, outside_weight, 2, gain)
ARC = TileLoss("proxy_softmax", (Pass(_KINDS, arc_sums),), finish, arc_weight, 2, gain)
