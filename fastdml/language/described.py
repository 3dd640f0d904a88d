"""Descriptions whose row is a function of the row language."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

from torch import Tensor

from ..engine import check, library
from ..engine.lazy import lazy
from ..engine.loss import Learnt, RowLoss, Rows
from ..engine.registry import registered
from . import compile, cpp
from .graph import ROW, NotInLanguage, topological
from .program import Program, program
from .row import Row, RowFunction, TensorRow, Trace, outputs_of, trace
from .stream import NoStream, Ranges, StreamForm, windows_of
from .words import over, relu

# A field of a description that is above 0 for sure, which may save a pass.
Positive = Annotated[float, "above 0"]


class Forms:
    """A traced function in all its forms, each made when it is asked for."""

    def __init__(self, name: str, traced: Callable[[], Trace], outputs: int = 1) -> None:
        self.name = name
        self._traced, self._outputs = traced, outputs
        self._streams: dict[tuple[Any, ...], StreamForm | str] = {}
        self._last: tuple[Any, Any] = None, None  # what was asked for, and the answer

    @lazy
    def program(self) -> Program | str:
        """The passes of the row and of its derivatives, or which word of the function is none."""
        try:
            made = self._traced()
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
            return compile.load((cpp.functor(self.program, self.name),), (self.name,))[0]
        except compile.CannotCompile as error:
            compile.notice(str(error))
            return str(error)

    def streamed(self, ranges: Ranges, size: int) -> tuple[StreamForm, tuple[float, ...]] | str:
        """The streamed form for inputs within `ranges` and its members, or why there is none."""
        asked = size, tuple((name, *within) for name, within in ranges.items())
        last, found = self._last
        if last != asked:  # else as a step before: ranges are taken through the whole function
            found = self._streamed(ranges, size)
            self._last = asked, found
        return found

    def _streamed(self, ranges: Ranges, size: int) -> tuple[StreamForm, tuple[float, ...]] | str:
        if isinstance(self.program, str):
            return self.program
        made = self.program.trace
        windows = windows_of(made, ranges, size)
        key = (size, *windows.items())
        if key not in self._streams:
            name = "_".join([self.name, f"stream{8 * size}", *(str(n) for n in windows.values())])
            try:
                self._streams[key] = StreamForm(made, name, windows, size)
            except NoStream as error:
                self._streams[key] = str(error)
        form = self._streams[key]
        return form if isinstance(form, str) else (form, form.members(ranges))

    @lazy
    def tiles(self) -> Any:
        """The tile functor, or None."""
        if isinstance(self.program, str) or importlib.util.find_spec("triton") is None:
            return None
        from . import tiles

        try:
            made = tiles.PrintedTiles(self.program.trace, self.name)
            made.load()
            return made
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
    printed. `row` must not branch on a float. Of one that is `Positive` it is known that it is above 0.
    """

    # Attributes made of the fields that `row` reads too, such as `sign`; they are `lazy`.
    derived: typing.ClassVar[tuple[str, ...]] = ()
    # Fields that it does not read.
    unread: typing.ClassVar[tuple[str, ...]] = ()
    # Flags that stay open too, as 0 and 1.
    numbers: typing.ClassVar[tuple[str, ...]] = ()

    @lazy
    def sign(self) -> float:
        """1 where what is larger is nearer, -1 for distances."""
        return float(self.metric.sign)

    def row(self, p: Row) -> Any:
        """The number that a row adds to the loss (or its outputs), in the words of the language."""
        raise NotImplementedError

    @lazy
    def arguments(self) -> dict[str, Any]:
        """What `row` reads of this object."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "similarity"]
        names = [n for n in (*names, *self.derived) if n not in self.unread]
        return {n: float(v) if n in self.numbers else v for n in names for v in [getattr(self, n)]}

    @classmethod
    def function(cls, p: Row, /, **arguments: Any) -> Any:
        """The row of a description of these arguments."""
        view = object.__new__(cls)
        # Else what a row made of the similarity would be that of the class's default: it is `derived`.
        view.__dict__.update(arguments, similarity=None)
        return view.row(p)

    def spec(self, rows: Rows) -> Tensor:
        p = TensorRow(rows)
        others = [x for x in (p.positive, p.negative, rows.s, rows.teacher) if x is not None]
        with over(rows.s.dtype, p.pair, *others):
            return outputs_of(self.read(p), rows.s.shape[0]).to(rows.s.dtype)

    def read(self, p: Row) -> Any:
        """The row, with arguments that are learnt read from the call."""
        return self.function(p, **_read(p, self.arguments, len(self.learnable)))

    @property
    def open_arguments(self) -> dict[str, float]:
        """The parameters of what is printed."""
        return {k: float(v) for k, v in self.arguments.items() if is_number(v)}

    @lazy
    def forms(self) -> Forms:
        arguments = self.arguments
        chosen = tuple((k, v) for k, v in arguments.items() if not is_number(v))
        opened = tuple(k for k, v in arguments.items() if is_number(v))
        return _forms(type(self), chosen, opened)  # type: ignore[arg-type]

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

    @lazy
    def functor_name(self) -> str:
        return self.forms.name

    def functor(self) -> int | str | None:
        """None where the library was built with this form; else it is compiled at its first use."""
        return None if self._built_in else self.forms.functor

    @lazy
    def _built_in(self) -> bool:
        return registered(self) and self.forms.name in library.functors()

    def streamed(self, ranges: Ranges, size: int) -> tuple[StreamForm, tuple[float, ...]] | str:
        opened = {f"parameter {k}": [(v, v)] for k, v in self.open_arguments.items()}
        return self.forms.streamed({**ranges, **opened}, size)


def _read(p: Row, arguments: Mapping[str, Any], first: int) -> dict[str, Any]:
    """The arguments, those among them that are learnt read from the row, where they stand from value
    `first` of the call on."""
    p.learnt = (first, sum(isinstance(v, Learnt) for v in arguments.values()))
    return {k: p.parameter(v.k) if isinstance(v, Learnt) else v for k, v in arguments.items()}


def _made(
    loss: Described | type[Described],
    name: str,
    function: RowFunction,
    arguments: Mapping[str, Any],
    opened: Collection[str],
    positive: Collection[str],
) -> Forms:
    """The forms of function(p, **arguments) and its open arguments. Values of the call of which a loss has
    derivatives come before its learnt parameters."""
    first = len(loss.learnable)
    learnt = sum(isinstance(v, Learnt) for v in arguments.values())

    def read(p: Row, /, **numbers: Any) -> Any:
        return function(p, **_read(p, arguments, first), **numbers)

    def traced() -> Trace:
        return trace(read, tuple(opened), loss.counted, positive, first + learnt)

    return Forms(name, traced, loss.outputs)


@functools.lru_cache(maxsize=1024)
def _forms(
    kind: type[Described], chosen: tuple[tuple[str, Any], ...], opened: tuple[str, ...]
) -> Forms:
    """The forms that all descriptions of a kind share whose fields differ in open numbers only."""
    arguments = dict(chosen)
    positive = positive_fields(kind)  # type: ignore[arg-type]
    return _made(kind, _name(kind, arguments, opened), kind.function, arguments, opened, positive)


@functools.cache
def positive_fields(kind: type) -> frozenset[str]:
    """The fields of a description that are above 0 for sure, also where it gives them other defaults."""
    hints = [typing.get_type_hints(base, include_extras=True) for base in kind.__mro__]
    return frozenset(k for found in hints for k, v in found.items() if v == Positive)


def _name(kind: type[Described], chosen: Mapping[str, Any], opened: tuple[str, ...]) -> str:
    """What the functor is called: as the loss, and by what distinguishes it from that of its defaults."""
    usual = kind().arguments
    words = [kind.name]
    for name, default in usual.items():
        if name in opened:
            words += [] if is_number(default) else [name]
            continue
        value = chosen[name]
        if value == default and isinstance(value, type(default)):
            continue
        match value:
            case None | False:
                words += ["without", name]
            case True:
                words.append(name)
            case Learnt():
                words += ["learnt", name]
            case _:
                words += [name, str(value)]
    return compile.plain("_".join(words))


@dataclasses.dataclass(frozen=True, eq=False)
class DescribedLoss(Described):
    """A user's function(p, **arguments); `Learnt` arguments are read from the call. Equal only to itself:
    functions need not be hashable.

    taught: the similarity of the teacher, if there is one. floor: rows below 0 are 0.
    """

    function: RowFunction  # type: ignore[assignment]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # type: ignore[assignment]
    taught: str | None = None
    floor: bool = False
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def name(self) -> str:  # type: ignore[override]
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def teacher_similarity(self) -> str | None:  # type: ignore[override]
        return self.taught

    def read(self, p: Row) -> Any:
        return self._floored(p, **_read(p, self.arguments, len(self.learnable)))

    def spec(self, rows: Rows) -> Tensor:
        if isinstance(self.forms.program, str):  # else it reads no tensor but those of the row
            check.reads_no_parameter(
                super().spec(rows.one_detached()), self.name, "expected it among parameters, or detached"
            )
        found = super().spec(rows)
        if found.dim() > 1:
            raise ValueError(
                f"fn: expected one number of every row from {self.name!r}, got a tuple"
            )
        return found

    @lazy
    def forms(self) -> Forms:
        opened = self.open_arguments
        chosen = {k: v for k, v in self.arguments.items() if k not in opened}
        positive = [k for k, v in opened.items() if v > 0]
        name = f"user_{compile.plain(self.name) or 'loss'}"  # whatever its function is called
        return _made(self, name, self._floored, chosen, opened, positive)

    def _floored(self, p: Row, /, **arguments: Any) -> Any:
        found = self.function(p, **arguments)
        return relu(found) if self.floor and not isinstance(found, tuple) else found


def is_number(x: object) -> bool:
    """Whether an argument is a number that stays open."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)
