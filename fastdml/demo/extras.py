"""Import of the packages that only the demo needs."""

from __future__ import annotations

from types import ModuleType

from ..metrics import extras


def require(module: str) -> ModuleType:
    """The module, or an ImportError that says how to get it."""
    return extras.require(module, "the demo needs", "demo")
