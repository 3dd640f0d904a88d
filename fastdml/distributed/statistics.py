"""A row whose candidates come block by block: what it knows of them is merged.

A description that has its row in the words of the language (`RowLoss.row`) is traced into sweeps of
statistics, then outputs and weights. Sums add up, extremes are compared, log-sum-exps are added as
logarithms, means under a softmax are averaged by their masses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine import schedule
from ..engine.loss import RowLoss, Rows
from ..engine.problem import Problem
from ..engine.registry import interned
from ..engine.schedule import Result, Visit, Wanted
from ..language.described import Described
from ..language.evaluate import values
from ..language.graph import COLUMNS, Node, NotInLanguage, make, topological
from ..language.program import Program, program
from ..language.row import Row, trace
from .ranks import Ranks

_CANDIDATES = make("candidates")
# How many there are of something is a statistic too.
_COUNTS = frozenset((_CANDIDATES, COLUMNS))
BYTES = 12  # numbers held per pair of a block


def statistics_of(loss: RowLoss) -> Statistics | str:
    """How a loss's statistics merge, or why they do not."""
    return _statistics(interned(loss))


@functools.lru_cache(maxsize=256)
def _statistics(loss: RowLoss) -> Statistics | str:
    if loss.row is None:
        return f"{loss.name!r} needs all similarities of a row at once"
    if loss.columns_per_class > 1 or loss.rows_together > 1:
        return f"{loss.name!r} compares several proxies of a class with each other"

    def row(p: Row) -> object:
        return loss.read(p) if isinstance(loss, Described) else loss.row(p)

    try:
        return Statistics(loss, program(trace(row, counted=loss.counted), reference="whole"))
    except NotInLanguage as error:
        return f"{error} is no word of the row language (docs/language.md), in which {loss.name!r} is written"


class Statistics:
    """A traced row."""

    def __init__(self, loss: RowLoss, made: Program) -> None:
        self.loss, self.program = loss, made
        counts = tuple(n for n in topological(made.roots) if n in _COUNTS)
        self.sweeps: list[tuple[Node, ...]] = [*made.passes]
        if counts:
            self.sweeps[0] = (*self.sweeps[0], *counts)

    def start(self, problem: Problem) -> State:
        """What the rows of a problem know before the first sweep."""
        return State(self, problem)


class State:
    """The merged statistics of rows. known: [M, 1] each."""

    def __init__(self, statistics: Statistics, problem: Problem) -> None:
        self.statistics, self.problem = statistics, problem
        self.known: dict[Node, Tensor] = {}
        self.partial: dict[Node, list[Tensor]] = {}

    def fold(self, sweep: int) -> Fold:
        """The step that takes blocks into a sweep's statistics."""
        nodes = self.statistics.sweeps[sweep]
        rows, kind = self.problem.relation.rows, self.problem.statistic
        for node in nodes:
            self.partial[node] = [
                torch.full((rows, 1), first, dtype=kind, device=self.problem.anchors.device)
                for first in _start(node, kind)
            ]
        return Fold(self, nodes)

    def settle(self, sweep: int) -> None:
        """The statistics of a sweep are complete."""
        for node in self.statistics.sweeps[sweep]:
            found = self.partial.pop(node)[-1]
            if node.op == "log_sum_exp":
                lowest = torch.finfo(found.dtype).min
                found = torch.where(found.isneginf(), lowest, found)
            self.known[node] = found

    def result(self, wanted: Wanted) -> Result:
        """Outputs of the rows and the derivatives of what rows have once."""
        problem, made = self.problem, self.statistics.program
        count, kind = problem.relation.rows, problem.statistic
        nothing = problem.anchors.new_empty(count, 0, dtype=kind)
        mask = nothing.bool()
        rows = Rows(nothing, mask, mask, None, None, problem.all_scalars, problem.row_values, None)
        roots = [*made.outputs]
        if wanted.scalars:
            roots += made.by("scalar").values()
        if wanted.row_values:
            roots += made.by("row_value").values()
        found = values(roots, rows, None, self._weights(slice(None)), self.known)

        def of_row(x: Node) -> Tensor:
            return found[x].expand(count, 1)[:, 0].to(kind)

        out = Result(torch.stack([of_row(x) for x in made.outputs], dim=1) + problem.poison)
        factor = self._factor(slice(None))
        if wanted.scalars and problem.all_scalars is not None:
            out.d_scalars = torch.zeros_like(problem.all_scalars)
            for k, x in made.by("scalar").items():
                out.d_scalars[k] = (of_row(x) * factor).sum(dtype=torch.float64)
        if wanted.row_values and problem.row_values is not None:
            out.d_row_values = torch.zeros_like(problem.row_values)
            for k, x in made.by("row_value").items():
                out.d_row_values[:, k] = of_row(x) * factor
        return out

    def weigh(self) -> Weigh:
        """The step that turns blocks into weights."""
        return Weigh(self)

    def _weights(self, rows: slice) -> Tensor | None:
        weight = self.problem.row_weight
        several = self.statistics.program.several and weight is not None
        return weight[rows] if several and weight is not None else None

    def _factor(self, rows: slice) -> Tensor | float:
        weight = self.problem.row_weight
        if weight is None or self.statistics.program.several:
            return self.problem.weight
        return weight[rows] * self.problem.weight

    def evaluated(self, roots: Sequence[Node], block: Rows, rows: slice) -> dict[Node, Tensor]:
        """Nodes on a block of rows and candidates, whose rows know what has settled."""
        given = {node: x[rows] for node, x in self.known.items()}
        return values(roots, block, None, self._weights(rows), given)


