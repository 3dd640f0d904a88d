"""A program as a row functor in the words of csrc/rows/row.h."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .graph import (
    CONSTANT,
    HIGHEST,
    PAIR,
    REDUCTIONS,
    Node,
    conjuncts,
    topological,
)
from .kinds import COSTLY, of_both, of_negatives
from .program import Program

OPERATIONS = {"sum": "Sum", "amax": "Max", "amin": "Min"}
_RESULTS = {"sum": "sum", "amax": "top", "amin": "least"}  # what they are called
# How tightly the text of an expression binds.
OR, AND, COMPARE, SUM, PRODUCT, UNARY, ATOM = range(7)


class Spelling(NamedTuple):
    """How an operation is written: with places for its arguments, how tightly it binds, and how tightly what
    stands in those places has to."""

    text: str
    binds: int = ATOM
    within: tuple[int, ...] = (OR, OR, OR)


# A word that is not listed is called as a function.
SPELLINGS = {
    "lowest": Spelling("lowest<T>()"),
    "highest": Spelling("highest<T>()"),
    "s": Spelling("p.s"),
    "positive": Spelling("p.positive"),
    "teacher": Spelling("p.teacher()"),
    "column": Spelling("p.column({value})"),
    "add": Spelling("{} + {}", SUM, (SUM, PRODUCT)),
    "mul": Spelling("{} * {}", PRODUCT, (PRODUCT, UNARY)),
    "div": Spelling("{} / {}", PRODUCT, (PRODUCT, UNARY)),
    "neg": Spelling("-{}", UNARY, (UNARY,)),
    "lt": Spelling("{} < {}", COMPARE, (COMPARE, SUM)),
    "le": Spelling("{} <= {}", COMPARE, (COMPARE, SUM)),
    "eq": Spelling("{} == {}", COMPARE, (COMPARE, SUM)),
    "not": Spelling("!{}", UNARY, (UNARY,)),  # of vectors, each lane's
    "where": Spelling("select({}, {}, {})"),
    "where of the row": Spelling("({} ? {} : {})"),
    "max": Spelling("max({}, {})"),
    "sqrt": Spelling("sqrt(max({}, T(0)))"),
    "slack": Spelling("T(8) * {epsilon} * {}", PRODUCT, (UNARY,)),
    "apart": Spelling("({})"),
}


class Text:
    """Expressions as text, with names for what is used more than once."""

    epsilon = "epsilon<T>()"  # of the type of the pairs
    spellings: Mapping[str, Spelling] = SPELLINGS
    signs = 2  # of "and" and "or" of the row: && and ||

    def __init__(self, outer: Text | None = None) -> None:
        """outer: whose names it knows, and whose count it goes on with."""
        self.names: dict[Node, str] = dict(outer.names) if outer else {}
        self.lines: list[str] = []
        self.numbers: Iterator[int] = outer.numbers if outer else itertools.count()

    def name(self, node: Node, hint: str) -> str:
        """A new name for a node, which is defined by a line of its own."""
        self.names[node] = f"{hint}{next(self.numbers)}"
        return self.names[node]

    def shared(
        self, nodes: Sequence[Node], roots: Collection[Node], least: int
    ) -> Iterator[tuple[str, str]]:
        """The names that it gives to what is used more than once, and to costly functions, of at least this
        level, and their texts."""
        uses = Counter(a for node in nodes for a in node.args)
        for node in nodes:
            named = not node.args or node in self.names or node.level < least or node is HIGHEST
            if not named and (uses[node] > 1 or (node.op in COSTLY and node not in roots)):
                text = self.expression(node)
                yield self.name(node, "m" if node.is_mask else "x"), text

    def expression(self, node: Node, within: int = OR) -> str:
        text, binds = self._text(node)
        return f"({text})" if binds < within else text

    def literal(self, x: float | bool) -> str:
        if isinstance(x, bool):
            return "true" if x else "false"
        if x != x:
            return 'T(__builtin_nan(""))'
        if x in (float("inf"), float("-inf")):
            return "highest<T>()" if x > 0 else "lowest<T>()"
        return f"T({x:g})" if float(f"{x:g}") == x else f"T({x!r})"

    def spelling(self, node: Node) -> Spelling:
        op = "highest" if node is HIGHEST else node.op
        if op == "where" and node.level < PAIR:
            op = "where of the row"
        return self.spellings.get(op, Spelling(f"{op}({{}})"))

    def _text(self, node: Node) -> tuple[str, int]:
        if node in self.names:
            return self.names[node], ATOM
        args: Sequence[Node] = node.args
        match node.op:
            case "constant":
                return self.literal(node.value), ATOM
            case "and" | "or":
                return self._masks(node)
            case "max":
                args = sorted(args, key=lambda x: -x.level)
            case "add":
                if args[0].op == "neg" and args[1].op != "neg":
                    args = args[::-1]  # b - a
                a, b = args
                if b.op == "neg" and b is not HIGHEST and b not in self.names:
                    return f"{self.expression(a, SUM)} - {self.expression(b.args[0], PRODUCT)}", SUM
            case "neg" if node is HIGHEST:
                args = ()
        text, binds, within = self.spelling(node)
        texts = [self._argument(a, node, k) for a, k in zip(args, within)]
        return text.format(*texts, value=node.value, epsilon=self.epsilon), binds

    def _masks(self, node: Node) -> tuple[str, int]:
        """Several conditions as one."""
        sign, binds = ("&", AND) if node.op == "and" else ("|", OR)
        sign = f" {sign if node.level == PAIR else sign * self.signs} "
        parts = conjuncts(node, self.names) if node.op == "and" else node.args
        # Compilers suspect a slip where a negation comes first.
        parts = sorted(parts, key=self._negates)
        if self._negates(parts[0]):
            other = sign.translate(str.maketrans("&|", "|&"))
            return f"!({other.join(self._argument(x.args[0], node, SUM) for x in parts)})", UNARY
        return sign.join(self._argument(x, node, SUM) for x in parts), binds

    def _negates(self, mask: Node) -> bool:
        return mask.op == "not" and mask not in self.names

    def _argument(self, x: Node, within: Node, binds: int) -> str:
        """An argument. A mask beside masks of pairs: a condition of the row as one that all its pairs have
        alike."""
        text = self.expression(x, binds)
        if not x.is_mask or within.level < PAIR or x.level == PAIR or text.startswith("row.is("):
            return text
        return f"(p.s * T(0) == p.s * T(0) + T({text} ? 0 : 1))"


def member(name: str) -> str:
    """A parameter's name as that of a member: no keyword, and no name that is printed for anything else."""
    return re.sub(r"[^a-zA-Z0-9_]", lambda found: f"u{ord(found[0]):x}", name) + "_"


