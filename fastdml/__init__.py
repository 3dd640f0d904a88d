"""Fused losses for deep metric learning: large batches in linear memory, on CPU and GPU."""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING

# Some ten thousand objects that stay are made now. To look for garbage among all of torch's again and again
# meanwhile would take a third of the time.
_collects = gc.isenabled()
gc.disable()
try:
    from . import distances, functional, losses, miners, reducers, regularizers
    from .engine.library import build_info
    from .engine.workspace import set_workspace
    from .explain import explain
    from .large_batch import cached_step
    from .losses import row_loss
finally:
    if _collects:
        gc.enable()

if TYPE_CHECKING:
    from . import distributed, integrations, labels, methods, metrics, samplers, wrappers
else:
    # Made at their first mention: what they need of torch and others would make every start longer.
    _LATER = ("distributed", "integrations", "labels", "methods", "metrics", "samplers", "wrappers")

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f".{name}", __name__)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})


__version__ = "0.1.0"
__all__ = [
    "build_info",
    "cached_step",
    "distances",
    "distributed",
    "explain",
    "functional",
    "integrations",
    "labels",
    "losses",
    "methods",
    "metrics",
    "miners",
    "reducers",
    "regularizers",
    "row_loss",
    "samplers",
    "set_workspace",
    "wrappers",
]
