"""Expressions of the row language: nodes of a graph in which equal expressions are one node.

Constructors simplify as they build: constants are folded, masks and factors that are the same for the whole
row are moved outwards, where sums and sweeps can make use of them.
"""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeVar

# What an expression may differ by: nothing, the call, the row, the pair.
CONSTANT, CALL, ROW, PAIR = range(4)

LEAVES = {
    "constant": CONSTANT,
    "lowest": CONSTANT,  # the most negative number of the type
    "bound": CALL,  # a number that is taken out of exponents
    "cut": CALL,  # and one between two of those
    "parameter": CALL,
    "scalar": CALL,
    "own": CALL,  # 1 where rows' own copies are taken out, else 0: of tiles
    "row_value": ROW,
    "weight": ROW,  # of an output of the row in the result
    "candidates": ROW,
    "columns": ROW,
    "s": PAIR,
    "positive": PAIR,
    "negative": PAIR,
    "teacher": PAIR,
    "column": PAIR,
}
REDUCTIONS = ("sum", "amax", "amin", "log_sum_exp", "softmax_mean")
MASKS = ("positive", "negative", "lt", "le", "eq", "and", "or", "not")


class NotInLanguage(TypeError):
    """A function of the row uses something that is no word of the row language."""


class Node:
    """One expression. value: a constant's number, an input's index or name, or a reduction's option. order:
    its height, then a digest of all of it: what is printed must not depend on what was traced before."""

    __slots__ = ("__weakref__", "args", "is_mask", "level", "op", "order", "value")

    op: str
    args: tuple[Node, ...]
    value: Any
    level: int
    is_mask: bool
    order: tuple[int, bytes]

    @property
    def masked(self) -> bool:
        """Whether it is a number where a mask holds, else 0: its first arguments."""
        return self.op == "where" and self.args[2] is ZERO

    @property
    def scaled(self) -> bool:
        """Whether it is a product with a number of the row (or the call), its first argument."""
        return self.op == "mul" and self.args[0].level < PAIR

    def __add__(self, other: Operand) -> Node:
        return add(number(self), number(other))

    __radd__ = __add__

    def __sub__(self, other: Operand) -> Node:
        return add(number(self), neg(number(other)))

    def __rsub__(self, other: Operand) -> Node:
        return add(number(other), neg(number(self)))

    def __mul__(self, other: Operand) -> Node:
        return mul(number(self), number(other))

    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> Node:
        return div(number(self), number(other))

    def __rtruediv__(self, other: Operand) -> Node:
        return div(number(other), number(self))

    def __neg__(self) -> Node:
        return neg(number(self))

    def __pow__(self, power: object) -> Node:
        if isinstance(power, Node) or power != 2:
            raise NotInLanguage("a power that is not 2: only squares are words")
        return number(self) * number(self)

    def __lt__(self, other: Operand) -> Node:
        return make("lt", number(self), number(other))

    def __gt__(self, other: Operand) -> Node:
        return make("lt", number(other), number(self))

    def __le__(self, other: Operand) -> Node:
        return make("le", number(self), number(other))

    def __ge__(self, other: Operand) -> Node:
        return make("le", number(other), number(self))

    # As of tensors, a mask: whether two nodes are one is asked by `is`.
    def __eq__(self, other: Operand) -> Node:  # type: ignore[override]
        return make("eq", number(self), number(other))

    def __ne__(self, other: Operand) -> Node:  # type: ignore[override]
        return invert(self == other)

    __hash__ = object.__hash__

    def __and__(self, other: Operand) -> Node:
        return both(self, lift(other))

    __rand__ = __and__

    def __or__(self, other: Operand) -> Node:
        return either(self, lift(other))

    __ror__ = __or__

    def __invert__(self) -> Node:
        return invert(self)

    def __bool__(self) -> bool:
        raise NotInLanguage("a branch on a traced value: use where(condition, a, b)")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotInLanguage(f"a tensor's {name!r}: use the words of fastdml.language")

    def __deepcopy__(self, memo: object) -> Node:
        return self  # equal expressions are one node, in copies of a module too

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> Any:
        raise NotInLanguage(f"torch's {getattr(function, '__name__', function)!r}")

    def __repr__(self) -> str:
        shown = [] if self.value is None else [str(self.value)]
        return f"{self.op}({', '.join(shown + [repr(a) for a in self.args])})"


