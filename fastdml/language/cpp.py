"""A program as a row functor in the words of csrc/rows/row.h."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from .affine import folded
from .graph import (
    CONSTANT,
    HIGHEST,
    LOWEST,
    PAIR,
    REDUCTIONS,
    ZERO,
    Node,
    conjuncts,
    topological,
    where,
)
from .kinds import COSTLY, costly, of_both, of_kind
from .program import Program

OPERATIONS = {"sum": "Sum", "amax": "Max", "amin": "Min"}
IDENTITY = {"sum": ZERO, "amax": LOWEST, "amin": HIGHEST}
# How tightly the text of an expression binds.
_OR, _AND, _COMPARE, _SUM, _PRODUCT, _UNARY, _ATOM = range(7)
_INFIX = {
    "add": (" + ", _SUM), "mul": (" * ", _PRODUCT), "lt": (" < ", _COMPARE), "le": (" <= ", _COMPARE),
    "eq": (" == ", _COMPARE), "and": (" & ", _AND), "or": (" | ", _OR),
}  # fmt: skip


def pair_forms(nodes: Sequence[Node]) -> list[Node]:
    """What a pass computes of a pair, one expression for both kinds of pairs: what a reduction folds, or
    the expression itself."""
    return of_both(_contributions(nodes))


def _contributions(nodes: Sequence[Node]) -> list[Node]:
    return [where(n.args[1], n.args[0], IDENTITY[n.op]) if n.op in REDUCTIONS else n for n in nodes]


def of_negatives(nodes: Sequence[Node]) -> list[Node]:
    """What a pass computes of a pair that is no positive, if that costs less than any pair does; else
    nothing. Most vectors of pairs hold no positive."""
    alone = folded(of_kind(_contributions(nodes), False))
    return alone if len(costly(alone)) < len(costly(pair_forms(nodes))) else []


class Text:
    """Expressions as text, with names for what is used more than once."""

    epsilon = "epsilon<T>()"  # of the type of the pairs

    def __init__(self, count: int = 0) -> None:
        self.names: dict[Node, str] = {}
        self.lines: list[str] = []
        self._count = count

    def name(self, node: Node, hint: str) -> str:
        """A new name for a node, which is defined by a line of its own."""
        self.names[node] = f"{hint}{self._count}"
        self._count += 1
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

    def expression(self, node: Node, within: int = _OR) -> str:
        text, binds = self._text(node)
        return f"({text})" if binds < within else text

    def _text(self, node: Node) -> tuple[str, int]:
        if node in self.names:
            return self.names[node], _ATOM
        if node.op in _INFIX:
            return self._infix(node)
        args = node.args
        of_row = node.level < PAIR
        match node.op:
            case "constant":
                return literal(node.value), _ATOM
            case "lowest":
                return "lowest<T>()", _ATOM
            case "neg" if node is HIGHEST:
                return "highest<T>()", _ATOM
            case "neg":
                return f"-{self.expression(args[0], _UNARY)}", _UNARY
            case "not":
                return f"!{self._mask(args[0], node, _UNARY)}", _UNARY  # of vectors, each lane's
            case "div":
                low, high = self.expression(args[0], _PRODUCT), self.expression(args[1], _UNARY)
                return f"{low} / {high}", _PRODUCT
            case "slack":
                return f"T(8) * {self.epsilon} * {self.expression(args[0], _UNARY)}", _PRODUCT
            case "where":
                a, b = (self.expression(x, _OR) for x in args[1:])
                condition = self._mask(args[0], node, _OR)
                if of_row:
                    return f"({condition} ? {a} : {b})", _ATOM
                return f"select({condition}, {a}, {b})", _ATOM
            case "max":
                pair, other = sorted(args, key=lambda x: -x.level)
                return f"max({self.expression(pair)}, {self.expression(other)})", _ATOM
            case "sqrt":
                return f"sqrt(max({self.expression(args[0])}, T(0)))", _ATOM
            case "s" | "positive":
                return f"p.{node.op}", _ATOM
            case "teacher":
                return "p.teacher()", _ATOM
            case "column":
                return f"p.column({node.value})", _ATOM
            case "apart":
                return f"({self.expression(args[0])})", _ATOM
        return f"{node.op}({self.expression(args[0])})", _ATOM

    def _infix(self, node: Node) -> tuple[str, int]:
        sign, binds = _INFIX[node.op]
        a, b = node.args
        if node.op == "add":
            if b.op != "neg" and a.op == "neg":
                a, b = b, a
            if b.op == "neg" and b is not HIGHEST and b not in self.names:
                return f"{self.expression(a, _SUM)} - {self.expression(b.args[0], _PRODUCT)}", _SUM
        if node.op in ("and", "or"):
            sign = sign if node.level == PAIR else sign.replace("&", "&&").replace("|", "||")
            parts = conjuncts(node, self.names) if node.op == "and" else node.args
            # Compilers suspect a slip where a negation comes first.
            parts = sorted(parts, key=self._negates)
            if self._negates(parts[0]):
                other = sign.translate(str.maketrans("&|", "|&"))
                return f"!({other.join(self._mask(x.args[0], node, _SUM) for x in parts)})", _UNARY
            return sign.join(self._mask(x, node, _SUM) for x in parts), binds
        return f"{self.expression(a, binds)}{sign}{self.expression(b, binds + 1)}", binds

    def _negates(self, mask: Node) -> bool:
        return mask.op == "not" and mask not in self.names

    def _mask(self, mask: Node, within: Node, binds: int) -> str:
        """A mask beside masks of pairs: a condition of the row as one that all its pairs have alike."""
        text = self.expression(mask, binds)
        if within.level < PAIR or mask.level == PAIR or text.startswith("row.is("):
            return text
        return f"(p.s * T(0) == p.s * T(0) + T({text} ? 0 : 1))"


def member(name: str) -> str:
    """A parameter's name as that of a member: no keyword, and no name that is printed for anything else."""
    return re.sub(r"[^a-zA-Z0-9_]", lambda found: f"u{ord(found[0]):x}", name) + "_"


