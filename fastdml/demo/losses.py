"""From a loss's name to the loss, with the settings this demo trains it with."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .. import losses

DEFAULT_LOSSES = ("multi_similarity", "proxy_anchor", "smooth_ap")

# What differs from the library's own defaults.
_SETTINGS: dict[str, dict[str, Any]] = {
    "multi_similarity": {"epsilon": 0.1},  # switches the fused miner on
}
# Their labels are numbers whose differences mean something.
_OF_NUMBERS = ("dense_triplet", "log_ratio")


def available_losses() -> list[str]:
    """Names of all losses that need nothing but the classes, the dimension and defaults."""
    return sorted(name for name, loss in _registered().items() if not _missing(name, loss))


def canonical_name(name: str) -> str:
    """``MultiSimilarityLoss``, ``multi-similarity`` and ``multi_similarity`` are one name.

    Raises:
        ValueError: the library has no such loss, or the demo cannot choose its arguments.
    """
    registered = _registered()
    for known, loss in registered.items():
        if _key(known) == _key(name):
            if missing := _missing(known, loss):
                raise ValueError(f"loss: {known} needs {', '.join(missing)}, which the demo lacks")
            return known
    raise ValueError(f"loss: expected one of {', '.join(sorted(registered))}, got {name!r}")


def build_loss(name: str, num_classes: int, embedding_size: int, backend: str) -> nn.Module:
    """The loss called ``name``, on ``backend``, for labels 0 ... ``num_classes - 1``."""
    name = canonical_name(name)
    loss = _registered()[name]
    context = {"num_classes": num_classes, "embedding_size": embedding_size, "backend": backend}
    accepted = _parameters(loss)
    arguments = {key: value for key, value in context.items() if key in accepted}
    return loss(**arguments, **_SETTINGS.get(name, {}))


def learns_proxies(name: str) -> bool:
    """Whether the loss compares with something it learns per class, not within the batch."""
    parameter = _parameters(_registered()[canonical_name(name)]).get("num_classes")
    return parameter is not None and parameter.default is parameter.empty


def _registered() -> dict[str, type[nn.Module]]:
    return {_snake(name): module for name, module in losses.MODULES.items()}


def _snake(class_name: str) -> str:
    """``SmoothAPLoss`` -> ``smooth_ap``."""
    stem = class_name.removesuffix("Loss")
    out = ""
    for i, letter in enumerate(stem):
        starts_word = letter.isupper() and (
            stem[i - 1].islower() or (i + 1 < len(stem) and stem[i + 1].islower())
        )
        out += ("_" if i and starts_word else "") + letter.lower()
    return out


def _key(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower().removesuffix("loss")


def _parameters(loss: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Arguments of the constructor, those it hands on to its base classes included."""
    found: dict[str, inspect.Parameter] = {}
    for cls in loss.__mro__:
        if cls is nn.Module or "__init__" not in vars(cls):
            continue
        own = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        for parameter in own:
            found.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


def _missing(name: str, loss: type[nn.Module]) -> list[str]:
    """What the loss needs, to be made or to be called, that the demo has not got."""
    provided = {"num_classes", "embedding_size", *_SETTINGS.get(name, {})}
    called = list(inspect.signature(loss.forward).parameters.values())[1:]
    missing = []
    if name in _OF_NUMBERS or [p.name for p in called[:2]] != ["embeddings", "labels"]:
        missing.append("other labels than classes")
    return missing + [
        p.name
        for p in [*_parameters(loss).values(), *called[2:]]
        if p.default is p.empty
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and p.name not in provided
    ]
