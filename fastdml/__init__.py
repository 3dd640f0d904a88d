"""Fused losses for deep metric learning: large batches in linear memory, on CPU and GPU."""

from __future__ import annotations

import gc

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

__version__ = "0.1.0"
__all__ = [
    "build_info",
    "cached_step",
    "distances",
    "explain",
    "functional",
    "losses",
    "miners",
    "reducers",
    "regularizers",
    "row_loss",
    "set_workspace",
]