# What inputs of the row and the call are called, and where they are read.
_INPUTS = {
    "scalar": ("scalar_{}", "row.scalar({})"),
    "row_value": ("value_{}", "row.value({})"),
    "weight": ("weight_{}", "row.weight({}, {})"),
    "candidates": ("candidates", "T(row.candidates())"),
    "columns": ("columns", "T(row.candidates() + (row.has_own() ? 1 : 0))"),
}


class RowPrinter(Text):
    """The body of the functor. Numbers of the row are defined when a pass, or the result, needs them."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        bounds = [n for n in topological(program.roots) if n.op in ("bound", "cut")]
        self.bounds = {n: f"bound_{k}" for k, n in enumerate(bounds)}
        self.uses = Counter(a for node in topological(program.roots) for a in set(node.args))

    def define(self, nodes: Iterable[Node]) -> None:
        """Gives the inputs and shared expressions of the row in these nodes a name."""
        for node in topological(nodes, known=self.names):
            if node in self.names or node.level in (CONSTANT, PAIR) or node.op in REDUCTIONS:
                continue
            if not node.args:
                self.names[node], text = self._input(node)
                self.lines.append(f"const T {self.names[node]} = {text};")
            elif self.uses[node] > 1 and node.op != "neg":
                self._define(node)

    def _define(self, node: Node) -> None:
        text = self.expression(node)
        kind = "bool" if node.is_mask else "T"
        self.lines.append(
            f"const {kind} {self.name(node, 'is' if node.is_mask else 'v')} = {text};"
        )

    def _input(self, node: Node) -> tuple[str, str]:
        """What an input of the row or the call is called, and where it is read."""
        if node.op in _INPUTS:
            name, text = (x.format(node.value, len(self.program.outputs)) for x in _INPUTS[node.op])
            return name, text
        name = member(node.value[0]) if node.op == "parameter" else self.bounds[node]
        return name, f"this->{name}"

    def sweep(self, nodes: Sequence[Node], needed: bool) -> None:
        """A pass; needed: also where only the loss is asked for."""
        roots = of_both(nodes)
        self.hoist(roots)
        names = [self.name(node, _RESULTS[node.op]) for node in nodes]
        body = lambda_of(self, roots, "values", negatives=self._negatives(nodes))
        operations = ", ".join(f"{OPERATIONS[n.op]}{{}}" for n in nodes)
        fold = f"row.reduce({body}, {operations})"
        if not needed:
            fold = f"row.wants_weights() ? {fold} : Values<T, {len(nodes)}>{{}}"
        self.lines.append(f"const auto [{', '.join(names)}] = {fold};")

    def hoist(self, roots: Sequence[Node], below: int = PAIR) -> None:
        """Defines what the pairs' expressions read of the row, or of the call alone (below its level)."""
        nodes = topological(roots, pairs=True)
        read = [x for n in nodes if n.level == PAIR for x in n.args]
        read = [x for x in (*read, *roots) if CONSTANT < x.level < below]
        self.define(read)
        for node in read:
            if node not in self.names and node.args:
                self._define(node)

    def map(self) -> None:
        for k, slope in enumerate(self.program.column_slopes):
            self._each(f"d_column({k}, ", slope)
        self._each("map(", self.program.weight)

    def _each(self, word: str, of_pair: Node) -> None:
        roots = of_both([of_pair])
        self.hoist(roots)
        body = lambda_of(self, roots, "", negatives=self._negatives([of_pair]))
        self.lines.append(f"row.{word}{body});")

    def _negatives(self, nodes: Sequence[Node]) -> list[Node]:
        found = of_negatives(nodes)
        self.hoist(found)
        return found

    def derivatives(self) -> None:
        for word, op in (("d_scalar", "scalar"), ("d_value", "row_value")):
            found = self.program.by(op)
            self.define(found.values())
            for k, d in found.items():
                self.lines.append(f"row.{word}({k}, {self.expression(d)});")

    def result(self) -> str:
        outputs = self.program.outputs
        self.define(outputs)
        texts = [self.expression(x) for x in outputs]
        if self.program.trace.counted:
            return f"return Counted<T>{{{texts[0]}, {texts[1]}}};"
        if len(texts) > 1:
            return f"return values({', '.join(f'T({t})' for t in texts)});"
        return f"return {texts[0]};"


