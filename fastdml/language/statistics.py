"""Log-sum-exp in terms of sums: what is taken out of its exponents first is its `reference`.

"largest": the largest exponent, found in a pass before. "whole": it stays a statistic of its own, which
whoever runs the pass keeps with a running maximum. Or a mapping of log-sum-exps to numbers of windows: where
exponents are bounded, numbers of the call, each of which serves the exponents in a window around it; those of
several windows are summed apart. What is not in the mapping has its largest taken out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from .affine import affine
from .graph import (
    LOWEST,
    ONE,
    PAIR,
    REDUCTIONS,
    ROW,
    TRUE,
    ZERO,
    Node,
    S,
    all_of,
    both,
    conjuncts,
    contains,
    div,
    invert,
    make,
    mul,
    neg,
    number_of,
    rewrite,
    same,
    topological,
    total,
    where,
)

Reference = Literal["largest", "whole"] | Mapping[Node, int]


def _parts(node: Node, reference: Reference) -> tuple[Node, list[tuple[Node, Node]], Node, Node]:
    """Of a log-sum-exp: its reference; (factor of the row, exponential of a pair), whose products are the
    exponentials less that; their sum (with the one); and whether there is anything in it: where not, the sum
    is 1."""
    x, mask = node.args
    windows = _windows(node, reference)
    wider = mask if windows else _relaxed(x, mask)
    top, terms, of_pairs = _windowed(node, windows, wider)
    # The largest exponential of the pairs is 1, if there is a pair, and no number in range is 0.
    sure = node.value and wider is mask and not windows
    some = TRUE if sure else of_pairs > ZERO
    sum_ = of_pairs + make("exp", neg(top)) if node.value else of_pairs
    return top, terms, where(some, sum_, ONE), some


def _windows(node: Node, reference: Reference) -> int:
    return 0 if isinstance(reference, str) else reference.get(node, 0)


def _windowed(
    node: Node, windows: int, wider: Node
) -> tuple[Node, list[tuple[Node, Node]], Node]:
    """By bounds in descending order, the exponents of each above its cut. Without windows there is one, the
    largest over a wider mask."""
    x, mask = node.args
    if windows:
        bounds = [make("bound", value=(x, k, node.value)) for k in range(windows)]
    else:
        largest = _largest(x, wider)
        bounds = [make("max", largest, ZERO) if node.value else where(largest > LOWEST, largest, ZERO)]
    above = [make("cut", value=(x, k, node.value)) < x for k in range(windows - 1)]
    centre = bounds[-1]
    for bound, inside in zip(bounds[-2::-1], above[::-1]):
        centre = where(inside, bound, centre)
    exponential = make("exp", x - centre)
    parts, sums, below = [], [], TRUE
    for inside in (*above, TRUE):
        parts.append(where(both(below, inside), exponential, ZERO))
        sums.append(total(parts[-1], mask))
        below = both(below, invert(inside))
    top = bounds[-1]
    for bound, of_part in zip(bounds[-2::-1], sums[-2::-1]):
        top = where(of_part > ZERO, bound, top)
    factors = [
        where(of_part > ZERO, make("exp", bound - top), ZERO) if windows > 1 else ONE
        for bound, of_part in zip(bounds, sums)
    ]
    of_pairs = sum((mul(factor, of_part) for factor, of_part in zip(factors, sums)), ZERO)
    return top, list(zip(factors, parts)), of_pairs


def softmax(node: Node, bar: Node, reference: Reference) -> Node:
    """The derivative by the exponent of a pair, of a derivative `bar` by a log-sum-exp."""
    if reference == "whole":
        return mul(bar, make("exp", node.args[0] - node))
    _, terms, sum_, _ = _parts(node, reference)
    return sum((mul(mul(div(bar, sum_), factor), exponential) for factor, exponential in terms), ZERO)


def without_one(roots: list[Node]) -> list[Node]:
    """The roots with log(1 + sum of exp) as softplus of a log-sum-exp. (Of derivatives, exp(x - that) is one
    exponential, where the factor sigmoid of a derivative of softplus would be a number of the row more.)"""

    def rule(node: Node) -> Node | None:
        if node.op != "log_sum_exp" or not node.value:
            return None
        return make("softplus", make("log_sum_exp", *node.args, value=False))

    return rewrite(roots, rule)


def unshifted(roots: list[Node], exact: bool) -> list[Node]:
    """The roots with statistics taken out of sums and of exponents that would else wait for them.

    exact: where a loss takes the largest exponent out itself, whose digits count, what is left is `beside`:
    the sum of a log-sum-exp and a number, as the log of a sum over its largest term (`spelled_out`).
    """

    def shifted(x: Node) -> tuple[Node, Node, Node] | None:
        """x as a product of a factor and a sum of a number of the pair and one of the row."""
        if x.scaled:
            found = shifted(x.args[1])
            return None if found is None else (x.args[0] * found[0], *found[1:])
        for a, b in (x.args, x.args[::-1]) if x.op == "add" else ():
            if b.level < PAIR == a.level and contains(b, REDUCTIONS):
                return ONE, a, b
        return None

    def rule(node: Node) -> Node | None:
        if node.op not in ("log_sum_exp", "sum") or node.value:
            return None
        found = shifted(node.args[0])
        if found is None:
            return None
        factor, x, shift = found
        mask = node.args[1]
        if node.op == "sum":
            count = total(ONE, mask)
            of_all = shift * count
            if any(n.level == ROW and n.op in ("log", "div") for n in topological([shift])):
                of_all = where(count > ZERO, of_all, ZERO)  # of no pair nothing, were it infinite
            return factor * (total(x, mask) + of_all)
        whole = make("log_sum_exp", factor * x, mask, value=node.value)
        largest = make("neg", make("detach", make("amax", x, mask)))
        left = whole + factor * shift
        if exact and shift is largest and _sign(factor) > 0:
            left = make("beside", whole, factor * shift)
        return where(whole > LOWEST, left, LOWEST)

    return rewrite(rewrite(roots, lambda n: n.args[0] if n.op == "apart" else None), rule)


def prepared(outputs: Sequence[Node], reference: Reference) -> list[Node]:
    """The outputs as they are differentiated."""
    if reference == "largest":
        return [*outputs]
    return unshifted([*outputs], exact=reference != "whole")


def means(roots: list[Node]) -> list[Node]:
    """The roots with sums of exp(x - log-sum-exp of x) v as means of v under the softmax of x."""

    def rule(node: Node) -> Node | None:
        if node.op != "sum":
            return None
        terms = node.args[0].args if node.args[0].op == "mul" else (node.args[0], ONE)
        for share, v in (terms, terms[::-1]):
            if share.op == "exp" and share.args[0].op == "add":
                for level, x in (share.args[0].args, share.args[0].args[::-1]):
                    whole = level.op == "neg" and level.args[0].op == "log_sum_exp"
                    if whole and same(level.args[0].args, (x, node.args[1])):
                        return make("softmax_mean", x, node.args[1], v)
        return None

    return rewrite(roots, rule)


def spelled_out(roots: list[Node], reference: Reference) -> list[Node]:
    """The roots without log-sum-exps."""

    def over_largest(node: Node) -> Node | None:
        if node.op != "beside":
            return None
        _, _, sum_, some = _parts(node.args[0], reference)
        return make("log", div(sum_, where(some, _largest_term(node.args[0], reference), ONE)))

    def rule(node: Node) -> Node | None:
        if node.op != "log_sum_exp":
            return None
        top, _, sum_, some = _parts(node, reference)
        return where(some, top + make("log", sum_), ZERO if node.value else LOWEST)

    # Arguments first, so a log-sum-exp within another's exponent is spelled out before it.
    return rewrite(rewrite(roots, over_largest), rule)


def _largest_term(node: Node, reference: Reference) -> Node:
    """The largest of a log-sum-exp's exponentials: among those of the highest window that has any."""
    windows = _windows(node, reference)
    if not windows:
        return ONE
    found = ZERO
    for _, of_pairs in reversed(_windowed(node, windows, node.args[1])[1]):
        some = total(of_pairs, node.args[1]) > ZERO
        found = where(some, make("amax", of_pairs, node.args[1]), found)
    return found


