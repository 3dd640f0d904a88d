"""What a caller can get wrong, said in the caller's words."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from . import library
from .call import REDUCTIONS
from .distances import known, metric_of
from .loss import Learnt
from .peer import kind_of
from .similarity import PRODUCT, SIMILARITIES, wide_type

F = TypeVar("F")


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(wide_type(x))


def tensor(x: object, name: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: expected a floating-point tensor, got {got}")


def seen(x: object) -> Any:
    """What is said of x where a tensor of another shape was expected."""
    return tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__


def shape(x: object, name: str, expected: Sequence[int], of: str = "") -> None:
    """of: what these are, in words, with a comma before."""
    if not isinstance(x, Tensor) or tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {list(expected)}{of}, got {seen(x)}")


def sequence(values: object, name: str, of: str) -> list[Any]:
    """The values of a list, a tuple or the like; of: what they are, in words."""
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, Tensor, np.ndarray)):
        raise ValueError(f"{name}: expected {of}, got {values!r}")
    return list(values)


def embeddings(x: Tensor, name: str, validate: bool = False) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: expected a tensor [batch, dim], got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        raise ValueError(f"{name}: expected a dense tensor, got {kind}")
    if x.dim() != 2:
        raise ValueError(f"{name}: expected shape [batch, dim], got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")
    if x.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one dimension, got shape {tuple(x.shape)}")
    if type(x) not in (Tensor, nn.Parameter) and hasattr(x, "full_tensor"):
        raise ValueError(
            f"{name}: expected a plain tensor, got {type(x).__name__}; see its full_tensor(), and its "
            "to_local() with fastdml.distributed.wrap"
        )
    if validate:
        _finite_rows(x, name)


def embeddings_of(size: int, x: Tensor, name: str) -> None:
    """Embeddings [B, size]."""
    embeddings(x, name)
    if x.shape[1] != size:
        raise ValueError(f"{name}: expected {size} dimensions, got {x.shape[1]}")


def _finite_rows(x: Tensor, name: str) -> None:
    squares = torch.isfinite(_wide(x).square().sum(1)).all()
    if _in_graph(squares, f"{name}: expected finite values"):
        return
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x).all(dim=1)).sum())
        raise ValueError(f"{name}: expected finite values, got NaN or infinity in {bad} rows")
    if not bool(squares):
        raise ValueError(
            f"{name}: expected norms whose squares are in the range of {_wide(x).dtype}"
        )


def _in_graph(right: Tensor, message: str) -> bool:
    """Whether a graph is compiled, which cannot look at values: then they are looked at when it runs, and
    wrong ones are a RuntimeError."""
    if not torch.compiler.is_compiling():
        return False
    torch._assert_async(right, message)
    return True


def labels(y: Tensor, count: int, device: torch.device, name: str, of: str) -> Tensor:
    """The labels as int64; they must be 1-D integers on the device of the embeddings."""
    if not isinstance(y, Tensor):
        raise ValueError(f"{name}: expected a tensor of {count} integers, got {type(y).__name__}")
    if y.layout != torch.strided or y.is_nested:
        raise ValueError(f"{name}: expected a dense tensor of {count} integers, got layout {y.layout}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"{name}: expected integer labels, got {y.dtype}")
    if y.dim() != 1 or y.shape[0] != count:
        raise ValueError(
            f"{name}: expected shape [{count}], one label per row of {of}, got {tuple(y.shape)}"
        )
    if y.device != device:
        raise ValueError(f"{name}: expected device {device}, that of {of}, got {y.device}")
    return y.long().contiguous()


def same_device(x: Tensor, of: Tensor, name: str, of_name: str) -> None:
    if x.device != of.device:
        raise ValueError(f"{name}: expected device {of.device}, that of {of_name}, got {x.device}")


def same_space(a: Tensor, b: Tensor, a_name: str, b_name: str) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{b_name}: expected embeddings of dimension {a.shape[1]}, as in {a_name}, got {b.shape[1]}"
        )
    same_device(b, a, b_name, a_name)


def own(where: int | Tensor, embeddings: Tensor, columns: int, of: str = "ref_emb") -> int | Tensor:
    """Where rows' own copies stand among the candidates: a number, or int64 [rows], -1 for nowhere; of: what
    the candidates are called."""
    rows = embeddings.shape[0]
    if isinstance(where, int) and not isinstance(where, bool):
        if where < 0:
            raise ValueError(f"own: expected a number of at least 0, or indices, got {where}")
        if where >= columns > 0:
            raise ValueError(f"own: expected a number below {columns}, the rows of {of}, got {where}")
        return where
    if not isinstance(where, Tensor) or where.is_floating_point() or where.dtype == torch.bool:
        got = where.dtype if isinstance(where, Tensor) else type(where).__name__
        raise ValueError(f"own: expected a number or a tensor of {rows} integers, got {got}")
    if tuple(where.shape) != (rows,):
        raise ValueError(f"own: expected shape [{rows}], got {tuple(where.shape)}")
    same_device(where, embeddings, "own", "embeddings")
    if readable(where) and rows and not -1 <= int(where.min()) <= int(where.max()) < columns:
        raise ValueError(f"own: expected indices of {of} in [0, {columns}), or -1")
    return where.long().contiguous()


def class_range(
    y: Tensor, classes: int, name: str, validate: bool, each: str = "one proxy per class"
) -> None:
    """Labels of proxy losses name proxies; those of other losses with learnt values, what `each` says.

    Reading them back from an accelerator takes validate; a compiled graph cannot look at values, and
    there a label outside is a class without a proxy.
    """
    if torch.compiler.is_compiling():
        if validate:
            _in_graph(((y >= 0) & (y < classes)).all(), f"{name}: expected values in [0, classes), {each}")
        return
    if y.numel() and (readable(y) or validate):
        low, high = map(int, y.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(
                f"{name}: expected values in [0, {classes}), {each}, got {low} to {high}"
            )


# What to do instead of handing in what other losses or other libraries take.
_INSTEAD = {
    "labels": "it knows no classes; losses over samples take them, and a second set as ref_emb",
    "ref_labels": "it knows no classes; losses over samples take them, and a second set as ref_emb",
    "indices_tuple": "it takes all pairs of its batch",
    "weights": 'multiply what reduction="none" returns',
    "weight": 'multiply the value, or what reduction="none" returns',
    "sample_weight": 'multiply what reduction="none" returns',
}


def taken(given: Iterable[str], known: Collection[str], by: str) -> None:
    """ValueError for a keyword that is none of those known by the function or class of that name."""
    for name in given:
        if name in known:
            continue
        use = _INSTEAD.get(name)
        if use is None and (near := difflib.get_close_matches(name, known, 1)):
            use = f"did you mean {near[0]!r}?"
        use = use or f"it takes {', '.join(known)}"
        raise ValueError(f"{name}: expected none, as {by} has no such argument; {use}")


def by_place(given: Sequence[object], names: Sequence[str], by: str) -> None:
    """ValueError for arguments by place beyond those that have these names."""
    raise ValueError(
        f"{by}: expected at most {len(names)} arguments by place, {', '.join(names)}; got {len(given)}"
    )


def reduction(kind: str) -> None:
    if not isinstance(kind, str) or kind not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {kind!r}")


def among(kind: str, name: str, known: Sequence[str]) -> None:
    """Refuses a kind that is not among those of a loss; without any, all are."""
    if known and kind not in known:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {kind!r}")


def similarity(kind: str) -> None:
    if not known(kind):
        raise ValueError(f"similarity: expected one of {sorted(SIMILARITIES)}, got {kind!r}")


def distance(kind: str) -> None:
    """Refuses similarities where a loss is defined on distances only."""
    similarity(kind)
    if metric_of(kind).kind == PRODUCT:
        expected = sorted(k for k, m in SIMILARITIES.items() if m.kind != PRODUCT)
        raise ValueError(f"similarity: expected a distance ({', '.join(expected)}), got {kind!r}")


def larger_for_alike(kind: str) -> None:
    """Refuses distances where a loss would draw apart what is alike."""
    similarity(kind)
    if metric_of(kind).sign < 0:
        raise ValueError(f"similarity: expected one that is larger for what is more alike, got {kind!r}")


def positive(value: float, name: str) -> float:
    return number(value, name, "a positive number", lambda v: 0 < v < float("inf"))


def count(value: float, name: str) -> int:
    return int(number(value, name, "a positive integer", lambda v: 1 <= v < 1 << 31 and int(v) == v))


def integer(value: float, name: str, low: int, high: int) -> int:
    """Also a float without a fraction, as `count` is: 3.0."""
    expected = f"an integer from {low} to {high}"
    return int(number(value, name, expected, lambda v: low <= v <= high and int(v) == v))


MOST = 2**31 - 1  # of anything counted
BYTES = 2**62  # more than any memory has
LARGEST_SEED = 2**64 - 1


def array(x: Tensor) -> np.ndarray:
    """The values as numpy's, which knows no bfloat16."""
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def mixed(values: object, found: np.ndarray) -> bool:
    """Whether numpy made strings of labels [N] of which some are numbers: 1 and "1" would be one class."""
    strings = found.ndim == 1 and found.dtype.kind in "US" and isinstance(values, Sequence)
    return strings and not all(isinstance(v, (str, bytes)) for v in values)  # type: ignore[attr-defined]


