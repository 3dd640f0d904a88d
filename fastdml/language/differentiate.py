"""Derivatives of a row's loss, as expressions: reverse differentiation of the graph.

What a pair contributes to the derivative by something of its row (a statistic, a value, a scalar) is summed
over the row's pairs: a reduction more. Factors of the row come out of that sum (`graph.total`), so that it
needs no more passes than the row's own statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import statistics
from .affine import affine
from .graph import (
    EVERY,
    HIGHEST,
    LOWEST,
    MASKS,
    ONE,
    PAIR,
    ZERO,
    Node,
    add,
    both,
    constant,
    div,
    make,
    mul,
    neg,
    topological,
    total,
    where,
)

_TINY = 1e-37
CONSTANT_OPS = (*MASKS, "detach")


def gradient(
    outputs: tuple[Node, ...],
    counted: bool,
    wanted: Iterable[Node],
    reference: statistics.Reference,
) -> list[Node]:
    """The derivatives of the row's part of the result by the wanted inputs: a pair's input (s, a column's
    value) gives an expression of the pair, a row's or the call's one of the row.

    The result is the row's loss, or the sum of its outputs with `weight(k)`. reference: see
    `statistics`.
    """
    several = len(outputs) > 1 and not counted
    bars: dict[Node, list[Node]] = {}
    for k, output in enumerate(outputs if several else outputs[:1]):
        seed = make("weight", value=k) if several else ONE
        bars.setdefault(output, []).append(seed)
    wanted = list(wanted)
    order = topological(outputs)
    needed = _depends(order, wanted)
    for node in reversed(order):
        if node not in bars or node not in needed or not node.args:
            continue
        bar = _collected(node, bars[node])
        if node.op in CONSTANT_OPS or bar is ZERO:
            continue
        for argument, part in _parts(node, bar, reference):
            if argument in needed and part is not ZERO:
                bars.setdefault(argument, []).append(part)
    return [_collected(x, bars.get(x, [])) for x in wanted]


def _depends(order: list[Node], wanted: list[Node]) -> set[Node]:
    found = set(wanted)
    for node in order:
        if node.op not in CONSTANT_OPS and any(a in found for a in node.args):
            found.add(node)
    return found


def _collected(node: Node, parts: list[Node]) -> Node:
    """The sum of the parts; those of pairs summed over the row for what the row has once."""
    found = ZERO
    for part in parts:
        if node.level < PAIR <= part.level:
            part = total(part, EVERY, spread=True)
        found = add(found, part)
    return found


def _parts(node: Node, bar: Node, reference: statistics.Reference) -> list[tuple[Node, Node]]:
    """What the derivative `bar` by a node gives each of its arguments."""
    a = node.args[0]
    b = node.args[1] if len(node.args) > 1 else a
    match node.op:
        case "add" | "beside":
            return [(a, bar), (b, bar)]
        case "apart":
            return [(a, bar)]
        case "neg":
            return [(a, neg(bar))]
        case "mul" if a is b:
            return [(a, mul(constant(2.0), mul(bar, a)))]
        case "mul":
            return [(a, mul(bar, b)), (b, mul(bar, a))]
        case "div":
            share = div(bar, b)
            return [(a, share), (b, neg(mul(share, node)))]
        case "exp":
            return [(a, mul(bar, node))]
        case "log":
            return [(a, div(bar, a))]
        case "cos":
            return [(a, neg(mul(bar, make("sin", a))))]
        case "sin":
            return [(a, mul(bar, make("cos", a)))]
        case "sqrt":
            safe = where(node > ZERO, node, ONE)
            return [(a, where(node > ZERO, mul(constant(0.5), div(bar, safe)), ZERO))]
        case "abs":
            return [(a, where(a > ZERO, bar, where(a < ZERO, neg(bar), ZERO)))]
        case "softplus":
            return [(a, mul(bar, make("sigmoid", a)))]
        case "sigmoid":
            return [(a, mul(bar, mul(node, ONE - node)))]
        case "max" if b is ZERO and _vanishes(bar, node):
            return [(a, bar)]  # where the hinge is shut
        case "max":
            return [(a, where(b < a, bar, ZERO)), (b, where(b < a, ZERO, bar))]
        case "where":
            return [(b, where(a, bar, ZERO)), (node.args[2], where(a, ZERO, bar))]
        case "sum":
            return [(a, where(b, bar, ZERO))]
        case "amax" | "amin":
            return [(a, _of_extreme(node, bar, reference != "largest"))]
        case "log_sum_exp":
            return [(a, where(b, statistics.softmax(node, bar, reference), ZERO))]
    raise NotImplementedError(node.op)


def _vanishes(x: Node, with_: Node) -> bool:
    """Whether x has a number as a factor."""
    if x.masked:
        return _vanishes(x.args[1], with_)
    return x is with_ or (x.op in ("mul", "neg") and any(_vanishes(a, with_) for a in x.args))


def _of_extreme(node: Node, bar: Node, anew: bool) -> Node:
    """Shared by the pairs that are largest (or smallest); computed twice, a number may differ in its last
    digits. anew: so may similarities, of products that are made again: at the pair's other end, or beside
    other pairs."""
    x, mask = node.args
    slack = make("slack", _rounding(x, make("abs", node), anew))
    if node.op == "amax":
        ties, some = node - slack <= x, node > LOWEST
    else:
        ties, some = x <= node + slack, node < HIGHEST
    ties = both(mask, ties)
    share = div(bar, make("max", total(ONE, ties), ONE))
    return where(both(ties, some), share, ZERO)


def _rounding(x: Node, size: Node, anew: bool) -> Node:
    """How far two computations of a pair's x may be apart where |x| is `size`, a number of the row: what
    rounds by as much. Relative to x, wherever nothing cancels."""
    if not x.args:
        return make("max", size, ONE) if anew and x.op in ("s", "teacher") else ZERO
    found = affine(x, 1)
    if found is not None and x not in found[0]:
        rest = make("abs", found[1])
        error = size + 2.0 * rest
        for atom, factor in found[0].items():
            factor = make("max", make("abs", factor), constant(_TINY))
            error = error + factor * _rounding(atom, (size + rest) / factor, anew)
        return error
    if x.op == "mul" and x.args[0] is x.args[1]:
        root = make("sqrt", size)
        return size + 2.0 * root * _rounding(x.args[0], root, anew)
    if x.op == "exp":
        exponent = make("abs", make("log", make("max", size, constant(_TINY))))
        return size * (ONE + _rounding(x.args[0], exponent, anew))
    return _rounding(x.args[0], size, anew) if x.op == "abs" else make("max", size, ONE)
