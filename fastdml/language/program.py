"""A loss's row as passes over its pairs: what every executor and printer starts from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

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
    outputs: of a row. slopes: the derivative by every input that wants one, that by s first: of a pair by
    what a pair has, of the row by values of the row and of the call.
    """

    trace: Trace
    passes: tuple[tuple[Node, ...], ...]
    outputs: tuple[Node, ...]
    slopes: Mapping[Node, Node]

    @property
    def several(self) -> bool:
        """Whether the result weighs several outputs of a row."""
        return len(self.outputs) > 1 and not self.trace.counted

    @property
    def weight(self) -> Node:
        return self.slopes[S]

    def by(self, op: str) -> dict[int, Node]:
        """The derivatives by inputs such as "scalar" or "column", by their index."""
        return {x.value: d for x, d in self.slopes.items() if x.op == op}

    def derivatives(self, op: str) -> list[Node]:
        """The same, 0 for those before the last that want none."""
        found = self.by(op)
        return [found.get(k, ZERO) for k in range(max(found, default=-1) + 1)]

    @property
    def column_slopes(self) -> list[Node]:
        """The derivatives of a pair by the values of its candidate, up to the last that is not 0."""
        found = self.derivatives("column")
        while found and found[-1] is ZERO:
            found.pop()
        return found

    def count(self, op: str) -> int:
        """How many there are of an input such as "scalar" or "column", up to the last that is read."""
        return max((n.value for n in topological(self.roots) if n.op == op), default=-1) + 1

    def reads(self, op: str) -> bool:
        return any(n.op == op for n in topological(self.roots))

    @property
    def roots(self) -> list[Node]:
        return [*self.outputs, *self.slopes.values()]

    def made_of(
        self, roots: Sequence[Node], partial: Callable[[Node], bool] = lambda _: False
    ) -> Program:
        """The same with other roots, in their order. partial: see `passes_of`."""
        outputs, slopes = roots[: len(self.outputs)], roots[len(self.outputs) :]
        return Program(
            self.trace, passes_of(roots, partial), tuple(outputs), dict(zip(self.slopes, slopes))
        )


def program(trace: Trace, reference: statistics.Reference = "largest") -> Program:
    """The passes of a traced function and of its derivatives.

    reference: how log-sum-exps are computed: see `statistics`.
    """
    outputs = tuple(statistics.prepared(trace.outputs, reference))
    read = {n for n in topological(trace.outputs) if not n.args}

    def of(op: str) -> list[Node]:
        return sorted((n for n in read if n.op == op), key=lambda n: n.value)

    learnt = [n for n in of("scalar") if trace.scalars is None or n.value < trace.scalars]
    wanted = [S, *learnt, *of("row_value"), *of("column")]
    roots = [*outputs, *gradient(outputs, trace.counted, wanted, reference)]
    roots = (
        statistics.means(statistics.without_one(roots))
        if reference == "whole"
        else statistics.spelled_out(roots, reference)
    )
    roots = _merged(rewrite(roots, lambda node: node.args[0] if node.op == "detach" else None))
    return Program(trace, (), outputs, dict.fromkeys(wanted, ZERO)).made_of(roots)


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
    roots: Sequence[Node], partial: Callable[[Node], bool] = lambda _: False
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
    if node.op == "sum" and x.masked:
        parts += conjuncts(x.args[0])
    return any(part is POSITIVE for part in parts)


def _earliest(roots: Sequence[Node], partial: Callable[[Node], bool]) -> dict[Node, int]:
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
