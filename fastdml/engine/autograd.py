"""A call evaluated, differentiable in its leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import in_torch, op
from .call import LEAVES, Call, of_rows, spelled, statistic_type
from .recompute import of_inference, save, saved

_COUNT = len(LEAVES)


def evaluate(call: Call) -> Tensor:
    """The loss of a call: a scalar, or [M] with reduction "none"; in float32, or float64 for such inputs.

    Differentiable in `call.LEAVES`, once: a second derivative raises RuntimeError.
    """
    compiling = torch.compiler.is_compiling()
    refuse_transforms()
    if not compiling and not call.loss.metric.in_torch and torch.jit.is_tracing():
        raise RuntimeError(
            "fastdml losses are not traced by torch.jit.trace, whose graph would hold this batch's labels "
            "and sizes: expected torch.compile or torch.export."
        )
    if call.before is not None:
        first = [slopes(c) if call.before.slopes else evaluate(c) for c in call.before.calls]
        call = call.before.fill(call.replace(before=None), first)
    call = _in_autocast(call)
    if compiling:
        call = _distinct(call)
    recorded = torch.is_grad_enabled()
    if call.loss.metric.in_torch:
        value = in_torch.evaluate(call)
    elif watched(call.anchors):
        tensors, words = call.packed()
        value = _RowLoss.apply(
            *tensors[:_COUNT], tuple(tensors[_COUNT:]), tuple(spelled(words)), recorded
        )
    else:
        value = _RowLoss.apply(*call.leaves, (), call, recorded)
    if call.finish is not None:
        value = call.finish(value)
    weighted = isinstance(call.weight, Tensor) or call.weight != 1
    return value * call.weight if weighted else value


def refuse_transforms() -> None:
    """RuntimeError within torch.func's transforms, which the autograd functions here do not know."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return
    raise RuntimeError(
        "fastdml losses have gradients by torch.autograd only: torch.func transforms (grad, vmap, "
        "jvp) cannot pass through them. Call .backward() or torch.autograd.grad."
    )


def slopes(call: Call) -> Tensor:
    """The derivatives of a call by its scalars, as constants."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        with torch.inference_mode(False):  # what differentiates in torch records nothing there
            return slopes(call)
    tensors, words = _in_autocast(call).packed()
    wanted = [name == "scalars" for name in LEAVES]
    detached = [None if t is None else t.clone() if of_inference(t) else t.detach() for t in tensors]
    found = _run(detached, spelled(words) if watched(call.anchors) else words, wanted)
    given: Tensor = found[1 + LEAVES.index("scalars")]
    return given if call.whole is None else call.whole.total(given)


def _in_autocast(call: Call) -> Call:
    """Products in autocast's type, as torch's own would be, which leaves float64 alone; the cast's backward
    restores the type."""
    if call.anchors.is_cpu or call.anchors.is_meta:
        return call
    device = call.anchors.device.type
    double = statistic_type(call.anchors, call.candidates) == torch.float64
    if double or not torch.is_autocast_enabled(device):
        return call
    kind = torch.get_autocast_dtype(device)
    c = call.candidates
    return call.replace(anchors=call.anchors.to(kind), candidates=None if c is None else c.to(kind))


def _distinct(call: Call) -> Call:
    """The compiler refuses a tensor that is two inputs at once."""
    a, c = call.anchors, call.candidates
    rows, columns, pairs, teacher = (
        call.anchor_labels, call.candidate_labels, call.pairs, call.teacher,
    )  # fmt: skip
    if c is a:
        c = a.view_as(a)
    if columns is rows and rows is not None:
        columns = rows.view_as(rows)
    if pairs and pairs[0] is pairs[2]:
        pairs = (*pairs[:2], pairs[2].view_as(pairs[2]), pairs[3])
    if len(teacher) == 2 and teacher[0] is teacher[1]:
        teacher = teacher[:1]
    return call.replace(candidates=c, candidate_labels=columns, pairs=pairs, teacher=teacher)


def watched(anchors: Tensor) -> bool:
    """Whether somebody watches operators. Else the function behind the operator is called: a small
    batch feels the way through the dispatcher."""
    return (
        torch.compiler.is_compiling()
        or type(anchors) not in (Tensor, nn.Parameter)
        or anchors.is_meta
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _run(tensors: Sequence[Tensor | None], words: Sequence[Any], wanted: list[bool]) -> Any:
    """The value and the wanted gradients, in the type of statistics."""
    if isinstance(words[0], str):
        return torch.ops.fastdml.row_loss(list(tensors), list(words), wanted)
    return op.computed(Call.unpacked(tensors, words), wanted)


class _RowLoss(torch.autograd.Function):
    """The reduced loss; its gradients come with the forward unless rows are returned.

    The leaves are arguments of their own, all other tensors come in a tuple, as autograd takes its time
    with each argument.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor | None,
        scalars: Tensor | None,
        row_values: Tensor | None,
        col_values: Tensor | None,
        fixed: tuple[Tensor | None, ...],
        words: tuple[Any, ...] | Call,
        recorded: bool,
    ) -> Tensor:
        """fixed, words: the rest of a packed call; or nothing, and the call as it is."""
        leaves = (anchors, candidates, scalars, row_values, col_values)
        # Outside of a recorded graph (torch.no_grad) inputs still say that they need gradients.
        wanted = [recorded and needed for needed in ctx.needs_input_grad[:_COUNT]]
        ctx.wanted = wanted
        reduction = words.reduction if isinstance(words, Call) else words[3]
        ctx.with_forward = reduction != "none"
        asked = wanted if ctx.with_forward else [False] * _COUNT
        if not isinstance(words, Call):
            value, *gradients = _run((*leaves, *fixed), words, asked)
        else:
            value, *gradients = op.computed(words, asked)
        if ctx.with_forward:
            # Kept in the type of statistics until the upstream factor is known: rounded before, the
            # gradients of a scaled loss in half precision would be lost. The leaves are there to be
            # seen by a second derivative, which is refused.
            kept = [both for both, w in zip(zip(leaves, gradients), wanted) if w]
            ctx.save_for_backward(*(tensor for both in kept for tensor in both))
        else:
            whole = words.packed() if isinstance(words, Call) else ((*leaves, *fixed), words)
            ctx.words = whole[1]
            save(ctx, *whole[0])
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.wanted
        if ctx.with_forward:
            kept = ctx.saved_tensors  # read once, as activation checkpointing asks
            leaves = kept[::2]
            found = scaled(kept[1::2], leaves, upstream)
        else:
            _refuse_batched(upstream)
            kept = saved(ctx)
            leaves = [x for x, w in zip(kept, wanted) if w]
            found = _of_rows(kept, ctx.words, upstream, wanted)
            found = [g.to(x.dtype) for g, x in zip(found, leaves)]
        each = iter(once(found, leaves))
        return (*(next(each) if w else None for w in wanted), None, None, None)


