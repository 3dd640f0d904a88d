"""Sums of pairs' numbers times numbers of the row: folded to one multiply-add each."""

from __future__ import annotations

from collections.abc import Mapping

from .graph import ONE, PAIR, ZERO, Node, add, mul, neg, rewrite

Terms = dict[Node, Node]  # number of the pair -> its factor, a number of the row


def affine(x: Node) -> tuple[Terms, Node] | None:
    """x as a sum of terms and a number of the row; None for a mask."""
    if x.is_mask:
        return None
    if x.level < PAIR:
        return {}, x
    if x.op == "add":
        parts = [affine(a) for a in x.args]
        terms: Terms = {}
        rest = ZERO
        for part in parts:
            assert part is not None
            for atom, factor in part[0].items():
                terms[atom] = add(terms.get(atom, ZERO), factor)
            rest = add(rest, part[1])
        return terms, rest
    if x.op == "neg":
        return _scaled(x.args[0], neg(ONE))
    if x.op == "mul" and x.args[0].level < PAIR:
        return _scaled(x.args[1], x.args[0])
    return {x: ONE}, ZERO


def _scaled(x: Node, by: Node) -> tuple[Terms, Node] | None:
    found = affine(x)
    assert found is not None
    return {atom: mul(by, factor) for atom, factor in found[0].items()}, mul(by, found[1])


def rebuilt(terms: Mapping[Node, Node], rest: Node) -> Node:
    """The sum of the terms and the rest."""
    found: Node | None = None
    for atom, factor in terms.items():
        term = mul(factor, atom)
        found = term if found is None else add(found, term)
    return rest if found is None else add(found, rest)


def folded(roots: list[Node]) -> list[Node]:
    """The roots with every sum of pairs' numbers as few multiply-adds."""

    def rule(node: Node) -> Node | None:
        if node.level < PAIR or node.is_mask or node.op not in ("add", "mul", "neg"):
            return None
        found = affine(node)
        if found is None or len(found[0]) != 1:
            return None
        return rebuilt(*found)

    return rewrite(roots, rule, pairs=True)
