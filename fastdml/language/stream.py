"""A program in its streamed form: pairs of one set, each visited once for both its ends (csrc/cpu/stream.h).

Log-sum-exps have a bound of the call as their reference where exponents fit the type then, so that an
exponential is the same for both rows of a pair, and so is everything else that reads nothing of the row: the
compiler computes it once. Else their reference is the row's largest exponent, found in a sweep more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from . import compile
from .cpp import IDENTITY, RowPrinter, camel, guard, indented, lambda_of, pair_forms
from .graph import ROW, Node, topological
from .program import Program, program
from .row import Trace
from .statistics import Reference

MOST_PASSES = 4
_OPERATIONS = {"sum": "Sum", "amax": "Max", "amin": "Min"}
# The most that exponents may lie apart (or above the one): what a type holds, with room for the sum.
_RANGE = {4: 80.0, 8: 690.0}


class NoStream(NotImplementedError):
    """Why a program has no streamed form."""


@dataclasses.dataclass(frozen=True)
class StreamForm:
    """A compiled streamed form, as the executor asks for it (`RowLoss.streamed`).

    id: in the compiled library. statistics: how many each pass has; reads: what each pass, and the
    weight last, read of a row.
    """

    id: int
    program: Program
    bounds: tuple[Node, ...]
    statistics: tuple[int, ...]
    reads: tuple[int, ...]

    def members(
        self,
        parameters: Mapping[str, float],
        scalars: Sequence[float],
        low: float,
        high: float,
        size: int,
    ) -> tuple[float, ...] | str:
        """The functor's members for similarities from low to high, in a type of `size` bytes; or why its
        exponents do not fit there."""
        found = list(parameters.values())
        for bound in self.bounds:
            least, most = _interval(bound.args[0], parameters, scalars, (low, high))
            if bound.value:
                least, most = 0.0, max(most, 0.0)
            if not most - least <= _RANGE[size]:
                return f"exponents that may lie {most - least:.3g} apart do not fit the type"
            found.append(most)
        return tuple(found) or (0.0,)


def compiled(trace: Trace, name: str, reference: Reference = "bound") -> StreamForm:
    """The streamed form of a traced function. reference: of log-sum-exps: see `statistics`.

    Raises:
        NoStream: saying why there is none.
        CannotCompile: why it cannot be compiled here.
    """
    made = program(trace, reference=reference)
    if made.reads("column") or made.reads("teacher"):
        raise NoStream("it reads a teacher or values of the candidates")
    if not 1 <= len(made.passes) <= MOST_PASSES:
        raise NoStream(f"it has {len(made.passes)} passes")
    for node in topological(made.roots):
        if node.op == "bound" and any(n.level == ROW for n in topological([node.args[0]])):
            raise NoStream("an exponent depends on the row")
    printer = StreamPrinter(made, name)
    (number,) = compile.load((printer.text,), (name,), stream=True)
    return StreamForm(number, made, tuple(printer.bounds), printer.statistics, printer.read_counts)


class StreamPrinter:
    """text: the functor."""

    def __init__(self, made: Program, name: str) -> None:
        self.program, self.name = made, name
        self.bounds = RowPrinter(made).bounds
        self.forms = [pair_forms(nodes) for nodes in made.passes] + [pair_forms([made.weight])]
        self.reads = [_reads(roots) for roots in self.forms]
        self.order = [n for nodes in made.passes for n in nodes]
        self.statistics = tuple(len(nodes) for nodes in made.passes)
        self.read_counts = tuple(len(r) for r in self.reads)
        self.text = self._text()

    def _printer(self, reads: Sequence[Node] = ()) -> RowPrinter:
        made = RowPrinter(self.program)
        made.names |= {n: f"row({k})" for k, n in enumerate(reads)}
        return made

    def _pairs(self, k: int, head: str, wrap: str) -> list[str]:
        """A function that makes the lambda of a pass, or of the weight."""
        reads = self.reads[k]
        printer = self._printer()
        inner = self._printer(reads)
        # Numbers of the call have names outside of the lambda, numbers of the row are its argument's.
        read = [x for n in topological(self.forms[k], pairs=True) for x in n.args]
        calls = [x for x in (*read, *self.forms[k]) if 0 < x.level < ROW]
        printer.define(calls)
        for node in calls:
            if node not in printer.names and node.args:
                printer._define(node)
        inner.names |= {n: text for n, text in printer.names.items() if n not in inner.names}
        inner._count = printer._count
        empty = [IDENTITY[n.op] for n in self.program.passes[k]] if wrap else []
        passed = guard(self.forms[k], empty) if wrap else None
        body = lambda_of(inner, self.forms[k], wrap, passed, empty)
        body = body.replace("[=](auto p)", "[=](auto p, auto row)", 1)
        lines = [line.replace("row.", "call.") for line in printer.lines]
        return [
            "template <class Call>",
            f"FASTDML_FN auto {head} const {{",
            *("  " + line for line in lines),
            *("  " + line for line in f"return {body};".split("\n")),
            "}",
        ]

    def _rows(self) -> RowPrinter:
        printer = self._printer()
        printer.names |= {n: f"statistic[{k}]" for k, n in enumerate(self.order)}
        return printer

    def _before(self, k: int) -> list[str]:
        printer = self._rows()
        printer.define(self.reads[k])
        lines = [*printer.lines]
        lines += [f"known[{h}] = {printer.expression(n)};" for h, n in enumerate(self.reads[k])]
        return [
            "template <class Row>",
            f"FASTDML_FN void before(Pass<{k}>, const T* statistic, const Row& row, T* known) const {{",
            "  static_cast<void>(statistic), static_cast<void>(row), static_cast<void>(known);",
            *("  " + line for line in lines),
            "}",
        ]

    def _result(self) -> list[str]:
        printer = self._rows()
        printer.derivatives()
        printer.define(self.program.outputs)
        texts = [printer.expression(x) for x in self.program.outputs]
        return [
            "template <class Row>",
            "FASTDML_FN void result(const T* statistic, const Row& row, T* loss) const {",
            "  static_cast<void>(statistic), static_cast<void>(row);",
            *("  " + line for line in printer.lines),
            *(f"  loss[{k}] = {text};" for k, text in enumerate(texts)),
            "}",
        ]

    def _text(self) -> str:
        passes = len(self.program.passes)
        members = [*self.program.trace.parameters, *(f"bound_{k}" for k in range(len(self.bounds)))]
        kind = camel(self.name)
        counts = ", ".join(map(str, self.statistics))
        lines = [
            f"T {', '.join(members) or 'unused'};",
            f"static constexpr int passes = {passes}, outputs = {len(self.program.outputs)};",
            f"static constexpr int statistics[] = {{{counts}}};",
        ]
        for k, nodes in enumerate(self.program.passes):
            operations = ", ".join(_OPERATIONS[n.op] for n in nodes)
            lines.append(f"static Operations<{operations}> operations(Pass<{k}>);")
        for k, count in enumerate(self.read_counts):
            lines.append(f"static constexpr int reads(Pass<{k}>) {{ return {count}; }}")
        for k in range(passes):
            lines += self._pairs(k, f"fold(Pass<{k}>, const Call& call)", "values")
        lines += self._pairs(passes, "weight(const Call& call)", "")
        for k in range(passes + 1):
            lines += self._before(k)
        lines += self._result()
        symbol = f"FASTDML_JOIN(stream, {self.name}, FASTDML_ISA)"
        reads = ", ".join(map(str, self.read_counts))
        return f"""namespace fastdml {{
inline namespace FASTDML_ISA {{

template <class T>
struct {kind} {{
{indented(lines, 2)}
}};

}}  // namespace FASTDML_ISA
extern const Stream {symbol};
const Stream {symbol} = {{
    stream_functions<float, {kind}>(), stream_functions<double, {kind}>(),
    {len(members) or 1}, {len(self.program.outputs)}, {passes}, {{{counts}}}, {{{reads}}}}};
}}  // namespace fastdml
"""


def _reads(roots: Sequence[Node]) -> list[Node]:
    """The numbers of a row that its pairs read."""
    found: dict[Node, None] = {}
    for node in topological(roots, pairs=True):
        if node.level == ROW:
            found[node] = None
    return list(found)


_Interval = tuple[float, float]


def _interval(
    x: Node, parameters: Mapping[str, float], scalars: Sequence[float], s: _Interval
) -> _Interval:
    """Between which numbers x lies for similarities in s: interval arithmetic."""
    known: dict[Node, _Interval] = {}
    for node in topological([x]):
        known[node] = _step(node, [known[a] for a in node.args], parameters, scalars, s)
    return known[x]


def _step(
    node: Node,
    args: Sequence[_Interval],
    parameters: Mapping[str, float],
    scalars: Sequence[float],
    s: _Interval,
) -> _Interval:
    match node.op:
        case "s":
            return s
        case "constant" | "parameter" | "scalar":
            v = node.value
            if node.op == "parameter":
                v = parameters[v[0]]
            elif node.op == "scalar":
                v = scalars[v]
            return float(v), float(v)
        case "add":
            return args[0][0] + args[1][0], args[0][1] + args[1][1]
        case "neg":
            return -args[0][1], -args[0][0]
        case "mul":
            ends = [a * b for a in args[0] for b in args[1]]
            return min(ends), max(ends)
        case "max":
            return max(args[0][0], args[1][0]), max(args[0][1], args[1][1])
        case "where":
            return min(args[1][0], args[2][0]), max(args[1][1], args[2][1])
        case "div" if args[1][0] > 0 or args[1][1] < 0:
            ends = [a / b for a in args[0] for b in args[1]]
            return min(ends), max(ends)
    return (0.0, 1.0) if node.is_mask else (-math.inf, math.inf)
