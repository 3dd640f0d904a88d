"""Import of the packages that only some parts need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str = "demo") -> ModuleType:
    """The module, or an ImportError that says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:  # it lacks something of its own
            raise
        raise ImportError(
            f"this needs {package}, which is not installed: pip install fastdml[{extra}]"
        ) from error
