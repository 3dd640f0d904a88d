"""The words of the row language, on tensors and on traced expressions alike.

A pair's numbers and masks are [R, N], a row's [R, 1], the call's []. Every reduction says which pairs it is
over: `where=p.positive`, `where=p.pair & (p.s > level)`. Nothing here is NaN or infinite on a row without
such pairs. A sample's pair with itself is no pair, whatever the mask says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..engine.counting import row_counts
from . import graph
from .graph import LOWEST, ONE, PAIR, Node, NotInLanguage, lift, make, number, of_pairs

V = TypeVar("V", Tensor, Node)
Value = Any  # a Tensor, a Node or a number; the words keep to one of the former two

__all__ = [
    "absolute", "amax", "amin", "apart", "cos", "count", "detach", "equal", "exp", "log", "log_sum_exp",
    "lowest", "maximum", "mean", "minimum", "relu", "rounding", "share", "sigmoid", "sin", "softplus", "sqrt",
    "square", "sum", "where",
]  # fmt: skip


def _tensor(x: Value) -> Tensor:
    if isinstance(x, Tensor):
        return _number(x)  # type: ignore[no-any-return]
    return torch.tensor(x, dtype=torch.float64, device="cpu")


def _traced(*xs: Value) -> bool:
    return any(isinstance(x, Node) for x in xs)


def _of_trace(x: Value, where: Value) -> bool:
    """Whether a reduction is of a traced row: of a number and a flag, outside of `over`."""
    untold = isinstance(where, bool) and not isinstance(x, Tensor) and not _pairs.get()
    return untold or _traced(x, where)


def _pointwise(op: str, on_tensor: Callable[[Tensor], Tensor], x: Value) -> Any:
    if isinstance(x, Node):
        if x.op == "constant":
            return graph.constant(on_tensor(_tensor(x.value)).item())
        return make(op, number(x))
    found = on_tensor(_tensor(x))
    return found if isinstance(x, Tensor) else found.item()


# The pairs of the block that a function is evaluated on, [R, N], and what else is its row's.
_pairs: ContextVar[tuple[Tensor, ...]] = ContextVar("pairs", default=())
# The type of its numbers.
_type: ContextVar[torch.dtype | None] = ContextVar("type", default=None)


@contextlib.contextmanager
def over(kind: torch.dtype, pairs: Tensor, *others: Tensor) -> Iterator[None]:
    """Within this, tensors mean what traced expressions do. Reductions are over these pairs at most: no mask
    holds a sample's pair with itself, or what a list of pairs leaves out. A mask among numbers is one, of
    this type. others: parts of the pairs, and numbers of the row: these stay what they are."""
    before = _pairs.set((pairs, *others)), _type.set(kind)
    try:
        with _MasksAsNumbers():
            yield
    finally:
        _pairs.reset(before[0])
        _type.reset(before[1])


def _is_mask(x: Value) -> bool:
    return isinstance(x, bool) or (isinstance(x, Tensor) and x.dtype == torch.bool)


def _number(x: Value) -> Any:
    """x; of a tensor that is a mask 1 where it holds, else 0."""
    if isinstance(x, Node):
        return number(x)
    if isinstance(x, Tensor) and x.dtype == torch.bool:
        return x.to(_type.get() or torch.get_default_dtype())
    return x


class _MasksAsNumbers(TorchFunctionMode):
    """To torch a sum of masks is "or", a difference an error, and a mask times 0.1 is in single precision."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in _IN_PLACE and any(args[0] is known for known in _pairs.get()):
            args = (args[0].clone(), *args[1:])  # easy = p.positive; easy &= p.s > 0.5
        if name.strip("_") in _ARITHMETIC:
            args = tuple(map(_number, args))
        return function(*args, **(kwargs or {}))


