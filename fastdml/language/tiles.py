"""A program as Triton functions of a tile, in the form of fastdml/kernels/tile.py.

Exponents are to base 2. What depends on parameters alone is computed on the host, what a pair's weight reads
of its row once per row (`states`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import compile
from .cpp import (
    COMPARE,
    OPERATIONS,
    PRODUCT,
    SPELLINGS,
    SUM,
    UNARY,
    Spelling,
    Text,
    camel,
)
from .evaluate import number_on_host
from .graph import (
    CALL,
    CONSTANT,
    LOWEST,
    ONE,
    PAIR,
    ROW,
    TRUE,
    ZERO,
    Node,
    constant,
    contains,
    div,
    make,
    mul,
    neg,
    number,
    number_of,
    rewrite,
    same,
    topological,
    upwards,
)
from .kinds import IDENTITY, NOTHING, costly, joined, of_both, of_kind, specialised
from .program import passes_of, program
from .row import Trace

LOG2E, LN2 = constant(1.4426950408889634), constant(0.6931471805599453)
_OWN = make("own")
_LEAST = constant(1e-6)  # what a gain is at least


def _in_base_two(node: Node) -> Node | None:
    match node.op:
        case "exp" | "softplus" | "sigmoid":
            found = make(f"{node.op}2", mul(LOG2E, node.args[0]))
            return mul(LN2, found) if node.op == "softplus" else found
        case "log":
            return mul(LN2, make("log2", node.args[0]))
        case "log_sum_exp":
            # Of no pair: the kernels leave minus infinity.
            found = make("log_sum_exp", mul(LOG2E, node.args[0]), node.args[1], value="2")
            return make("max", mul(LN2, found), LOWEST)
        case "softmax_mean":
            x, mask, v = node.args
            return make("softmax_mean", mul(LOG2E, x), mask, v, value="2")
        case "candidates":
            return make("sum", ONE, TRUE)
        case "columns":
            return make("sum", ONE, TRUE) + _OWN
    return None


# Where it differs from C++.
_SPELLINGS = {
    **SPELLINGS,
    "lowest": Spelling("-3.4028234663852886e38", UNARY),
    "highest": Spelling("3.4028234663852886e38"),
    "s": Spelling("s"),
    "positive": Spelling("positive"),
    "teacher": Spelling("t"),
    "column": Spelling("t[{value}]"),
    "not": Spelling("{} == 0", COMPARE, (PRODUCT,)),
    "where": Spelling("tl.where({}, {}, {})"),
    "where of the row": Spelling("tl.where({}, {}, {})"),
    "max": Spelling("tl.maximum({}, {})"),
    "sqrt": Spelling("tl.sqrt(tl.maximum({}, 0.0))"),
    "slack": Spelling("9.5e-07 * {}", PRODUCT, (UNARY,)),
    **{op: Spelling(f"tl.{op}({{}})") for op in ("exp2", "log2", "abs", "sin", "cos")},
}


class _Tile(Text):
    """Functions of tiles; names: how numbers of the row and the call are read in the function."""

    spellings = _SPELLINGS
    signs = 1

    def spelling(self, node: Node) -> Spelling:
        found = super().spelling(node)
        if node.op in ("lt", "le", "eq") and node.level <= CALL:
            # In the shape of the pairs, or rows: Triton's interpreter knows no single condition beside many.
            text = f"tl.zeros_like({self.like}) + {found.text}"
            return found._replace(text=text, within=(SUM, SUM))
        return found

    def literal(self, x: float | bool) -> str:
        return repr(x) if math.isfinite(x) else f"float('{x}')"

    def _argument(self, x: Node, within: Node, binds: int) -> str:
        return self.expression(x, binds)

    def _negates(self, mask: Node) -> bool:
        return False  # each by itself: == 0

    def function(
        self, name: str, arguments: str, results: Sequence[Node], wrap: bool = True
    ) -> str:
        """A jitted function that returns the results."""
        # Every result has the shape of what comes in.
        of_pairs, of_rows = (arguments.startswith(x) for x in ("s,", "stats,"))
        level = PAIR if of_pairs else ROW if of_rows else CONSTANT
        self.like = "s" if of_pairs else "stats[0]"
        shared = self.shared(topological(results, known=self.names), set(results), CONSTANT)
        lines = [f"    {name} = {text}" for name, text in shared]
        texts = []
        for result in results:
            text = self.expression(result)
            texts.append(text if result.level >= level else f"{self.like} * 0.0 + {text}")
        found = texts[0]
        if wrap:
            found = "(" + "".join(f"\n        {text}," for text in texts) + "\n    )"
        return "\n".join(
            ["@triton.jit", f"def {name}({arguments}):", *lines, f"    return {found}"]
        )


class NoTile(NotImplementedError):
    """Why a program has no tile functor."""


class PrintedTiles:
    """A printed tile functor, as the executor asks for it (`RowLoss.tiles`). text: the module's source. host:
    what is handed in as parameters, numbers of the call. COUNTS_OWN: whether the last of them is 1 where own
    copies are left out.

    Raises:
        NoTile: saying why there is none.
    """

    functor: Any = None

    def __init__(self, trace: Trace, name: str) -> None:
        made = program(trace, reference="whole")
        roots = rewrite(made.roots, _in_base_two)
        made = made.made_of(roots, lambda node: _Fold([node]).positives_only)
        self.program, self.kind, self.passes = made, name, made.passes
        by_call, by_row, slopes = map(made.derivatives, ("scalar", "row_value", "column"))
        self.scalars, self.inputs, self.columns = len(by_call), len(by_row), len(slopes)
        self.derivatives, self.COUNTS_OWN = [*by_call, *by_row], made.reads("own")
        self.weight, self.column_slopes = made.weight, slopes
        self.gain = _size([self.weight, *self.column_slopes])
        if self.gain.level > CONSTANT:
            self.weight, *self.column_slopes = (
                mul(div(ONE, self.gain), x) for x in (self.weight, *self.column_slopes)
            )
        self.linear = not self.columns and _linear(self.weight)
        self.host = self._host([*roots, self.gain])
        if not self.passes:
            raise NoTile("it reduces nothing over the row")
        if trace.counted:
            raise NoTile("a mean over things that rows count")
        if made.several and any(x is not ZERO for x in self.derivatives):
            raise NoTile("derivatives of several outputs by values of the call or of the row")
        if self.columns and made.reads("teacher"):
            raise NoTile("a teacher beside values of the candidates")
        self.text = self._module()

    def _host(self, roots: Sequence[Node]) -> list[Node]:
        """Expressions of parameters alone that the functions read."""

        def alone(node: Node) -> bool:
            of_call = node.level == CALL and not node.is_mask
            return of_call and not contains(node, ("scalar", "own", "slack"))

        forms = [*roots, *(x for nodes in passes_of(roots) for n in nodes for x in of_both([n]))]
        forms += self._weights(self.column_slopes)
        read = [a for n in topological(forms) if not alone(n) for a in n.args]
        return [*dict.fromkeys(a for a in (*read, *roots) if alone(a))]

    def _weights(self, slopes: Sequence[Node]) -> list[Node]:
        """What the functions for weights and slopes return of a pair."""
        found = of_both([self.weight, *slopes])
        return rewrite(found, _of_the_call_first, pairs=True) if self.linear else found

    def _reader(self, names: Mapping[Node, str]) -> _Tile:
        made = _Tile()
        made.names = {**names, **{node: f"p[{k}]" for k, node in enumerate(self.host)}}
        first = max(1, len(self.host))
        if self.COUNTS_OWN:
            made.names[_OWN] = f"p[{first}]"
        for k in range(self.program.count("scalar")):
            made.names[make("scalar", value=k)] = f"p[{first + self.COUNTS_OWN + k}]"
        return made

    def _module(self) -> str:
        functions, passes = [], []
        known = {make("row_value", value=k): k for k in range(self.inputs)}
        place = self.inputs
        folds = [_Fold(nodes) for nodes in self.passes]
        for k, fold in enumerate(folds):
            reader = self._reader({n: f"row[{at}]" for n, at in known.items()})
            functions.append(reader.function(f"fold_{k}", "s, t, positive, row, p", fold.results))
            only = ", positives_only=True" if fold.positives_only else ""
            passes.append(f"Pass(({', '.join(map(repr, fold.kinds))},), fold_{k}{only})")
            known |= {node: place + i for i, node in enumerate(fold.left) if node is not None}
            place += len(fold.left)
        slopes_of_columns = any(x is not ZERO for x in self.column_slopes)
        weight, *slopes = self._weights(self.column_slopes if slopes_of_columns else ())
        states = _states([weight, *slopes])
        outputs = len(self.program.outputs) if self.program.several else 0
        reader = self._reader({n: f"stats[{at}]" for n, at in known.items()})
        results = [*self.program.outputs, *self.derivatives, *map(number, states)]
        functions.append(reader.function("finish", "stats, p", results))
        read = {make("weight", value=k): f"state[{k}]" for k in range(outputs)}
        for k, n in enumerate(states, outputs):
            read[n] = f"(state[{k}] != 0)" if n.is_mask else f"state[{k}]"
        of_pair = "s, t, positive, state, p"
        functions.append(self._reader(read).function("weight", of_pair, [weight], wrap=False))
        has_gain = self.gain.level > CONSTANT
        if has_gain:
            functions.append(self._reader({}).function("gain", "p", [self.gain], wrap=False))
        if slopes:
            functions.append(self._reader(read).function("column_slopes", of_pair, slopes))
        options = {
            # More statistics than registers hold beside a wide tile: as compiled for sm_90.
            "heavy": any(len(fold.kinds) > (2 if fold.costs else 5) for fold in folds),
            "column_values": self.columns,
            "gain": "gain" if has_gain else None,
            "sparse": _often_zero(self.weight),
            "column_slopes": "column_slopes" if slopes else None,
            "outputs": outputs,
            "linear": self.linear,
            "scalars": self.scalars,
            "inputs": self.inputs,
            "slopes": self.inputs,
            "teacher": self.program.reads("teacher"),
        }
        listed = [f"states={len(states)}", *(f"{k}={v}" for k, v in options.items() if v)]
        return "\n\n\n".join([
            f'"""{camel(self.kind)}, printed from its description."""\n\nimport triton\n'
            "import triton.language as tl\n\nfrom fastdml.kernels.reductions import sigmoid2, softplus2\n"
            "from fastdml.kernels.tile import Pass, TileLoss",
            *functions,
            f"TILE = TileLoss(\n    {self.kind!r},\n    ({', '.join(passes)},),\n    finish,\n    weight,\n"
            f"    {', '.join(listed)},\n)\n",
        ])  # fmt: skip

    def load(self) -> None:
        """Makes the functor, from a module in the cache folder: Triton reads the source of its functions from
        files."""
        try:
            path = compile.stored(self.text, self.kind, ".py")
        except compile.CannotCompile as error:
            raise NoTile(str(error)) from error
        self.functor = compile.module_at(path, f"fastdml_printed_{path.stem}").TILE

    def tile(self, loss: Any) -> Any:
        return self.functor

    def parameters(self, loss: Any) -> tuple[float, ...]:
        """The numbers of the call that the functions read as p, from the loss's parameters."""
        return tuple(number_on_host(node, loss.open_arguments) for node in self.host) or (0.0,)


