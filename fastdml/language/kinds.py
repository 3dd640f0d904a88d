"""A pass over pairs as one expression per result: positives and negatives side by side.

Where pairs are known to be positive or negative (labels say so), an expression is simpler: masks vanish, and
of two terms one. So each is specialised to both kinds, and the two are joined again, costly functions of the
one sharing an evaluation with those of the other: exp(select(positive, a, b)) instead of two exponentials.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from .affine import affine, folded, rebuilt
from .graph import (
    FALSE,
    HIGHEST,
    LOWEST,
    NEGATIVE,
    ONE,
    PAIR,
    POSITIVE,
    TRUE,
    ZERO,
    Node,
    both,
    conjuncts,
    constant,
    div,
    either,
    invert,
    make,
    neg,
    rebuild,
    rewrite,
    topological,
    where,
)

COSTLY = (
    "exp", "softplus", "sigmoid", "log", "sqrt", "div", "exp2", "softplus2", "sigmoid2", "log2",
)  # fmt: skip
NOTHING = constant(float("-inf"))  # as an exponent
# What a reduction folds of a pair that it is not over.
IDENTITY = {"sum": ZERO, "amax": LOWEST, "amin": HIGHEST, "log_sum_exp": NOTHING}
_SAME_SHAPE = ("add", "mul", "neg", "max", "abs", *COSTLY)


def costly(roots: Iterable[Node]) -> list[Node]:
    """The costly functions of a pair that the roots are made of."""
    return [n for n in topological(roots, pairs=True) if n.level == PAIR and n.op in COSTLY]


def specialised(roots: Iterable[Node], positive: bool) -> list[Node]:
    """The roots for pairs of one kind."""
    kind = {POSITIVE: TRUE if positive else FALSE, NEGATIVE: FALSE if positive else TRUE}
    return rewrite(roots, replaced=kind, pairs=True)


def _contributions(nodes: Iterable[Node]) -> list[Node]:
    """What reductions fold of a pair, the exponent and the number of a softmax's mean; other expressions as
    they are."""
    found = []
    for n in nodes:
        if n.op == "softmax_mean":
            x, mask, v = n.args
            found += [where(mask, x, NOTHING), where(mask, v, ZERO)]
        else:
            found.append(where(n.args[1], n.args[0], IDENTITY[n.op]) if n.op in IDENTITY else n)
    return found


def of_kind(nodes: Iterable[Node], positive: bool) -> list[Node]:
    """What a pass computes of pairs of one kind, for reductions and for expressions of the pair."""
    alone = rewrite(specialised(_contributions(nodes), positive), _quotient, pairs=True)
    return bounded(folded(alone))


def of_negatives(nodes: Sequence[Node]) -> list[Node]:
    """What a pass computes of a pair that is no positive, if that costs less than any pair does; else
    nothing. Most vectors of pairs hold no positive."""
    alone = of_kind(nodes, False)
    return alone if len(costly(alone)) < len(costly(of_both(nodes))) else []


def joined(positives: Sequence[Node], negatives: Sequence[Node]) -> list[Node]:
    """One expression for each two of pairs of both kinds."""
    return folded(_Join(positives, negatives).roots())


def of_both(nodes: Sequence[Node]) -> list[Node]:
    """What a pass computes of a pair, one expression for both kinds."""
    return joined(of_kind(nodes, True), of_kind(nodes, False))


def _quotient(node: Node) -> Node | None:
    """One logarithm instead of two."""
    if node.op == "add" and node.level == PAIR:
        for a, b in (node.args, node.args[::-1]):
            if a.op == "log" and b.op == "neg" and b.args[0].op == "log" and b.level == PAIR == a.level:
                return make("log", make("div", a.args[0], b.args[0].args[0]))
    return None


def bounded(roots: Iterable[Node]) -> list[Node]:
    """The roots with several bounds on one number, s < a and s < b, made one: s < min(a, b)."""

    def rule(node: Node) -> Node | None:
        if node.op != "and" or node.level < PAIR:
            return None
        above: dict[Node, Node] = {}
        below: dict[Node, Node] = {}
        rest = TRUE
        for part in conjuncts(node):
            low, high = part.args if part.op == "lt" else (part, part)
            if low.level == PAIR > high.level:
                other = neg(below[low]) if low in below else None
                below[low] = high if other is None else neg(make("max", other, neg(high)))
            elif high.level == PAIR > low.level:
                above[high] = make("max", above[high], low) if high in above else low
            else:
                rest = both(rest, part)
        for x, bound in below.items():
            rest = both(rest, x < bound)
        for x, bound in above.items():
            rest = both(rest, bound < x)
        return rest

    return rewrite(roots, rule, pairs=True)


class _Join:
    def __init__(self, positives: Sequence[Node], negatives: Sequence[Node]) -> None:
        self.of = [positives, negatives]
        self.join = functools.cache(self._join)
        self.partners: tuple[dict[Node, Node], dict[Node, Node]] = {}, {}  # joined already
        self._pair_up()

    def _pair_up(self) -> None:
        """Gives costly nodes of the one kind a partner of the other; arguments come before."""
        # A sigmoid can share the exponential of the other kind.
        ops = [{n.op for n in topological(roots, pairs=True) if n.level == PAIR} for roots in self.of]
        for k in (0, 1):
            own, others = ops[k], ops[1 - k]
            if others & _EXP and own & _SIGMOID and not others & _SIGMOID and not own & _EXP:
                self.of[k] = rewrite(self.of[k], _sigmoid_by_exp, pairs=True)
        of_p, of_n = (dict.fromkeys(costly(roots)) for roots in self.of)
        waiting = {op: iter([n for n in of_n if n.op == op and n not in of_p]) for op in COSTLY}
        for node in of_p:
            other = None if node in of_n else next(waiting[node.op], None)
            if other is not None:
                args = [self._joined(a, b) for a, b in zip(node.args, other.args)]
                self.partners[0][node] = self.partners[1][other] = rebuild(node, args)

    def roots(self) -> list[Node]:
        return [self._joined(p, n) for p, n in zip(*self.of)]

    def _joined(self, p: Node, n: Node) -> Node:
        """The two joined, partners within them first."""
        (a,), (b,) = (rewrite([x], pairs=True, replaced=k) for x, k in zip((p, n), self.partners))
        return self.join(a, b)

    def _join(self, a: Node, b: Node) -> Node:
        """What is a for positives and b for negatives."""
        if a is b:
            return a
        if a.is_mask or b.is_mask:
            return either(both(POSITIVE, a), both(invert(POSITIVE), b))
        if a.level < PAIR and b.level < PAIR:
            return where(POSITIVE, a, b)
        masks = [x.args[0] if x.masked and x.args[0].level == PAIR else None for x in (a, b)]
        if a is not ZERO and b is not ZERO and any(m is not None for m in masks):
            mask = self.join(*(TRUE if m is None else m for m in masks))
            values = [x if m is None else x.args[1] for x, m in zip((a, b), masks)]
            return where(mask, self.join(*values), ZERO)
        linear_a, linear_b = affine(a), affine(b)
        if linear_a and linear_b and set(linear_a[0]) == set(linear_b[0]):
            terms = {x: self.join(c, linear_b[0][x]) for x, c in linear_a[0].items()}
            return rebuilt(terms, self.join(linear_a[1], linear_b[1]))
        if a.op == b.op and a.op in _SAME_SHAPE:
            one, two = a.args, b.args
            if a.op in ("add", "mul") and _alike(one[0], two[1]) > _alike(one[0], two[0]):
                two = two[::-1]
            return rebuild(a, [self.join(x, y) for x, y in zip(one, two)])
        return where(POSITIVE, a, b)


def _alike(a: Node, b: Node) -> int:
    return 2 if a is b else int(a.op == b.op and a.level == b.level)


_EXP, _SIGMOID = {"exp", "exp2"}, {"sigmoid", "sigmoid2"}


def _sigmoid_by_exp(node: Node) -> Node | None:
    if node.op not in _SIGMOID or node.level < PAIR:
        return None
    return div(ONE, ONE + make(node.op.replace("sigmoid", "exp"), neg(node.args[0])))
