"""Every loss that is known by name, and the strings by which operators refer to descriptions."""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import weakref
from typing import Any, TypeVar

from .loss import Learnt, RowLoss

LOSSES: dict[str, type[RowLoss]] = {}
# The names of their fields, which a compiled graph could not ask for.
FIELDS: dict[str, tuple[str, ...]] = {}

L = TypeVar("L", bound=type[RowLoss])


def register(loss: L) -> L:
    """Class decorator: makes a description known to tests, benchmarks and tables."""
    if loss.name in LOSSES:
        raise ValueError(f"name: a loss called {loss.name!r} is registered already")
    LOSSES[loss.name] = loss
    FIELDS[loss.name] = tuple(f.name for f in dataclasses.fields(loss))
    return loss


def registered(loss: RowLoss) -> bool:
    """Whether this is the loss of its name. (A user's function may bear the name of one.)"""
    return LOSSES.get(loss.name) is type(loss)


def interned(description: RowLoss) -> RowLoss:
    """One object for equal descriptions: what it has found of itself is found once. (One that is equal to
    itself only, a user's function, is not kept from being freed.)"""
    if "interned" in description.__dict__:
        return description
    alone = type(description).__hash__ is object.__hash__
    return description if alone else _interned(description)


@functools.lru_cache(maxsize=1024)
def _interned(description: RowLoss) -> RowLoss:
    description.__dict__["interned"] = True  # which asking the cache again would cost a small batch
    return description


# A registered loss is spelled out, its name and its fields: a compiled graph outlives the process that
# made it, and nothing has to be remembered. Functions cannot be: they have numbers, for as long as they
# live. next() of a count is one step, so that two threads never share a number.
_numbers = itertools.count()
_users: weakref.WeakValueDictionary[str, RowLoss] = weakref.WeakValueDictionary()
_objects: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def handle(description: RowLoss) -> str:
    """A string that stands for a description in an operator's arguments."""
    if registered(description):
        values = [_text(getattr(description, field)) for field in FIELDS[description.name]]
        return "|".join([description.name, *values])
    found = getattr(description, "_handle", None)
    return remember(description) if found is None else found


def remember(description: RowLoss) -> str:
    """Gives a description that is not registered a string, before a graph is compiled, which may not."""
    found = f"{description.name}:{next(_numbers)}"
    _users[found] = description
    object.__setattr__(description, "_handle", found)
    return found


def description(handle: str) -> RowLoss:
    """What a string of `handle` stands for."""
    return _users.get(handle) or _read(handle)


@functools.lru_cache(maxsize=1024)
def _read(handle: str) -> RowLoss:
    name, *values = handle.split("|")
    return LOSSES[name](**dict(zip(FIELDS[name], map(_value, values), strict=True)))  # type: ignore[arg-type]


def _text(value: object) -> str:
    # hex: exact, has infinities, and the one form into which the compiler can put a float that it has
    # made a variable of.
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Learnt):
        return f"{_LEARNT}{value.k}"
    # Nor does repr() take an integer that is a variable there.
    return f"{value}" if isinstance(value, int) else repr(value)


_LEARNT = "parameter "


def _value(text: str) -> object:
    if text.startswith(_LEARNT):
        return Learnt(int(text[len(_LEARNT) :]))
    is_float = text.lstrip("-")[:2] in ("0x", "in")
    return float.fromhex(text) if is_float else ast.literal_eval(text)


class _Handle(str):
    """Keeps an object for as long as somebody may ask for it: a backward to come, say."""

    object: Any


def remembered_handle(object: Any) -> str:
    """A string that stands for an object in an operator's arguments: a user's relation, or all the rows of
    which a call has some."""
    found = _Handle(f"object:{next(_numbers)}")
    found.object = object
    _objects[str(found)] = object
    return found


def remembered(handle: str) -> Any:
    """What a string of `remembered_handle` stands for."""
    return _objects[handle]
