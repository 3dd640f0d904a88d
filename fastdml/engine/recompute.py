"""What is computed again in the backward pass, and what a graph cannot keep for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def of_inference(x: object) -> bool:
    """Whether this is a tensor of inference mode, which no graph saves. A compiled graph cannot ask."""
    return isinstance(x, Tensor) and not torch.compiler.is_compiling() and x.is_inference()


def recomputed(
    part: Callable[..., Tensor], inputs: Sequence[Any], constants: Sequence[Tensor] = ()
) -> Tensor:
    """part(*inputs), computed again in the backward pass, which refuses inputs and constants that have been
    changed meanwhile. constants: what `part` reads besides."""
    if not torch.is_grad_enabled() or any(map(of_inference, inputs)):
        return part(*inputs)  # tensors of inference mode are in no graph

    def of_inputs(*given: Any) -> Tensor:
        return part(*given[: len(inputs)])

    found: Tensor = checkpoint(of_inputs, *inputs, *constants, use_reentrant=False)
    return found


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Saves tensors for the backward pass; those of inference mode as they are, whose changes torch does not
    see."""
    ctx.of_inference = [x if of_inference(x) else None for x in tensors]
    ctx.save_for_backward(*(x if y is None else None for x, y in zip(tensors, ctx.of_inference)))


def saved(ctx: Any) -> list[Any]:
    """What was saved. (Read once, as activation checkpointing asks.)"""
    return [x if y is None else y for x, y in zip(ctx.saved_tensors, ctx.of_inference)]
