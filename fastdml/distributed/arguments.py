"""The arguments of a loss of which every rank has some rows: told to each other, compared, and joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..mining.identity import same_memory
from .ranks import RankError, Ranks
from .words import gathered, scaled

_DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
_MOST_DIMENSIONS = 4
_EACH = 3 + _MOST_DIMENSIONS  # numbers that tell of an argument
_MOST = 12  # arguments
_TOLD = 5  # numbers besides: failed, gradients recorded, draws, which arguments, own copies
# And two by which a rank is known.
NUMBERS_TOLD = 2 + _TOLD + _EACH * _MOST
# Which arguments have as many rows.
_ALIKE = {
    "embeddings": (
        "labels", "teacher", "probabilities", "enqueue_mask", "guide", "scores", "teacher_scores",
        "candidates",
    ),
    "ref_emb": ("ref_labels", "ref_teacher", "ref_guide", "ids"),
    "queries": ("query_mask",),
    "documents": ("document_mask",),
}  # fmt: skip
# What rows and their other candidates are called.
_ROWS, _COLUMNS = ("embeddings", "queries"), ("ref_emb", "documents")


@dataclasses.dataclass(eq=False)
class Set:
    """The rows of one argument: this rank's, and how many every rank has."""

    local: Tensor
    counts: tuple[int, ...]
    rank: int
    recorded: bool  # whether gradients are
    whole: Tensor | None = None  # the rows of all ranks, once they were gathered

    @property
    def rows(self) -> int:
        return sum(self.counts)

    @property
    def start(self) -> int:
        """The place of this rank's first row among all."""
        return sum(self.counts[: self.rank])

    @property
    def stop(self) -> int:
        return self.start + self.counts[self.rank]

    @property
    def starts(self) -> list[int]:
        return [sum(self.counts[:r]) for r in range(len(self.counts))]


@dataclasses.dataclass(eq=False)
class Told:
    """What all ranks have told of their arguments. sets: by name. draws: a number of rank 0's. copies:
    whether a rank has samples that stand among its own other candidates."""

    sets: dict[str, Set]
    draws: int
    copies: bool


def told(
    ranks: Ranks,
    arguments: Mapping[str, Any],
    factor: float,
    draws: int = 0,
    failure: str = "",
) -> Told:
    """Exchanges the shapes and types of arguments.

    factor: of the derivatives by those that want one. draws: a number, of which rank 0's counts. failure:
    what is wrong with this rank already.

    Raises:
        RankError: naming the rank whose arguments are not like the others'.
    """
    # A tensor alone in place of index tuples is a number of every row.
    given = {k: v for k, v in arguments.items() if k != "own" and isinstance(v, Tensor)}
    names = [k for k, v in arguments.items() if v is not None and k != "own"]
    device = next((v.device for v in given.values()), torch.device("cpu"))
    if not isinstance(arguments.get("embeddings", next(iter(given.values()), None)), Tensor):
        got = type(arguments.get("embeddings")).__name__
        failure = failure or f"embeddings: expected a tensor, got {got}"
    failure = failure or _unfit(given)
    own = _own(arguments) is not None
    head = [len(failure), int(torch.is_grad_enabled()), draws, _names(names), int(own)]
    body = [0] * (_EACH * _MOST)
    if not failure:
        for k, value in enumerate(given.values()):
            body[k * _EACH : (k + 1) * _EACH] = _describe(value)
    every = ranks.headers(head + body, device)
    if any(row[0] for row in every):
        texts = ranks.texts(failure, device)
        rank = next(r for r, row in enumerate(every) if row[0])
        raise RankError(f"rank {rank}: {texts[rank]}", rank)
    _compare(every, list(given))
    sets = {}
    for k, (name, value) in enumerate(given.items()):
        counts = tuple(row[_TOLD + k * _EACH + 3] for row in every)
        sets[name] = Set(scaled(value, factor), counts, ranks.rank, torch.is_grad_enabled())
    return Told(sets, every[0][2], any(row[4] for row in every))


def _own(arguments: Mapping[str, Any]) -> int | Tensor | None:
    """Where own copies stand among this rank's other candidates."""
    own, ref = arguments.get("own"), _first(arguments, _COLUMNS)
    if own is None and ref is not None and same_memory(_first(arguments, _ROWS), ref):
        return 0
    return own


