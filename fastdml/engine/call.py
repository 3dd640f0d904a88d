"""One call of a loss, as a value.

A loss makes calls, the engine evaluates a call, and everything else (memories, gathering over ranks,
views) transforms calls: takes one and returns another. This is the one list of what a call consists of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .loss import RowLoss
from .recompute import of_inference
from .registry import description, handle, remembered, remembered_handle
from .relation import Predicate

REDUCTIONS = ("mean", "sum", "nonzero", "none")
# What a gradient may be wanted of, in the order of the operator's results after the loss.
LEAVES = ("anchors", "candidates", "scalars", "row_values", "col_values")
# Further tensors, one each; index tuples and a teacher follow them in an operator's arguments.
_SINGLE = (
    *LEAVES, "anchor_labels", "candidate_labels", "own", "row_weight", "computed", "swept",
)  # fmt: skip
_OWN, _ROW_WEIGHT = _SINGLE.index("own"), _SINGLE.index("row_weight")
_PAIRS, _TEACHER = 4, 2
_REDUCTION = 3  # of what is packed beside tensors


class Whole(Protocol):
    """All rows of a call of which a process has some: what a row's loss needs of the others.

    rows: how many there are in all. executor: who runs the share, where its candidates are shared out as
    well; None: whoever the dispatcher picks.
    """

    executor: Any

    @property
    def rows(self) -> int: ...

    def total(self, x: Tensor) -> Tensor:
        """The sum of x over all shares, as a constant."""

    def joined(self, x: Tensor) -> Tensor:
        """x [m, ...] of the share's rows -> that of all rows [M, ...], as a constant."""

    def own(self, x: Tensor) -> Tensor:
        """Of x [M, ...] of all rows, the share's."""


def versioned(values: Iterable[object]) -> list[Tensor]:
    """The tensors of which torch sees whether somebody has changed them: not those of inference mode."""
    return [x for x in values if isinstance(x, Tensor) and not of_inference(x)]


