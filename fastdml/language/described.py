"""A description that is a function of the row language."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine.lazy import lazy
from ..engine.loss import RowLoss, Rows
from . import compile, stream
from .graph import ROW, NotInLanguage, topological
from .program import Program, program
from .row import RowFunction, TensorRow, TracedRow, outputs_of, trace


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A parameter that is value k of the call's scalars, which may want a gradient."""

    k: int


@dataclasses.dataclass(frozen=True, eq=False)
class DescribedLoss(RowLoss):
    """function(p, **arguments): the number that a row adds to the loss.

    arguments: numbers stay open in what is printed; `Learnt` ones are read from the call; anything else
    (flags, None, names) chooses what is printed. Equal only to itself: functions need not be hashable.
    """

    function: RowFunction
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    taught: str | None = None
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def name(self) -> str:  # type: ignore[override]
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def teacher_similarity(self) -> str | None:  # type: ignore[override]
        return self.taught

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Read off the weight of a pair: whether it depends on nothing that the row has of its own."""
        found = self.traced
        if isinstance(found, str):
            return False
        nodes = topological([found.weight], pairs=True)
        return not any(n.level == ROW or n.op == "column" for n in nodes)

    def spec(self, rows: Rows) -> Tensor:
        p = TensorRow(rows)
        given = {
            k: p.scalar(v.k) if isinstance(v, Learnt) else v for k, v in self.arguments.items()
        }
        found = outputs_of(self.function(p, **given), rows.s.shape[0])
        if found.dim() > 1:
            raise ValueError(
                f"fn: expected one number of every row from {self.name!r}, got a tuple"
            )
        return found.to(rows.s.dtype)

    def parameters(self) -> tuple[float, ...]:
        return tuple(self.open_arguments.values()) or (0.0,)

    def stream(self) -> stream.StreamForm | str:
        return self._stream

    def stream_members(
        self, form: stream.StreamForm, scalars: list[float], low: float, high: float, size: int
    ) -> tuple[float, ...] | str:
        return form.members(self.open_arguments, scalars, low, high, size)

    @lazy
    def _stream(self) -> stream.StreamForm | str:
        if isinstance(self.traced, str):
            return self.traced
        try:
            return stream.compiled(self.traced.trace, f"{compile.identifier(self.name)}_stream")
        except (stream.NoStream, compile.CannotCompile) as error:
            return str(error)

    @property
    def open_arguments(self) -> dict[str, float]:
        """The parameters of what is printed."""
        return {k: v for k, v in self.arguments.items() if _is_number(v)}

    @property
    def tiles(self) -> Any:  # type: ignore[override]
        return self._tiles

    @lazy
    def _tiles(self) -> Any:
        if isinstance(self.traced, str) or importlib.util.find_spec("triton") is None:
            return None
        from . import tiles  # imports nothing of triton's, but what it prints does

        try:
            return tiles.printed(self.traced.trace, compile.identifier(self.name))
        except tiles.NoTile:
            return None

    @lazy
    def traced(self) -> Program | str:
        """The passes of the row and of its derivatives, or which word of the function is none."""
        row = TracedRow()
        opened = self.open_arguments
        bound = {
            k: row.scalar(v.k) if isinstance(v, Learnt) else v
            for k, v in self.arguments.items()
            if k not in opened
        }
        above = [k for k, v in opened.items() if v > 0]
        try:
            found = trace(self.function, tuple(opened), bound, positive=above)
        except NotInLanguage as error:
            return f"{error} is no word of the row language (docs/language.md)"
        return program(found)

    def functor(self) -> int | str:
        return self._functor

    @lazy
    def _functor(self) -> int | str:
        if isinstance(self.traced, str):
            return self.traced
        try:
            return compile.compiled(self.traced, self.name)
        except compile.CannotCompile as error:
            compile.notice(str(error))
            return str(error)


def _is_number(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def as_scalar(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return x.to(dtype=dtype, device=device).reshape(())