class _Fold:
    """What a pass folds. kinds: of what the kernel keeps; results: what the function returns for these; left:
    which reduction each value is that the pass leaves; costs: whether it computes costly functions of a pair;
    positives_only: whether negatives give nothing."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.kinds: list[str] = []
        self.left: list[Node | None] = []
        self._positives: list[Node] = []
        self._negatives: list[Node] = []
        self._nothing: list[Node] = []
        means = {n.args[:2]: n for n in nodes if n.op == "softmax_mean"}
        sums = [n for n in nodes if n.op == "log_sum_exp"]
        halves: dict[bool, Node] = {}
        for node in sums:
            (p,), (n,) = (of_kind([node], kind) for kind in (True, False))
            if node.args not in means and (p is NOTHING or n is NOTHING):
                halves.setdefault(n is NOTHING, node)
        split = [halves[True], halves[False]] if len(halves) == 2 else []
        if split:
            self._put("lse_split", split[0], split, split[1])
        for node in nodes:
            if node.op == "softmax_mean":
                of = next((n for n in sums if same(n.args, node.args[:2])), None)
                first = of if means[node.args[:2]] is node else None
                self._put("lse_mean", node, [first, node])
            elif node.op != "log_sum_exp":
                self._put(OPERATIONS[node.op].lower(), node, [node])
            elif not any(node is half for half in split) and node.args not in means:
                self._put("lse", node, [node])
        self.costs = bool(means or sums or costly(x for n in nodes for x in of_both([n])))
        self.results = joined(self._positives, self._negatives)
        self.positives_only = same(self._negatives, self._nothing)

    def _put(
        self, kind: str, of: Node, leaves: Sequence[Node | None], negative: Node | None = None
    ) -> None:
        self.kinds.append(kind)
        self._positives += of_kind([of], True)
        self._negatives += of_kind([of if negative is None else negative], False)
        self._nothing += [NOTHING, ZERO] if kind == "lse_mean" else [IDENTITY[of.op]]
        self.left += leaves


def _size(weights: Sequence[Node]) -> Node:
    """The order of the weights: their factors that are numbers of the call. Without them weights are of order
    one, which half precision needs."""

    def largest(sizes: Sequence[Node]) -> Node:
        found = ZERO
        for size in dict.fromkeys(sizes):
            a, b = number_of(found), number_of(size)
            if a is not None and b is not None:
                found = constant(max(a, b))
            else:
                found = size if a == 0 else make("max", size, found)
        return found

    def size(x: Node, of: list[Node]) -> Node:
        if x.is_mask:
            return ONE
        if x.level <= CALL:
            value = number_of(x)
            return make("abs", x) if value is None else constant(abs(value))
        match x.op:
            case "mul":
                return mul(*of)
            case "div":
                return div(*of) if x.args[1].level <= CALL else of[0]
            case "neg" | "abs":
                return of[0]
            case "add" | "max":
                return largest(of)
            case "where":
                return largest(of[1:])
        return ONE

    sizes = upwards(weights, size)
    found = largest([sizes[x] for x in weights])
    return found if found.level == CONSTANT else make("max", found, _LEAST)


def _linear(weight: Node) -> bool:
    """Whether of its row a weight reads the derivatives by the row's outputs alone, and is linear in them."""

    def degree(x: Node, of: list[float | None]) -> float | None:
        """None: of zero, which has any."""
        some = {d for d in of if d is not None}
        match x.op:
            case "weight":
                return 1
            case "constant" if x is ZERO:
                return None
            case "mul":
                return None if None in of else sum(d or 0 for d in of)
            case "add" | "neg" if len(some) <= 1:
                return max(some, default=None)
            case "where" if not of[0] and len(of_branch := {d for d in of[1:] if d is not None}) <= 1:
                return max(of_branch, default=None)
            case "div" if not of[1]:
                return of[0]
        return math.inf if some - {0} else 0

    return not _states([weight]) and upwards([weight], degree)[weight] == 1