_ARITHMETIC = frozenset({
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "rdiv",
    "floor_divide", "floordiv", "rfloordiv", "remainder", "rmod", "neg", "negative", "positive", "pow",
    "rpow", "abs", "absolute",
})  # fmt: skip
_IN_PLACE = frozenset({"add_", "sub_", "mul_", "div_", "pow_", "__iand__", "__ior__", "__ixor__"})


def _mask(where: Value) -> Tensor:
    pairs = _pairs.get()
    if isinstance(where, bool):
        where = torch.tensor(where, device=pairs[0].device if pairs else None)
    if not isinstance(where, Tensor) or where.dtype != torch.bool:
        got = where.dtype if isinstance(where, Tensor) else type(where).__name__
        raise ValueError(f"where: expected a mask of pairs, got {got}")
    return where if not pairs or any(where is known for known in pairs) else where & pairs[0]


def _masked(x: Value, where: Value, otherwise: float) -> Tensor:
    x, mask = _tensor(x), _mask(where)
    kind = x.dtype if x.dim() else torch.get_default_dtype()
    return torch.where(mask, x, torch.tensor(otherwise, dtype=kind, device=mask.device))


# Reductions: over the pairs of a row.


def sum(x: Value, *, where: Value) -> Any:
    """The sum of x over the pairs of `where`; 0 over none."""
    if _of_trace(x, where):
        return graph.total(number(x), of_pairs(where))
    return _masked(x, where, 0.0).sum(1, keepdim=True)


def count(*, where: Value) -> Any:
    """How many pairs `where` holds; no derivative."""
    if _of_trace(1.0, where):
        return graph.total(ONE, of_pairs(where))
    return row_counts(_mask(where)).unsqueeze(1).double()


def mean(x: Value, *, where: Value) -> Any:
    """The mean of x over the pairs of `where`; 0 over none."""
    return sum(x, where=where) / maximum(count(where=where), 1.0)


def share(x: Value, of: Value) -> Any:
    """x / of, a sum and the number or the weights of what it sums; of nothing x, which is 0."""
    return x / where(of > 0, of, 1.0)


def amax(x: Value, *, where: Value) -> Any:
    """The largest x over the pairs of `where`; over none the most negative number of the type.

    Pairs that are equal share its derivative.
    """
    if _of_trace(x, where):
        return make("amax", number(x), of_pairs(where))
    x = _tensor(x)
    return _masked(x, where, torch.finfo(x.dtype).min).amax(1, keepdim=True)


def amin(x: Value, *, where: Value) -> Any:
    """The smallest x over the pairs of `where`; over none the largest number of the type."""
    if _of_trace(x, where):
        return make("amin", number(x), of_pairs(where))
    x = _tensor(x)
    return _masked(x, where, torch.finfo(x.dtype).max).amin(1, keepdim=True)


def log_sum_exp(x: Value, *, where: Value, one: bool = False) -> Any:
    """log of the sum of exp(x) over the pairs of `where`; one: log(1 + that sum).

    Over none the most negative number of the type (one: 0), with a derivative of 0.
    """
    if _of_trace(x, where):
        return graph.log_sum_exp(number(x), of_pairs(where), one)
    found = _masked(x, where, torch.finfo(_tensor(x).dtype).min).logsumexp(dim=1, keepdim=True)
    return softplus(found) if one else found


# Pointwise words, beside + - * / ** 2, < <= > >= and & | ~.


def exp(x: Value) -> Any:
    return _pointwise("exp", torch.exp, x)


def log(x: Value) -> Any:
    """The natural logarithm, of positive numbers."""
    return _pointwise("log", torch.log, x)


def sqrt(x: Value) -> Any:
    """The root; its derivative at 0 is taken to be 0."""

    def root(x: Tensor) -> Tensor:
        safe = torch.where(x > 0, x, torch.ones_like(x))
        return torch.where(x > 0, safe.sqrt(), torch.zeros_like(x))

    return _pointwise("sqrt", root, x)


def cos(x: Value) -> Any:
    """The cosine of a number of the row or of the call."""
    return _of_row("cos", torch.cos, x)


