"""A program in its streamed form: pairs of one set, each visited once for both its ends (csrc/cpu/stream.h).

Log-sum-exps have numbers of the call as their references where exponents are bounded (`windows_of`), so that
an exponential is the same for both rows of a pair, and so is everything else that reads nothing of the row:
the compiler computes it once. Else their reference is the row's largest exponent, found in a sweep more.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine import library
from . import compile
from .cpp import OPERATIONS, RowPrinter, camel, indented, lambda_of, member
from .graph import COLUMNS, ROW, Node, topological, upwards
from .kinds import of_both
from .program import Program, of_positives, program
from .row import Trace
from .statistics import prepared

MOST_PASSES = 4
_UNUSED = "static_cast<void>(statistic), static_cast<void>(row)"
_CALL = "[[maybe_unused]] const Call& call"
# How far below and above a number taken out of them exponents may lie: what a type holds, with room for the
# sum and for what the exponentials are multiplied by.
_REACH = {4: (78.0, 68.0), 8: (680.0, 640.0)}
# And how far below where there is a one besides, exp(0), beneath which exponents count for nothing:
# exponentials are exp(-87) at the least (in double precision exp(-708)), and all of a row must be nothing
# beside it.
_REACH_OF_ONE = {4: 50.0, 8: 640.0}
_MOST_WINDOWS = 3
# Where an interval is as wide as this, it is looked at piece by piece.
_SURE = 60.0
_PIECES = 64

# Ends of an interval: numbers, or arrays of many intervals' ends.
Interval = tuple[Any, Any]
Ranges = Mapping[str, Sequence[Interval]]


class NoStream(NotImplementedError):
    """Why a program has no streamed form."""


class StreamForm:
    """The streamed form of a traced function, as the executor asks for it (`RowLoss.streamed`).

    windows: of its log-sum-exps: see `windows_of`. size: of the type, in bytes.

    text: the functor; key: what the compiled library knows it by. statistics: how many each pass has;
    among_positives: which passes gather from positives alone, so that others can be left out; reads: what
    each pass, and the weight last, read of a row. columns: values of a candidate that are read; slopes: by
    how many of them, from the first, there are derivatives. needed: how many passes the outputs take.
    settled: whether no statistic reads the outputs' weights in the result.

    Raises:
        NoStream: saying why there is none.
    """

    def __init__(self, trace: Trace, name: str, windows: Mapping[Node, int], size: int) -> None:
        self.program = made = _scheduled(trace, windows)
        if not 1 <= len(made.passes) <= MOST_PASSES:
            raise NoStream(f"it has {len(made.passes)} passes")
        self.name, self.size = name, size
        self.columns, self.slopes = made.count("column"), len(made.column_slopes)
        self.statistics = tuple(map(len, made.passes))
        self.among_positives = tuple(map(_narrow, made.passes))
        outputs = set(topological(made.outputs))
        self.needed = max((k + 1 for k, n in enumerate(made.passes) if outputs & {*n}), default=0)
        self._gathered = [n for nodes in made.passes for n in nodes]
        self.settled = not any(n.op == "weight" for n in topological(self._gathered))
        self._bounds = RowPrinter(made).bounds
        # What pairs give each pass, and their weights and slopes; and what these read of the row.
        self._forms = [of_both(nodes) for nodes in (*made.passes, (made.weight, *made.column_slopes))]
        self._known = [
            [n for n in topological(roots, pairs=True) if n.level == ROW] for roots in self._forms
        ]
        self.reads = tuple(map(len, self._known))
        self.text = self._text()
        self.key = hashlib.sha256(self.text.encode()).hexdigest()[:24]
        self._loaded = -1
        self._refused: str | None = None  # why it could not be compiled

    @property
    def sweeps(self) -> int:
        """The passes over all pairs."""
        return self.among_positives.count(False)

    @property
    def _asked(self) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        return (self.text,), (self.name,), True

    @property
    def id(self) -> int:
        """Its number in the compiled library; -1 before it is compiled."""
        return library.streams().get(self.key, self._loaded)

    @property
    def ready(self) -> bool:
        """Whether it has been compiled: with the library, or on this machine."""
        return self.id >= 0 or compile.kept(*self._asked)

    def compiled(self) -> str | None:
        """Gives it its `id`; or why it cannot be compiled here."""
        try:
            if self.id < 0 and self._refused is None:
                self._loaded = compile.load(*self._asked)[0]
        except compile.CannotCompile as error:
            self._refused = str(error)
        return self._refused

    def members(self, ranges: Ranges) -> tuple[float, ...]:
        """The functor's members for inputs within `ranges`."""
        found = [ranges[f"parameter {name}"][0][0] for name in self.program.trace.parameters]
        for bound in self._bounds:
            x, k, one = bound.value
            below, above = _reach(self.size, one)
            least, most = _exponents(x, one, ranges)
            centre = most - max(0.0, min(above, most - least - below)) - k * (below + above)
            found.append(centre if bound.op == "bound" else centre - below)
        return tuple(found) or (0.0,)

    def _printer(self, reads: Sequence[Node] = ()) -> RowPrinter:
        made = RowPrinter(self.program)
        # Numbers of the rows are in double precision, whatever pairs are in.
        made.epsilon = f"epsilon<{'float' if self.size == 4 else 'double'}>()"
        made.names |= {n: f"row{'.is' * n.is_mask}({k})" for k, n in enumerate(reads)}
        return made

    def _pairs(
        self, k: int, name: str, roots: Sequence[Node], wrap: str = "values"
    ) -> list[str]:
        """A function that makes the lambda of a pass, or of the weight."""
        printer = self._printer()
        inner = self._printer(self._known[k])
        # Numbers of the call have names outside of the lambda, numbers of the row are its argument's.
        printer.hoist(roots, below=ROW)
        inner.names |= {n: text for n, text in printer.names.items() if n not in inner.names}
        inner.numbers = printer.numbers
        body = lambda_of(inner, roots, wrap)
        head = "[=](auto p, [[maybe_unused]] auto row) __attribute__((always_inline))"
        body = body.replace("[=](auto p)", head, 1)
        lines = [line.replace("row.", "call.") for line in printer.lines]
        return _function("Call", f"auto {name}", [*lines, f"return {body};"])

    def _rows(self) -> RowPrinter:
        printer = self._printer()
        printer.names |= {n: f"statistic[{k}]" for k, n in enumerate(self._gathered)}
        printer.names[COLUMNS] = "T(row.columns())"
        return printer

    def _before(self, k: int) -> list[str]:
        printer = self._rows()
        known = self._known[k]
        printer.define(known)
        stored = [f"known[{h}] = {printer.expression(n)};" for h, n in enumerate(known)]
        return _function(
            "Row",
            f"void before(Pass<{k}>, const T* statistic, const Row& row, T* known)",
            [f"{_UNUSED}, static_cast<void>(known);", *printer.lines, *stored],
        )

    def _result(self) -> list[str]:
        printer = self._rows()
        printer.derivatives()
        printer.define(self.program.outputs)
        texts = [printer.expression(x) for x in self.program.outputs]
        return _function(
            "Row",
            "void result(const T* statistic, const Row& row, T* loss)",
            [f"{_UNUSED};", *printer.lines, *(f"loss[{k}] = {t};" for k, t in enumerate(texts))],
        )

    def _text(self) -> str:
        passes = len(self.program.passes)
        members = [member(name) for name in self.program.trace.parameters]
        members += self._bounds.values()
        kind = camel(self.name)
        counts = ", ".join(map(str, (*self.statistics, self.slopes)))
        lines = [
            f"T {', '.join(members) or 'unused'};",
            f"static constexpr int passes = {passes}, outputs = {len(self.program.outputs)};",
            f"static constexpr int columns = {self.columns};",
            f"static constexpr int statistics[] = {{{counts}}};",
        ]
        gathered = [[OPERATIONS[n.op] for n in nodes] for nodes in self.program.passes]
        gathered += [["Sum"] * self.slopes] if self.slopes else []
        for k, names in enumerate(gathered):
            lines.append(f"static Operations<{', '.join(names)}> operations(Pass<{k}>);")
        for k, count in enumerate(self.reads):
            lines.append(f"static constexpr int reads(Pass<{k}>) {{ return {count}; }}")
        weight, *slopes = self._forms[passes]
        for k in range(passes):
            lines += self._pairs(k, f"fold(Pass<{k}>, {_CALL})", self._forms[k])
        if slopes:
            lines += self._pairs(passes, f"fold(Pass<{passes}>, {_CALL})", slopes)
        lines += self._pairs(passes, f"weight({_CALL})", [weight], wrap="")
        for k in range(passes + 1):
            lines += self._before(k)
        lines += self._result()
        symbol = f"FASTDML_JOIN(stream, {self.name}, FASTDML_ISA)"
        functions = (
            f"stream_functions<float, {kind}>(), {{}}"
            if self.size == 4
            else f"{{}}, stream_functions<double, {kind}>()"
        )
        reads = ", ".join(map(str, self.reads))
        return f"""namespace fastdml {{
inline namespace FASTDML_ISA {{

template <class T>
struct {kind} {{
{indented(lines, 2)}
}};

}}  // namespace FASTDML_ISA
extern const Stream {symbol};
const Stream {symbol} = {{
    {functions},
    {len(members) or 1}, {len(self.program.outputs)}, {passes}, {{{counts}}}, {{{reads}}}}};
}}  // namespace fastdml
"""


