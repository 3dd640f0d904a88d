"""Functional forms, made from modules: signature, defaults and documentation are the module's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import Loss, total

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# Sizes that a module asks for and the functional form finds in its tensors.
_SIZES = {"num_classes": 1, "embedding_size": 1}


def functional_form(module: type[Loss]) -> Callable[..., Tensor]:
    """The function of the name `module.function`: of a batch and, by keyword, of the options."""
    batch, options = _parameters(module)
    names = frozenset(options)

    def function(*given: Any, **keywords: Any) -> Tensor:
        chosen = {k: keywords.pop(k) for k in tuple(keywords) if k in names}
        if module.positional:
            keywords.update(zip(module.positional, given, strict=False))
            given = ()
        return total(_made(module, chosen).calls(*given, **keywords))

    function.__name__ = function.__qualname__ = str(module.function)
    function.__module__ = "fastdml.functional"
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*batch.values(), *options.values()], return_annotation="Tensor"
    )
    first = (inspect.getdoc(module) or "").split("\n\n")[0].rstrip(".")
    function.__doc__ = f"{first}, as a function; arguments as `losses.{module.__name__}`."
    return function


def constructor(module: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of a module's constructor, those that it passes on to its bases among them."""
    found: dict[str, inspect.Parameter] = {}
    for cls in module.__mro__:
        made = vars(cls).get("__init__")
        if cls is nn.Module or made is None:
            continue
        parameters = inspect.signature(made).parameters.values()
        for p in parameters:
            if p.name != "self" and p.kind in _NAMED:
                found.setdefault(p.name, p)
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def _parameters(
    module: type[Loss],
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """Parameters of the functional form: those of `calls`, and the constructor's by keyword."""
    replaced = {name for names in module.inputs.values() for name in names}
    keyword = inspect.Parameter.KEYWORD_ONLY
    batch = {
        p.name: p
        for p in inspect.signature(module.calls).parameters.values()
        if p.name != "self" and p.kind in _NAMED
    }
    if module.positional:
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        first = {name: batch.pop(name).replace(kind=plain) for name in module.positional}
        batch = {**first, **{k: p.replace(kind=keyword) for k, p in batch.items()}}
        required = module.positional.index("proxies") if "proxies" in first else -1
        for name in module.positional[: required + 1]:
            batch[name] = batch[name].replace(default=inspect.Parameter.empty)
    options = {
        name: p.replace(kind=keyword)
        for name, p in constructor(module).items()
        if name not in replaced and name not in batch
    }
    return batch, options


def _made(module: type[Loss], options: dict[str, Any]) -> Loss:
    """A module of these options, whose own state is not used."""
    if torch.compiler.is_compiling():
        return _fresh(module, options)
    try:
        return _kept(module, tuple(options.items()))
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _fresh(module, options)


@functools.lru_cache(maxsize=256, typed=True)
def _kept(module: type[Loss], options: tuple[tuple[str, Any], ...]) -> Loss:
    return _fresh(module, dict(options))


def _fresh(module: type[Loss], options: dict[str, Any]) -> Loss:
    sizes = {k: v for k, v in _SIZES.items() if k in constructor(module)}
    if not sizes:
        return module(**options)
    with torch.device("meta"):
        return module(**sizes, **options)
