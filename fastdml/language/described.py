"""Descriptions whose row is a function of the row language."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..engine.lazy import lazy
from ..engine.loss import RowLoss, Rows
from . import compile
from .graph import ROW, Node, NotInLanguage, topological
from .program import Program, program
from .row import Row, RowFunction, TensorRow, TracedRow, outputs_of, trace
from .stream import NoStream, Ranges, StreamForm, windows_of


class Forms:
    """A traced function in all its forms, each made when it is asked for.

    function(p, **arguments): numbers among the arguments stay open; `positive` are those above 0.
    """

    def __init__(
        self,
        function: RowFunction,
        name: str,
        opened: tuple[str, ...],
        bound: Mapping[str, Any],
        positive: tuple[str, ...],
        counted: bool = False,
        outputs: int = 1,
    ) -> None:
        self.name = compile.identifier(name)
        self._arguments = (function, opened, bound, counted, positive)
        self._outputs = outputs
        self._streams: dict[tuple[tuple[Node, int], ...], StreamForm | str] = {}

    @lazy
    def program(self) -> Program | str:
        """The passes of the row and of its derivatives, or which word of the function is none."""
        try:
            made = trace(*self._arguments)
            if len(made.outputs) != self._outputs:
                return f"it returns {len(made.outputs)} numbers of a row, not {self._outputs}"
            return program(made)
        except NotInLanguage as error:
            return f"{error} is no word of the row language (docs/language.md)"

    @lazy
    def functor(self) -> int | str:
        """The id of the compiled functor, or why there is none."""
        if isinstance(self.program, str):
            return self.program
        try:
            return compile.compiled(self.program, self.name)
        except compile.CannotCompile as error:
            compile.notice(str(error))
            return str(error)

    def streamed(self, ranges: Ranges, size: int) -> tuple[StreamForm, tuple[float, ...]] | str:
        """The compiled streamed form for inputs within `ranges` and its members, or why there is none."""
        if isinstance(self.program, str):
            return self.program
        made = self.program.trace
        windows = windows_of(made, ranges, size)
        key = tuple(windows.items())
        if key not in self._streams:
            name = "_".join([self.name, "stream", *(str(n) for n in windows.values())])
            try:
                self._streams[key] = StreamForm(made, name, windows)
            except NoStream as error:
                self._streams[key] = str(error)
        form = self._streams[key]
        try:
            return form if isinstance(form, str) else (form.compiled, form.members(ranges, size))
        except compile.CannotCompile as error:
            return str(error)

    @lazy
    def tiles(self) -> Any:
        """The tile functor, or None."""
        if isinstance(self.program, str) or importlib.util.find_spec("triton") is None:
            return None
        from . import tiles

        try:
            return tiles.printed(self.program.trace, self.name)
        except tiles.NoTile:
            return None

    @lazy
    def symmetric(self) -> bool:
        """Read off the weight of a pair: whether it depends on nothing that its row has of its own."""
        if isinstance(self.program, str):
            return False
        nodes = topological([self.program.weight], pairs=True)
        return not any(n.level == ROW or n.op == "column" for n in nodes)


class Described(RowLoss):
    """A description that says what its row is: a frozen dataclass with a method `row`.

    Fields that are floats stay open in what is printed; other fields (flags, names, None) choose what is
    printed. `row` must not branch on a float.
    """

    def row(self, p: Row) -> Any:
        """The number that a row adds to the loss (or its outputs), in the words of the language."""
        raise NotImplementedError

    def spec(self, rows: Rows) -> Tensor:
        return outputs_of(self.row(TensorRow(rows)), rows.s.shape[0]).to(rows.s.dtype)

    @property
    def open_arguments(self) -> dict[str, float]:
        """The parameters of what is printed."""
        fields = (f.name for f in dataclasses.fields(self))
        return {k: v for k in fields if is_number(v := getattr(self, k))}

    @property
    def forms(self) -> Forms:
        kept = self.open_arguments
        names = [f.name for f in dataclasses.fields(self)]
        chosen = tuple((k, getattr(self, k)) for k in names if k not in kept)
        positive = tuple(k for k, v in kept.items() if v > 0)
        return _forms(type(self), chosen, tuple(kept), positive)  # type: ignore[arg-type]

    def parameters(self) -> tuple[float, ...]:
        return tuple(self.open_arguments.values()) or (0.0,)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.forms.symmetric

    @property
    def column_slopes(self) -> int:  # type: ignore[override]
        made = self.forms.program
        return 0 if isinstance(made, str) else len(made.column_slopes)

    @property
    def tiles(self) -> Any:  # type: ignore[override]
        return self.forms.tiles

    def functor(self) -> int | str:
        return self.forms.functor

    def streamed(self, ranges: Ranges, size: int) -> tuple[StreamForm, tuple[float, ...]] | str:
        opened = {f"parameter {k}": [(v, v)] for k, v in self.open_arguments.items()}
        return self.forms.streamed({**ranges, **opened}, size)


@functools.lru_cache(maxsize=1024)
def _forms(
    kind: type[Described],
    chosen: tuple[tuple[str, Any], ...],
    opened: tuple[str, ...],
    positive: tuple[str, ...],
) -> Forms:
    """The forms that all descriptions of a kind share whose fields differ in open numbers only."""

    def function(p: Row, **numbers: Any) -> Any:
        view = object.__new__(kind)
        view.__dict__.update(dict(chosen), **numbers)
        return view.row(p)

    return Forms(function, kind.name, opened, {}, positive, kind.counted, kind.outputs)


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A parameter that is value k of the call's scalars, which may want a gradient."""

    k: int


@dataclasses.dataclass(frozen=True, eq=False)
class DescribedLoss(Described):
    """A user's function(p, **arguments); `Learnt` arguments are read from the call. Equal only to itself:
    functions need not be hashable. taught: the similarity of the teacher, if there is one."""

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
    def open_arguments(self) -> dict[str, float]:
        return {k: v for k, v in self.arguments.items() if is_number(v)}

    def row(self, p: Row) -> Any:
        return self.function(p, **{**self.arguments, **self._learnt(p)})

    def _learnt(self, p: Row) -> dict[str, Any]:
        return {k: p.scalar(v.k) for k, v in self.arguments.items() if isinstance(v, Learnt)}

    def spec(self, rows: Rows) -> Tensor:
        found = super().spec(rows)
        if found.dim() > 1:
            raise ValueError(
                f"fn: expected one number of every row from {self.name!r}, got a tuple"
            )
        return found

    @lazy
    def _forms(self) -> Forms:
        kept = self.open_arguments
        bound = {k: v for k, v in self.arguments.items() if k not in kept}
        positive = tuple(k for k, v in kept.items() if v > 0)
        learnt = self._learnt(TracedRow())
        return Forms(
            self.function, self.name, tuple(kept), {**bound, **learnt}, positive, self.counted, self.outputs
        )

    @property
    def forms(self) -> Forms:
        return self._forms


def is_number(x: object) -> bool:
    """Whether an argument is a number that stays open."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)
