"""How a loss module shows itself."""

from __future__ import annotations

import inspect

from torch import nn

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_SHOWN = (bool, int, float, str, tuple)


def arguments(module: nn.Module) -> str:
    """The constructor's arguments as the module keeps them, own ones first: "name=value, ..."."""
    found: dict[str, object] = {}
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        constructor = vars(cls).get("__init__")
        if constructor is None:
            continue
        for p in inspect.signature(constructor).parameters.values():
            value = getattr(module, p.name, None)
            if p.name != "self" and p.kind in _NAMED and isinstance(value, _SHOWN):
                found.setdefault(p.name, value)
    return ", ".join(f"{name}={value!r}" for name, value in found.items())
