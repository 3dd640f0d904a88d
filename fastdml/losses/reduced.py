"""A loss whose elements go to a reducer object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import in_torch
from ..engine.autograd import evaluate
from ..engine.call import Call, versioned
from ..engine.loss import Piece, Rows
from ..reducers import (
    BaseReducer,
    DivisorReducer,
    DoNothingReducer,
    MultipleReducers,
    PerAnchorReducer,
    native,
)

_NOTHING = {"losses": 0, "indices": None, "reduction_type": "already_reduced"}


def total_of(parts: list[Any]) -> Any:
    """The sum of what the parts of a loss are."""
    values = [evaluate(p) if isinstance(p, Call) else p.evaluate() for p in parts]
    value = values[0]
    for other in values[1:]:
        value = value + other
    return value


@dataclasses.dataclass(frozen=True)
class Elements:
    """A call whose rows are no samples of the batch, and what they are: indices, and the kind of element."""

    call: Call
    indices: Any
    kind: str = "element"

    def evaluate(self) -> Tensor:
        return evaluate(self.call)

    def elements(self, name: str) -> dict[str, Any]:
        """The rows' losses as a list."""
        losses = evaluate(self.call.replace(reduction="none", weight=1.0))
        return {name: {"losses": losses, "indices": self.indices, "reduction_type": self.kind}}


