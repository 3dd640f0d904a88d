"""A tile loss from end to end: row losses and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import launch
from .launch import AnyLoss, Lists, Numbers, Side
from .list_loss import ListLoss

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
Products = tuple[Product, Product]


@dataclasses.dataclass
class TileResult:
    """Everything float32. Derivatives are None where not asked for.

    outputs: [M, outputs] of the rows, not multiplied by row weights.
    d_anchors, d_candidates: [M, D], [N, D] accumulated products of weights, scaled by the inverse
        norms if there are any; the part along each embedding is still in them. With one set,
        everything is in d_anchors.
    anchor_sums, candidate_sums: [2, M], [2, N] sums of the products' weights, and of those times the
        numbers: for metrics that are distances of raw embeddings, and for `sums=True`.
    scalar_rows: [M, scalars] derivatives of each row's loss by the learnable parameters, and
    slope_rows: [M, slopes] by its inputs; not multiplied by row weights.
    d_column_values: [column_values, N], for losses with `column_slopes`, beside the gradient of the
        candidates (or of the one set).
    """

    outputs: Tensor
    d_anchors: Tensor | None = None
    d_candidates: Tensor | None = None
    anchor_sums: Tensor | None = None
    candidate_sums: Tensor | None = None
    scalar_rows: Tensor | None = None
    slope_rows: Tensor | None = None
    d_column_values: Tensor | None = None


def tile_rows(
    loss: AnyLoss,
    anchors: Tensor,
    candidates: Tensor,
    anchor_labels: Tensor,
    candidate_labels: Tensor,
    *,
    parameters: Sequence[float] | Tensor = (),
    pair: Numbers = Numbers(),  # noqa: B008
    norms: tuple[Tensor, Tensor] | None = None,
    exclude_self: bool = False,
    order: bool = True,
    ascending: tuple[bool, bool] = (False, False),
    row_weight: Tensor | None = None,
    weight: float = 1.0,
    inputs: Tensor | None = None,
    column_values: Tensor | None = None,
    teacher: tuple[Tensor, Tensor] | None = None,
    teacher_norms: tuple[Tensor, Tensor] | None = None,
    centres: int = 1,
    gradients: tuple[bool, bool] = (True, True),
    sums: bool = False,
    known: bool = False,
    precision: str | None = None,
    products: Products | None = None,
) -> TileResult:
    """Losses of the rows of anchors against candidates, and the gradients of their weighted sum.

    Args:
        loss: a pair loss, or one over lists of thresholds. No row of the latter may have more than
            loss.slots columns of its own label; `order` is then taken as True.
        anchors, candidates: [M, D] and [N, D] (the same object: one set), float32, float16 or
            bfloat16, contiguous. [N * centres, D] with several centres per class, class by class.
        anchor_labels, candidate_labels: int64 [M], [N]; equal ones are positives.
        parameters: what the loss's functions read as p; float32 on the device if a tensor.
        pair: what the numbers of a pair are.
        norms: float32 [2, M] and [2, N] inverse and squared norms; None: computed here.
        exclude_self: leaves out the pairs of rows with themselves; of one set.
        order: works on a copy of the embeddings in the order of their labels. Tiles without positives
            then need no labels, and those of losses with zero weights are skipped.
        ascending: which of the two label vectors ascend already.
        row_weight: float32 [M] weights of the rows in the sum ([M, outputs] for several outputs of a
            pair loss).
        weight: times this.
        inputs: [loss.inputs, M] values per row that the loss reads.
        column_values: float32 [loss.column_values, N] (or classes) values per column that it reads.
        teacher: second matrix's factors [M, DT], [N, DT].
        teacher_norms: as norms.
        centres: consecutive candidates that make one class.
        gradients: which of the two gradients are wanted.
        sums: also sums of weights per row and column.
        known: nobody reads the outputs: where weights need nothing else of their row either, it is not
            visited for them, and they are zeros.
        precision: "ieee", "tf32" or "tf32x3" for float32; None: torch's setting.
        products: `multiply(a, b, out)` and `accumulate(total, a, b)` into float32, for dimensions at which
            weights are written and multiplied by the library; None: torch's, for float32 alone.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """
    one_set = candidates is anchors
    listed = isinstance(loss, ListLoss)
    order = order or listed
    _check(anchors, candidates, anchor_labels, candidate_labels, centres, one_set, exclude_self)
    p = launch.parameter_tensor(parameters, anchors.device)
    own_norms = norms or (None, None)
    u, v = teacher or (None, None)
    t_norms = teacher_norms or (None, None)
    rows = Side(anchors, anchor_labels, own_norms[0], u, t_norms[0], 1, ascending[0])
    rows.values = column_values if one_set else None
    cols = Side(candidates, candidate_labels, own_norms[1], v, t_norms[1], centres, ascending[1])
    cols.values = column_values
    if (given := 0 if column_values is None else len(column_values)) != loss.column_values:
        raise ValueError(
            f"column_values: expected {loss.column_values} of every column for {loss.name!r}, got {given}"
        )
    for side in (rows, cols):
        side.norms = _norms(side.x, pair.metric) if side.norms is None else side.norms
        if side.teacher is not None and side.teacher_norms is None:
            side.teacher_norms = _norms(side.teacher, pair.teacher_metric)
    row_order = _order(rows, order)
    if one_set and u is not v:
        raise ValueError("teacher: expected one tensor twice where the embeddings are one set")
    col_order = row_order if one_set else _order(cols, order)
    rows = _permuted(rows, row_order)
    cols = rows if one_set else _permuted(cols, col_order)
    launch.encode(rows, cols)
    if row_order is not None:
        row_weight = None if row_weight is None else row_weight[row_order]
        inputs = None if inputs is None else inputs[:, row_order]

    lists = None
    k, j = loss.outputs, loss.outputs + loss.derivatives
    totals = sums or pair.metric.startswith("raw")
    chunks = launch.chunks_of(loss, anchors)
    write = any(gradients) and launch.writes_weights(loss, centres, chunks, anchors.dtype, totals)
    # Where the sweep for the anchors' gradient finds it too, that is all there is to be swept.
    find = (gradients[0] or write) and launch.finds_statistics(loss, centres, chunks, write)
    skip = known and any(gradients) and not listed and loss.states + loss.derivatives == 0
    if skip:
        find = False
        found = torch.zeros(j, rows.count, dtype=torch.float32, device=anchors.device)
    elif find:
        found = torch.empty(j, rows.count, dtype=torch.float32, device=anchors.device)
    elif isinstance(loss, ListLoss):
        lists = Lists.of(rows, cols)
        found = launch.list_statistics(
            loss, rows, cols, p, pair, lists, own=exclude_self, precision=precision
        )
    else:
        found, _ = launch.statistics(
            loss, rows, cols, p, pair, own=exclude_self, inputs=inputs, precision=precision
        )
    result = TileResult(found)
    if not find:
        _put_rows(result, loss, found, row_order)
    if not any(gradients):
        return result
    states = found[j:]
    row_w, factor = _relative(row_weight, weight, rows)
    if k > 1 and not listed:
        by_output = torch.ones_like(found[:k].t()) if row_w is None else row_w
        states = torch.cat([by_output.t(), states])
        row_w = None
    shared: dict[str, Any] = {
        "factor": factor,
        "precision": precision,
        "sums": totals,
        "lists": lists,
    }
    if write:
        _written(
            result, loss, rows, cols, p, pair, gradients, products or (_multiply, _accumulate), find=find,
            stay_states=states, stream_states=states if one_set else None, stay_weights=row_w,
            stream_weights=row_w if one_set else None, own=exclude_self, **shared,
        )  # fmt: skip
        if find:
            _put_rows(result, loss, result.outputs, row_order)
        if result.d_anchors is not None:
            result.d_anchors = _restored(result.d_anchors, row_order)
        if result.d_candidates is not None:
            result.d_candidates = _restored(result.d_candidates, col_order)
        return result
    if one_set or gradients[0]:
        done = launch.weights(
            loss, rows, cols, p, pair, stay_states=states, stream_states=states if one_set else None,
            stay_weights=row_w, stream_weights=row_w if one_set else None, own=exclude_self, find=find,
            **shared,
        )  # fmt: skip
        if done.results is not None:
            _put_rows(result, loss, done.results, row_order)
        result.d_anchors, result.anchor_sums = _gradient(done, rows, row_order)
        result.d_column_values = _by_column(done, row_order)
    if gradients[1] and not one_set:
        done = launch.weights(
            loss, cols, rows, p, pair, stream_states=states, stream_weights=row_w, **shared
        )
        result.d_candidates, result.candidate_sums = _gradient(done, cols, col_order)
        result.d_column_values = _by_column(done, col_order)
    return result


