"""The losses: one file each, with its parameters, its mathematics and its module, in families.

The files of these folders are found, not listed: adding a loss is adding a file (and its header in
csrc/rows). A file's `__all__` names its module class, which names its functional form.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .base import Loss
from .forms import functional_form
from .plain.generic_pair import BaseMetricLossFunction, GenericPairLoss
from .user import row_loss

MODULES: dict[str, type[Loss]] = {}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {}

for _info in pkgutil.walk_packages(__path__, f"{__name__}."):
    _file = importlib.import_module(_info.name)
    for _name in getattr(_file, "__all__", ()):
        _found = getattr(_file, _name)
        if inspect.isclass(_found) and issubclass(_found, Loss):
            MODULES[_name] = _found
            if _found.function is not None:
                FUNCTIONS[_found.function] = functional_form(_found)

globals().update(MODULES)
__all__ = [*sorted(MODULES), "BaseMetricLossFunction", "GenericPairLoss", "row_loss"]


def __getattr__(name: str) -> Any:
    # Users look for wrappers here. They stand above the losses, and are imported when asked for.
    wrappers = importlib.import_module("fastdml.wrappers")
    if name in wrappers.__all__:
        return getattr(wrappers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