def _largest(x: Node, mask: Node) -> Node:
    """The largest x over a mask; of an x that rises (or falls) with s from the largest (smallest) s, which
    other terms of the row may need too. Over no pair: at most the most negative number."""
    slope = _slope(x)
    if slope == 0:
        # Less a number of the row: what a loss takes out itself is then found to be the largest.
        for of_pair, of_row in (x.args, x.args[::-1]) if x.op == "add" else ():
            if of_row.level < PAIR:
                return _largest(of_pair, mask) + of_row
        if x.op == "apart":
            return _largest(x.args[0], mask)
        if x.op == "mul" and _sign(x.args[0]) > 0:
            return x.args[0] * _largest(x.args[1], mask)
        return make("amax", x, mask)
    extreme = make("amax" if slope > 0 else "amin", S, mask)
    return rewrite([x], pairs=True, replaced={S: extreme})[0]


def _relaxed(x: Node, mask: Node) -> Node:
    """A mask that holds no larger x than the given one, but depends on fewer statistics: without its
    conditions `s < t` where x falls with s (or `s > t` where it rises). If any pair passes such a
    condition, then so does the one of the largest x. Found in an earlier pass, with fewer passes in all.
    """
    slope = _slope(x)
    if mask.op != "and" or slope == 0:
        return mask

    def needless(part: Node) -> bool:
        if part.op not in ("lt", "le") or not contains(part, REDUCTIONS):
            return False
        low, high = part.args
        falls = low.op == "s" and high.level < PAIR and slope < 0
        rises = high.op == "s" and low.level < PAIR and slope > 0
        return falls or rises

    return all_of(part for part in conjuncts(mask) if not needless(part))


def _slope(x: Node) -> int:
    """1 where x surely rises with s, -1 where it falls, 0 where that is not known (or neither)."""
    found = affine(x, 1)
    return _sign(found[0][S]) if found and S in found[0] else 0


def _sign(x: Node) -> int:
    """The sign of a number of the row where it is known, else 0."""
    if (value := number_of(x)) is not None:
        return (value > 0) - (value < 0)
    if x.op == "neg":
        return -_sign(x.args[0])
    if x.op in ("mul", "div"):
        return _sign(x.args[0]) * _sign(x.args[1])
    if x.op == "exp" or (x.op == "parameter" and x.value[1]):
        return 1
    return 0
