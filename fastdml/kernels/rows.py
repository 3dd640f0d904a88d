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
    rows = Side(anchors, anchor_labels, row_scale, u, u_scale)
    cols = Side(candidates, candidate_labels, col_scale, v, v_scale, centres)
    shared = {"exclude_self": exclude_self, "precision": precision}

    losses, states, _ = launch.statistics(
        loss, rows, cols, p, offset=offset, inputs=inputs, **shared
    )
    result = TileResult(losses)
    col_states = None
    if columns:
        result.column_losses, col_states, _ = launch.statistics(
            loss, cols, rows, p, offset=-offset, **shared
        )
    if not any(gradients):
        return result
    row_w, col_w, factor = _relative(row_weight, column_weight, weight, rows, cols, columns)
    sums = sums or loss.metric == "distance"
    if one_set:
        done = launch.weights(
            loss, rows, rows, p, factor=factor, stay_states=states, stream_states=states,
            stay_weights=row_w, stream_weights=row_w, sums=sums, **shared,
        )  # fmt: skip
        result.d_anchors, result.anchor_sums = _products(loss, done, anchors)
        return result
    if gradients[0]:
        done = launch.weights(
            loss, rows, cols, p, factor=factor, stay_states=states, stream_states=col_states,
            stay_weights=row_w, stream_weights=col_w, offset=offset, sums=sums, **shared,
        )  # fmt: skip
        result.d_anchors, result.anchor_sums = _products(loss, done, anchors)
    if gradients[1]:
        done = launch.weights(
            loss, cols, rows, p, factor=factor, stay_states=col_states, stream_states=states,
            stay_weights=col_w, stream_weights=row_w, offset=-offset, sums=sums, **shared,
        )  # fmt: skip
        result.d_candidates, result.candidate_sums = _products(loss, done, candidates)
    return result


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
    row = torch.ones_like(rows.labels, dtype=torch.float32) if row_weight is None else row_weight.float()
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
            raise ValueError(f"{name}: expected a contiguous, non-empty matrix, got {tuple(x.shape)}")
    if anchors.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"candidates: expected {anchors.shape[1]} columns, got {candidates.shape[1]}"
        )
    if centres < 1 or candidates.shape[0] % centres or (centres > 1 and (one_set or columns)):
        raise ValueError(f"centres: expected a divisor of the candidates, a second set; got {centres}")
    expected = ((anchor_labels, "anchor_labels", anchors.shape[0]),
                (candidate_labels, "candidate_labels", candidates.shape[0] // centres))  # fmt: skip
    for labels, name, count in expected:
        if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
            raise ValueError(
                f"{name}: expected int64 of shape ({count},), got {labels.dtype} {tuple(labels.shape)}"
            )
    if columns and one_set:
        raise ValueError("columns: expected two sets of embeddings")
