"""Sums of pairs' numbers times numbers of the row: folded to one multiply-add each."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .graph import ONE, PAIR, ZERO, Node, add, mul, neg, rewrite

Terms = dict[Node, Node]  # number of the pair -> its factor, a number of the row


Found = tuple[Terms, Node] | None


def affine(x: Node, most: float = math.inf, known: dict[Node, Found] | None = None) -> Found:
    """x as a sum of terms and a number of the row; None for a mask, and for more terms than `most`. known:
    what was found of others."""
    known = {} if known is None else known
    if x not in known:
        known[x] = _affine(x, most, known)
    return known[x]


def _affine(x: Node, most: float, known: dict[Node, Found]) -> Found:
    if x.is_mask:
        return None
    if x.level < PAIR:
        return {}, x
    if x.op == "add":
        terms: Terms = {}
        rest = ZERO
        for a in x.args:
            part = affine(a, most, known)
            if part is None:
                return None
            for atom, factor in part[0].items():
                terms[atom] = add(terms.get(atom, ZERO), factor)
            rest = add(rest, part[1])
        return (terms, rest) if len(terms) <= most else None
    by = neg(ONE) if x.op == "neg" else x.args[0] if x.scaled else None
    if by is None:
        return {x: ONE}, ZERO
    part = affine(x.args[-1], most, known)
    return part and ({atom: mul(by, factor) for atom, factor in part[0].items()}, mul(by, part[1]))


def rebuilt(terms: Mapping[Node, Node], rest: Node) -> Node:
    """The sum of the terms and the rest."""
    return add(sum((mul(factor, atom) for atom, factor in terms.items()), ZERO), rest)


def folded(roots: list[Node]) -> list[Node]:
    """The roots with every sum of pairs' numbers as few multiply-adds."""
    known: dict[Node, Found] = {}

    def rule(node: Node) -> Node | None:
        if node.level < PAIR or node.is_mask or node.op not in ("add", "mul", "neg"):
            return None
        found = affine(node, 1, known)
        return rebuilt(*found) if found is not None and found[0] else None

    return rewrite(roots, rule, pairs=True)