def whole(value: Any, name: str, low: int, high: int = MOST, beside: str = "") -> int:
    """An integer of any of Python's, numpy's and torch's kinds, but neither a bool nor a float; beside: what
    else is taken, in words."""
    open_ended = high in (MOST, BYTES, LARGEST_SEED)
    try:
        if not isinstance(value, bool) and getattr(value, "dtype", None) not in _BOOLS:
            found = operator.index(value)
            if low <= found <= high:
                return found
            open_ended = open_ended and found < low
    except (TypeError, ValueError):  # a string, None, a tensor of two
        pass
    span = f"of at least {low}" if open_ended else f"from {low} to {high}"
    raise ValueError(f"{name}: expected an integer {span}{beside}, got {_shown(value)}")


_BOOLS = (torch.bool, np.dtype(bool))


def _shown(value: Any) -> str:
    huge = isinstance(value, int) and abs(value) >= 1 << 64  # which Python may not even print
    return "a huge integer" if huge else repr(value)


STREAMS = 1 << 24  # float32 row values carry the numbers of a stream exactly below this


def seed(value: int | Tensor, name: str) -> int | Tensor:
    """A number of a stream of draws: an integer, or a tensor of one, which is read on the CPU only."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_floating_point():
            raise ValueError(
                f"{name}: expected one integer, got {value.dtype} {tuple(value.shape)}"
            )
        number = int(value) if readable(value) else 0
    else:
        value = number = int(value) if isinstance(value, np.integer) else value
    if not isinstance(number, int) or not 0 <= number < STREAMS:
        raise ValueError(f"{name}: expected an integer in [0, 2^24), got {number!r}")
    return value


def non_negative(value: float, name: str) -> float:
    return number(value, name, "a number of at least 0", lambda v: 0 <= v < float("inf"))


def share(value: float, name: str) -> float:
    return number(value, name, "a number in [0, 1)", lambda v: 0 <= v < 1)


def fraction(value: float, name: str) -> float:
    return number(value, name, "a number in [0, 1]", lambda v: 0 <= v <= 1)


def part(value: float, name: str) -> float:
    return number(value, name, "a number in (0, 1]", lambda v: 0 < v <= 1)


def finite(value: float, name: str) -> float:
    return number(value, name, "a finite number", lambda v: abs(v) < float("inf"))


def number(value: float, name: str, expected: str, is_right: Callable[[float], bool]) -> float:
    """expected: what is right, in words. A tensor of one number is read; one that wants a gradient would
    not get it, and is refused."""
    if isinstance(value, Learnt):  # its value is read at every call
        return value
    if isinstance(value, Tensor):
        value = _one_number(value, name, expected)
    try:
        if not isinstance(value, bool) and is_right(value):
            found = float(value)
            # Beyond, it would be another number in the kernels: 0 or infinity.
            if found == 0 or _SMALLEST <= abs(found) <= _LARGEST or abs(found) == float("inf"):
                return found
            expected += " in the range of float32"
    except (TypeError, ValueError, OverflowError):  # a string, None, infinity as an integer
        pass
    raise ValueError(f"{name}: expected {expected}, got {_shown(value)}")


_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def _one_number(value: Tensor, name: str, expected: str) -> float:
    if value.requires_grad:
        raise ValueError(
            f"{name}: expected {expected}, got a tensor that requires a gradient; this loss does not "
            f"learn its {name}"
        )
    if value.numel() != 1 or value.is_complex():
        raise ValueError(f"{name}: expected {expected}, got a tensor of shape {tuple(value.shape)}")
    return float(value.detach())


def scalar(value: Tensor | float, name: str, of: Tensor) -> Tensor | float:
    """A finite number, or a tensor of one, not looked into, on the CPU or the device of `of`."""
    if not isinstance(value, Tensor):
        return finite(value, name)
    if value.numel() != 1 or value.dtype == torch.bool or value.is_complex():
        raise ValueError(f"{name}: expected one number, got {value.dtype} {tuple(value.shape)}")
    if value.device.type != "cpu":
        same_device(value, of, name, "embeddings")
    return value


def reads_no_parameter(found: object, name: str, expected: str) -> None:
    """found: what a user's function made of inputs that want no gradient. ValueError where it wants one, of
    a tensor that the function brings along and that would miss it."""
    if isinstance(found, Tensor) and found.requires_grad:
        raise ValueError(
            f"fn: {name!r} reads a tensor that requires a gradient, but would get none; {expected}"
        )


def distances(x: Tensor, name: str, validate: bool) -> None:
    """Given distances: looked into on the CPU, elsewhere with validate."""
    if not (readable(x) or validate):
        return
    right = ((x >= 0) & (x < torch.inf)).all()
    if not _in_graph(right, f"{name}: expected finite distances of at least 0") and not bool(right):
        raise ValueError(f"{name}: expected finite distances of at least 0")


def one_of(value: str, name: str, known: Sequence[str]) -> str:
    """A name among those that are known."""
    if not isinstance(value, str) or value not in known:
        words = " or ".join(map(repr, known)) if len(known) == 2 else f"one of {known}"
        raise ValueError(f"{name}: expected {words}, got {value!r}")
    return value


def function(value: F, name: str) -> F:
    if value is not None and not callable(value):
        raise ValueError(f"{name}: expected a function or None, got {value!r}")
    return value


def miner(value: F, name: str = "miner") -> F:
    if value is not None and (not callable(value) or kind_of(value) in ("loss", "class")):
        raise ValueError(f"{name}: expected a miner or None, got {_named(value)}")
    return value


def relation(function: object) -> None:
    """Refuses what can be called, but not with indices."""
    kind = kind_of(function)
    if kind is not None:
        instead = "; call it with embeddings and labels, and pass what it returns" if kind == "miner" else ""
        raise ValueError(
            "indices_tuple: expected a miner's result, index tensors or a function of indices, got "
            f"{_named(function)}{instead}"
        )


def _named(value: Any) -> str:
    kind = kind_of(value)
    if kind is None:
        return repr(value)
    return f"the {kind} {(value if kind == 'class' else type(value)).__name__}"


def flag(value: bool, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return value


def optional_flag(value: bool | None, name: str) -> bool:
    """False for None."""
    return False if value is None else flag(value, name)


def numbers(values: Tensor | Sequence[float], name: str, count: int) -> Tensor:
    """[count] positive numbers, as a tensor or a list."""
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = torch.empty(0, device="cpu")
    if tuple(found.shape) != (count,) or not bool(((found > 0) & (found < torch.inf)).all()):
        raise ValueError(f"{name}: expected {count} positive numbers, got {values!r}")
    return found


def variant(kind: str) -> None:
    """Which of two forms of a loss, where the released code departs from its paper."""
    one_of(kind, "variant", ("paper", "released"))


def readable(t: Tensor) -> bool:
    """Whether values may be looked at: not on an accelerator, which would wait, nor where there are none, or
    somebody traces."""
    plain = t.is_cpu and not torch.compiler.is_compiling()
    return plain and torch._C._len_torch_dispatch_stack() == 0


def _outside(t: Tensor, limit: int) -> bool:
    """Whether some of the int64 indices, on the CPU, are outside of [0, limit)."""
    if t.is_contiguous() and library.load() is not None:
        return bool(torch.ops.fastdml_native.indices_outside(t, limit))
    low, high = (int(x) for x in t.aminmax())
    return low < 0 or high >= limit


def pairs(indices: object, rows: int, columns: int, of: Tensor | None = None) -> list[Tensor]:
    """A 4-tuple (a1, p, a2, n) or a 3-tuple (a, p, n) of index tensors, as four tensors; of: embeddings, on
    whose device they must be; None: on any."""
    if not isinstance(indices, (tuple, list)) or len(indices) not in (3, 4):
        raise ValueError(
            "indices_tuple: expected (a, p, n) or (a1, p, a2, n) of index tensors, got "
            f"{type(indices).__name__}"
            + (f" of length {len(indices)}" if isinstance(indices, (tuple, list)) else "")
        )
    found = list(indices)
    if len(found) == 3:
        found = [found[0], found[1], found[0], found[2]]
    given = list(found)
    for k, name in enumerate(("a1", "p", "a2", "n")):
        t = found[k]
        wrong = not isinstance(t, Tensor) or t.dim() != 1 or t.is_floating_point()
        if wrong or t.is_complex() or t.dtype == torch.bool:
            raise ValueError(f"indices_tuple: expected {name} to be a 1-D tensor of integers")
        if of is not None:
            same_device(t, of, "indices_tuple", "embeddings")
        limit = columns if k % 2 else rows
        again = k == 2 and t is given[0]
        found[k] = found[0] if again else t.long()
        if readable(t) and t.numel() and not again and _outside(found[k], limit):
            raise ValueError(f"indices_tuple: expected {name} in [0, {limit})")
    for one, other, names in ((0, 1, "a1 and p"), (2, 3, "a2 and n")):
        if found[one].shape != found[other].shape:
            raise ValueError(f"indices_tuple: expected {names} of equal length")
    return found