def _first(given: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The argument that has one of these names, or None."""
    return next((given[name] for name in names if name in given), None)


def _unfit(given: Mapping[str, Tensor]) -> str:
    """Why these cannot be told, or nothing."""
    if len(given) > _MOST:
        return f"expected at most {_MOST} tensors, got {len(given)}"
    for name, x in given.items():
        if not 1 <= x.dim() <= _MOST_DIMENSIONS:
            return f"{name}: expected 1 to {_MOST_DIMENSIONS} dimensions, got {x.dim()}"
        if x.dtype not in _DTYPES:
            return f"{name}: expected a real type, got {x.dtype}"
    for of, names in _ALIKE.items():
        for name in names:
            if of in given and name in given and len(given[name]) != len(given[of]):
                return f"{name}: expected {len(given[of])} rows, as {of} has, got {len(given[name])}"
    return ""


def _names(names: list[str]) -> int:
    """A number that tells which arguments there are."""
    known = sorted(set(names))
    return int.from_bytes(",".join(known).encode()[-64:], "big") % (1 << 61) if known else 0


def _describe(x: Tensor) -> list[int]:
    sizes = [*x.shape, *[-1] * (_MOST_DIMENSIONS - x.dim())]
    return [_DTYPES.index(x.dtype), int(x.requires_grad), x.dim(), *sizes]


def _compare(every: list[list[int]], names: list[str]) -> None:
    first = every[0]
    for rank, row in enumerate(every):
        if row[1] != first[1]:
            raise RankError(
                f"rank {rank}: expected gradients to be recorded on all ranks or on none, got "
                f"{bool(row[1])} against rank 0's {bool(first[1])}", rank,
            )  # fmt: skip
        if row[3] != first[3]:
            raise RankError(f"rank {rank}: expected the same arguments as on rank 0, got others", rank)
        for k, name in enumerate(names):
            mine, theirs = (r[_TOLD + k * _EACH : _TOLD + (k + 1) * _EACH] for r in (row, first))
            if mine[:3] + mine[4:] != theirs[:3] + theirs[4:]:
                raise RankError(
                    f"rank {rank}: {name}: expected {_shown(theirs)}, as on rank 0, got {_shown(mine)}",
                    rank,
                )


def _shown(numbers: list[int]) -> str:
    kind, wanted, dimensions, _, *sizes = numbers
    shape = ", ".join(["rows", *map(str, sizes[: dimensions - 1])])
    return f"{_DTYPES[kind]} [{shape}]" + (" with a gradient" if wanted else "")


def join(own: Set, ranks: Ranks) -> Tensor:
    """The rows of all ranks."""
    if own.whole is None:
        with torch.set_grad_enabled(own.recorded):  # a sweep without a graph may be the first to ask
            own.whole = gathered(own.local, ranks, own.counts)
    return own.whole


def place(
    ranks: Ranks, arguments: Mapping[str, Any], told: Told, partners: int | None = None
) -> dict[str, Any]:
    """Index tuples and own copies of a rank's rows as those of all rows. partners: where a loss of pairs
    has the rows' partners, if nothing is said."""
    found: dict[str, Any] = {}
    rows, others = (_first(told.sets, names) for names in (_ROWS, _COLUMNS))
    if rows is None:
        return found
    columns = rows if others is None else others
    pairs = arguments.get("indices_tuple")
    if pairs is not None and not isinstance(pairs, Tensor):
        given = callable(pairs) and not isinstance(pairs, tuple)
        found["indices_tuple"] = pairs if given else _joined_pairs(ranks, pairs, rows, columns)
    own = _own(arguments)
    # Partners that stand at the same places in both sets, and as many, stand so among all.
    moved = partners is not None and (rows.counts != columns.counts or partners != 0)
    if others is not None and (told.copies or moved):
        own = partners if own is None else own
        found["own"] = ranks.gather(_own_of_all(own, rows, columns), rows.counts)
    return found


def _own_of_all(own: int | Tensor | None, rows: Set, columns: Set) -> Tensor:
    count, device = rows.counts[rows.rank], rows.local.device
    if own is None:
        return torch.full((count,), -1, dtype=torch.int64, device=device)
    if isinstance(own, Tensor):
        local = own.to(device=device, dtype=torch.int64)
    else:
        local = torch.arange(count, device=device) + own
        local = local.masked_fill(local >= columns.counts[rows.rank], -1)
    return torch.where(local < 0, local, local + columns.start)


def _joined_pairs(ranks: Ranks, pairs: Any, rows: Set, columns: Set) -> tuple[Tensor, ...]:
    listed = tuple(pairs)
    anchors = (True, False, False) if len(listed) == 3 else (True, False, True, False)
    if len(listed) != len(anchors):
        raise RankError(
            f"rank {ranks.rank}: indices_tuple: expected 3 or 4 index tensors, got {len(listed)}",
            ranks.rank,
        )
    device = rows.local.device
    found = []
    lengths = ranks.equal(torch.tensor([len(t) for t in listed], device=device)).tolist()
    for k, (index, of_rows) in enumerate(zip(listed, anchors, strict=True)):
        moved = index.to(device, torch.int64) + (rows if of_rows else columns).start
        found.append(ranks.gather(moved, [row[k] for row in lengths]))
    return tuple(found)