def _refuse_batched(upstream: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    functorch = torch._C._functorch
    if functorch.is_legacy_batchedtensor(upstream) or functorch.is_batchedtensor(upstream):
        raise RuntimeError(
            "fastdml losses take one upstream gradient at a time: batched ones (is_grads_batched=True, "
            "jacobian(vectorize=True)) cannot pass through them. Use vectorize=False."
        )


def _of_rows(
    tensors: Sequence[Tensor | None], words: Sequence[Any], upstream: Tensor, wanted: list[bool]
) -> list[Tensor]:
    """The gradients of row losses [M] weighted by upstream [M]: the call again, as a weighted sum."""
    _, *gradients = _run(*of_rows(tensors, words, upstream), wanted)
    return [g for g, w in zip(gradients, wanted) if w]


def scaled(
    gradients: Sequence[Tensor], leaves: Sequence[Tensor], upstream: Tensor
) -> list[Tensor]:
    # The usual upstream gradient is exactly 1: then nothing is copied, unless the graph is kept for
    # another backward, which must not find what the caller did to the first one's result (x.grad is
    # this very memory). Asking is free on the CPU only.
    if (
        not torch.compiler.is_compiling()
        and type(upstream) is Tensor
        and upstream.is_cpu
        and not torch._C._len_torch_dispatch_stack()
        and not graph_is_kept()
        and _is_one(upstream)
    ):
        return [
            g.detach() if g.dtype == x.dtype else g.to(x.dtype) for g, x in zip(gradients, leaves)
        ]
    _refuse_batched(upstream)
    return [(g * upstream).to(x.dtype) for g, x in zip(gradients, leaves)]


def _is_one(upstream: Tensor) -> bool:
    try:
        return upstream.item() == 1.0
    except RuntimeError:  # batched ones have no number
        return False


# Not public in torch: where it is missing, gradients are copied.
graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def once(gradients: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, as a backward returns them, whose own derivative is refused."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return list(gradients)
    # Depends on the inputs, so that a second derivative runs into the refusal even where the upstream
    # gradient is a constant, instead of missing silently.
    return [_Once.apply(g, *leaves) for g in gradients]


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