@dataclasses.dataclass(eq=False)
class Call:
    """A loss and all it is asked of.

    loss: the description.
    anchors, candidates: [M, D], [N, D]; None: the anchors themselves, one set.
    anchor_labels, candidate_labels: int64 [M], [N], or None with pairs or a predicate.
    pairs: (a1, p, a2, n) index tensors instead of labels, or nothing.
    predicate: a function of indices instead of labels (`relation.PredicateRelation`).
    own: which candidate is the anchor's own copy, where there are two sets: None, no anchor has one; a
        number k >= 0, anchor i is candidate i + k; or int64 [M], -1 where an anchor has none. Of one set
        an anchor is its own candidate. What a pair with the own copy means is the loss's affair alone.
    teacher: embeddings of a teacher's (anchors and candidates), or (both in one,); no gradient.
    scalars: [n] values that every row reads. row_values: [M, k] of the rows. col_values: [k, N].
    row_weight: [M] weights of the row losses.
    reduction: "mean", "sum", "nonzero" or "none". backend: an executor's name or "auto".
    weight: factor of the value: a number, or a tensor of one that may want a gradient.
    finish: what is made of the value, before the weight; differentiable.
    before: calls whose values this one needs, and how it takes them in.
    whole: the call has a share of the rows of a larger one; the value is then that of all rows, the
        gradients are those of the share. For that it is told what a description finds out of labels and
        counts otherwise (computed: values of the call) and what its presweep finds (swept: [k, N]).
    """

    loss: RowLoss
    anchors: Tensor
    candidates: Tensor | None = None
    anchor_labels: Tensor | None = None
    candidate_labels: Tensor | None = None
    pairs: Sequence[Tensor] = ()
    predicate: Predicate | None = None
    own: int | Tensor | None = None
    teacher: Sequence[Tensor] = ()
    scalars: Tensor | None = None
    row_values: Tensor | None = None
    col_values: Tensor | None = None
    row_weight: Tensor | None = None
    reduction: str = "mean"
    backend: str = "auto"
    weight: float | Tensor = 1.0
    finish: Callable[[Tensor], Tensor] | None = None
    before: Before | None = None
    computed: Tensor | None = None
    swept: Tensor | None = None
    whole: Whole | None = None

    def replace(self, **fields: Any) -> Call:
        """The same call with other fields."""
        return dataclasses.replace(self, **fields)

    def map(self, transform: Callable[[Call], Call]) -> Call:
        """The call transformed, and those that come before it."""
        before = self.before
        if before is None:
            return transform(self)
        mapped = tuple(c.map(transform) for c in before.calls)
        return transform(self).replace(before=dataclasses.replace(before, calls=mapped))

    @property
    def leaves(self) -> tuple[Tensor | None, ...]:
        """What a gradient may be wanted of, in the order of `LEAVES`."""
        return self.anchors, self.candidates, self.scalars, self.row_values, self.col_values

    @property
    def constants(self) -> list[Tensor]:
        """What else is read of tensors, for a graph that reads it again in its backward pass."""
        return versioned(self.packed()[0][len(LEAVES) :])

    @property
    def columns(self) -> Tensor:
        """[N, D] what the anchors meet: the candidates, or the anchors themselves where there is one set."""
        return self.anchors if self.candidates is None else self.candidates

    @property
    def is_empty(self) -> bool:
        """No anchor or no candidate."""
        return 0 in (self.anchors.shape[0], self.columns.shape[0])

    def packed(self) -> tuple[list[Tensor | None], list[Any]]:
        """As an operator takes it: tensors in one list, everything else in another."""
        tensors: list[Tensor | None] = [getattr(self, name) for name in _SINGLE]
        offset = None
        if not isinstance(self.own, Tensor):  # a number goes with the words
            offset, tensors[_OWN] = self.own, None
        for some, room in ((self.pairs, _PAIRS), (self.teacher, _TEACHER)):
            tensors += [*some, *[None] * (room - len(some))]
        return tensors, [
            self.loss, self.predicate, offset, self.reduction, self.backend, self.whole,
        ]  # fmt: skip

    @staticmethod
    def unpacked(tensors: Sequence[Tensor | None], words: Sequence[Any]) -> Call:
        """The call that was packed."""
        single: dict[str, Any] = dict(zip(_SINGLE, tensors))
        rest = tensors[len(_SINGLE) :]
        pairs = tuple(t for t in rest[:_PAIRS] if t is not None)
        teacher = tuple(t for t in rest[_PAIRS:] if t is not None)
        loss, function, offset, reduction, backend, whole = words
        if single["own"] is None:
            single["own"] = offset
        return Call(
            loss, pairs=pairs, teacher=teacher, predicate=function, reduction=reduction,
            backend=backend, whole=whole, **single,
        )  # fmt: skip


def of_rows(
    tensors: Sequence[Tensor | None], words: Sequence[Any], weight: Tensor
) -> tuple[list[Tensor | None], list[Any]]:
    """A packed call, or one that was spelled, as the sum of its row losses times weight [M]."""
    found, told = list(tensors), list(words)
    given = found[_ROW_WEIGHT]
    found[_ROW_WEIGHT] = weight if given is None else weight * given
    told[_REDUCTION] = "sum"
    return found, told


@dataclasses.dataclass(frozen=True)
class Before:
    """Calls to be evaluated first; `fill` of the call and their values is the call without them.

    slopes: not their values, but their derivatives by the scalars, as constants.
    """

    calls: tuple[Call, ...]
    fill: Callable[[Call, list[Tensor]], Call]
    slopes: bool = False


def spelled(words: Sequence[Any]) -> list[str]:
    """What is packed beside tensors, as strings."""
    loss, function, offset, reduction, backend, whole = words
    return [
        handle(loss),
        "" if function is None else remembered_handle(function),
        "" if offset is None else str(offset),
        reduction,
        backend,
        "" if whole is None else remembered_handle(whole),
    ]


def read(words: Sequence[str]) -> list[Any]:
    """What was spelled."""
    loss, function, offset, reduction, backend, whole = words
    return [
        description(loss),
        remembered(function) if function else None,
        int(offset) if offset else None,
        reduction,
        backend,
        remembered(whole) if whole else None,
    ]


def statistic_type(anchors: Tensor, candidates: Tensor | None = None) -> torch.dtype:
    """float64 where an input is, else float32: the type of losses and accumulated gradients."""
    wide = anchors.dtype == torch.float64
    wide = wide or (candidates is not None and candidates.dtype == torch.float64)
    return torch.float64 if wide else torch.float32
