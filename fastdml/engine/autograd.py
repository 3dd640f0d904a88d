"""Autograd around the operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import op

_INPUTS = ("anchors", "candidates", "scalars", "row_values", "col_values")


class _RowLoss(torch.autograd.Function):
    """The reduced loss; its gradients come with the forward unless rows are returned.

    The first five arguments are those a gradient may be wanted of. All others come in two tuples, as
    autograd takes its time with each argument.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor | None,
        scalars: Tensor | None,
        row_values: Tensor | None,
        col_values: Tensor | None,
        fixed: tuple[Any, ...],
        names: tuple[str, str, str],
        reduction: str,
        recorded: bool,
    ) -> Tensor:
        anchor_labels, candidate_labels, pairs, teacher, row_weight = fixed
        # Outside of a recorded graph (torch.no_grad) inputs still say that they need gradients.
        wanted = [recorded and needed for needed in ctx.needs_input_grad[: len(_INPUTS)]]
        ctx.with_forward = reduction != "none"
        value, *gradients = _evaluate(anchors)(
            anchors,
            candidates,
            anchor_labels,
            candidate_labels,
            pairs,
            teacher,
            scalars,
            row_values,
            col_values,
            row_weight,
            *names,
            reduction,
            wanted if ctx.with_forward else [False] * len(wanted),
        )
        inputs = (anchors, candidates, scalars, row_values, col_values)
        if ctx.with_forward:
            # The inputs are there to be seen by a second derivative, which is refused.
            ctx.kept = wanted
            kept = [both for both, w in zip(zip(inputs, gradients), wanted) if w]
            ctx.save_for_backward(*(tensor for both in kept for tensor in both))
        else:
            ctx.counts = (len(pairs), len(teacher))
            ctx.names = names
            ctx.save_for_backward(
                *inputs, anchor_labels, candidate_labels, row_weight, *pairs, *teacher
            )
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if ctx.with_forward:
            wanted = ctx.kept
            seen, found = saved[::2], _scaled(saved[1::2], upstream)
        else:
            wanted = list(ctx.needs_input_grad[: len(_INPUTS)])
            seen = [x for x, w in zip(saved, wanted) if w]
            a, c, scalars, row_values, col_values, rows, columns, row_weight, *rest = saved
            pairs, teacher = rest[: ctx.counts[0]], rest[ctx.counts[0] :]
            weight = upstream if row_weight is None else upstream * row_weight
            _, *gradients = _evaluate(a)(
                a,
                c,
                rows,
                columns,
                pairs,
                teacher,
                scalars,
                row_values,
                col_values,
                weight,
                *ctx.names,
                "sum",
                wanted,
            )
            found = [g for g, w in zip(gradients, wanted) if w]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Depends on the inputs, so that a second derivative runs into the refusal even where the
            # upstream gradient is a constant, instead of missing silently.
            found = [_Once.apply(g, *seen) for g in found]
        each = iter(found)
        return (*(next(each) if w else None for w in wanted), None, None, None, None)


def _evaluate(anchors: Tensor) -> Callable[..., tuple[Any, ...]]:
    """The operator; or, where nobody watches operators, its function: a small batch feels the way
    through the dispatcher."""
    watched = torch.compiler.is_compiling() or type(anchors) not in (Tensor, nn.Parameter)
    if watched or torch._C._len_torch_dispatch_stack():
        return torch.ops.fastdml.row_loss
    return op.computed


def _scaled(gradients: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    # The usual upstream gradient is exactly 1: then nothing is copied, unless the graph is kept for
    # another backward, which must not find what the caller did to the first one's result (x.grad is
    # this very memory). Asking is free on the CPU only.
    if (
        not torch.compiler.is_compiling()
        and upstream.device.type == "cpu"
        and not _graph_is_kept()
        and upstream.item() == 1.0
    ):
        return [g.detach() for g in gradients]
    return [(g * upstream).to(g.dtype) for g in gradients]


# Not public in torch: where it is missing, gradients are copied.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _Once(torch.autograd.Function):
    """The identity, in whose backward a second derivative is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError(
            "fastdml losses have first derivatives only: the gradient was asked to be differentiated "
            "again (create_graph=True). Write the loss in plain torch for second derivatives."
        )


def row_loss(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    *,
    loss: str,
    scalars: Tensor | None = None,
    row_values: Tensor | None = None,
    col_values: Tensor | None = None,
    pairs: list[Tensor] | None = None,
    teacher: list[Tensor] | None = None,
    row_weight: Tensor | None = None,
    relation: str = "",
    backend: str = "auto",
    reduction: str = "mean",
) -> Tensor:
    """The loss, differentiable in anchors, candidates, scalars, row_values and col_values.

    Args:
        anchors, candidates: [M, D], [N, D]; None: the anchors themselves.
        anchor_labels, candidate_labels: int64 [M], [N], or None with pairs or a relation.
        loss: handle of the description (`registry.handle`).
        scalars: [n] learnable values that every row reads.
        row_values: [M, k] values of the rows. col_values: [k, N] values of the candidates.
        pairs: [a1, p, a2, n] index tensors instead of labels.
        teacher: [anchors, candidates] or [both in one] of a teacher; no gradient.
        row_weight: [M] weights of the row losses.
        relation: handle of a user's predicate (`op.predicate_handle`) instead of labels.
    """
    device = anchors.device.type
    if device != "cpu" and torch.is_autocast_enabled(device):
        # Products in autocast's type, as torch's own would be; the cast's backward restores the type.
        kind = torch.get_autocast_dtype(device)
        anchors = anchors.to(kind)
        candidates = None if candidates is None else candidates.to(kind)
    if torch.compiler.is_compiling():
        # The compiler refuses a tensor that is two inputs at once.
        if candidates is anchors:
            candidates = anchors.view_as(anchors)
        if candidate_labels is anchor_labels and anchor_labels is not None:
            candidate_labels = anchor_labels.view_as(anchor_labels)
        if pairs and pairs[0] is pairs[2]:
            pairs = [*pairs[:2], pairs[2].view_as(pairs[2]), pairs[3]]
        if teacher and len(teacher) == 2 and teacher[0] is teacher[1]:
            teacher = teacher[:1]
    return _RowLoss.apply(
        anchors,
        candidates,
        scalars,
        row_values,
        col_values,
        (anchor_labels, candidate_labels, pairs or [], teacher or [], row_weight),
        (loss, relation, backend),
        reduction,
        torch.is_grad_enabled(),
    )
