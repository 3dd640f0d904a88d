"""A tile loss from end to end: row losses and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from . import launch
from .launch import Side
from .tile import TileLoss


@dataclasses.dataclass
class TileResult:
    """Everything float32. Gradients are None where not asked for.

    losses: [M], of the rows, not multiplied by row weights.
    d_anchors, d_candidates: [M, D], [N, D] accumulated products of weights, scaled by the inverse
        norms if there are any; the part along each embedding is still in them. With one set,
        everything is in d_anchors.
    column_losses: [N], of the columns, for `columns=True`.
    anchor_sums, candidate_sums: [2, M], [2, N] sums of weights and of weights times s, for `sums=True`:
        the gradients of a bias of the row, and of the logarithm of a factor of the row.
    """

    losses: Tensor
    d_anchors: Tensor | None = None
    d_candidates: Tensor | None = None
    column_losses: Tensor | None = None
    anchor_sums: Tensor | None = None
    candidate_sums: Tensor | None = None


def tile_rows(
    loss: TileLoss,
    anchors: Tensor,
    candidates: Tensor,
    anchor_labels: Tensor,
    candidate_labels: Tensor,
    *,
    parameters: Sequence[float] | Tensor = (),
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
    exclude_self: bool = False,
    offset: int = 0,
    order: bool = True,
    ascending: tuple[bool, bool] = (False, False),
    row_weight: Tensor | None = None,
    weight: float = 1.0,
    inputs: Tensor | None = None,
    teacher: tuple[Tensor, Tensor] | None = None,
    teacher_scale: tuple[Tensor, Tensor] | None = None,
    centres: int = 1,
    columns: bool = False,
    column_weight: Tensor | None = None,
    gradients: tuple[bool, bool] = (True, True),
    sums: bool = False,
    precision: str | None = None,
) -> TileResult:
    """Losses of the rows of anchors against candidates, and the gradients of their weighted sum.

    Args:
        anchors, candidates: [M, D] and [N, D] (the same object: one set), float32, float16 or
            bfloat16, contiguous. [N * centres, D] with several centres per class, class by class.
        anchor_labels, candidate_labels: int64 [M], [N]; equal ones are positives.
        parameters: what the loss's functions read as p; float32 on the device if a tensor.
        row_scale, col_scale: float32 inverse norms, or None for plain products. Squared norms are
            computed here for the metric "distance".
        exclude_self: leaves out the pair of row i with column i + offset.
        order: works on a copy of the embeddings in the order of their labels. Tiles without positives
            then need no labels, and those of losses with zero weights are skipped.
        ascending: which of the two label vectors ascend already.
        row_weight: float32 [M] weights of the rows in the sum; weight: times this.
        inputs: [loss.inputs, M] values per row that the loss reads.
        teacher: second matrix's factors [M, DT], [N, DT]; teacher_scale: their inverse norms.
        columns: also the same loss of every column over the rows (two towers), weighted by
            column_weight [N].
        gradients: which of the two gradients are wanted.
        sums: also sums of weights per row and column.
        precision: "ieee", "tf32" or "tf32x3" for float32; None: torch's setting.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """
    one_set = candidates is anchors
    _check(anchors, candidates, anchor_labels, candidate_labels, centres, one_set, columns)
    if loss.metric == "distance":
        row_scale = _squared_norms(anchors)
        col_scale = row_scale if one_set else _squared_norms(candidates)
    if teacher is not None and loss.teacher_metric == "distance":
        teacher_scale = (_squared_norms(teacher[0]), _squared_norms(teacher[1]))
    p = launch.parameter_tensor(parameters, anchors.device)
    u, v = teacher or (None, None)
    u_scale, v_scale = teacher_scale or (None, None)
    rows = Side(anchors, anchor_labels, row_scale, u, u_scale, 1, ascending[0])
    cols = Side(candidates, candidate_labels, col_scale, v, v_scale, centres, ascending[1])
    row_order = _order(rows, order)
    col_order = row_order if one_set else _order(cols, order)
    rows = _permuted(rows, row_order)
    cols = rows if one_set else _permuted(cols, col_order)
    own = _own(rows, cols, row_order, col_order, offset) if exclude_self else None
    if row_order is not None:
        row_weight = None if row_weight is None else row_weight[row_order]
        inputs = None if inputs is None else inputs[:, row_order]
    if col_order is not None and column_weight is not None:
        column_weight = column_weight[col_order]

    row_losses, states, _ = launch.statistics(
        loss, rows, cols, p, own=own, inputs=inputs, precision=precision
    )
    result = TileResult(_restored(row_losses, row_order))
    col_states, own_row = None, None
    if not one_set and own is not None:
        own_row = _inverse(own, cols.count)
    if columns:
        col_losses, col_states, _ = launch.statistics(
            loss, cols, rows, p, own=own_row, precision=precision
        )
        result.column_losses = _restored(col_losses, col_order)
    if not any(gradients):
        return result
    row_w, col_w, factor = _relative(row_weight, column_weight, weight, rows, cols, columns)
    shared = {"factor": factor, "precision": precision, "sums": sums or loss.metric == "distance"}
    if one_set:
        done = launch.weights(
            loss, rows, rows, p, stay_states=states, stream_states=states, stay_weights=row_w,
            stream_weights=row_w, own=own, **shared,
        )  # fmt: skip
        result.d_anchors, result.anchor_sums = _gradient(loss, done, rows, row_order)
        return result
    if gradients[0]:
        done = launch.weights(
            loss, rows, cols, p, stay_states=states, stream_states=col_states, stay_weights=row_w,
            stream_weights=col_w, own=own, **shared,
        )  # fmt: skip
        result.d_anchors, result.anchor_sums = _gradient(loss, done, rows, row_order)
    if gradients[1]:
        done = launch.weights(
            loss, cols, rows, p, stay_states=col_states, stream_states=states, stay_weights=col_w,
            stream_weights=row_w, own=own_row, **shared,
        )  # fmt: skip
        result.d_candidates, result.candidate_sums = _gradient(loss, done, cols, col_order)
    return result


