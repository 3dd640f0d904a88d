"""The learnable scale of losses of pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...engine import check


class Tempered:
    """A loss that holds its temperature as `log_scale`: read and set as what it is."""

    log_scale: Tensor

    @property
    def temperature(self) -> float:
        """As it is now: a learnt one moves."""
        held = self.log_scale.detach()
        digits = 15 if held.dtype == torch.float64 else 7
        return math.nan if held.is_meta else float(f"{math.exp(-float(held)):.{digits}g}")

    @temperature.setter
    def temperature(self, value: float) -> None:
        with torch.no_grad():
            self.log_scale.fill_(-math.log(check.positive(value, "temperature")))


def clamped_scale(loss: Any, given: Tensor | float | None) -> Tensor | float:
    """The scale given, or the exponential of the module's `log_scale`; `max_scale` at most.

    The module's own is set back to that in training, before it is used: clamped on the way it would have no
    gradient beyond, and never come back.
    """
    most: float | None = loss.max_scale
    if given is not None:
        return given
    log_scale: Tensor = loss.log_scale
    if most is None:
        return log_scale.exp()
    if not loss.training:
        return log_scale.exp().clamp(max=most)
    # Past autograd: a wrapper may have put a view of the parameter in its place.
    log_scale.data.clamp_(max=math.log(most))
    return log_scale.exp()