@dataclasses.dataclass(frozen=True)
class Reduced:
    """What a reducer object makes of the parts of a loss.

    parts: calls, of row losses or of elements (`RowLoss.pieces`), and what else the loss adds up.
    terms: numbers by name, already reduced. names: of the loss's parts. whole: the loss is one number.
    """

    reducer: nn.Module
    parts: list[Any]
    embeddings: Tensor
    labels: Tensor | None
    terms: Mapping[str, Any]
    names: tuple[str, ...] = ("loss",)
    whole: bool = False

    @property
    def name(self) -> str:
        """Of the first part."""
        return self.names[0]

    @property
    def calls(self) -> list[Call]:
        """Its calls of the engine."""
        return [p for p in self.parts if isinstance(p, Call)]

    @property
    def by_blocks(self) -> bool:
        """Whether elements are reduced as they come, and no list of them is made."""
        main = self._main
        if main is None:
            return False
        reducer = native(self.reducer)
        if isinstance(reducer, MultipleReducers):
            inner = [*reducer.reducers.values(), reducer.default_reducer]
            plain = type(reducer).sub_loss_reduction is MultipleReducers.sub_loss_reduction
            return plain and all(_folds(native(r)) for r in inner)
        return _folds(reducer)

    @property
    def _main(self) -> Call | None:
        """The call whose elements are reduced."""
        found = [c for c in self.calls if c.loss.in_pieces]
        return found[0] if found else None

    def evaluate(self) -> Any:
        """The loss; a dict with a reducer that does nothing."""
        terms = {k: t.evaluate() for k, t in self.terms.items()}
        others = [p.evaluate() for p in self.parts if not isinstance(p, Call) and not _is_list(p)]
        if self.whole:
            numbers = {self.name: total_of(self.parts)} | terms
            whole = {name: _number(value) for name, value in numbers.items()}
            return self.reducer(whole, self.embeddings, self.labels)
        main = self._main
        if main is not None:  # what else the loss adds up has no elements
            others += [evaluate(c) for c in self.calls if c is not main]
        if main is not None and main.is_empty:
            return self._of_nothing(main, terms, others)
        if self.by_blocks:
            return sum([self._folded(), *terms.values(), *others])
        listed = self._listed if self._main is not None else self._of_triplets
        found = listed() or self._of_rows()
        empty = all(info["indices"] is None for info in found.values())
        if main is not None and empty and not isinstance(native(self.reducer), DoNothingReducer):
            others.append(evaluate(main.replace(reduction="sum")))  # 0, with a gradient of all that it has
        for k, value in enumerate(others):
            terms[f"term_{k}"] = value
        found |= {name: _number(value) for name, value in terms.items()}
        reducer, labels = native(self.reducer) or self.reducer, self.labels
        if any(c.loss.rows == "proxies" for c in self.calls):  # in the order of the classes
            rows = next(iter(found.values()))["losses"] if main is None else main.anchors
            labels = torch.arange(rows.shape[0], device=rows.device) if rows.dim() else None
        elif main is None and any(c.anchors.shape[0] != self.embeddings.shape[0] for c in self.calls):
            labels = self.calls[0].anchor_labels  # those of mixtures, too
        if len(found) > 1 and not isinstance(reducer, MultipleReducers):
            if type(reducer).__name__ == "DoNothingReducer":
                return found
            parts = [reducer({k: v}, self.embeddings, labels) for k, v in found.items()]
            return sum(parts[1:], parts[0])
        return reducer(found, self.embeddings, labels)

    def _of_nothing(self, main: Call, terms: dict[str, Any], others: list[Any]) -> Any:
        """The loss of a batch, or of candidates, without a row: no element of any part."""
        found = {name: dict(_NOTHING) for name in self.names}
        if type(native(self.reducer)).__name__ == "DoNothingReducer":
            return found
        zero = evaluate(main.replace(reduction="sum"))  # with a gradient of all that the call has
        return sum([zero, *terms.values(), *others])

    def _of_rows(self) -> dict[str, Any]:
        """The rows' losses, or a number of the batch, as one list; nothing where there is no call."""
        values = [evaluate(c) for c in self.calls]
        if not values:
            return {name: dict(_NOTHING) for name in self.names}
        rows, numbers = [v for v in values if v.dim()], [v for v in values if not v.dim()]
        if not rows:
            return {"loss": _number(sum(numbers))}
        total = sum(rows)
        index = torch.arange(len(rows[0]), device=rows[0].device)
        found = {"loss": {"losses": total, "indices": index, "reduction_type": "element"}}
        return found | ({"number": _number(sum(numbers))} if numbers else {})

    def _of_triplets(self) -> dict[str, Any]:
        """The losses of triplets one by one, if that is what the loss is."""
        for part in self.parts:
            if _is_list(part):
                found: dict[str, Any] = part.elements(self.name)
                return found
        return {}

    def _weighted(self, call: Call, rows: Rows) -> dict[str, Piece]:
        if rows.weight is not None:
            raise ValueError("reducer: expected a reduction with graded positives, which are no elements")
        pieces = dict(call.loss.told(rows.scalars).pieces(rows))
        weight: Any = call.weight
        if call.row_weight is not None:
            of_rows = call.row_weight[rows.first : rows.first + rows.s.shape[0], None]
            weight = weight * of_rows.to(rows.s.dtype)
        elif isinstance(weight, float) and weight == 1:
            return pieces
        return {k: dataclasses.replace(p, losses=p.losses * weight) for k, p in pieces.items()}

    def _folded(self) -> Tensor:
        call = self._main
        assert call is not None
        names: list[str] = []

        def sums(rows: Rows) -> Tensor:
            pieces = self._weighted(call, rows)
            names[:] = pieces
            labels = None
            if call.loss.rows == "proxies":  # in the order of the classes
                labels = torch.arange(rows.s.shape[0], device=rows.s.device) + rows.first
            elif self.labels is not None and self.labels.shape[0] == call.anchors.shape[0]:
                labels = self.labels[rows.first : rows.first + rows.s.shape[0]]
            return torch.cat([self._fold(k, p, labels) for k, p in pieces.items()], dim=1)

        outputs = in_torch.row_outputs(call, sums, versioned([self.labels, call.weight]))
        totals = outputs.double().sum(0)
        found = [
            self._reducer_of(name).finish(totals[2 * k], totals[2 * k + 1]) for k, name in enumerate(names)
        ]
        return sum(found[1:], found[0]).to(outputs.dtype)

    def _reducer_of(self, name: str) -> BaseReducer:
        reducer = native(self.reducer)
        if isinstance(reducer, MultipleReducers):
            reducer = native(reducer.of(name))
        assert reducer is not None
        return reducer

    def _fold(self, name: str, piece: Piece, labels: Tensor | None) -> Tensor:
        reducer = self._reducer_of(name)
        if isinstance(reducer, PerAnchorReducer):
            if piece.kind == "triplet":
                raise NotImplementedError(
                    "reducer: an anchor's triplets have no number; expected a loss of pairs"
                )
            if piece.kind == "element":
                inner = native(reducer.reducer)
                assert inner is not None
                return inner.fold(piece.losses, piece.mask, labels)
        if isinstance(reducer, DivisorReducer):
            if piece.divisor is None:
                raise ValueError("reducer: this loss names no divisor; expected another reducer")
            kept = torch.where(piece.mask, piece.losses, torch.zeros_like(piece.losses))
            return torch.stack([kept.sum(1), piece.divisor.to(kept.dtype)], dim=1)
        return reducer.fold(piece.losses, piece.mask, labels)

    def _listed(self) -> dict[str, Any]:
        """All elements as lists, as pytorch-metric-learning has them."""
        call = self._main
        assert call is not None
        found: dict[str, Any] = {}
        for name, piece in self._weighted(call, in_torch.all_rows(call)).items():
            if not bool(piece.mask.any()):
                found[name] = dict(_NOTHING)
                continue
            rows, places = piece.mask.nonzero(as_tuple=True)
            index: Any = (rows, places)
            if piece.kind == "element":
                index = rows
            elif piece.columns is not None:
                index = (rows, *(c[piece.mask] for c in piece.columns))
            losses = piece.losses[piece.mask]
            if piece.columns is not None:  # positives come in any order
                size = call.columns.shape[0]
                order = ((index[0] * size + index[1]) * size + index[2]).argsort()
                losses, index = losses[order], tuple(t[order] for t in index)
            info = {"losses": losses, "indices": index, "reduction_type": piece.kind}
            if piece.divisor is not None:
                info["divisor"] = piece.divisor.sum()
            found[name] = info
        return found


def _number(value: Any) -> dict[str, Any]:
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def _is_list(part: Any) -> bool:
    return hasattr(part, "elements")


def _folds(reducer: BaseReducer | None) -> bool:
    return reducer is not None and (reducer.folds or isinstance(reducer, DivisorReducer))
