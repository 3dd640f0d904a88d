"""A loss's row as passes over its pairs: what every executor and printer starts from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

from . import statistics
from .differentiate import gradient
from .graph import (
    EVERY,
    POSITIVE,
    REDUCTIONS,
    ROW,
    ZERO,
    Node,
    S,
    add,
    conjuncts,
    make,
    neg,
    rewrite,
    topological,
    upwards,
    where,
)
from .kinds import costly
from .row import Trace


@dataclasses.dataclass(frozen=True)
class Program:
    """passes: the reductions of each sweep over the row's pairs; one depends on earlier ones only.
    outputs: of a row. weight: the derivative by s of a pair. d_scalars, d_values: (index, derivative of
    the row) by values of the call and of the row. d_columns: (index, derivative of the pair) by values
    of its candidate.
    """

    trace: Trace
    passes: tuple[tuple[Node, ...], ...]
    outputs: tuple[Node, ...]
    weight: Node
    d_scalars: tuple[tuple[int, Node], ...]
    d_values: tuple[tuple[int, Node], ...]
    d_columns: tuple[tuple[int, Node], ...]

    @property
    def several(self) -> bool:
        """Whether the result weighs several outputs of a row."""
        return len(self.outputs) > 1 and not self.trace.counted

    @property
    def column_slopes(self) -> list[Node]:
        """The derivatives of a pair by the values of its candidate, up to the last that is not 0."""
        found = [ZERO] * (max((k for k, d in self.d_columns if d is not ZERO), default=-1) + 1)
        for k, d in self.d_columns:
            if k < len(found):
                found[k] = d
        return found

    def inputs(self, op: str) -> list[int]:
        """The indices that occur of an input such as "scalar" or "column"."""
        return sorted({n.value for n in topological(self.roots) if n.op == op})

    def reads(self, op: str) -> bool:
        return any(n.op == op for n in topological(self.roots))

    @property
    def roots(self) -> list[Node]:
        derived = [d for _, d in (*self.d_scalars, *self.d_values, *self.d_columns)]
        return [*self.outputs, self.weight, *derived]


def program(trace: Trace, reference: statistics.Reference = "largest") -> Program:
    """The passes of a traced function and of its derivatives.

    reference: how log-sum-exps are computed: see `statistics`.
    """
    first_outputs = tuple(statistics.prepared(trace.outputs, reference))
    read = {n for n in topological(trace.outputs) if not n.args}

    def of(op: str) -> list[Node]:
        return sorted((n for n in read if n.op == op), key=lambda n: n.value)

    learnt = [n for n in of("scalar") if trace.scalars is None or n.value < trace.scalars]
    values, columns = of("row_value"), of("column")
    wanted = [S, *learnt, *values, *columns]
    found = gradient(first_outputs, trace.counted, wanted, reference)
    roots = [*first_outputs, *found]
    roots = (
        statistics.means(statistics.without_one(roots))
        if reference == "whole"
        else statistics.spelled_out(roots, reference)
    )
    roots = rewrite(roots, lambda node: node.args[0] if node.op == "detach" else None)
    roots = _merged(roots)
    outputs, derived = roots[: len(trace.outputs)], roots[len(trace.outputs) :]

    def indexed(nodes: list[Node], start: int) -> tuple[tuple[int, Node], ...]:
        return tuple((n.value, derived[start + i]) for i, n in enumerate(nodes))

    first = 1 + len(learnt)
    return Program(
        trace,
        passes_of(roots),
        tuple(outputs),
        derived[0],
        indexed(learnt, 1),
        indexed(values, first),
        indexed(columns, first + len(values)),
    )


def _merged(roots: list[Node]) -> list[Node]:
    """The roots with sums over pairs that are only added to each other made one sum."""
    uses = Counter(a for node in topological(roots) for a in node.args)
    uses.update(roots)
    depth = _depths(roots)

    def own(x: Node) -> Node | None:
        inner = x.args[0] if x.op == "neg" and uses[x] == 1 else x
        return inner if inner.op == "sum" and uses[inner] == 1 else None

    merged: dict[Node, Node] = {}
    for node in topological(roots):
        if node.op == "add" and node.level == ROW:
            first, second = (own(a) for a in node.args)
            if first is None or second is None or depth[first] != depth[second]:
                continue
            terms = [
                where(s.args[1], neg(s.args[0]) if x.op == "neg" else s.args[0], ZERO)
                for s, x in zip((first, second), node.args)
            ]
            merged[node] = make("sum", add(*terms), EVERY)
    return rewrite(roots, replaced=merged)


def passes_of(
    roots: list[Node], partial: Callable[[Node], bool] = lambda _: False
) -> tuple[tuple[Node, ...], ...]:
    """The reductions of the roots, each in the earliest sweep that its dependences allow, or in a later one
    that computes its costly functions anyway.

    partial: whether a reduction needs few of the pairs. A sweep of such ones alone costs next to nothing, so
    that those of all pairs are as few as can be.
    """
    order = topological(roots)
    sweep = _earliest(roots, partial)
    whole = {k for node, k in sweep.items() if not partial(node)}
    for node in sorted(sweep, key=lambda n: -sweep[n]):
        if sweep[node] not in whole:  # with others, where it is in time there
            later = range(sweep[node] + 1, _latest(order, sweep)[node] + 1)
            sweep[node] = next((k for k in later if k in whole), sweep[node])
    latest = _latest(order, sweep)
    costs = {node: set(costly(node.args)) for node in sweep}
    for node in sorted(sweep, key=lambda n: -latest[n]):
        if not costs[node]:
            continue
        for k in range(latest[node], sweep[node], -1):
            there = {x for n, at in sweep.items() if at == k and n is not node for x in costs[n]}
            if k in whole and costs[node] <= there:
                sweep[node] = k
                break
    found: list[list[Node]] = [[] for _ in range(max(sweep.values(), default=-1) + 1)]
    for node, k in sweep.items():
        found[k].append(node)
    return tuple(tuple(nodes) for nodes in found if nodes)


def of_positives(node: Node) -> bool:
    """Whether a reduction gathers from positives alone: from few of the pairs."""
    x, mask = node.args[0], node.args[1]
    parts = conjuncts(mask)
    if node.op == "sum" and x.op == "where" and x.args[2] is ZERO:
        parts += conjuncts(x.args[0])
    return any(part is POSITIVE for part in parts)


def _earliest(roots: list[Node], partial: Callable[[Node], bool]) -> dict[Node, int]:
    """The first sweep in which each reduction is possible."""

    def sweeps(node: Node, below: list[tuple[int, int]]) -> tuple[int, int]:
        """(of all pairs so far, partial ones since)"""
        whole, since = max(below, default=(0, 0))
        if node.op not in REDUCTIONS:
            return whole, since
        return (whole, since + 1) if partial(node) else (whole + 1, 0)

    done = {node: at for node, at in upwards(roots, sweeps).items() if node.op in REDUCTIONS}
    times = sorted({*done.values()})
    return {node: times.index(at) for node, at in done.items()}


def _latest(order: list[Node], sweep: dict[Node, int]) -> dict[Node, int]:
    """The last sweep in which each reduction is in time for those that read it. order: all nodes, arguments
    first."""
    last = max(sweep.values(), default=0)
    latest = dict.fromkeys(order, last)
    for node in reversed(order):
        before = sweep[node] - 1 if node in sweep else latest[node]
        for a in node.args:
            latest[a] = min(latest[a], before)
    return {node: latest[node] for node in sweep}


def _depths(roots: list[Node]) -> dict[Node, int]:
    """How many sweeps each node needs."""
    return upwards(roots, lambda node, below: max(below, default=0) + (node.op in REDUCTIONS))