class _Step:
    def bytes_per_pair(self, problem: Problem) -> int:
        return BYTES * torch.finfo(problem.statistic).bits // 8

    def column_sums(self, problem: Problem) -> None:
        return None


class Fold(_Step):
    """Takes blocks into statistics (`engine.schedule.Step`)."""

    def __init__(self, state: State, nodes: Sequence[Node]) -> None:
        self.state, self.nodes = state, nodes

    def run(self, block: Problem) -> None:
        """One more block of candidates for all rows."""
        if block.relation.rows and block.relation.columns:
            schedule.run(block, self, Wanted())

    def __call__(self, block: Visit) -> Tensor:
        block.compare()
        s, rows = block.s, block.rows
        seen = block.problem.rows(s, rows.start, rows.stop, block.teacher)
        arguments = [a for node in self.nodes for a in node.args]
        known = self.state.evaluated(arguments, seen, rows)
        for node in self.nodes:
            self._merge(node, [known[a].expand_as(s) for a in node.args], seen, rows)
        return s

    def _merge(self, node: Node, args: list[Tensor], block: Rows, rows: slice) -> None:
        held = self.state.partial[node]
        parts = _of_block(node, args, block, held[0].dtype)
        for x, merged in zip(held, _merged(node, [x[rows] for x in held], parts), strict=True):
            x[rows] = merged


class Weigh(_Step):
    """Turns blocks into weights, of rows whose statistics are complete."""

    def __init__(self, state: State) -> None:
        self.state = state

    def run(self, block: Problem, wanted: Wanted) -> Result:
        """The derivatives that one block of candidates makes."""
        return schedule.run(block, self, wanted)

    def __call__(self, block: Visit) -> Tensor:
        block.compare()
        s, rows = block.s, block.rows
        block.out.outputs[rows] = 0
        if not block.gradient:
            return s
        seen = block.problem.rows(s, rows.start, rows.stop, block.teacher)
        weight = self.state.statistics.program.weight
        g = self.state.evaluated([weight], seen, rows)[weight].expand_as(s)
        factor = self.state._factor(rows)
        return block.weigh(g * (factor[:, None] if isinstance(factor, Tensor) else factor))