def _function(kind: str, signature: str, lines: Sequence[str]) -> list[str]:
    """A member function for any `kind` of argument."""
    return [f"template <class {kind}>", f"FASTDML_FN {signature} const {{", indented(lines, 2), "}"]


def _narrow(nodes: Sequence[Node]) -> bool:
    return all(map(of_positives, nodes))


def _scheduled(trace: Trace, windows: Mapping[Node, int]) -> Program:
    """As few passes over all pairs as can be: one among positives, where classes are small, costs next to
    nothing. So multi-similarity's miner waits for the hardest positive alone, before its negatives, and then
    for the hardest of these before its positives."""
    plain = program(trace, reference=windows)
    made = plain.made_of(plain.roots, of_positives)
    whole, fewest = ([*map(_narrow, p.passes)].count(False) for p in (plain, made))
    return made if fewest < whole and len(made.passes) <= MOST_PASSES else plain


def windows_of(trace: Trace, ranges: Ranges, size: int) -> dict[Node, int]:
    """How many windows the exponents of log-sum-exps take for inputs within `ranges`, in a type of `size`
    bytes; where that is few."""
    found = {}
    for node in topological(prepared(trace.outputs, {})):
        if node.op == "log_sum_exp":
            least, most = _exponents(node.args[0], node.value, ranges)
            count = (most - least) / sum(_reach(size, node.value))
            if count <= _MOST_WINDOWS:
                found[node] = max(1, math.ceil(count))
    return found


