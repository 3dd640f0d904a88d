"""Expressions on tensors: what a program's are of a block of rows, and those of parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine.loss import Rows
from . import words
from .graph import Node, topological
from .row import TensorRow


def values(
    roots: Iterable[Node],
    rows: Rows,
    parameters: Mapping[str, float] | None = None,
    weights: Tensor | None = None,
    given: Mapping[Node, Tensor] | None = None,
) -> dict[Node, Tensor]:
    """The roots and what they are made of, on a block of rows; given: nodes whose values are known."""
    p = TensorRow(rows)
    known: dict[Node, Tensor] = dict(given or {})
    like = rows.s
    r, n = like.shape

    def number(x: float) -> Tensor:
        return torch.tensor(x, dtype=like.dtype, device=like.device)

    def leaf(node: Node) -> Tensor:
        match node.op:
            case "constant":
                if isinstance(node.value, bool):
                    return torch.tensor(node.value, device=like.device)
                return number(node.value)
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
        return getattr(p, node.op)  # type: ignore[no-any-return]

    def value(node: Node) -> Tensor:
        args = [known[a] for a in node.args]
        match node.op:
            case "sum":
                return words.sum(args[0], where=args[1].expand(r, n)).to(like.dtype)
            case "amax" | "amin":
                reduce = getattr(words, node.op)
                return reduce(args[0].expand(r, n), where=args[1].expand(r, n))  # type: ignore[no-any-return]
            case "slack":
                return 8 * torch.finfo(like.dtype).eps * args[0]
        return _POINTWISE[node.op](*args)

    # Depth first, but not below what is known.
    stack = list(roots)
    while stack:
        node = stack[-1]
        missing = [] if node in known else [a for a in node.args if a not in known]
        if missing:
            stack += missing
            continue
        stack.pop()
        if node not in known:
            known[node] = value(node) if node.args else leaf(node)
    return known


def number_on_host(node: Node, parameters: Mapping[str, float]) -> float:
    """The value of an expression of parameters alone, in double precision."""
    known: dict[Node, Tensor] = {}
    for n in topological([node]):
        if n.args:
            known[n] = _POINTWISE[n.op](*(known[a] for a in n.args))
        else:
            value = parameters[n.value[0]] if n.op == "parameter" else n.value
            if n.op == "lowest":
                value = torch.finfo(torch.float32).min
            known[n] = torch.tensor(value, dtype=torch.float64, device="cpu")
    return float(known[node])


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