def _order(side: Side, wanted: bool) -> Tensor | None:
    """The classes (or rows) of a side in the order of their labels; None: as they are."""
    return side.labels.argsort(stable=True) if wanted and not side.sorted else None


def _permuted(side: Side, order: Tensor | None) -> Side:
    if order is None:
        return side
    within = _rows_of(order, side.centres)
    x, scale, u, u_scale = (
        None if v is None else v[within]
        for v in (side.x, side.scale, side.teacher, side.teacher_scale)
    )
    assert x is not None
    return Side(x, side.labels[order], scale, u, u_scale, side.centres, True)


def _rows_of(order: Tensor, centres: int) -> Tensor:
    if centres == 1:
        return order
    return (order[:, None] * centres + torch.arange(centres, device=order.device)).flatten()


def _restored(x: Tensor, order: Tensor | None) -> Tensor:
    """Undoes the permutation of the first dimension."""
    if order is None:
        return x
    out = torch.empty_like(x)
    out[order] = x
    return out


def _inverse(index: Tensor, size: int) -> Tensor:
    """Where each of size targets is pointed at from, or -1. index int32, -1 for none."""
    out = torch.full((size + 1,), -1, dtype=torch.int32, device=index.device)
    at = torch.where(index < 0, size, index).long()
    out[at] = torch.arange(index.shape[0], dtype=torch.int32, device=index.device)
    return out[:size]


def _own(
    rows: Side, cols: Side, row_order: Tensor | None, col_order: Tensor | None, offset: int
) -> Tensor:
    """int32 [M]: the column of each (permuted) row that is the same sample, or -1."""
    m, n = rows.count, cols.count
    own = torch.arange(m, device=rows.x.device)
    if rows is cols:
        return own.to(torch.int32)
    own = (own if row_order is None else row_order) + offset
    own = torch.where((own >= 0) & (own < n), own, -1)
    if col_order is not None:
        place = _inverse(col_order.to(torch.int32), n)
        own = torch.where(own < 0, -1, place[own.clamp(min=0)])
    return own.to(torch.int32)


def _gradient(
    loss: TileLoss, done: launch.Weighted, side: Side, order: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    products, sums = _products(loss, done, side.x)
    if order is not None:
        order = _rows_of(order, side.centres)
        sums = None if sums is None else _restored(sums.t(), order).t()
    return _restored(products, order), sums


def _products(loss: TileLoss, done: launch.Weighted, x: Tensor) -> tuple[Tensor, Tensor | None]:
    if loss.metric != "distance":
        return done.products, done.sums
    assert done.sums is not None
    # d|x - y|^2 = 2 (x - y) dx
    return done.products.mul_(-2.0).addcmul_(done.sums[0][:, None], x.float(), value=2.0), done.sums


def _relative(
    row_weight: Tensor | None, column_weight: Tensor | None, weight: float, rows: Side, cols: Side,
    columns: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:  # fmt: skip
    """Row weights over their largest (half precision would lose small ones), and the factor."""
    factor = launch.constants((float(weight),), rows.x.device)
    if row_weight is None and column_weight is None:
        return None, None, factor
    row = (
        torch.ones_like(rows.labels, dtype=torch.float32)
        if row_weight is None
        else row_weight.float()
    )
    top = row.abs().amax()
    col = None
    if columns:
        col = (
            torch.ones_like(cols.labels, dtype=torch.float32)
            if column_weight is None
            else column_weight.float()
        )
        top = torch.maximum(top, col.abs().amax())
    safe = torch.where(top > 0, top, torch.ones_like(top))
    return row / safe, None if col is None else col / safe, factor * safe


def _squared_norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square()


def _check(
    anchors: Tensor, candidates: Tensor, anchor_labels: Tensor, candidate_labels: Tensor,
    centres: int, one_set: bool, columns: bool,
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
    if centres < 1 or candidates.shape[0] % centres or (centres > 1 and (one_set or columns)):
        raise ValueError(
            f"centres: expected a divisor of the candidates, a second set; got {centres}"
        )
    expected = ((anchor_labels, "anchor_labels", anchors.shape[0]),
                (candidate_labels, "candidate_labels", candidates.shape[0] // centres))  # fmt: skip
    for labels, name, count in expected:
        if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
            raise ValueError(
                f"{name}: expected int64 of shape ({count},), got {labels.dtype} {tuple(labels.shape)}"
            )
    if columns and one_set:
        raise ValueError("columns: expected two sets of embeddings")
