"""The constructor's arguments of a module, how it shows them, and what it learns."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SHOWN = (bool, int, float, str, tuple)


def constructor(module: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a module's constructor, own ones first, then those passed on to its bases."""
    found: dict[str, inspect.Parameter] = {}
    for cls in module.__mro__:
        made = vars(cls).get("__init__")
        if cls is nn.Module:
            break
        if made is None:
            continue
        parameters = inspect.signature(made).parameters.values()
        for p in parameters:
            if p.name != "self" and p.kind in _NAMED:
                found.setdefault(p.name, p)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return {k: p for k, p in found.items() if k not in getattr(module, "fills", ())}


def learnt(value: Tensor) -> Tensor:
    """A parameter. In a module that is made in a compiled graph, which is a functional form's and whose own
    state is not used, a tensor: a graph cannot make parameters."""
    return value if torch.compiler.is_compiling() else nn.Parameter(value)


def shown(module: nn.Module) -> str:
    """The constructor's arguments as the module keeps them: "name=value, ..."."""
    values = {name: getattr(module, name, None) for name in constructor(type(module))}
    return ", ".join(f"{k}={v!r}" for k, v in values.items() if isinstance(v, _SHOWN))