def _written(
    result: TileResult, loss: AnyLoss, rows: Side, cols: Side, p: Tensor, pair: Numbers,
    gradients: tuple[bool, bool], products: Products, **options: Any,
) -> None:  # fmt: skip
    """The gradients, in the order of their sides, by products of written weights G: dA = G C, dC = G^T A.

    Of one set G is that of both directions and equal to its transpose: of a block of rows I only columns J
    from its first row on are written, and dA_I += G A_J, dA_J += G^T A_I but for those of I. Outputs are what
    `finish` returned, if that was found, which takes whole rows: then dA = G A.
    """
    multiply, accumulate = products
    one_set = cols is rows
    half = one_set and not options["find"]
    held, starts = launch.written_blocks(rows, cols)
    if gradients[0] or one_set:
        result.d_anchors = torch.empty_like(rows.x, dtype=torch.float32)
    if gradients[1] and not one_set:
        result.d_candidates = torch.empty_like(cols.x, dtype=torch.float32)
    found = []
    for first in starts:
        written = launch.Written(held, first, first if half else 0)
        done = launch.weights(loss, rows, cols, p, pair, written=written, **options)
        if done.results is not None:
            found.append(done.results)
        g = held[: rows.count - first, written.column :]
        block = slice(first, first + len(g))
        add = accumulate if first else _multiplied(multiply)
        if half and result.d_anchors is not None:
            others = result.d_anchors[block.stop :]
            add(result.d_anchors[block], g, rows.x[first:])
            if len(others):
                add(others, g[:, len(g) :].t(), rows.x[block])
        elif result.d_anchors is not None:
            multiply(g, cols.x, result.d_anchors[block])
        if result.d_candidates is not None:
            add(result.d_candidates, g.t(), rows.x[block])
    if found:
        result.outputs = torch.cat(found, 1)


