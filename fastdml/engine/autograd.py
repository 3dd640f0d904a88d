"""Autograd around the operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import op  # noqa: F401  (registers torch.ops.fastdml.row_loss)


class _RowLoss(torch.autograd.Function):
    """value = sum of row losses; both gradients come with the forward unless rows are returned."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor | None,
        anchor_labels: Tensor | None,
        candidate_labels: Tensor | None,
        pairs: list[Tensor],
        teacher: list[Tensor],
        row_weight: Tensor | None,
        loss: str,
        relation: str,
        backend: str,
        reduction: str,
    ) -> Tensor:
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
        with_forward = reduction != "none"
        value, d_anchors, d_candidates = torch.ops.fastdml.row_loss(
            anchors, candidates, anchor_labels, candidate_labels, pairs, teacher, row_weight, loss,
            relation, backend, reduction, wanted if with_forward else [False, False],
        )
        ctx.with_forward = with_forward
        if with_forward:
            ctx.save_for_backward(d_anchors, d_candidates)
        else:
            ctx.counts = (len(pairs), len(teacher))
            ctx.names = (loss, relation, backend)
            ctx.save_for_backward(
                anchors, candidates, anchor_labels, candidate_labels, row_weight, *pairs, *teacher
            )
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
        if ctx.with_forward:
            found = [_scaled(g, upstream) if w else None for g, w in zip(ctx.saved_tensors, wanted)]
        else:
            anchors, candidates, rows, columns, row_weight, *lists = ctx.saved_tensors
            pairs, teacher = lists[: ctx.counts[0]], lists[ctx.counts[0] :]
            weight = upstream if row_weight is None else upstream * row_weight
            loss, relation, backend = ctx.names
            _, *gradients = torch.ops.fastdml.row_loss(
                anchors, candidates, rows, columns, pairs, teacher, weight, loss, relation, backend,
                "sum", wanted,
            )
            found = [g if w else None for g, w in zip(gradients, wanted)]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = [None if g is None else _Once.apply(g, upstream) for g in found]
        return (*found, *([None] * 9))


def _scaled(gradient: Tensor, upstream: Tensor) -> Tensor:
    # The usual upstream gradient is exactly 1: then nothing is copied. Asking is free on the CPU only.
    if not torch.compiler.is_compiling() and upstream.device.type == "cpu" and upstream.item() == 1.0:
        return gradient.detach()
    return (gradient * upstream).to(gradient.dtype)


class _Once(torch.autograd.Function):
    """The identity, in whose backward a second derivative is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, upstream: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError(
            "fastdml losses have first derivatives only: the gradient was asked to be differentiated "
            "again (create_graph=True). Use backend='dense' forms of torch for second derivatives."
        )


def row_loss(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    *,
    loss: str,
    pairs: list[Tensor] | None = None,
    teacher: list[Tensor] | None = None,
    row_weight: Tensor | None = None,
    relation: str = "",
    backend: str = "auto",
    reduction: str = "mean",
) -> Tensor:
    """Differentiable in anchors [M, D] and candidates [N, D] (None: the anchors themselves)."""
    device = anchors.device.type
    if device != "cpu" and torch.is_autocast_enabled(device):
        # Products in autocast's type, as torch's own would be; the cast's backward restores the type.
        kind = torch.get_autocast_dtype(device)
        anchors = anchors.to(kind)
        candidates = None if candidates is None else candidates.to(kind)
    return _RowLoss.apply(
        anchors, candidates, anchor_labels, candidate_labels, pairs or [], teacher or [], row_weight,
        loss, relation, backend, reduction,
    )