def _start(node: Node, kind: torch.dtype) -> tuple[float, ...]:
    """What a statistic is over no pair; of means under a softmax their log mass first."""
    limits = torch.finfo(kind)
    return {
        "amax": (limits.min,),
        "amin": (limits.max,),
        "log_sum_exp": (-torch.inf,),
        "softmax_mean": (-torch.inf, 0.0),
    }.get(node.op, (0.0,))


def _of_block(node: Node, args: list[Tensor], block: Rows, kind: torch.dtype) -> list[Tensor]:
    """A statistic over the candidates of a block."""
    if node is _CANDIDATES:
        return [(block.positive | block.negative).sum(1, keepdim=True).to(kind)]
    if node is COLUMNS:
        return [block.s.new_full((block.s.shape[0], 1), block.s.shape[1], dtype=kind)]
    x, mask = args[:2]
    x, limits = x.to(kind), torch.finfo(kind)
    if node.op == "sum":
        return [torch.where(mask, x, 0.0).sum(1, keepdim=True)]
    if node.op == "amax":
        return [torch.where(mask, x, limits.min).amax(1, keepdim=True)]
    if node.op == "amin":
        return [torch.where(mask, x, limits.max).amin(1, keepdim=True)]
    z = torch.where(mask, x, -torch.inf)
    level = z.logsumexp(1, keepdim=True)
    if node.op == "log_sum_exp":
        return [level]
    share = torch.where(mask, (z - torch.where(level.isneginf(), 0.0, level)).exp(), 0.0)
    return [level, (share * torch.where(mask, args[2].to(kind), 0.0)).sum(1, keepdim=True)]


def _merged(node: Node, one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """A statistic over the candidates of both."""
    a, b = one[0], other[0]
    if node.op == "amax":
        return [torch.maximum(a, b)]
    if node.op == "amin":
        return [torch.minimum(a, b)]
    if node.op not in ("log_sum_exp", "softmax_mean"):
        return [a + b]
    level = torch.logaddexp(a, b)
    if node.op == "log_sum_exp":
        return [level]
    safe = torch.where(level.isneginf(), 0.0, level)
    return [level, (a - safe).exp() * one[1] + (b - safe).exp() * other[1]]


def merged_over(state: State, ranks: Ranks) -> None:
    """Merges the statistics of a sweep over ranks, each of which has other candidates for the same rows."""
    if ranks.size == 1:
        return
    by_kind: dict[str, list[Tensor]] = {"sum": [], "max": []}
    for node, held in state.partial.items():
        if node.op in ("amax", "amin"):
            by_kind["max"].append(held[0] if node.op == "amax" else -held[0])
        elif node.op in ("log_sum_exp", "softmax_mean"):
            by_kind["max"].append(held[0])
        else:
            by_kind["sum"].append(held[0])
    largest = _over(ranks, by_kind["max"], "max")
    # Log-sum-exps as sums of exponentials over the largest.
    sums = by_kind["sum"]
    masses: dict[Node, Tensor] = {}
    for node, held in state.partial.items():
        if node.op in ("amax", "amin"):
            top = largest.pop(0)
            held[0] = top if node.op == "amax" else -top
        elif node.op in ("log_sum_exp", "softmax_mean"):
            top = largest.pop(0)
            top = torch.where(top.isneginf(), 0.0, top)
            masses[node] = top
            mass = (held[0] - top).exp()
            sums = [*sums, mass, *(mass * mean for mean in held[1:])]
    found = _over(ranks, sums, "sum")
    for node, held in state.partial.items():
        if node.op == "sum" or node in _COUNTS:
            held[0] = found.pop(0)
    for node, top in masses.items():
        mass = found.pop(0)
        held = state.partial[node]
        held[0] = mass.log() + top
        if len(held) > 1:
            held[1] = found.pop(0) / torch.where(mass > 0, mass, 1.0)


def _over(ranks: Ranks, held: list[Tensor], operation: str) -> list[Tensor]:
    """The sums or maxima over ranks, in one exchange."""
    return list(ranks.total(torch.stack(held), operation).unbind()) if held else []
