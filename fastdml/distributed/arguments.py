"""The arguments of a loss of which every rank has some rows: told to each other, compared, and joined."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..losses.twotower.paired import check_own
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
        "candidates", "hard_negatives", "sample_weights", "indices_tuple",
    ),
    "ref_emb": ("ref_labels", "ref_teacher", "ref_guide", "ids"),
    "hard_negatives": ("hard_weights", "hard_ids", "hard_guide"),
    "queries": ("query_mask",),
    "documents": ("document_mask",),
}  # fmt: skip
# Those of rows that are nothing but tensors.
_TENSORS = {*_ALIKE, *(name for names in _ALIKE.values() for name in names)} - {"indices_tuple"}
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


@dataclasses.dataclass(frozen=True)
class Belonging:
    """Which of a rank's other candidates belong to its rows.

    own: where copies or partners stand, if that is known of this rank. partners: where a loss of pairs has
    them if nothing is said. by_row: they are all that there is, row by row. memory: pairs are of rows and of
    a memory that every rank has.
    """

    own: int | Tensor | None = None
    partners: int | None = None
    by_row: bool = False
    memory: bool = False

    @staticmethod
    def of(signature: inspect.Signature, arguments: Mapping[str, Any]) -> Belonging:
        """That of a loss which is called so."""
        own, ref = arguments.get("own"), _first(arguments, _COLUMNS)
        if "own" not in signature.parameters:
            return Belonging(by_row=ref is not None and "ref_labels" not in arguments)
        default = signature.parameters["own"].default
        if not isinstance(default, int):
            # (Nothing is at one address with nothing.)
            copies = isinstance(ref, Tensor) and ref.numel() and same_memory(_first(arguments, _ROWS), ref)
            return Belonging(0 if own is None and copies else own)
        if "labels" in arguments or "positives" in arguments:  # these say what belongs together
            return Belonging(None if isinstance(own, int) and own == default else own)
        return Belonging(own, default)


def told(
    ranks: Ranks,
    arguments: Mapping[str, Any],
    factor: float,
    draws: int = 0,
    failure: str = "",
    belonging: Belonging = Belonging(),
) -> Told:
    """Exchanges the shapes and types of arguments.

    factor: of the derivatives by those that want one. draws: a number, of which rank 0's counts. failure:
    what is wrong with this rank already.

    Raises:
        RankError: naming the rank whose arguments are not like the others', or are refused.
        ValueError: where this process is alone and its arguments are refused.
    """
    # A tensor alone in place of index tuples is a number of every row.
    given = {k: v for k, v in arguments.items() if k != "own" and isinstance(v, Tensor)}
    device = next((v.device for v in given.values()), torch.device("cpu"))
    failure = failure or _no_tensor(arguments, given) or _unfit(given, belonging.by_row)
    failure = failure or _misplaced(arguments, belonging)
    if failure and ranks.size == 1:
        raise ValueError(failure)
    # What a rank does not take has no name.
    names = "" if failure else ", ".join(_kind(k, v) for k, v in arguments.items() if k != "own")
    copies = belonging.own is not None
    head = [len(failure), int(torch.is_grad_enabled()), draws, zlib.crc32(names.encode()), int(copies)]
    body = [0] * (_EACH * _MOST)
    if not failure:
        for k, value in enumerate(given.values()):
            body[k * _EACH : (k + 1) * _EACH] = _describe(value)
    every = ranks.headers(head + body, device)
    if any(row[0] for row in every):
        texts = ranks.texts(failure, device)
        rank = next(r for r, row in enumerate(every) if row[0])
        raise RankError(f"rank {rank}: {texts[rank]}", rank)
    if any(row[3] != every[0][3] for row in every):
        texts = ranks.texts(names, device)
        rank = next(r for r, row in enumerate(every) if row[3] != every[0][3])
        raise RankError(
            f"rank {rank}: expected the same arguments as on rank 0, {texts[0]}; got {texts[rank]}", rank
        )
    _compare(every, list(given))
    sets = {}
    for k, (name, value) in enumerate(given.items()):
        counts = tuple(row[_TOLD + k * _EACH + 3] for row in every)
        sets[name] = Set(scaled(value, factor), counts, ranks.rank, torch.is_grad_enabled())
    return Told(sets, every[0][2], any(row[4] for row in every))


def _first(given: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The argument that has one of these names, or None."""
    return next((given[name] for name in names if name in given), None)


