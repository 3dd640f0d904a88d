"""What runs for a loss, as text: `python -m fastdml show`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from ..engine.loss import RowLoss
from ..engine.registry import LOSSES
from . import compile, cpp, tiles
from .described import Described, DescribedLoss
from .graph import NotInLanguage

FORMS = ("torch", "cpp", "cuda", "triton")


def shown(loss: RowLoss | str, form: str = "cpp") -> str:
    """The text of a loss in one of its forms.

    Args:
        loss: a description, the name of one of the library's, or "file.py:function" or
            "module:function", a function of the row language. Its arguments without a default are
            numbers that stay open, its others are at their defaults.
        form: "torch", "cpp", "cuda" or "triton".

    Raises:
        ValueError: for an unknown loss or form, or where there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form: expected one of {FORMS}, got {form!r}")
    description = _described(loss) if isinstance(loss, str) else loss
    if isinstance(description, Described):
        return _printed(description, form)
    return _written(description, form)


def _described(name: str) -> RowLoss:
    if name in LOSSES:
        return LOSSES[name]()
    where, _, function = name.rpartition(":")
    if not where:
        raise ValueError(f"loss: expected FILE:FUNCTION or one of {sorted(LOSSES)}, got {name!r}")
    found = getattr(_module(where), function, None)
    if not callable(found):
        raise ValueError(f"loss: expected a function called {function!r} in {where}, got {found!r}")
    parameters = list(inspect.signature(found).parameters.values())[1:]
    empty = inspect.Parameter.empty
    # Any number above 0: which one does not show, but that it is above 0 may save a pass.
    arguments = {p.name: 1.0 if p.default is empty else p.default for p in parameters}
    return DescribedLoss(found, arguments)


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ImportError as error:
            raise ValueError(f"loss: expected a Python file or module before the colon: {error}") from error
    if not Path(where).exists():
        raise ValueError(f"loss: expected a Python file, got {where!r}")
    return compile.module_at(Path(where), Path(where).stem)


def _printed(loss: Described, form: str) -> str:
    if form == "torch":
        user = isinstance(loss, DescribedLoss)
        return _source(loss.function if user else type(loss).row)
    if isinstance(loss.forms.program, str):
        raise ValueError(f"loss: expected words of the row language only: {loss.forms.program}")
    name = loss.forms.name
    if form != "triton":  # one row functor serves both
        return cpp.functor(loss.forms.program, name)
    try:
        return tiles.PrintedTiles(loss.forms.program.trace, name).text
    except (tiles.NoTile, NotInLanguage) as error:
        raise ValueError(f"form: expected another than 'triton': {error}") from error


def _source(function: Any) -> str:
    """The text of what is called, which is no object's or partial's own."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    try:
        return inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise ValueError(f"form: expected another than 'torch', whose text is not there: {error}") from error


def _written(loss: RowLoss, form: str) -> str:
    """The files that were written by hand."""
    if form == "torch":
        return _source(type(loss).spec)
    if form == "triton":
        found: Any = importlib.util.find_spec(f"fastdml.kernels.tiles.{loss.name}")
        if found is None:
            raise ValueError(f"form: expected another than 'triton', which {loss.name!r} has not")
        return Path(found.origin).read_text()
    try:
        rows = compile.sources() / "rows"
    except compile.CannotCompile as error:
        raise ValueError(f"form: expected another than {form!r}: {error}") from error
    for header in sorted(rows.glob("*.h")):
        text = header.read_text()
        if f"FASTDML_ROW_LOSS({loss.name}," in text:
            return text
    raise ValueError(f"form: expected another than {form!r}, which {loss.name!r} has not")