def literal(x: float | bool) -> str:
    if isinstance(x, bool):
        return "true" if x else "false"
    if x != x:
        return 'T(__builtin_nan(""))'
    if x in (float("inf"), float("-inf")):
        return "highest<T>()" if x > 0 else "lowest<T>()"
    return f"T({x:g})" if float(f"{x:g}") == x else f"T({x!r})"


class RowPrinter(Text):
    """The body of the functor. Numbers of the row are defined when a pass, or the result, needs them."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.bounds = [n for n in topological(program.roots) if n.op in ("bound", "cut")]
        self.uses = Counter(a for node in topological(program.roots) for a in set(node.args))

    def define(self, nodes: Iterable[Node]) -> None:
        """Gives the inputs and shared expressions of the row in these nodes a name."""
        for node in topological(nodes, known=self.names):
            if node in self.names or node.level in (CONSTANT, PAIR) or node.op in REDUCTIONS:
                continue
            made = self._input(node) if not node.args else None
            if made is not None:
                hint, text = made
                self.names[node] = hint
                self.lines.append(f"const T {hint} = {text};")
            elif self.uses[node] > 1 and node.args and node.op != "neg":
                self._define(node)

    def _define(self, node: Node) -> None:
        text = self.expression(node)
        kind = "bool" if node.is_mask else "T"
        self.lines.append(
            f"const {kind} {self.name(node, 'is' if node.is_mask else 'v')} = {text};"
        )

    def _input(self, node: Node) -> tuple[str, str] | None:
        k = node.value
        match node.op:
            case "parameter":
                return member(k[0]), f"this->{member(k[0])}"
            case "scalar" | "row_value":
                call = "scalar" if node.op == "scalar" else "value"
                return f"{call}_{k}", f"row.{call}({k})"
            case "weight":
                return f"weight_{k}", f"row.weight({k}, {len(self.program.outputs)})"
            case "candidates":
                return "candidates", "T(row.candidates())"
            case "columns":
                return "columns", "T(row.candidates() + (row.has_own() ? 1 : 0))"
            case "bound" | "cut":
                name = f"bound_{[b is node for b in self.bounds].index(True)}"
                return name, f"this->{name}"
        return None

    def sweep(self, nodes: Sequence[Node], needed: bool) -> None:
        """A pass; needed: also where only the loss is asked for."""
        roots = pair_forms(nodes)
        self.hoist(roots)
        names = [
            self.name(node, {"sum": "sum", "amax": "top", "amin": "least"}[node.op])
            for node in nodes
        ]
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
        roots = pair_forms([of_pair])
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

    def result(self) -> None:
        outputs = self.program.outputs
        self.define(outputs)
        texts = [self.expression(x) for x in outputs]
        if self.program.trace.counted:
            self.lines.append(f"return Counted<T>{{{texts[0]}, {texts[1]}}};")
        elif len(texts) > 1:
            self.lines.append(f"return values({', '.join(f'T({t})' for t in texts)});")
        else:
            self.lines.append(f"return {texts[0]};")


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
    pair = Text(row._count)
    pair.names = dict(row.names)
    shared = pair.shared(topological(roots, pairs=True), set(roots), PAIR)
    lines = [f"auto {name} = {text};" for name, text in shared]
    row._count = pair._count
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
    printer.result()
    result = printer.lines.pop()
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
