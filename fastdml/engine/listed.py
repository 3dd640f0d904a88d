"""Listed pairs: what they are, and their gradients, in O(list) numbers beside a block of products.

A list is ordered by its rows, once. Then blocks of products are made as for every loss, and the pairs of
their rows read from them; backwards their weights are put into blocks, which are multiplied as every block
is. Where a list is short beside the matrix of all pairs, no block is made: each pair is multiplied by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import library
from .loss import RowLoss
from .problem import Problem
from .products import accumulate_, multiply
from .relation import Relation
from .schedule import weight_totals
from .similarity import DISTANCE, PRODUCT, products
from .summed import add_
from .workspace import block_limit, buffer, rows_within

# A pair by itself costs as much as so many pairs of a block; and a block of which more than this share is
# listed is turned into similarities as a whole.
_SHORT = 12
_DENSE = 0.25
# Numbers of one temporary where torch multiplies pair by pair.
_AT_ONCE = 1 << 20
Pair = tuple[Tensor, Tensor]  # rows [T] and columns [T]


@dataclasses.dataclass(eq=False)
class RowList:
    """A list by rows, for the compiled library: csrc/cpu/listed.h.

    start: int64 [every M + 1]. order: int32 [T], or None where pairs stand in that order. column: [T].
    """

    start: Tensor
    column: Tensor
    order: Tensor | None = None
    every: int = 1

    @staticmethod
    def of(row: Tensor, column: Tensor, rows: int) -> RowList:
        order, start = torch.ops.fastdml_native.list_order(row.contiguous(), rows)
        return RowList(start, column.contiguous(), order if order.numel() else None)

    @property
    def fields(self) -> tuple[Tensor | None, Tensor, Tensor, int]:
        return self.order, self.start, self.column, self.every

    def swapped(self, columns: int) -> RowList:
        """The same pairs by columns."""
        rows = (self.start.shape[0] - 1) // self.every
        count = self.start[:: self.every].diff()
        row = torch.arange(rows, device=count.device).repeat_interleave(count)
        if self.order is not None:
            row = torch.empty_like(row).scatter_(0, self.order.long(), row)
        return RowList.of(self.column.long(), row, columns)


class Unrelated(Relation):
    """Rows and columns whose pairs a list names."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns


@dataclasses.dataclass(frozen=True)
class Described(RowLoss):
    """What pairs are, and no loss of them."""

    epsilon: float = 0.0

    def distance_epsilon(self, dimension: int) -> float:
        return self.epsilon


def problem_of(similarity: str, x: Tensor, y: Tensor | None, epsilon: float = 0.0) -> Problem:
    """The pairs of x [M, D] and y [N, D] (None: one set), of one type, made fit for products."""
    a = x.detach().contiguous()
    c = a if y is None else y.detach().contiguous()
    relation = Unrelated(a.shape[0], c.shape[0])
    problem = Problem(Described(epsilon, similarity=similarity), a, c, relation, a.dtype)
    problem.condition()
    return problem


def one_by_one(device_type: str, rows: int, columns: int, pairs: int, size: int) -> bool:
    """Whether that many pairs of a matrix are multiplied one by one. size: bytes of a number."""
    if pairs * _SHORT < rows * columns:
        return True
    # An accelerator, which nobody may ask where a block's pairs begin, reads one block or none.
    return device_type != "cpu" and _block_rows(device_type, rows, columns, size) < rows


def plan(device_type: str, rows: int, columns: int, pairs: int, size: int) -> str:
    """How that many pairs would be read, in words."""
    if one_by_one(device_type, rows, columns, pairs, size):
        return "each pair multiplied by itself, as the list is short beside the matrix"
    block = _block_rows(device_type, rows, columns, size)
    return f"pairs read from blocks of products, {block} rows at a time"


def _block_rows(device_type: str, rows: int, columns: int, size: int) -> int:
    return rows_within(block_limit(device_type, columns, size), columns, size, rows)