def _of_the_call_first(x: Node) -> Node | None:
    """A product of numbers of the call and of the row: the former multiplied, on the host."""
    if not CALL < x.level < PAIR or x.is_mask:
        return None

    def factors(x: Node) -> tuple[Node, Node]:
        if x.level <= CALL:
            return x, ONE
        if x.op == "mul":
            (a, b), (c, d) = map(factors, x.args)
            return mul(a, c), mul(b, d)
        if x.op == "neg":
            a, b = factors(x.args[0])
            return neg(a), b
        if x.op == "add" and x.args[0] is x.args[1]:
            a, b = factors(x.args[0])
            return mul(constant(2.0), a), b
        return ONE, x

    of_call, of_row = factors(x)
    return of_row if of_call is ONE else make("mul", of_call, of_row)


def _often_zero(weight: Node) -> bool:
    """Whether most weights may be exactly 0: those of negatives on a condition."""
    (of_negative,) = specialised([weight], False)
    while of_negative.op in ("neg", "mul"):
        of_negative = of_negative.args[-1]
    return of_negative is ZERO or of_negative.masked


def _states(weights: Sequence[Node]) -> list[Node]:
    """Numbers of the row that the weights read and that are known once the row is."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        of_output = contains(node, ("weight",))
        if CALL < node.level < PAIR and not of_output:
            found[node] = None
        elif node.level == PAIR or (node.level > CALL and of_output):
            for a in node.args:
                visit(a)

    for weight in weights:
        visit(weight)
    return list(found)
