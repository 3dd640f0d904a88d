"""The learnable scale of losses of pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


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
    with torch.no_grad():
        log_scale.clamp_(max=math.log(most))
    return log_scale.exp()
