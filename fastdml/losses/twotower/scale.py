"""The learnable scale of losses of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engine import check
from ..representation import ExactNumbers


class Tempered(ExactNumbers):
    """A loss that holds its temperature as `log_scale`: read and set as what it is."""

    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"scale": ("temperature", "learnable", "max_scale")}
    constants = ("log_scale",)

    log_scale: Tensor

    def __init__(
        self, temperature: float, learnable: bool, max_scale: float | None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.learnable = learnable
        log_scale = torch.tensor(-math.log(check.positive(temperature, "temperature")), dtype=torch.float64)
        self.max_scale = None if max_scale is None else check.positive(max_scale, "max_scale")
        if learnable:
            self.learn("log_scale", log_scale)
        else:
            # Of one dimension: a compiled graph takes one number of double precision for Python's own, and is
            # then made twice.
            self.register_buffer("log_scale", log_scale.reshape(1))

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