Operand = Node | float
Found = TypeVar("Found")
_known: weakref.WeakValueDictionary[bytes, Node] = weakref.WeakValueDictionary()


def make(op: str, *args: Node, value: Any = None) -> Node:
    """The node of an operation, which is made only once."""
    whole = b"".join([f"{op} {_shown(value)} ".encode(), *(a.order[1] for a in args)])
    digest = hashlib.blake2b(whole, digest_size=16).digest()
    found = _known.get(digest)
    if found is not None:
        return found
    node = object.__new__(Node)
    node.op, node.args, node.value = op, args, value
    levels = [LEAVES.get(op, CONSTANT), *(a.level for a in args)]
    node.level = ROW if op in REDUCTIONS else max(levels)
    masks = op in MASKS or (op == "constant" and isinstance(value, bool))
    node.is_mask = masks or (op in ("where", "detach") and args[-1].is_mask)
    node.order = (1 + max((a.order[0] for a in args), default=0), digest)
    _known[digest] = node
    return node


def _shown(value: Any) -> str:
    """A value's text; of nodes in it their digests, as an expression may be long."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return value.order[1].hex() if isinstance(value, Node) else repr(value)


def constant(value: float | bool) -> Node:
    return make("constant", value=value if isinstance(value, bool) else float(value) + 0.0)


def lift(x: object) -> Node:
    """A number as a node."""
    if isinstance(x, Node):
        return x
    if isinstance(x, Real):  # numpy's too
        return constant(float(x) if not isinstance(x, bool) else x)
    raise NotInLanguage(
        f"a {type(x).__name__} that the function brings along: hand it in as a parameter"
    )


def number(x: object) -> Node:
    """A number as a node, a mask as 1 where it holds and 0 elsewhere."""
    x = lift(x)
    return where(x, ONE, ZERO) if x.is_mask else x


ZERO, ONE, TRUE, FALSE = (constant(v) for v in (0.0, 1.0, True, False))
LOWEST = make("lowest")
HIGHEST = make("neg", LOWEST)
S, POSITIVE, NEGATIVE = (make(op) for op in ("s", "positive", "negative"))
CANDIDATES = make("candidates")  # how many pairs the row has
COLUMNS = make("columns")  # the same and the row's own copy that was taken out
# Every pair that counts is either positive or negative.
EVERY = make("or", POSITIVE, NEGATIVE)


def same(some: Sequence[Node], others: Sequence[Node]) -> bool:
    """Whether these are the same nodes, one by one: == of nodes is a mask."""
    return all(a is b for a, b in zip(some, others, strict=True))


def of_pairs(mask: object) -> Node:
    """A mask of the pairs among what it holds: not of a sample with itself, nor of what no list has."""
    mask = lift(mask)
    if not mask.is_mask:
        raise NotInLanguage("a number where a mask is expected")
    return mask if _holds_pairs(mask) else both(mask, EVERY)


def _holds_pairs(mask: Node) -> bool:
    if mask.op in ("and", "or"):
        return (any if mask.op == "and" else all)(map(_holds_pairs, mask.args))
    return mask.op in ("positive", "negative")


def number_of(x: Node) -> float | None:
    return x.value if x.op == "constant" else None


def _sorted(a: Node, b: Node) -> tuple[Node, Node]:
    return (a, b) if a.order <= b.order else (b, a)


def add(a: Node, b: Node) -> Node:
    x, y = number_of(a), number_of(b)
    if x is not None and y is not None:
        return constant(x + y)
    if x == 0:
        return b
    if y == 0:
        return a
    if a is neg(b):
        return ZERO
    return make("add", *_sorted(a, b))


def neg(a: Node) -> Node:
    if (x := number_of(a)) is not None:
        return constant(-x)
    if a.op == "neg":
        return a.args[0]
    if a.scaled and a.level == PAIR:
        return mul(neg(a.args[0]), a.args[1])
    if a.masked:
        return where(a.args[0], neg(a.args[1]), ZERO)
    return make("neg", a)


def mul(a: Node, b: Node) -> Node:
    """Masks and factors of the row come out of a product of pairs, the factors first."""
    x, y = number_of(a), number_of(b)
    if x is not None and y is not None:
        return constant(x * y)
    for one, other, v in ((a, b, x), (b, a, y)):
        if v == 0:
            return ZERO
        if v == 1:
            return other
        if v == -1:
            return neg(other)
        if one.masked and one.level >= other.level:
            return where(one.args[0], mul(one.args[1], other), ZERO)
    for other, v in ((b, x), (a, y)):
        inner = number_of(other.args[0]) if other.op == "mul" else None
        if v is not None and inner is not None:
            return mul(constant(v * inner), other.args[1])
    for one, other in ((a, b), (b, a)):
        if one.op == "neg" and (one.level == PAIR) == (other.level == PAIR):
            return neg(mul(one.args[0], other))
        if one.level == PAIR and one.op == "neg":
            return mul(neg(other), one.args[0])
        if one.level == PAIR and one.scaled:
            factor, rest = one.args
            if other.level < PAIR:
                return mul(mul(other, factor), rest)
            return mul(factor, mul(rest, other))
    return make("mul", *sorted((a, b), key=lambda v: (v.level == PAIR, v.op != "constant", v.order)))


def div(a: Node, b: Node) -> Node:
    x, y = number_of(a), number_of(b)
    if x == 0:
        return ZERO
    if y is not None and y != 0:
        return constant(x / y) if x is not None else mul(constant(1 / y), a)
    if a.level == PAIR and b.level < PAIR:
        return mul(make("div", ONE, b), a)
    return make("div", a, b)


def both(a: Node, b: Node) -> Node:
    if a is FALSE or b is FALSE or a is invert(b):
        return FALSE
    if a is TRUE or a is b:
        return b
    return a if b is TRUE else make("and", *_sorted(a, b))


def either(a: Node, b: Node) -> Node:
    if a is TRUE or b is TRUE or a is invert(b):
        return TRUE
    if a is FALSE or a is b:
        return b
    return a if b is FALSE else make("or", *_sorted(a, b))


def invert(a: Node) -> Node:
    if a.op == "constant":
        return constant(not a.value)
    return a.args[0] if a.op == "not" else make("not", a)


def where(condition: Node, a: Node, b: Node) -> Node:
    if condition is TRUE or a is b:
        return a
    if condition is FALSE:
        return b
    if a.is_mask and b.is_mask:
        return either(both(condition, a), both(invert(condition), b))
    a, b = number(a), number(b)
    if a is ZERO:
        return where(invert(condition), b, ZERO)
    if condition.op == "not" and b is not ZERO:
        return where(condition.args[0], b, a)
    if b is ZERO and max(a.level, condition.level) == PAIR:
        # A condition of the row becomes a factor of the row.
        if condition.level < PAIR:
            own = a.scaled
            factor, rest = a.args if own else (ONE, a)
            return mul(where(condition, factor, ZERO), rest)
        of_row, of_pair = split(condition)
        if of_row is not TRUE:
            return where(of_pair, where(of_row, a, ZERO), ZERO)
    if a.op == "where" and a.args[2] is b and a.level >= condition.level:
        return where(both(condition, a.args[0]), a.args[1], b)
    return make("where", condition, a, b)


def split(mask: Node) -> tuple[Node, Node]:
    """A mask as a condition of the row and one of the pair."""
    parts = conjuncts(mask)
    of_row, of_pair = ([p for p in parts if (p.level == PAIR) == pairs] for pairs in (False, True))
    return all_of(of_row), all_of(of_pair)


def all_of(conditions: Iterable[Node]) -> Node:
    return functools.reduce(both, conditions, TRUE)


def conjuncts(mask: Node, known: Container[Node] = ()) -> list[Node]:
    """The parts of a condition of several; known: parts that are left whole."""
    if mask.op != "and":
        return [mask]
    return [c for a in mask.args for c in ([a] if a in known else conjuncts(a, known))]


def detach(a: Node) -> Node:
    return a if a.level == CONSTANT else make("detach", a)


def total(x: Node, mask: Node, spread: bool = False) -> Node:
    """The sum over the pairs of a mask, with what is the same for all of them taken out; spread: term by
    term, which derivatives are (cancelling terms would lose digits)."""
    if x is ZERO or mask is FALSE:
        return ZERO
    if x.op == "neg":
        return neg(total(x.args[0], mask, spread))
    if x.masked:
        return total(x.args[1], both(mask, x.args[0]), spread)
    if x.scaled:
        return mul(x.args[0], total(x.args[1], mask, spread))
    if x.op == "add" and spread:
        return add(*(total(a, mask, True) for a in x.args))
    if x.op == "mul" and spread:
        for a, b in (x.args, x.args[::-1]):
            if b.op == "add" and any(_has_factor_of_row(c) for c in b.args):
                return add(*(total(mul(a, c), mask, True) for c in b.args))
    if x.level < PAIR and x is not ONE:
        return mul(x, total(ONE, mask))
    if x is ONE and (mask is EVERY or mask is TRUE):
        return CANDIDATES
    if x is ONE and mask is NEGATIVE:
        return CANDIDATES - make("sum", ONE, POSITIVE)
    return make("sum", x, mask)


def log_sum_exp(x: Node, mask: Node, one: bool) -> Node:
    """log of the sum of exp(x), and of 1 if `one`. Of an x that all pairs share it is no sum: over no pair an
    exponential of x, which nothing has been taken out of, need not be finite."""
    if x.level == PAIR:
        return make("log_sum_exp", x, mask, value=one)
    count = total(ONE, mask)
    shared = where(count > ZERO, x + make("log", make("max", count, ONE)), LOWEST)
    return make("softplus", shared) if one else shared


def contains(root: Node, ops: Container[str]) -> bool:
    """Whether any of these operations is in an expression."""
    return any(n.op in ops for n in topological([root]))


def _has_factor_of_row(x: Node) -> bool:
    if x.masked:
        return _has_factor_of_row(x.args[1])
    if x.op == "neg":
        return _has_factor_of_row(x.args[0])
    return x.op == "mul" and x.args[0].level == ROW


_POINTWISE: dict[str, Callable[..., Node]] = {
    "add": add, "neg": neg, "mul": mul, "div": div, "and": both, "or": either, "not": invert,
    "where": where, "detach": detach, "sum": total,
}  # fmt: skip


def rebuild(node: Node, args: Iterable[Node]) -> Node:
    """The node with other arguments, simplified again."""
    args = tuple(args)
    if all(a is b for a, b in zip(args, node.args)):
        return node
    maker = _POINTWISE.get(node.op)
    return maker(*args) if maker is not None else make(node.op, *args, value=node.value)


def topological(
    roots: Iterable[Node], pairs: bool = False, known: Container[Node] = ()
) -> list[Node]:
    """All nodes of the roots, arguments first; pairs: without what a number of the row is made of; known:
    nor what these are made of."""
    order: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, done = stack.pop()
        if done:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            if node not in known and (not pairs or node.level == PAIR):
                stack += [(a, False) for a in reversed(node.args) if a not in order]
    return list(order)


def upwards(
    roots: Iterable[Node],
    step: Callable[[Node, list[Found]], Found],
    known: Mapping[Node, Found] = MappingProxyType({}),
) -> dict[Node, Found]:
    """What a step finds of every node of the roots, from what it found of the node's arguments; known: what
    is found of some."""
    found = dict(known)
    for node in topological(roots, known=known):
        if node not in found:
            found[node] = step(node, [found[a] for a in node.args])
    return found


def rewrite(
    roots: Iterable[Node],
    rule: Callable[[Node], Node | None] = lambda _: None,
    pairs: bool = False,
    replaced: Mapping[Node, Node] = MappingProxyType({}),
) -> list[Node]:
    """The roots with every node replaced by what the rule makes of it, its arguments first; None: as it
    is. The rule sees nodes whose arguments have been replaced; pairs: and numbers of the row whole.
    replaced: what is known to stand for some nodes, which no rule sees."""
    roots = list(roots)
    made = dict(replaced)
    for node in topological(roots, pairs, known=replaced):
        if node not in made:
            whole = pairs and node.level < PAIR
            again = node if whole else rebuild(node, [made[a] for a in node.args])
            found = rule(again)
            made[node] = again if found is None else found
    return [made[root] for root in roots]
