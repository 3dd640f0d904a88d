"""The row that a function of the language sees: of tensors, or traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..engine.loss import Rows
from .graph import COLUMNS, EVERY, NEGATIVE, ONE, POSITIVE, Node, NotInLanguage, S, lift, make


class Row:
    """What a function of the language reads of a row: `p` in this page's examples.

    s: similarity (or distance) of the pair. positive, negative: its kind; pair: either of them. (A
    sample's pair with itself is neither, unless the loss keeps it, and then it is a positive.)
    teacher: the same pair in a second matrix, a constant. grade: the weight of a positive, where pairs are
    those of a function that gives such, else 1 (so in compiled forms, which see labels). columns: how many
    candidates the row has, its own copy that was taken out among them.
    """

    s: Any
    positive: Any
    negative: Any
    pair: Any
    teacher: Any
    columns: Any
    grade: Any
    # Where parameters that may want a gradient stand among the values of the call, and how many there are:
    # `scalar` passes over them.
    learnt: tuple[int, int] = (0, 0)

    def scalar(self, k: int) -> Any:
        """Value k of the call."""
        first, count = self.learnt
        return self.given(k if k < first else k + count)

    def graded(self, x: Any) -> Any:
        """x, of a positive, times its grade."""
        return x

    def parameter(self, k: int) -> Any:
        """Parameter k of those that may want a gradient."""
        return self.given(self.learnt[0] + k)

    def given(self, k: int) -> Any:
        """Value k of the call, parameters among them."""
        raise NotImplementedError

    def row_value(self, k: int) -> Any:
        """Value k of the row."""
        raise NotImplementedError

    def column(self, k: int) -> Any:
        """Value k of the pair's candidate."""
        raise NotImplementedError


class TensorRow(Row):
    """A block of rows: pairs are [R, N], rows [R, 1]."""

    def __init__(self, rows: Rows) -> None:
        self.s, self.positive, self.negative = rows.s, rows.positive, rows.negative
        self.pair = rows.positive | rows.negative
        self.columns = rows.s.shape[1]
        self.grade: Any = 1.0
        if rows.weight is not None:
            some = rows.positive & (rows.weight > 0)
            self.grade = torch.where(some, rows.weight.to(rows.s.dtype), 1.0)
        self._rows = rows

    def graded(self, x: Tensor) -> Tensor:
        return x if self._rows.weight is None else self.grade * x

    @property
    def teacher(self) -> Tensor:  # type: ignore[override]
        return _given(self._rows.teacher, "teacher")

    def given(self, k: int) -> Tensor:
        return _given(self._rows.scalars, "scalars")[k].clone()  # for scale *= 2

    def row_value(self, k: int) -> Tensor:
        return _given(self._rows.row_values, "row_values")[:, k : k + 1]

    def column(self, k: int) -> Tensor:
        return _given(self._rows.col_values, "col_values")[k]


def _given(x: Tensor | None, name: str) -> Tensor:
    if x is None:
        raise ValueError(f"{name}: expected a tensor for a loss that reads it, got None")
    return x


class TracedRow(Row):
    s = S
    positive = POSITIVE
    negative = NEGATIVE
    pair = EVERY
    teacher = make("teacher")
    columns = COLUMNS
    grade = ONE

    def given(self, k: int) -> Node:
        return make("scalar", value=k)

    def row_value(self, k: int) -> Node:
        return make("row_value", value=k)

    def column(self, k: int) -> Node:
        return make("column", value=k)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a function of the row returns, as expressions.

    outputs: of a row. counted: the second is how many things the first is a sum over (`Counted`).
    parameters: names of the numbers that stay open, in their order. scalars: of how many values of the call,
    from the first, derivatives are wanted; None: of all.
    """

    outputs: tuple[Node, ...]
    counted: bool = False
    parameters: tuple[str, ...] = ()
    scalars: int | None = None


RowFunction = Callable[..., Any]


def outputs_of(found: Any, rows: int) -> Tensor:
    """[R] or [R, outputs] of what a function of the language returned for a block of tensors."""
    parts = [_column(x, rows) for x in (found if isinstance(found, tuple) else (found,))]
    return parts[0][:, 0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _column(x: Any, rows: int) -> Tensor:
    if not isinstance(x, (Tensor, Real)):
        raise ValueError(f"fn: expected a number of every row, [{rows}, 1], got {type(x).__name__}")
    x = x if isinstance(x, Tensor) else torch.tensor(x, device="cpu")
    if tuple(x.shape) not in ((), (1,), (rows, 1)):
        raise ValueError(
            f"fn: expected a number of every row, [{rows}, 1], got {tuple(x.shape)}: reduce pairs by "
            "sum, mean, amax or log_sum_exp"
        )
    return x.expand(rows, 1)


def trace(
    function: RowFunction,
    parameters: tuple[str, ...] = (),
    counted: bool = False,
    positive: Collection[str] = (),
    scalars: int | None = None,
) -> Trace:
    """The expressions that function(p, **parameters) returns.

    parameters: names of keyword arguments that are numbers of the call and stay open; positive: those of
    them that are above 0 for sure, which may save a pass. scalars: see `Trace`.

    Raises:
        NotInLanguage: saying which word of the function is not one of the language's.
    """
    opened = {name: make("parameter", value=(name, name in positive)) for name in parameters}
    try:
        found = function(TracedRow(), **opened)
    except NotInLanguage:
        raise
    except Exception as error:
        # Of a function that looks at its arguments, say, which in torch are numbers.
        raise NotInLanguage(str(error) or type(error).__name__) from error
    outputs = tuple(lift(x) for x in (found if isinstance(found, tuple) else (found,)))
    for output in outputs:
        if output.level > 2 or output.is_mask:
            raise NotInLanguage("a result that is no number of the row: reduce it over pairs")
    return Trace(outputs, counted, parameters, scalars)
