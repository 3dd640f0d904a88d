"""Expressions on tensors: what a program's are of a block of rows, and those of parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..engine.loss import Rows
from . import words
from .graph import LOWEST, Node, upwards
from .row import TensorRow


def values(
    roots: Iterable[Node],
    rows: Rows,
    parameters: Mapping[str, float] | None = None,
    weights: Tensor | None = None,
    given: Mapping[Node, Tensor] = MappingProxyType({}),
) -> dict[Node, Tensor]:
    """The roots and what they are made of, on a block of rows; given: nodes whose values are known."""
    p = TensorRow(rows)
    like = rows.s
    r, n = like.shape

    def number(x: float) -> Tensor:
        return torch.tensor(x, dtype=like.dtype, device=like.device)

    def value(node: Node, args: list[Tensor]) -> Tensor:
        match node.op:
            case "constant":
                kind = torch.bool if node.is_mask else like.dtype
                return torch.tensor(node.value, dtype=kind, device=like.device)
            case "lowest":
                return number(torch.finfo(like.dtype).min)
            case "parameter":
                return number((parameters or {})[node.value[0]])
            case "candidates":
                return p.pair.sum(1, keepdim=True).to(like.dtype)
            case "columns":
                return number(n)
            case "weight":
                assert weights is not None
                return weights[:, node.value : node.value + 1]
            case "scalar" | "row_value" | "column":
                return getattr(p, node.op)(node.value)  # type: ignore[no-any-return]
            case "sum":
                return words.sum(args[0], where=args[1].expand(r, n)).to(like.dtype)
            case "amax" | "amin":
                reduce = getattr(words, node.op)
                return reduce(args[0].expand(r, n), where=args[1].expand(r, n))  # type: ignore[no-any-return]
            case "slack":
                return 8 * torch.finfo(like.dtype).eps * args[0]
        return _POINTWISE[node.op](*args) if args else getattr(p, node.op)  # type: ignore[no-any-return]

    return upwards(roots, value, given)


def number_on_host(node: Node, parameters: Mapping[str, float]) -> float:
    """The value of an expression of parameters alone, in double precision."""
    nothing = torch.empty(1, 0, dtype=torch.float64, device="cpu")
    rows = Rows(nothing, nothing.bool(), nothing.bool(), None, None, None, None, None)
    # What reads it holds single precision.
    lowest = torch.tensor(torch.finfo(torch.float32).min, dtype=torch.float64, device="cpu")
    return float(values([node], rows, parameters, given={LOWEST: lowest})[node])


_POINTWISE: dict[str, Callable[..., Any]] = {
    "add": torch.add, "neg": torch.neg, "mul": torch.mul, "div": torch.div, "exp": torch.exp,
    "log": torch.log, "cos": torch.cos, "sin": torch.sin, "sqrt": words.sqrt, "abs": torch.abs,
    "softplus": words.softplus, "sigmoid": torch.sigmoid,
    "max": words.maximum, "where": words.where, "detach": lambda x: x,
    "apart": lambda x: x,
    "lt": torch.lt, "le": torch.le, "eq": torch.eq, "and": torch.logical_and, "or": torch.logical_or,
    "not": torch.logical_not, "exp2": torch.exp2, "log2": torch.log2,
    "softplus2": lambda x: torch.logaddexp2(x, torch.zeros_like(x)),
    "sigmoid2": lambda x: torch.sigmoid(x * 0.6931471805599453),
}  # fmt: skip
