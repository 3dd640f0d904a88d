"""Every loss that is known by name, and the strings by which operators refer to descriptions."""

from __future__ import annotations

import ast
import dataclasses
from typing import TypeVar

import torch

from .loss import RowLoss

LOSSES: dict[str, type[RowLoss]] = {}
_fields: dict[str, tuple[str, ...]] = {}
_handles: dict[RowLoss, str] = {}
_descriptions: dict[str, RowLoss] = {}

L = TypeVar("L", bound=type[RowLoss])


def register(loss: L) -> L:
    """Class decorator: makes a description known to tests, benchmarks and tables."""
    if loss.name in LOSSES:
        raise ValueError(f"name: a loss called {loss.name!r} is registered already")
    LOSSES[loss.name] = loss
    _fields[loss.name] = tuple(f.name for f in dataclasses.fields(loss))
    return loss


def handle(description: RowLoss) -> str:
    """A string that stands for a description in an operator's arguments."""
    if torch.compiler.is_compiling() and LOSSES.get(description.name) is type(description):
        return _spelled(description)
    found = _handles.get(description)
    if found is None:
        found = f"{description.name}:{len(_handles)}"
        _handles[description] = found
        _descriptions[found] = description
    return found


def description(handle: str) -> RowLoss:
    found = _descriptions.get(handle)
    if found is None:
        found = _descriptions[handle] = _read(handle)
    return found


# A graph under compilation may not change the tables above and outlives the process that made it, so
# there a registered loss is spelled out: its name and its fields.


def _spelled(description: RowLoss) -> str:
    values = [_text(getattr(description, field)) for field in _fields[description.name]]
    return "|".join([description.name, *values])


def _read(handle: str) -> RowLoss:
    name, *values = handle.split("|")
    return LOSSES[name](**dict(zip(_fields[name], map(_value, values), strict=True)))  # type: ignore[arg-type]


def _text(value: object) -> str:
    # hex: exact, has infinities, and the one form into which the compiler can put a float that it has
    # made a variable of.
    return value.hex() if isinstance(value, float) else repr(value)


def _value(text: str) -> object:
    is_float = text.lstrip("-")[:2] in ("0x", "in")
    return float.fromhex(text) if is_float else ast.literal_eval(text)
