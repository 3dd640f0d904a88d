"""Modules that know their arguments: one that they do not take is answered in their name."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from . import check

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


_found: weakref.WeakKeyDictionary[Callable[..., Any], tuple[inspect.Parameter, ...]] = (
    weakref.WeakKeyDictionary()
)


def parameters_of(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """A function's parameters, found once: many classes share one, and importing all of them is felt."""
    if function not in _found:
        _found[function] = tuple(inspect.signature(function).parameters.values())
    return _found[function]


def constructor(module: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a module's constructor, own ones first, then those passed on to its bases; without
    those that a class sets itself, and those that only classes hand in, which begin with "_"."""
    found: dict[str, inspect.Parameter] = {}
    own: set[str] = set()
    for cls in module.__mro__:
        made = vars(cls).get("__init__")
        if cls is nn.Module:
            break
        if made is None:
            continue
        parameters = parameters_of(made)
        for p in parameters:
            named = p.name != "self" and p.name[0] != "_" and p.kind in _NAMED
            if named and p.name not in own:
                found.setdefault(p.name, p)
        own.update(vars(cls).get("sets", ()))
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def called_with(function: Callable[..., Any]) -> tuple[tuple[str, ...], int] | None:
    """The names of a method's arguments, and how many of them may come by place; None: any may come."""
    found = parameters_of(function)[1:]
    if not all(p.kind in _NAMED for p in found):
        return None
    return tuple(p.name for p in found), sum(p.kind in _BY_PLACE for p in found)


class NamedArguments(nn.Module):
    """A module whose unknown arguments, of the constructor and of the call, are ValueErrors that say what it
    takes."""

    # Arguments of the constructor, in order; the same as a set, those of them that are True or False, and
    # those without a default.
    names: ClassVar[tuple[str, ...]] = ()
    arguments: ClassVar[frozenset[str]] = frozenset()
    flags: ClassVar[frozenset[str]] = frozenset()
    required: ClassVar[frozenset[str]] = frozenset()
    # Arguments of its base's constructor that a class sets itself; it passes on `unset` of its own keywords.
    sets: ClassVar[tuple[str, ...]] = ()
    # Methods whose arguments may be those of the call: the first that names its own counts.
    entries: ClassVar[tuple[str, ...]] = ("forward",)
    taken: ClassVar[tuple[tuple[str, ...], int] | None] = None

    def __init__(self, **unknown: Any) -> None:
        super().__init__()
        # Of pytorch-metric-learning's modules, without effect here: among no class's `names`.
        self.collect_stats = check.optional_flag(unknown.pop("collect_stats", None), "collect_stats")
        if unknown:
            check.taken(unknown, self.names, type(self).__name__)

    def unset(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keywords for the constructor of a class's base; ValueError for one that the class sets itself."""
        check.taken([k for k in given if k in self.sets], self.names, type(self).__name__)
        return given

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Once a class: a graph that is compiled could not ask.
        super().__init_subclass__(**kwargs)
        known = constructor(cls)
        cls.names = tuple(known)
        cls.arguments = frozenset(known)
        cls.flags = frozenset(k for k, p in known.items() if isinstance(p.default, bool))
        cls.required = frozenset(k for k, p in known.items() if p.default is p.empty)
        found = (called_with(getattr(cls, name)) for name in cls.entries)
        cls.taken = next((one for one in found if one is not None), None)

    def __call__(self, *batch: Any, **further: Any) -> Any:
        try:
            return super().__call__(*batch, **further)
        except TypeError:  # Python's own words, or an error of what was called: looked at only now
            if self.taken is not None:
                names, places = self.taken
                check.taken(further, names, type(self).__name__)
                if len(batch) > places:
                    check.by_place(batch, names[:places], type(self).__name__)
            raise
