"""Problems of the leading dimensions of one set: products that grow from width to width, gradients that are
sums over widths, and what the normalisation of each takes out of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import library
from .problem import Problem
from .products import accumulate_, multiply


def slices_of(problems: Sequence[Problem]) -> list[slice]:
    """The dimensions that each width has beyond the one before, ascending."""
    widths = [p.anchors.shape[1] for p in problems]
    return [slice(low, high) for low, high in zip([0, *widths], widths)]


def grow(s: Tensor, a: Tensor, c: Tensor, part: slice) -> None:
    """s [R, N], or of several blocks [., R, N]: from the products of the width before `part` those with it,
    of rows a and columns c."""
    if part.start == part.stop:
        return
    a, c = a[..., part], c[..., part].mT
    if part.start == 0:
        multiply(a, c, s)
    else:
        accumulate_(s, a, c)


def spread(
    weights: Sequence[Tensor],
    slices: Sequence[slice],
    a: Tensor,
    c: Tensor,
    d_a: Tensor | None,
    d_c: Tensor | None,
) -> None:
    """Adds a block's products of weights, slice by slice from the last: of all widths from there on. (The
    weights become their sums.)"""
    total: Tensor | None = None
    for own, part in zip(reversed(weights), reversed(slices)):
        total = own if total is None else own.add_(total)
        if part.start == part.stop:
            continue
        if d_a is not None:
            accumulate_(d_a[:, part], total, c[:, part])
        if d_c is not None:
            accumulate_(d_c[:, part], total.t(), a[:, part])


class Radial:
    """How much the weights of each width but the widest and the products have in common, by rows and by
    columns: (dA_k)_i . a_i = sum_j (G_k)_ij (S_k)_ij."""

    def __init__(self, problems: Sequence[Problem], rows: bool, columns: bool) -> None:
        self.problems = problems
        widest = problems[-1]
        m, n, count = widest.anchors.shape[0], widest.candidates.shape[0], len(problems) - 1
        zeros = widest.anchors.new_zeros
        self.one_set = widest.one_set
        self.rows = zeros(count, m) if rows else None
        self.columns = zeros(count, n) if columns else None

    def add(self, k: int, start: int, g: Tensor, s: Tensor, first: int = 0) -> None:
        """g, s [R, N - first]: weights and products of width k, of columns from `first` on."""
        rows = None if self.rows is None else self.rows[k, start : start + g.shape[0]]
        columns = None if self.columns is None else self.columns[k, first:]
        _add_common(g, s, rows, columns)

    def take_out(self, d_a: Tensor | None, d_c: Tensor | None) -> None:
        """Takes what lies along the embeddings' leading dimensions out of the gradients."""
        rows = self.rows
        if self.one_set and self.columns is not None and rows is not None:
            rows = rows + self.columns
        if d_a is not None and rows is not None:
            self._take(d_a, rows, "anchors", "row_scale")
        if d_c is not None and self.columns is not None:
            self._take(d_c, self.columns, "candidates", "col_scale")

    def _take(self, d: Tensor, along: Tensor, of: str, scale: str) -> None:
        whole = getattr(self.problems[-1], of)
        beyond = d.new_empty(d.shape[0])
        _add_common(d, whole, beyond, None)
        along = torch.cat([along, (beyond - along.sum(0))[None]])
        factors = torch.stack([getattr(p, scale) for p in self.problems]).square() * along
        low = 0
        for k, problem in enumerate(self.problems):
            high = getattr(problem, of).shape[1]
            d[:, low:high].addcmul_(whole[:, low:high], factors[k:].sum(0)[:, None], value=-1)
            low = high


def _add_common(g: Tensor, s: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
    """rows [R] = the sums of the rows of g * s, columns [N] += those of its columns."""
    by_rows = all(x.shape[1] <= 1 or x.stride(1) == 1 for x in (g, s))  # a large classifier's are not
    if by_rows and library.load() is not None:
        torch.ops.fastdml_native.common_(g, s, rows, columns)
        return
    common = g * s
    if rows is not None:
        rows.copy_(common.sum(1))
    if columns is not None:
        columns += common.sum(0)