class Compiled:
    """Lists of pairs of a problem, on the CPU, by the compiled library."""

    def __init__(self, problem: Problem, lists: Sequence[RowList]) -> None:
        self.problem, self.lists = problem, lists
        a, c = problem.anchors, problem.candidates
        self.shape = a.shape[0], c.shape[0]
        pairs = sum(each.column.shape[0] for each in lists)
        self.short = one_by_one("cpu", *self.shape, pairs, a.element_size())
        self.dense = pairs > _DENSE * a.shape[0] * c.shape[0]

    @staticmethod
    def of(problem: Problem, pairs: Sequence[Pair]) -> Compiled:
        made: list[RowList] = []
        for k, (i, j) in enumerate(pairs):
            if k and i is pairs[k - 1][0]:  # triplets name their anchors once
                made.append(dataclasses.replace(made[-1], column=j.contiguous()))
            else:
                made.append(RowList.of(i, j, problem.anchors.shape[0]))
        return Compiled(problem, made)

    def _sets(self, swapped: bool = False) -> tuple[Any, ...]:
        p, metric = self.problem, self.problem.loss.metric
        rows = p.row_scale, p.row_square, p.anchors
        columns = p.col_scale, p.col_square, p.candidates
        if swapped:
            rows, columns = columns, rows
        return rows[0], columns[0], metric.kind, rows[1], columns[1], p.epsilon, rows[2], columns[2]

    def _blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(start, stop, memory) of the blocks of rows."""
        rows, columns = self.shape
        a = self.problem.anchors
        size = _block_rows("cpu", rows, columns, a.element_size())
        held = buffer("similarity", size * columns, a).view(size, columns)
        for start in range(0, rows, size):
            stop = min(rows, start + size)
            yield start, stop, held[: stop - start]

    def values(self) -> list[Tensor]:
        """[T] what the pairs of each list are."""
        a, c = self.problem.anchors, self.problem.candidates
        found = [a.new_empty(each.column.shape[0]) for each in self.lists]
        read = torch.ops.fastdml_native.listed_values_
        if self.short:
            for each, out in zip(self.lists, found):
                read(out, None, 0, *each.fields, *self._sets())
            return found
        of = (None, None, PRODUCT, None, None, 0.0, a, c) if self.dense else self._sets()
        for start, stop, s in self._blocks():
            if self.dense:
                self.problem.similarities(start, stop, s)
            else:
                multiply(a[start:stop], c.t(), s)
            for each, out in zip(self.lists, found):
                read(out, s, start, *each.fields, *of)
        return found

    def gradients(
        self, derivatives: Sequence[Tensor], values: Sequence[Tensor], wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of anchors and candidates as they are multiplied, from derivatives by the values; of one set their
        sum, as the first."""
        p, metric = self.problem, self.problem.loss.metric
        a, c = p.anchors, p.candidates
        one_set = p.one_set
        numbers = [v if metric.kind == DISTANCE else None for v in values]
        derivatives = [d.contiguous() for d in derivatives]
        d_anchors = torch.zeros_like(a) if wanted[0] else None
        d_candidates = torch.zeros_like(c) if wanted[1] and not one_set else None
        toward = d_anchors if one_set else d_candidates
        totals = [
            x.new_zeros(x.shape[0]) if d is not None and metric.needs_totals else None
            for x, d in ((a, d_anchors), (c, toward))
        ]
        if self.short:
            add = torch.ops.fastdml_native.listed_gradient_
            for each, g, d in zip(self.lists, derivatives, numbers):
                if d_anchors is not None:
                    add(d_anchors, totals[0], *each.fields, g, d, *self._sets())
                if toward is not None:
                    other = each.swapped(self.shape[1])
                    add(toward, totals[1], *other.fields, g, d, *self._sets(swapped=True))
        else:
            for start, stop, h in self._blocks():
                h.zero_()
                for each, g, d in zip(self.lists, derivatives, numbers):
                    torch.ops.fastdml_native.listed_weights_(h, start, *each.fields, g, d, *self._sets())
                if totals[0] is not None:
                    totals[0][start:stop] = weight_totals(h, p.col_scale)
                if totals[1] is not None:
                    scale = p.row_scale
                    totals[1] += weight_totals(h.t(), None if scale is None else scale[start:stop])
                if d_anchors is not None:
                    accumulate_(d_anchors[start:stop], h, c)
                if toward is not None:
                    accumulate_(toward, h.t(), a[start:stop])
        if one_set and totals[0] is not None and totals[1] is not None:
            totals[0] += totals[1]
        if d_anchors is not None:
            metric.finish_(d_anchors, a, None if metric.raw_anchors else p.row_scale, totals[0])
        if d_candidates is not None:
            metric.finish_(d_candidates, c, p.col_scale, totals[1])
        return d_anchors, d_candidates


