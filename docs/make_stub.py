"""Writes fastdml/functional.pyi: the functional forms, made from the modules, as editors and mypy see them.

`python docs/make_stub.py --check` only says whether it is up to date.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from fastdml.losses import FUNCTIONS, MODULES

STUB = Path(__file__).resolve().parents[1] / "fastdml" / "functional.pyi"

HEAD = '''\
"""The losses as plain functions; written by docs/make_stub.py."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .losses.base import Regularizer

__all__: list[str]
'''


def stub() -> str:
    """The text of the stub."""
    return HEAD + "\n" + "\n".join(_function(name) for name in sorted(FUNCTIONS))


def _function(name: str) -> str:
    function = FUNCTIONS[name]
    lines, keyword_only = [f"def {name}("], False
    for p in inspect.signature(function).parameters.values():
        if p.kind is inspect.Parameter.KEYWORD_ONLY and not keyword_only:
            lines.append("    *,")
            keyword_only = True
        default = "" if p.default is inspect.Parameter.empty else f" = {p.default!r}"
        lines.append(f"    {p.name}: {p.annotation}{default},")
    lines += [") -> Tensor:", f'    """See `{_module(name)}`."""', ""]
    return "\n".join(lines)


def _module(name: str) -> str:
    return next(m.__name__ for m in MODULES.values() if m.function == name)


def main(arguments: list[str]) -> int:
    found = stub()
    if "--check" in arguments:
        current = STUB.exists() and STUB.read_text() == found
        print(f"{STUB.name}: {'up to date' if current else 'stale; run python docs/make_stub.py'}")
        return 0 if current else 1
    STUB.write_text(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
