"""What was demanded of a preset, and what was measured."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable

# Seconds: the time-out of the process that measures a step's memory.
_COMPLETES = 60.0
_SIGNS = {operator.le: "<=", operator.ge: ">=", operator.gt: ">"}


@dataclasses.dataclass(frozen=True)
class Requirement:
    """met: None where it could not be measured."""

    text: str
    demanded: str
    measured: str
    met: bool | None


def judge(
    text: str,
    value: float | None,
    limit: float,
    unit: str,
    compare: Callable[[float, float], bool] = operator.le,
) -> Requirement:
    """Whether compare(value, limit) holds; value: a median, or None where nothing was measured."""
    shown = "not measured" if value is None else f"{value:.3g}{unit}"
    met = None if value is None else compare(value, limit)
    return Requirement(text, f"{_SIGNS[compare]} {limit:g}{unit}", shown, met)  # type: ignore[index]


def completes(text: str, ms: float | None) -> Requirement:
    """Whether a step that is large rather than to be fast came to its end, in ms milliseconds."""
    return judge(f"{text}, seconds of a step", None if ms is None else ms / 1e3, _COMPLETES, " s")
