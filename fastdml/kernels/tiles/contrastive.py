"""Contrastive loss with two margins: sums of both hinges, and how many terms each has.

Parameters: the two margins, the sign that makes a hinge positive where it is violated, and whether
only violated pairs are counted. Most hinges are shut once training is under way: sparse.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual

PARAMETERS = 4
USUAL = Usual(metric="distance")


def parameters(loss: Any) -> tuple[float, ...]:
    return (loss.pos_margin, loss.neg_margin, loss.sign, float(loss.active_only))


def tile(loss: Any) -> TileLoss:
    if getattr(loss, "squared", False):
        raise NotImplementedError("squared terms")
    if getattr(loss, "relative", False):
        raise NotImplementedError("numbers relative to a value of the row")
    if getattr(loss, "pos_aggregation", None) != getattr(loss, "neg_aggregation", None):
        raise NotImplementedError("two kinds of counts")
    if (getattr(loss, "least_positive", None), getattr(loss, "most_negative", None)) != (None, None):
        raise NotImplementedError("a miner's rule")
    return TILE


@triton.jit
def hinge(s, positive, p):
    return p[2] * tl.where(positive, s - p[0], p[1] - s)


@triton.jit
def sums(s, t, positive, row, p):
    h = hinge(s, positive, p)
    term = tl.maximum(h, 0.0)
    counted = tl.where(h > 0.0, 1.0, 1.0 - p[3])
    return (
        tl.where(positive, term, 0.0),
        tl.where(positive, 0.0, term),
        tl.where(positive, counted, 0.0),
        tl.where(positive, 0.0, counted),
    )


@triton.jit
def finish(stats, p):
    return stats


@triton.jit
def weight(s, t, positive, state, p):
    slope = p[2] * tl.where(positive, state[0], -state[1])
    return tl.where(hinge(s, positive, p) > 0.0, slope, 0.0)


TILE = TileLoss(
    "contrastive", (Pass(("sum",) * 4, sums),), finish, weight, states=0, outputs=4, sparse=True
)
