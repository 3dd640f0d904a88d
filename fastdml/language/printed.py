"""The library's own losses that are functions of the row language, as text: what its build compiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..engine.executors.symmetric import costs_less, range_of
from ..engine.loss import RowLoss
from ..engine.registry import LOSSES
from . import cpp
from .described import Described, Forms
from .program import Program

_FLOAT = 4


def forms() -> Iterator[tuple[type[Described], Forms]]:
    """Every form that the examples of a described loss have, of its defaults first."""
    for kind in LOSSES.values():
        if not issubclass(kind, Described):
            continue
        found = {one.forms.name: one.forms for one in (kind(), *kind.examples())}  # type: ignore[attr-defined]
        for one in found.values():
            yield kind, one


def headers() -> dict[str, str]:
    """Stem -> text of a header as in csrc/rows. Losses that print the same share one functor."""
    alike: dict[str, tuple[str, Program, list[str]]] = {}
    for kind, one in forms():
        if isinstance(one.program, str):
            raise TypeError(f"{kind.__name__}.row: {one.program}")
        text = cpp.functor(one.program, "same")
        alike.setdefault(text, (kind.name, one.program, []))[2].append(one.name)
    found: dict[str, str] = {}
    for stem, made, (first, *others) in alike.values():
        found[stem] = found.get(stem, "") + cpp.functor(made, first, others)
    return found


def streams(descriptions: Iterable[RowLoss]) -> dict[str, tuple[str, str]]:
    """Name -> (key, text) of the streamed forms of losses over one set in float32 that cost less than their
    rows: so are most steps. Others are compiled where they are asked for."""
    found = {}
    for one in descriptions:
        if not isinstance(one, Described):
            continue
        made = one.streamed({"s": [range_of(one.metric, 0.0)]}, _FLOAT)
        if not isinstance(made, str) and costs_less(one, made[0].sweeps, one.symmetric):
            found[made[0].name] = (made[0].key, made[0].text)
    return found
