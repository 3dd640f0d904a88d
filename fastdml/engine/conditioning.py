"""Embeddings made fit for products: rows' lengths brought into range, a common mean taken out.

Products of rows of 1e25 overflow float32, and those of 1e-25 vanish, though their cosine is as good as any;
and distances of rows that lie far from the origin, beside how far they lie apart, are differences of nearly
equal numbers. Both are mended in a copy, which usual data does not need: a power of two takes the length
off a row, exactly, and comes back in its gradient; and distances, and their gradients, are the same from
any origin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from . import library
from .similarity import EPSILON, lengths, power_of_two, wide_type

# Beyond 2^this and below its inverse a row's largest value is brought near 1. Products of float16 fit at any
# length, but the weights that tiles multiply in that type are over the lengths, and would not.
_FAR = {torch.float16: 1, torch.float32: 32, torch.bfloat16: 32, torch.float64: 256}
# Where the norms are known they tell whether to look: 2^this, which leaves room for 65,536 values a row.
_LONG = {torch.float16: 1.0, torch.float32: 2.0**40, torch.bfloat16: 2.0**40, torch.float64: 2.0**256}
# Rows of either set that the common mean is taken of.
_SAMPLE = 64
# The share of the squared norms from which the mean's own is taken out: ten times the rounding is left.
_OFF_CENTRE = 0.9
# An accelerator cannot be asked whether rows are out of range without waiting for it: sets up to this many
# bytes are copied to be sure.
_COPIED = 64 << 20


def outside(scale: Tensor, x: Tensor) -> bool:
    """Whether some of the inverse norms [rows] of x, on the CPU, are those of rows to be brought into range,
    or of zeros."""
    if scale.numel() == 0:
        return False
    low, high = (float(x) for x in scale.aminmax())
    long = _LONG[x.dtype]
    return low < 1 / long or high > long


def in_range(x: Tensor, shorter: bool = True) -> tuple[Tensor, Tensor | None]:
    """The rows of x [rows, D] times powers of two [rows], which put their largest value in [2, 4) where it
    is out of range; (x, None) where none is, on the CPU.

    shorter: rows that are too short too. Rows without a direction become 0, and so does their factor.
    """
    if x.shape[1] == 0:
        return x, None
    kind = wide_type(x)
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1).to(kind)
    exponent = torch.frexp(largest).exponent
    far = _FAR[x.dtype]
    wanted = exponent > far
    if shorter:
        wanted |= exponent < 1 - far
    wanted &= (largest > 0) & (largest < torch.inf)
    if x.device.type == "cpu" and not bool(wanted.any()):
        return x, None
    # The largest power of two that there is does for the least rows, which it brings short of [2, 4).
    most = math.frexp(torch.finfo(kind).max)[1] - 1
    factor = power_of_two(torch.where(wanted, (2 - exponent).clamp(max=most), 0), kind)
    scaled = (x * factor[:, None]).to(x.dtype)
    if shorter:
        # Of a row in range the factor is 1, and it is longer than that.
        length = torch.linalg.vector_norm(scaled, dim=1, dtype=kind)
        short = wanted & (length <= EPSILON * factor)
        factor = factor.masked_fill(short, 0.0)
        scaled.masked_fill_(short[:, None], 0.0)
    return scaled, factor


def fits(x: Tensor) -> bool:
    """Whether a set is brought into range where nobody can look whether it has to be. (Usual lengths of
    float16 are out of range.)"""
    small = x.numel() * x.element_size() <= _COPIED
    return small or x.device.type == "cpu" or x.dtype == torch.float16


def poisoned(scale: Tensor, x: Tensor) -> Tensor:
    """Inverse norms [rows], NaN where the norm of a row of x that stays as it is does not fit its type: its
    pairs are no numbers then, rather than those of a row of zeros."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1)
    return scale.masked_fill((scale == 0) & (largest > EPSILON), torch.nan)


def centre(a: Tensor, c: Tensor) -> Tensor | None:
    """[D] what to take out of the rows of a [M, D] and c [N, D] before distances are made of their products:
    their mean, near enough; None where that gains nothing (on an accelerator, 0)."""
    by_rows = all(x.shape[1] <= 1 or x.stride(1) == 1 for x in (a, c))
    if a.device.type == "cpu" and by_rows and library.load() is not None:
        mean, share = torch.ops.fastdml_native.common_mean(a, None if a is c else c, _SAMPLE)
        return mean if share > _OFF_CENTRE else None
    sets = (a,) if a is c else (a, c)
    some = torch.cat([x[:: -(-x.shape[0] // _SAMPLE) or 1].double() for x in sets])
    if some.numel() == 0:
        return None
    mean = some.mean(0)
    square = mean.square().sum()
    gains = square > _OFF_CENTRE * some.square().sum() / some.shape[0]
    if a.device.type != "cpu":
        return torch.where(gains, mean, 0.0).to(a.dtype)
    return mean.to(a.dtype) if bool(gains) else None


def refuse_distances(squares: Iterable[Tensor]) -> None:
    """ValueError for squared lengths of finite embeddings that overflow."""
    for q in squares:
        if float(q.max()) == math.inf:
            raise ValueError(
                f"embeddings: expected rows whose squared distances fit {q.dtype}, got one whose squared "
                "length does not; use float64 or a normalised similarity"
            )


def refuse_products(a: Tensor, c: Tensor) -> None:
    """ValueError where products of embeddings, on the CPU, overflow though they are finite."""
    if a.device.type != "cpu" or a.numel() == 0 or c.numel() == 0:
        return
    # (Many times as quick as the norm of infinity.)
    largest = [max(abs(float(end)) for end in x.aminmax()) for x in (a, c)]
    if math.inf in largest or largest[0] * largest[1] * a.shape[1] <= torch.finfo(a.dtype).max / 4:
        return
    longest = [float(lengths(x.double()).max()) for x in (a, c)]
    if longest[0] * longest[1] > torch.finfo(a.dtype).max / 4:
        raise ValueError(
            f"embeddings: expected rows whose products fit {a.dtype}, got some of lengths "
            f"{longest[0]:.3g} and {longest[1]:.3g}; use float64 or similarity 'cosine'"
        )