def _reach(size: int, one: bool) -> tuple[float, float]:
    below, above = _REACH[size]
    return (_REACH_OF_ONE[size] if one else below), above


def _exponents(x: Node, one: bool, ranges: Ranges) -> Interval:
    """Between which numbers exponents lie; one: and 0, below which they count for nothing."""
    least, most = _interval(x, ranges)
    low, high = ranges["s"][0]
    if most - least > _SURE and high - low < math.inf:
        # The narrower the interval, the nearer to the truth.
        edges = np.linspace(low, high, _PIECES + 1)
        lows, highs = _interval(x, {**ranges, "s": [(edges[:-1], edges[1:])]})
        least, most = float(np.min(lows)), float(np.max(highs))
    return (0.0, max(most, 0.0)) if one else (least, most)


def _interval(x: Node, ranges: Ranges) -> Interval:
    """Between which numbers x lies: interval arithmetic, of numbers or of arrays, each piece by itself."""
    with np.errstate(all="ignore"):
        return upwards([x], lambda node, args: _step(node, args, ranges))[x]


def _step(node: Node, args: Sequence[Interval], ranges: Ranges) -> Interval:
    match node.op:
        case "constant" if not node.is_mask:
            return node.value, node.value
        case "parameter":
            return ranges[f"parameter {node.value[0]}"][0]
        case "s" | "teacher" | "scalar" | "row_value" | "column" if node.op in ranges:
            return ranges[node.op][node.value or 0]
        case "detach" | "apart":
            return args[0]
        case "add":
            return args[0][0] + args[1][0], args[0][1] + args[1][1]
        case "neg":
            return -args[0][1], -args[0][0]
        case "mul":
            return _around(a * b for a in args[0] for b in args[1])
        case "max":
            return np.maximum(args[0][0], args[1][0]), np.maximum(args[0][1], args[1][1])
        case "where":
            return np.minimum(args[1][0], args[2][0]), np.maximum(args[1][1], args[2][1])
        case "div" if np.all(args[1][0] > 0) or np.all(args[1][1] < 0):
            return _around(a / b for a in args[0] for b in args[1])
    return -math.inf, math.inf


def _around(ends: Iterable[Any]) -> Interval:
    ends = list(ends)
    return functools.reduce(np.minimum, ends), functools.reduce(np.maximum, ends)
