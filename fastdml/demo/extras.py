"""Import of the packages that only the demo needs."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str) -> ModuleType:
    """The module, or an ImportError that says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:  # it lacks something of its own
            raise
        raise ImportError(
            f"the demo needs {package}, which is not installed: pip install fastdml[demo]"
        ) from error
