"""What a wrapper needs of a loss."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..reducers import DoNothingReducer, native

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def called_as(loss: Any) -> inspect.Signature:
    """What a call of a loss takes; a wrapper that passes its batch on says so of what it wraps, and a loss
    that does, by the first of its `entries` that names its arguments."""
    own: inspect.Signature | None = getattr(loss, "called_as", None)
    if own is not None:
        return own
    told = [inspect.signature(getattr(loss, name)) for name in getattr(loss, "entries", ("forward",))]
    named = (s for s in told if not any(p.kind in _ANY_NUMBER for p in s.parameters.values()))
    return next(named, told[0])


def expect_parts(loss: Any) -> None:
    """ValueError unless a loss, and every one in it, is the sum of its `parts`: a wrapper asks for these, not
    for what a subclass's `forward` makes of them."""
    if not isinstance(loss, nn.Module) or not callable(getattr(loss, "parts", None)):
        raise ValueError(f"loss: expected a loss of fastdml, got {type(loss).__name__}")
    own = _defines(loss, "forward") or nn.Module
    ours = own.__module__.partition(".")[0] == __name__.partition(".")[0]
    made = [c for name in ("parts", "calls") if (c := _defines(loss, name)) is not None]
    if not ours and made and not any(issubclass(c, own) for c in made):
        raise ValueError(
            f"loss: expected one that is the sum of its parts, got {type(loss).__name__}, which has a "
            "forward of its own; override `calls` or `parts` instead, which wrappers ask for"
        )
    several = getattr(loss, "losses", None)
    if isinstance(several, nn.ModuleList):
        several = dict(enumerate(several))
    for inner in several.values() if isinstance(several, (Mapping, nn.ModuleDict)) else ():
        expect_parts(inner)


def expect_number(loss: object) -> None:
    """ValueError for a loss that a reducer leaves as a dict, of which there is no multiple. (What a user's
    own module makes of such a loss is for that to say.)"""
    if not isinstance(loss, nn.Module) or not (hasattr(loss, "parts") or hasattr(loss, "reducer")):
        return
    if any(isinstance(native(m), DoNothingReducer) for m in loss.modules()):
        raise ValueError("reducer: expected one that makes a number of the loss, got DoNothingReducer")


def _defines(loss: nn.Module, name: str) -> type | None:
    """The class that a method of a loss is from; None: one that passes on what it wraps."""
    return next((c for c in type(loss).__mro__ if name in vars(c)), None)
