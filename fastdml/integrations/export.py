"""A trained embedder as two files: weights as safetensors, and how to make the network they belong to."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..large_batch.replay import random_state_kept
from ..metrics.extras import require

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1


def save_embedder(
    model: nn.Module,
    folder: str | Path,
    *,
    arguments: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``model.safetensors`` and ``config.json``.

    Args:
        model: of a class that can be imported (not one of a script's ``__main__``).
        folder: made where it does not exist.
        arguments: of the class's constructor, of kinds that JSON has; without them it is called with
            none. Tried before anything is written: the network they make must have these weights.
        image: how ``fastdml embed`` makes inputs of image files, such as ``{"size": 32, "channels": 1,
            "mean": 0.5, "std": 0.25}``: images are fitted into a square of ``size`` pixels, of 1 (grey) or
            3 channels in [0, 1], from which the mean is taken and the rest divided by the deviation.

    The weights' types are kept, as after ``model.half()``. To try, the network is made once; nobody's random
    draws move.

    Raises:
        ValueError: loading it would fail, or the network has state that is no tensor.
        ImportError: safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "an embedder in files needs", "embed")
    kind = type(model)
    name = f"{kind.__module__}:{kind.__qualname__}"
    config = {
        "format": FORMAT,
        "model": name,
        "arguments": dict(arguments or {}),
        "image": None if image is None else dict(image),
    }
    if kind.__module__ == "__main__" or _importable(name) is not kind:
        raise ValueError(f"model: expected one of a class that can be imported, got {name!r}")
    try:
        text = json.dumps(config, indent=1) + "\n"
    except TypeError as error:
        raise ValueError(f"arguments, image: expected what JSON has ({error})") from None
    state = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"model: expected a state of tensors, got {type(value).__name__} as {key!r}"
            )
    weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    rebuilt = _trial(kind, json.loads(text)["arguments"])
    _same_weights(weights, rebuilt.state_dict(), "arguments")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Weights that share memory are stored once each: safetensors refuses aliases.
    safetensors.save_file({n: w.clone() for n, w in weights.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(text)


def load_embedder(
    folder: str | Path, *, model: nn.Module | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """The network that :func:`save_embedder` saved, in evaluation mode.

    The configuration names a class, which is imported and called: load folders whose author you trust,
    or give the network. Weights alone run no code.

    Args:
        model: takes the weights, in its own types, instead of a new one of the class that the
            configuration names, which has those that were saved.
        device: where it goes.

    Raises:
        ValueError: the folder holds no such embedder, or it does not fit.
        ImportError: safetensors is not installed, or the module of the class is missing.
    """
    safetensors = require("safetensors.torch", "an embedder in files needs", "embed")
    folder = Path(folder)
    made = model is None
    if model is None:
        config = read_config(folder)
        kind = _importable(config["model"])
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(
                f"{folder / CONFIG}: expected the name of a class of networks, got {config['model']!r}"
            )
        model = _make(kind, config["arguments"], "cpu")
    try:
        weights = safetensors.load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise ValueError(f"folder: expected {WEIGHTS} in {str(folder)!r}") from None
    except Exception as error:  # the package's own kind
        raise ValueError(f"{folder / WEIGHTS}: expected safetensors ({error})") from error
    _same_weights(weights, model.state_dict(), str(folder / WEIGHTS))
    if made:
        _take_types(model, weights)
    model.load_state_dict(weights)
    return model.to(device).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in a folder. Raises ValueError where there is none of ours."""
    try:
        found = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        raise ValueError(f"folder: expected {CONFIG} in {str(folder)!r}") from None
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: expected JSON ({error})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: expected format {FORMAT} of fastdml's embedders")
    for name, kind in (("model", str), ("arguments", dict)):
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{folder / CONFIG}: expected {name!r} as save_embedder writes it")
    return found


def _importable(name: str) -> Any:
    """What ``module:qualified.name`` names, or None where the module has no such thing."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _make(kind: type[nn.Module], arguments: Mapping[str, Any], device: str) -> nn.Module:
    try:
        with torch.device(device):
            return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"arguments: expected those of {kind.__qualname__} ({error})") from None


def _trial(kind: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """The network that loading would make, without memory for weights that its constructor does not read."""
    with random_state_kept(()):
        try:
            return _make(kind, arguments, "meta")
        except Exception:  # of whatever kind: the other one is what counts
            pass
        try:
            return _make(kind, arguments, "cpu")
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"model: expected a class that makes a network of its arguments ({error})"
            ) from error


def _take_types(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Types that the saved network was given after it was made, by ``model.half()`` and the like."""
    own = model.state_dict(keep_vars=True)
    changed = [name for name, w in weights.items() if w.dtype != own[name].dtype]
    kinds = {w.dtype for w in weights.values() if w.is_floating_point()}
    if changed and len(kinds) == 1:
        model.to(kinds.pop())  # buffers that are not saved too
    else:
        for name in changed:
            own[name].data = own[name].data.to(weights[name].dtype)


def _same_weights(got: Mapping[str, Any], want: Mapping[str, Any], name: str) -> None:
    shapes = [{n: tuple(w.shape) for n, w in weights.items()} for weights in (got, want)]
    for key in sorted(shapes[0].keys() | shapes[1].keys()):
        mine, theirs = (s.get(key, "none") for s in shapes)
        if mine != theirs:
            raise ValueError(
                f"{name}: expected those of a network with the same weights, but {key} is {mine} in what "
                f"is saved and {theirs} in the network made"
            )