class Plain:
    """Lists of pairs of a problem in torch, on any device."""

    def __init__(self, problem: Problem, lists: Sequence[Pair]) -> None:
        self.problem, self.lists = problem, lists
        rows, columns = problem.anchors.shape[0], problem.candidates.shape[0]
        pairs = sum(i.shape[0] for i, _ in lists)
        kind, size = problem.anchors.device.type, problem.anchors.element_size()
        self.size = _block_rows(kind, rows, columns, size)
        self.short = one_by_one(kind, rows, columns, pairs, size)

    def _blocks(self) -> Iterator[tuple[int, int, list[Any]]]:
        """(start, stop, places in each list of the pairs of these rows)."""
        rows = self.problem.anchors.shape[0]
        if self.size >= rows:
            yield 0, rows, [slice(None)] * len(self.lists)
            return
        starts = torch.arange(0, rows + self.size, self.size, device="cpu")
        ordered = [(i.argsort(stable=True), i) for i, _ in self.lists]
        bounds = [torch.searchsorted(i[order], starts.to(i.device)).tolist() for order, i in ordered]
        for k, start in enumerate(starts[:-1].tolist()):
            places = [order[b[k] : b[k + 1]] for (order, _), b in zip(ordered, bounds)]
            yield start, min(rows, start + self.size), places

    def _pieces(self) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        """(list, places in it, rows, columns) of few pairs at once."""
        size = max(1, _AT_ONCE // self.problem.anchors.shape[1])
        for k, (i, j) in enumerate(self.lists):
            for start in range(0, i.shape[0], size):
                where = slice(start, start + size)
                yield k, where, i[where], j[where]

    def values(self) -> list[Tensor]:
        """[T] what the pairs of each list are."""
        p, metric = self.problem, self.problem.loss.metric
        a, c = p.anchors, p.candidates
        found = [a.new_empty(i.shape[0]) for i, _ in self.lists]
        if self.short:
            for k, where, i, j in self._pieces():
                found[k][where] = metric.paired(a[i], c[j], p.epsilon)
            return found
        for start, stop, places in self._blocks():
            s = products(a[start:stop], c)
            for (i, j), where, out in zip(self.lists, places, found):
                out[where] = self._numbers(s[i[where] - start, j[where]], i[where], j[where])
        return found

    def _numbers(self, product: Tensor, i: Tensor, j: Tensor) -> Tensor:
        p, metric = self.problem, self.problem.loss.metric
        row_scale, row_square = (None if x is None else x[i] for x in (p.row_scale, p.row_square))
        col_scale, col_square = (None if x is None else x[j] for x in (p.col_scale, p.col_square))
        sets = (p.anchors, p.candidates) if product.device.type == "cpu" else None
        return metric.of_products(
            product, row_scale, row_square, col_scale, col_square, p.epsilon, sets, i, j
        )

    def gradients(
        self, derivatives: Sequence[Tensor], values: Sequence[Tensor], wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of anchors and candidates as they are multiplied, from derivatives by the values; of one set their
        sum, as the first."""
        p, metric = self.problem, self.problem.loss.metric
        a, c = p.anchors, p.candidates
        d_a = torch.zeros_like(a)
        d_c = d_a if p.one_set else torch.zeros_like(c)
        if self.short:
            for k, where, i, j in self._pieces():
                x, z = a[i].requires_grad_(), c[j].requires_grad_()
                with torch.enable_grad():
                    value = metric.paired(x, z, p.epsilon)
                found = torch.autograd.grad(value, (x, z), derivatives[k][where])
                add_(d_a, i, found[0])
                add_(d_c, j, found[1])
        else:
            row_total, col_total = a.new_zeros(a.shape[0]), c.new_zeros(c.shape[0])
            for start, stop, places in self._blocks():
                h = a.new_zeros(stop - start, c.shape[0])
                for (i, j), where, g, d in zip(self.lists, places, derivatives, values):
                    rows, columns = i[where], j[where]
                    row_scale = None if p.row_scale is None else p.row_scale[rows]
                    col_scale = None if p.col_scale is None else p.col_scale[columns]
                    # Of a squared distance only the derivative is here.
                    floor = p.epsilon if metric.kind == DISTANCE else 0.0
                    w = metric.weigh_(g[where].clone(), d[where], row_scale, col_scale, floor)
                    add_(h.view(-1), (rows - start) * c.shape[0] + columns, w)
                if metric.needs_totals:
                    row_total[start:stop] = weight_totals(h, p.col_scale)
                    scale = None if p.row_scale is None else p.row_scale[start:stop]
                    col_total += weight_totals(h.t(), scale)
                accumulate_(d_a[start:stop], h, c)
                accumulate_(d_c, h.t(), a[start:stop])
            if p.one_set:
                row_total += col_total
            totals = (row_total, col_total) if metric.needs_totals else (None, None)
            metric.finish_(d_a, a, None if metric.raw_anchors else p.row_scale, totals[0])
            if not p.one_set:
                metric.finish_(d_c, c, p.col_scale, totals[1])
        return d_a, None if p.one_set else d_c


Listed = Compiled | Plain


def listed(
    similarity: str, x: Tensor, y: Tensor | None, lists: Sequence[Pair], epsilon: float
) -> Listed:
    """Lists of pairs of x and y (None: of x alone), by what there is."""
    problem = problem_of(similarity, x, y, epsilon)
    if x.device.type == "cpu" and library.load() is not None:
        return Compiled.of(problem, lists)
    return Plain(problem, lists)
