"""Embeddings that no rank has all of, as the loss that makes its calls of them sees them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .arguments import Set


class NotHere(RuntimeError):
    """Something was computed with embeddings that are not here; the message is the operator."""


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """ValueError naming the loss that computes with embeddings that are not here."""
    try:
        yield
    except NotHere as error:
        raise ValueError(
            f"schedule: {name} computes with all embeddings ({error}), not only with pairs; "
            "expected 'gather'"
        ) from error


class Travelling(Tensor):
    """The rows of all ranks [sum of counts, ...], of which this one has `own`. It has a shape, a type and a
    device, and no numbers: whoever computes with it gets `NotHere`."""

    own: Set

    @staticmethod
    def __new__(cls, own: Set, requires_grad: bool | None = None) -> Travelling:
        local = own.local
        found: Travelling = Tensor._make_wrapper_subclass(
            cls,
            (own.rows, *local.shape[1:]),
            dtype=local.dtype,
            device=local.device,
            requires_grad=local.requires_grad if requires_grad is None else requires_grad,
        )
        found.own = own
        return found

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].own, False)
        raise NotHere(str(func))

    def leading(self, width: int) -> Travelling:
        """The first dimensions of all rows, which travel by themselves."""
        local = self.own.local[..., :width]
        return Travelling(dataclasses.replace(self.own, local=local, whole=None), self.requires_grad)

    def data_ptr(self) -> int:
        return id(self.own)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Travelling({tuple(self.shape)}, {self.dtype})"
