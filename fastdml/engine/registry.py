"""Every loss that is known by name, and the strings by which operators refer to descriptions."""

from __future__ import annotations

from typing import TypeVar

from .loss import RowLoss

LOSSES: dict[str, type[RowLoss]] = {}
_handles: dict[RowLoss, str] = {}
_descriptions: dict[str, RowLoss] = {}

L = TypeVar("L", bound=type[RowLoss])


def register(loss: L) -> L:
    """Class decorator: makes a description known to tests, benchmarks and tables."""
    if loss.name in LOSSES:
        raise ValueError(f"name: a loss called {loss.name!r} is registered already")
    LOSSES[loss.name] = loss
    return loss


def handle(description: RowLoss) -> str:
    """A string that stands for a description in an operator's arguments."""
    found = _handles.get(description)
    if found is None:
        found = f"{description.name}:{len(_handles)}"
        _handles[description] = found
        _descriptions[found] = description
    return found


def description(handle: str) -> RowLoss:
    return _descriptions[handle]
