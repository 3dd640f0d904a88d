"""Distances that are not made of products: other powers, signal to noise, and those of a user.

They are evaluated by torch, block by block (`in_torch`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .similarity import (
    DISTANCE,
    METRICS,
    PRODUCT,
    SIMILARITIES,
    Metric,
    exact_distances,
    unit,
    wide_type,
)

Matrix = Callable[[Tensor, Tensor], Tensor]  # of a [R, D] and c [N, D], [R, N], differentiable


@dataclasses.dataclass(frozen=True, eq=False)
class General(Metric):
    """A function of two sets of embeddings. kind says only whether more alike means larger.

    rowwise: the same of rows [M, D] and rows [M, D], [M]; None: by matrices.
    """

    in_torch = True

    matrix: Matrix | None = None
    rowwise: Matrix | None = None

    def dense(self, a: Tensor, c: Tensor, epsilon: float) -> Tensor:
        assert self.matrix is not None
        found = self.matrix(a, c)
        if not isinstance(found, Tensor) or tuple(found.shape) != (a.shape[0], c.shape[0]):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"distance: expected a matrix of shape {(a.shape[0], c.shape[0])} from {self.name}, got {got}"
            )
        return found

    def paired(self, a: Tensor, c: Tensor, epsilon: float = 0.0) -> Tensor:
        kind = wide_type(a, c)
        a, c = a.to(kind), c.to(kind)
        if self.rowwise is not None:
            return self.rowwise(a, c)
        parts = zip(a.split(_TOGETHER), c.split(_TOGETHER), strict=True)
        return torch.cat([self.dense(x, y, 0.0).diagonal() for x, y in parts])


_TOGETHER = 32  # rows of which a user's matrix is made for its diagonal


def lp_name(p: float, power: float, normalized: bool) -> str:
    """The name of the p-norm of differences, to a power; of embeddings that the p-norm has normalised.

    ValueError unless p and power are positive numbers.
    """
    for value, name in ((p, "p"), (power, "power")):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    raw = "" if normalized else "raw_"
    if p == 2 and power in (1, 2):
        return f"{raw}{'squared_' if power == 2 else ''}distance"
    name = f"{raw}distance(p={float(p)}, power={float(power)})"
    if name not in METRICS:
        METRICS[name] = General(
            name,
            DISTANCE,
            False,
            matrix=functools.partial(_lp, p=float(p), power=float(power), normalized=normalized),
            rowwise=functools.partial(_lp_of_rows, p=float(p), power=float(power), normalized=normalized),
        )
    return name


def _lp(a: Tensor, c: Tensor, p: float, power: float, normalized: bool) -> Tensor:
    given, wide = torch.promote_types(a.dtype, c.dtype), wide_type(a, c)
    a, c = a.to(wide), c.to(wide)  # torch has no distances in half precision
    if normalized:
        a, c = unit(a, p), unit(c, p)
    d = exact_distances(a, c, p)
    return raised(d, power).to(given)


def _lp_of_rows(a: Tensor, c: Tensor, p: float, power: float, normalized: bool) -> Tensor:
    if normalized:
        a, c = unit(a, p), unit(c, p)
    d = torch.linalg.vector_norm(a - c, p, dim=1)
    return raised(d, power)


def raised(d: Tensor, power: float) -> Tensor:
    """d to a power, whose derivative at 0 is taken to be 0."""
    if power == 1:
        return d
    some = d > 0
    return torch.where(some, torch.where(some, d, torch.ones_like(d)) ** power, torch.zeros_like(d))


def _snr(a: Tensor, c: Tensor, normalized: bool) -> Tensor:
    """var(a - c) / var(a), variances over the dimensions; 0 where the anchor a is constant."""
    (a, some), (c, _) = signal(a, normalized), signal(c, normalized)
    # Squared distances of centred rows, from differences where they are near.
    return SIMILARITIES["raw_squared_distance"].dense(a, c, 0.0) * inverse_power(a, some)


def _snr_of_rows(a: Tensor, c: Tensor, normalized: bool) -> Tensor:
    (a, some), (c, _) = signal(a, normalized), signal(c, normalized)
    return (a - c).square().sum(1) * inverse_power(a, some)[:, 0]


def signal(x: Tensor, normalized: bool) -> tuple[Tensor, Tensor]:
    """Rows less their means, normalised before; and bool [rows, 1], which of them are more than what rounding
    leaves of a constant."""
    if normalized:
        x = unit(x)
    centred = x - x.mean(1, keepdim=True)
    most, left = (v.detach().abs().amax(1, keepdim=True) for v in (x, centred))
    return centred, left > 8 * torch.finfo(x.dtype).eps * most


def inverse_power(x: Tensor, some: Tensor) -> Tensor:
    """[rows, 1] one over the power of a signal; 0 where there is none."""
    power = x.square().sum(1, keepdim=True)
    some = some & (power > 0)
    inverse = torch.where(some, power, torch.ones_like(power)).reciprocal()
    return torch.where(some, inverse, torch.zeros_like(inverse))


def snr_name(normalized: bool) -> str:
    """The name of the signal-to-noise distance."""
    return "snr_distance" if normalized else "raw_snr_distance"


for _normalized in (True, False):
    _name = snr_name(_normalized)
    METRICS[_name] = General(
        _name,
        DISTANCE,
        False,
        matrix=functools.partial(_snr, normalized=_normalized),
        rowwise=functools.partial(_snr_of_rows, normalized=_normalized),
    )

# A user's distance has a number for as long as somebody holds its name.
_numbers = itertools.count()
_users: weakref.WeakValueDictionary[str, General] = weakref.WeakValueDictionary()


class _Name(str):
    """Keeps what it names. A copy, of a loss say, is a name of its own: of the copied distance."""

    metric: General
    made_of: tuple[Matrix, bool, str]

    def __reduce__(self) -> tuple[Any, ...]:
        return user_name, self.made_of


def user_name(matrix: Matrix, inverted: bool, called: str) -> str:
    """A name for a user's distance, or similarity (inverted). It lasts as long as this very string."""
    kind = "similarity" if inverted else "distance"
    name = _Name(f"{called}'s {kind} {next(_numbers)}")
    name.metric = General(str(name), PRODUCT if inverted else DISTANCE, False, matrix=matrix)
    name.made_of = matrix, inverted, called
    _users[str(name)] = name.metric
    return name


def known(name: object) -> bool:
    """Whether this is the name of a similarity that losses take."""
    if not isinstance(name, str):
        return False
    return name in SIMILARITIES or name in _users or isinstance(METRICS.get(name), General)


def metric_of(name: str) -> Metric:
    """The similarity or distance of a name."""
    found = METRICS.get(name)
    return _users[name] if found is None else found
