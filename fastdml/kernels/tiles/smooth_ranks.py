"""What losses with sigmoid ranks share: the step, its slope, and the ranks among positives.

p: sharpness in base 2, sharpness; then a loss's own. Slopes are over the sharpness, which is the gain.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..lists import among
from ..reductions import sigmoid2
from .common import LOG2E


def shared(temperature: float) -> tuple[float, ...]:
    return (LOG2E / temperature, 1.0 / temperature)


@triton.jit
def compare(d, p):
    sigma = sigmoid2(d * p[0])
    return sigma, sigma - sigma * sigma


@triton.jit
def slope(d, p):
    sigma = sigmoid2(d * p[0])
    return sigma - sigma * sigma


@triton.jit
def gain(p):
    return p[1]


@triton.jit
def own_ranks(t, valid, p):
    """(places that other positives take before each, slopes [rows, k, l] of those)."""
    d, both = among(t, valid)
    height, steep = compare(d, p)
    return tl.sum(tl.where(both, height, 0.0), 2), tl.where(both, steep, 0.0)


@triton.jit
def pulled(steep, push):
    """Derivatives by the thresholds of the sum of push_k times the places among positives."""
    own = push * tl.sum(steep, 2)
    return tl.sum(steep * push[:, :, None], 1) - own