def _no_tensor(arguments: Mapping[str, Any], given: Mapping[str, Tensor]) -> str:
    """What should be a tensor and is none, or nothing."""
    wrong = [name for name in arguments if name in _TENSORS and name not in given]
    if not given and not wrong:
        wrong = ["embeddings"]
    return f"{wrong[0]}: expected a tensor, got {type(arguments.get(wrong[0])).__name__}" if wrong else ""


def _unfit(given: Mapping[str, Tensor], by_row: bool) -> str:
    """Why these cannot be told, or nothing."""
    if len(given) > _MOST:
        return f"expected at most {_MOST} tensors, got {len(given)}"
    for name, x in given.items():
        if not 1 <= x.dim() <= _MOST_DIMENSIONS:
            return f"{name}: expected 1 to {_MOST_DIMENSIONS} dimensions, got {x.dim()}"
        if x.dtype not in _DTYPES:
            return f"{name}: expected a real type, got {x.dtype}"
    pairs = [(of, name) for of, names in _ALIKE.items() for name in names if name in given]
    if by_row:  # other candidates, and further views (`rest 0` and so on)
        pairs += [("embeddings", name) for name in given if name == "ref_emb" or " " in name]
    for of, name in pairs:
        # Without candidates of their own, those are the rows.
        of = of if of in given else "embeddings"
        of_all = name in ("hard_negatives", "indices_tuple") and given[name].dim() == 2  # [K, D]
        if of in given and not of_all and len(given[name]) != len(given[of]):
            return f"{name}: expected {len(given[of])} rows, as {of} has, got {len(given[name])}"
    return ""


def _misplaced(arguments: Mapping[str, Any], belonging: Belonging) -> str:
    """What names none of this rank's own rows and candidates, or nothing."""
    rows, others = (_first(arguments, names) for names in (_ROWS, _COLUMNS))
    if rows is None:
        return ""
    pairs, own = arguments.get("indices_tuple"), belonging.own
    where = belonging.partners if own is None else own
    try:
        if _listed(pairs):
            columns = len(rows if others is None else others)
            # (How many a memory holds is for it to say, of the pairs of all ranks.)
            check.pairs(pairs, len(rows), check.MOST if belonging.memory else columns)
        if own is not None and others is None:
            raise ValueError("own: expected None without other candidates")
        if where is not None and others is not None:
            check.own(where, rows, len(others))
            if belonging.partners is not None and len(rows):  # no row lacks a partner where there is none
                check_own(where, rows, others)
    except ValueError as error:
        return str(error)
    return ""


def _listed(pairs: Any) -> bool:
    """Whether these are index tensors, rather than a function or numbers of the rows."""
    function = callable(pairs) and not isinstance(pairs, tuple)
    return pairs is not None and not isinstance(pairs, Tensor) and not function


def _kind(name: str, value: Any) -> str:
    """An argument, as far as it must be alike on all ranks besides its shape."""
    if isinstance(value, Tensor):
        return name
    if name == "indices_tuple" and _listed(value):
        return f"{name} of {len(value)} tensors"
    return f"{name} (a function)" if callable(value) else f"{name} (no tensor)"


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
    ranks: Ranks, arguments: Mapping[str, Any], told: Told, belonging: Belonging
) -> dict[str, Any]:
    """Index tuples and own copies of a rank's rows as those of all rows."""
    found: dict[str, Any] = {}
    rows, others = (_first(told.sets, names) for names in (_ROWS, _COLUMNS))
    if rows is None:
        return found
    columns = rows if others is None else others
    pairs: Any = arguments.get("indices_tuple")
    if _listed(pairs):
        first = 0 if belonging.memory else columns.start
        found["indices_tuple"] = _joined_pairs(ranks, tuple(pairs), rows, first)
    own, partners = belonging.own, belonging.partners
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


def _joined_pairs(
    ranks: Ranks, listed: tuple[Tensor, ...], rows: Set, first: int
) -> tuple[Tensor, ...]:
    """The pairs of all ranks; first: the place of this rank's first candidate among all."""
    anchors = (True, False, False) if len(listed) == 3 else (True, False, True, False)
    device = rows.local.device
    found = []
    lengths = ranks.equal(torch.tensor([len(t) for t in listed], device=device)).tolist()
    for k, (index, of_rows) in enumerate(zip(listed, anchors, strict=True)):
        moved = index.to(device, torch.int64) + (rows.start if of_rows else first)
        found.append(ranks.gather(moved, [row[k] for row in lengths]))
    return tuple(found)