def lambda_of(
    row: Text,
    roots: Sequence[Node],
    wrap: str,
    negatives: Sequence[Node] = (),
) -> str:
    """A lambda of a pair; numbers of the row have names already. negatives: what it is where no pair is a
    positive."""
    before: list[str] = []
    if negatives:
        inner = _block(row, negatives, wrap)
        before = ["if (!any(p.positive)) {", *(f"  {line}" for line in inner), "}"]
    lines = before + _block(row, roots, wrap)
    if len(lines) == 1:
        return f"[=](auto p) {{ {lines[0]} }}"
    body = "\n".join(f"  {line}" for line in lines)
    return f"[=](auto p) {{\n{body}\n}}"


def _block(row: Text, roots: Sequence[Node], wrap: str) -> list[str]:
    """The lines that compute and return what a pair adds."""
    pair = Text(row)
    shared = pair.shared(topological(roots, pairs=True), set(roots), PAIR)
    lines = [f"auto {name} = {text};" for name, text in shared]
    texts = []
    for root in roots:
        text = pair.expression(root)
        texts.append(text if root.level == PAIR else f"p.s * T(0) + {text}")
    found = f"{wrap}({', '.join(texts)})" if wrap else texts[0]
    return [*lines, f"return {found};"]


def functor(program: Program, name: str, also: Sequence[str] = ()) -> str:
    """The text of a header as in csrc/rows: a functor called `name`, registered as such, and as `also`."""
    printer = RowPrinter(program)
    needed = {n for n in topological(program.outputs) if n.op in REDUCTIONS}
    for nodes in program.passes:
        printer.sweep(nodes, any(n in needed for n in nodes))
    printer.derivatives()
    result = printer.result()
    printer.map()
    printer.lines.append(result)
    members = ", ".join(map(member, program.trace.parameters)) or "unused"
    kind = camel(name)
    body = indented(read_later(printer.lines), 4)
    registered = "\n".join(f"FASTDML_ROW_LOSS({one}, {kind})" for one in (name, *also))
    return f"""// {name}, printed from its description.
#pragma once

namespace fastdml {{
inline namespace FASTDML_ISA {{

template <class T>
struct {kind} {{
  T {members};

  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {{
{body}
  }}
}};

}}  // namespace FASTDML_ISA
}}  // namespace fastdml
{registered}
"""


def read_later(lines: Sequence[str]) -> list[str]:
    """The lines less definitions that no later one reads: parts of an expression that was printed whole."""
    kept: list[str] = []
    for line in reversed(lines):
        defined = re.match(r"const (?:T|bool) (\w+) = ", line)
        if defined is None or any(re.search(rf"\b{defined[1]}\b", later) for later in kept):
            kept.append(line)
    return kept[::-1]


def indented(lines: Sequence[str], by: int) -> str:
    return "\n".join(" " * by + part for line in lines for part in line.split("\n"))


def camel(name: str) -> str:
    """The name of a functor's type."""
    return "".join(part.capitalize() for part in re.split(r"\W|_", name))