def _multiplied(multiply: Product) -> Product:
    """`accumulate` onto nothing."""
    return lambda total, a, b: multiply(a, b, total)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return torch.mm(a, b, out=out)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return total.addmm_(a, b)


def _put_rows(result: TileResult, loss: AnyLoss, found: Tensor, order: Tensor | None) -> None:
    """found [outputs + derivatives + ..., M]: what `finish` returned."""
    k, j = loss.outputs, loss.outputs + loss.derivatives
    result.outputs = _restored(found[:k].t(), order)
    if loss.derivatives:
        by_row = _restored(found[k:j].t(), order)
        result.scalar_rows, result.slope_rows = by_row[:, : loss.scalars], by_row[:, loss.scalars :]


def _norms(x: Tensor, metric: str) -> Tensor | None:
    """[2, rows] inverse norms and squared norms of what is compared; a zero row has inverse norm 0."""
    if metric == "dot":
        return None
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    inverse = torch.where(norm > torch.finfo(norm.dtype).tiny, norm.reciprocal(), 0.0)
    square = norm.square() if metric.startswith("raw") else (inverse > 0).float()
    return torch.stack([inverse, square])


def _order(side: Side, wanted: bool) -> Tensor | None:
    """The classes (or rows) of a side in the order of their labels; None: as they are."""
    return side.labels.argsort(stable=True) if wanted and not side.sorted else None


def _permuted(side: Side, order: Tensor | None) -> Side:
    if order is None:
        return side
    within = _rows_of(order, side.centres)

    def pick(v: Tensor | None) -> Tensor | None:
        return None if v is None else v[:, within].contiguous()

    return Side(
        side.x[within],
        side.labels[order],
        pick(side.norms),
        None if side.teacher is None else side.teacher[within],
        pick(side.teacher_norms),
        side.centres,
        True,
        None if side.values is None else side.values[:, order].contiguous(),
    )


def _rows_of(order: Tensor, centres: int) -> Tensor:
    if centres == 1:
        return order
    return (order[:, None] * centres + torch.arange(centres, device=order.device)).flatten()


def _restored(x: Tensor, order: Tensor | None) -> Tensor:
    """Undoes the permutation of the first dimension."""
    if order is None:
        return x
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out[order] = x
    return out


def _gradient(
    done: launch.Weighted, side: Side, order: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if order is None:
        return done.products, done.sums
    order = _rows_of(order, side.centres)
    sums = None if done.sums is None else _restored(done.sums.t(), order).t()
    return _restored(done.products, order), sums


def _by_column(done: launch.Weighted, order: Tensor | None) -> Tensor | None:
    return None if done.column_slopes is None else _restored(done.column_slopes.t(), order).t()


def _relative(
    row_weight: Tensor | None, weight: float, rows: Side
) -> tuple[Tensor | None, Tensor]:
    """Row weights over their largest (half precision would lose small ones), and the factor."""
    factor = launch.constants((float(weight),), rows.x.device)
    if row_weight is None:
        return None, factor
    row = row_weight.float()
    top = row.abs().amax()
    safe = torch.where(top > 0, top, torch.ones_like(top))
    return row / safe, factor * safe


def _check(
    anchors: Tensor, candidates: Tensor, anchor_labels: Tensor, candidate_labels: Tensor,
    centres: int, one_set: bool, exclude_self: bool,
) -> None:  # fmt: skip
    if anchors.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"anchors: expected float32, float16 or bfloat16, got {anchors.dtype}")
    if candidates.dtype != anchors.dtype:
        raise ValueError(f"candidates: expected {anchors.dtype}, got {candidates.dtype}")
    for x, name in ((anchors, "anchors"), (candidates, "candidates")):
        if x.dim() != 2 or x.shape[0] == 0 or not x.is_contiguous():
            raise ValueError(
                f"{name}: expected a contiguous, non-empty matrix, got {tuple(x.shape)}"
            )
    if anchors.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"candidates: expected {anchors.shape[1]} columns, got {candidates.shape[1]}"
        )
    if centres < 1 or candidates.shape[0] % centres or (centres > 1 and one_set):
        raise ValueError(
            f"centres: expected a divisor of the candidates, a second set; got {centres}"
        )
    if exclude_self and not one_set:
        raise ValueError("exclude_self: expected False for two sets")
    expected = ((anchor_labels, "anchor_labels", anchors.shape[0]),
                (candidate_labels, "candidate_labels", candidates.shape[0] // centres))  # fmt: skip
    for labels, name, count in expected:
        if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
            raise ValueError(
                f"{name}: expected int64 of shape ({count},), got {labels.dtype} {tuple(labels.shape)}"
            )
