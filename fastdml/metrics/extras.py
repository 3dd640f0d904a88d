"""Packages that only some metrics, files and reports need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str, extra: str) -> ModuleType:
    """The module, or an ImportError that says what needs it and how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:  # it lacks something of its own
            raise
        package = {"sklearn": "scikit-learn"}.get(package, package)
        raise ImportError(
            f"{purpose} {package}, which is not installed: pip install fastdml[{extra}]"
        ) from error
