"""Functional forms, made from modules: signature, defaults and documentation are the module's own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.arguments import constructor, parameters_of
from .base import Loss, total

_NONE = inspect.Parameter.empty
# Sizes that a module asks for and the functional form finds in its tensors.
_SIZES = {"num_classes": 1, "embedding_size": 1, "descriptors_dim": 1, "l": 1}


def functional_form(module: type[Loss]) -> Callable[..., Tensor]:
    """The function of the name `module.function`: of a batch and, by keyword, of the options."""
    batch, options = _parameters(module)
    # What the function reads are names and values: the compiler cannot look into signatures.
    keyword = inspect.Parameter.KEYWORD_ONLY
    places = tuple(name for name, p in batch.items() if p.kind is not keyword)
    names, sizes = frozenset(options), _sizes(module)
    known = (*batch, *options)
    required = [name for name, p in batch.items() if p.default is _NONE]
    order = {
        name: None if p.default is _NONE else p.default for name, p in _forward(module).items()
    }

    def function(*given: Any, **keywords: Any) -> Tensor:
        chosen = {k: keywords.pop(k) for k in tuple(keywords) if k in names}
        arguments = dict(module.input_defaults)
        if len(given) > len(places):
            check.by_place(given, places, f"{module.function}()")
        arguments.update(zip(places, given, strict=False))
        for name, value in keywords.items():
            if name not in batch:
                check.taken([name], known, f"{module.function}()")
            if name in places[: len(given)]:
                raise TypeError(f"{module.function}() got {name!r} twice")
            arguments[name] = value
        for name in required:
            if name not in arguments:
                raise TypeError(f"{module.function}() needs the argument {name!r}")
        for name in module.input_defaults:
            if arguments[name] is None:
                raise ValueError(f"{name}: expected a number or a tensor, got None")
        made = _made(module, sizes, chosen)
        # The batch goes by place: some losses pass it on whole.
        first = [arguments.pop(name, default) for name, default in order.items()]
        return total(made.parts(*first, **arguments))

    function.__name__ = function.__qualname__ = str(module.function)
    function.__module__ = "fastdml.functional"
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*batch.values(), *options.values()], return_annotation="Tensor"
    )
    first = (inspect.getdoc(module) or "").split("\n\n")[0].rstrip(".")
    function.__doc__ = f"{first}, as a function; arguments as `losses.{module.__name__}`."
    return function


def _sizes(module: type[Loss]) -> tuple[tuple[str, int], ...]:
    """Those that the constructor asks for, as arguments."""
    return tuple((k, v) for k, v in _SIZES.items() if k in module.required)


def _forward(module: type[Loss]) -> dict[str, inspect.Parameter]:
    """The batch that a module is called with, in the order of `forward`."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = parameters_of(module.forward)
    return {p.name: p for p in found if p.name != "self" and p.kind is positional}


def _parameters(
    module: type[Loss],
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """Parameters of the functional form: those of `calls`, and the constructor's by keyword."""
    replaced = {name for names in module.inputs.values() for name in names}
    plain, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    batch = dict(_forward(module))  # type: ignore[arg-type]
    for method in (module.forward, module.calls):
        for p in parameters_of(method):
            if p.kind is keyword:
                default = module.input_defaults.get(p.name, p.default)
                batch.setdefault(p.name, p.replace(default=default))
    if module.positional:
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


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, (bool, int, float, str))


_Arguments = tuple[tuple[str, Any], ...]


def _made(module: type[Loss], sizes: _Arguments, options: dict[str, Any]) -> Loss:
    """A module of these options, whose own state is not used."""
    given = (*sizes, *options.items())
    # Numbers and names are what they are; a tensor may change, and a function would be kept alive.
    if torch.compiler.is_compiling() or not all(map(_is_constant, options.values())):
        return _fresh(module, given)
    names, values = zip(*given) if given else ((), ())
    found = _kept(module, names, *values)  # type: ignore[arg-type]
    return _fresh(module, given) if found is None else found


# (Types of arguments alone tell True from 1, not those within a tuple.)
@functools.lru_cache(maxsize=256, typed=True)
def _kept(module: type[Loss], names: tuple[str, ...], *values: Any) -> Loss | None:
    """None of a loss that remembers its batches: a function does not."""
    made = _fresh(module, tuple(zip(names, values)))
    return made if next(made.buffers(), None) is None else None


def _fresh(module: type[Loss], arguments: _Arguments) -> Loss:
    if "weight_init_func" not in module.arguments:
        return module(**dict(arguments))
    # The proxies are the caller's: the module's own few numbers are not drawn.
    init: Any = {"weight_init_func": _left_as_they_are}
    return module(**init, **dict(arguments))


def _left_as_they_are(weight: Tensor) -> Tensor:
    return weight