def sin(x: Value) -> Any:
    return _of_row("sin", torch.sin, x)


def _of_row(op: str, on_tensor: Callable[[Tensor], Tensor], x: Value) -> Any:
    if isinstance(x, Node) and x.level == PAIR:
        raise NotInLanguage(f"{op} of a pair's number: of the row's only")
    return _pointwise(op, on_tensor, x)


def square(x: Value) -> Any:
    x = _number(x)
    return x * x


def absolute(x: Value) -> Any:
    """|x|; its derivative at 0 is 0."""
    return _pointwise("abs", torch.abs, x)


def softplus(x: Value) -> Any:
    """log(1 + exp(x)), exact at both ends."""
    return _pointwise("softplus", lambda x: torch.logaddexp(x, torch.zeros_like(x)), x)


def sigmoid(x: Value) -> Any:
    return _pointwise("sigmoid", torch.sigmoid, x)


def relu(x: Value) -> Any:
    """max(x, 0), the hinge; its derivative at 0 is 0."""
    return maximum(x, 0.0)


def maximum(a: Value, b: Value) -> Any:
    """The larger of two; where they are equal the derivative is b's."""
    if _traced(a, b):
        return make("max", number(a), number(b))
    if not (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return max(a, b)
    # A condition of every pair is not foreseen by the processor: these have none.
    if not isinstance(b, Tensor):
        return torch.nn.functional.threshold(_number(a), float(b), float(b))
    if not isinstance(a, Tensor):
        return _number(b).clamp(min=float(a))
    a, b = torch.broadcast_tensors(*_alike(_number(a), _number(b)))
    return torch.where(a > b, a, b)


def minimum(a: Value, b: Value) -> Any:
    """The smaller of two; where they are equal the derivative is b's."""
    return -maximum(-_number(a), -_number(b))


def where(condition: Value, a: Value, b: Value) -> Any:
    """a where the condition holds, else b."""
    if _traced(condition, a, b):
        return graph.where(lift(condition), lift(a), lift(b))
    if isinstance(condition, bool):
        return a if condition else b
    return torch.where(condition, *_alike(a, b))


def equal(a: Value, b: Value) -> Any:
    """Whether a and b are equal: a mask."""
    return a == b


def detach(x: Value) -> Any:
    """x as a constant for the gradient."""
    if isinstance(x, Node):
        return graph.detach(x)
    return x.detach() if isinstance(x, Tensor) else x


def apart(x: Value) -> Any:
    """x, a difference whose digits count: not folded into a multiply-add with what it is multiplied by."""
    x = _number(x)
    return make("apart", x) if isinstance(x, Node) else x


def lowest(like: Value) -> Any:
    """The most negative number of the type of x."""
    return LOWEST if isinstance(like, Node) else torch.finfo(_number(like).dtype).min


def rounding(like: Value) -> Any:
    """8 units in the last place of 1, in the type of x."""
    if isinstance(like, Node):
        return make("slack", ONE)
    return 8 * torch.finfo(_number(like).dtype).eps


def _alike(a: Value, b: Value) -> tuple[Tensor, Tensor]:
    """Two tensors: masks if both are, else numbers; a number in the type of the other."""
    if not (masks := _is_mask(a) and _is_mask(b)):
        a, b = _number(a), _number(b)
    if isinstance(a, Tensor):
        b = b if isinstance(b, Tensor) else torch.tensor(b, dtype=a.dtype, device=a.device)
    elif isinstance(b, Tensor):
        a = torch.tensor(a, dtype=b.dtype, device=b.device)
    else:
        kind = torch.bool if masks else torch.float64
        a, b = (torch.tensor(x, dtype=kind, device="cpu") for x in (a, b))
    if a.is_floating_point() != b.is_floating_point():
        kind = a.dtype if a.is_floating_point() else b.dtype
        a, b = a.to(kind), b.to(kind)
    return a, b
