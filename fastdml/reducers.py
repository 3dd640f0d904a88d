"""How a loss is made of its elements, as objects: those that users of pytorch-metric-learning pass as
`reducer=`.

Called as there, `reducer(loss_dict, embeddings, labels)`, with a dict of lists of losses and indices. A loss
of this library makes no list for those of this file: they say what a block of rows adds to two sums (`fold`),
so that memory stays linear. A subclass of a user's gets the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .engine import check
from .engine.counting import row_counts
from .engine.peer import Recorded
from .engine.similarity import wide_type

__all__ = [
    "AvgNonZeroReducer",
    "BaseReducer",
    "ClassWeightedReducer",
    "DivisorReducer",
    "DoNothingReducer",
    "MeanReducer",
    "MultipleReducers",
    "PerAnchorReducer",
    "SumReducer",
    "ThresholdReducer",
    "native",
]

Losses = Mapping[str, Mapping[str, Any]]


class BaseReducer(Recorded):
    """A number of the elements of one loss. A user's subclass says `element_reduction`, `pos_pair_reduction`,
    `neg_pair_reduction` and `triplet_reduction`, each of (losses, loss_indices, embeddings, labels).

    collect_stats: taken for pytorch-metric-learning's sake; nothing is collected.
    """

    # Whether two sums over elements say everything.
    folds = False

    def __init__(self, collect_stats: bool | None = None) -> None:
        super().__init__()
        self.collect_stats = check.optional_flag(collect_stats, "collect_stats")

    def forward(self, loss_dict: Losses, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        """The number of the one loss in loss_dict: {name: {"losses", "indices", "reduction_type"}}."""
        if len(loss_dict) != 1:
            raise ValueError(f"loss_dict: expected one loss, got {sorted(loss_dict)}; see MultipleReducers")
        (info,) = loss_dict.values()
        losses, kind = info["losses"], info["reduction_type"]
        if not isinstance(losses, Tensor):
            return self.zero_loss(embeddings) + losses
        if kind == "already_reduced":
            return losses
        if losses.dim() > 1:  # pytorch-metric-learning's come as columns now and then
            info = {**info, "losses": losses.flatten()}
        return self.reduce(info, embeddings, labels)

    def reduce(self, info: Mapping[str, Any], embeddings: Tensor, labels: Tensor | None) -> Tensor:
        """The number of a list of losses."""
        method = getattr(self, f"{info['reduction_type']}_reduction")
        found: Tensor = method(info["losses"], info["indices"], embeddings, labels)
        return found

    def element_reduction(
        self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None
    ) -> Tensor:
        return self._of_list(losses, loss_indices, embeddings, labels)

    def pos_pair_reduction(
        self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None
    ) -> Tensor:
        return self._of_list(losses, loss_indices[0], embeddings, labels)

    def neg_pair_reduction(
        self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None
    ) -> Tensor:
        return self._of_list(losses, loss_indices[0], embeddings, labels)

    def triplet_reduction(
        self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None
    ) -> Tensor:
        return self._of_list(losses, loss_indices[0], embeddings, labels)

    def _of_list(
        self, losses: Tensor, anchors: Tensor, embeddings: Tensor, labels: Tensor | None
    ) -> Tensor:
        """The number of a list: every element is a row of its own."""
        if not self.folds:
            raise NotImplementedError(f"{type(self).__name__} says nothing of such losses")
        every = torch.ones_like(losses, dtype=torch.bool)[:, None]
        owners = None if labels is None else labels[anchors.to(labels.device)]
        total, count = self.fold(losses[:, None], every, owners).double().sum(0)
        return self.finish(total, count).to(losses.dtype) + self.zero_loss(embeddings)

    def zero_loss(self, embeddings: Tensor) -> Tensor:
        """0 in the type of losses, with a gradient."""
        return (embeddings * 0).sum().to(wide_type(embeddings))

    def fold(self, losses: Tensor, mask: Tensor, labels: Tensor | None) -> Tensor:
        """[R, 2] what rows add to both sums: of losses and of what they are divided by.

        losses, mask: [R, K] elements of a row, and which of them there are. labels: [R] of the anchors.
        """
        losses, mask = self.chosen(losses, mask, labels)
        kept = torch.where(mask, losses, torch.zeros_like(losses))
        return torch.stack([kept.sum(1), row_counts(mask).to(losses.dtype)], dim=1)

    def chosen(self, losses: Tensor, mask: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The elements as they count, and which of them do."""
        return losses, mask

    def finish(self, total: Tensor, count: Tensor) -> Tensor:
        """The number of both sums. No element: 0."""
        return total / count.detach().clamp(min=1)


class MeanReducer(BaseReducer):
    """The mean of all elements."""

    folds = True


class SumReducer(MeanReducer):
    """Their sum."""

    def finish(self, total: Tensor, count: Tensor) -> Tensor:
        return total


class ThresholdReducer(BaseReducer):
    """The mean of the elements above `low` and below `high`, either of which may be None."""

    folds = True

    def __init__(self, low: float | None = None, high: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if low is None and high is None:
            raise ValueError("low: expected a number for low or high, got neither")
        self.low, self.high = (
            None if v is None else check.number(v, name, "a number or None", lambda x: x == x)
            for v, name in ((low, "low"), (high, "high"))
        )

    def chosen(self, losses: Tensor, mask: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.low is not None:
            mask = mask & (losses > self.low)
        if self.high is not None:
            mask = mask & (losses < self.high)
        return losses, mask

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}"


class AvgNonZeroReducer(ThresholdReducer):
    """The mean of the elements above 0."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(low=0, **kwargs)


class ClassWeightedReducer(BaseReducer):
    """The mean of elements times the weight of the anchor's class.

    Args:
        weights: [classes] of labels 0, 1, ... . Not changed: cast for each call.
    """

    folds = True

    def __init__(self, weights: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(weights, Tensor) or weights.dim() != 1:
            raise ValueError(f"weights: expected a tensor of one weight per class, got {weights!r}")
        self.weights = weights

    def chosen(self, losses: Tensor, mask: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        if labels is None or labels.dim() != 1:
            got = "None" if labels is None else f"shape {tuple(labels.shape)}"
            raise ValueError(f"labels: expected one label a row with weights of classes, got {got}")
        classes = self.weights.shape[0]
        if labels.device.type == "cpu" and labels.numel():
            low, high = map(int, labels.aminmax())
            if low < 0 or high >= classes:
                raise ValueError(f"labels: expected values in [0, {classes}), one weight per class")
        # (Labels of 8 bits would be a mask.)
        weight = self.weights.to(losses)[labels.to(losses.device, torch.int64)]
        return losses * weight[:, None], mask


class DivisorReducer(BaseReducer):
    """The sum of the elements over a number that the loss hands in with them, as "divisor"."""

    def reduce(self, info: Mapping[str, Any], embeddings: Tensor, labels: Tensor | None) -> Tensor:
        if "divisor" not in info:
            raise ValueError("reducer: this loss names no divisor; expected another reducer")
        divisor = torch.as_tensor(info["divisor"], device=info["losses"].device)
        # No divisor: 0, and no infinite derivative.
        safe = torch.where(divisor == 0, torch.ones_like(divisor), divisor)
        total = info["losses"].sum() / safe
        return torch.where(divisor == 0, total * 0, total) + self.zero_loss(embeddings)


class DoNothingReducer(BaseReducer):
    """The dict of losses itself."""

    def forward(  # type: ignore[override]
        self, loss_dict: Losses, embeddings: Tensor, labels: Tensor | None
    ) -> Losses:
        return loss_dict


def _reducer(given: object, name: str) -> nn.Module:
    """A reducer object; None: the mean."""
    if given is not None and not isinstance(given, nn.Module):
        raise ValueError(f"{name}: expected an object of fastdml.reducers or None, got {given!r}")
    return MeanReducer() if given is None else given


class MultipleReducers(BaseReducer):
    """A reducer for each of a loss's parts, by the part's name; the sum of what they make.

    Args:
        reducers: {name: reducer}. default_reducer: for other names; None: the mean.
    """

    def __init__(
        self,
        reducers: Mapping[str, nn.Module],
        default_reducer: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        known = reducers if isinstance(reducers, Mapping) else {"": None}
        if not all(isinstance(k, str) and isinstance(r, nn.Module) for k, r in known.items()):
            raise ValueError(f"reducers: expected reducer objects by the names of parts, got {reducers!r}")
        self.reducers = nn.ModuleDict(dict(reducers))
        self.default_reducer = _reducer(default_reducer, "default_reducer")

    def of(self, name: str) -> nn.Module:
        """The reducer of a part."""
        return dict(self.reducers.items()).get(name, self.default_reducer)

    def forward(self, loss_dict: Losses, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        found = [self.of(name)({name: info}, embeddings, labels) for name, info in loss_dict.items()]
        return self.sub_loss_reduction(torch.stack(found), embeddings, labels)

    def sub_loss_reduction(
        self, sub_losses: Tensor, embeddings: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """One number of the parts' [parts]."""
        return sub_losses.sum()


def _mean_of_row(losses: Tensor, number: Tensor) -> Tensor:
    return torch.where(number > 0, losses.sum(1) / number.clamp(min=1), torch.zeros_like(number))


class PerAnchorReducer(BaseReducer):
    """A number of each anchor's pairs first, and then one of those of all anchors.

    Args:
        reducer: of the anchors' numbers; None: the mean over the batch.
        aggregation_func: f(losses [R, N], number [R]) -> [R], differentiable: losses of the pairs of an
            anchor, 0 where there is none, and how many there are; None: the mean, 0 over none.
    """

    def __init__(
        self,
        reducer: nn.Module | None = None,
        aggregation_func: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.reducer = _reducer(reducer, "reducer")
        check.function(aggregation_func, "aggregation_func")
        self.aggregation_func = _mean_of_row if aggregation_func is None else aggregation_func

    @property
    def folds(self) -> bool:  # type: ignore[override]
        return bool(getattr(native(self.reducer), "folds", False))

    def of_rows(self, losses: Tensor, mask: Tensor) -> Tensor:
        """[R] the rows' numbers of their elements [R, K]."""
        kept = torch.where(mask, losses, torch.zeros_like(losses))
        found: Tensor = self.aggregation_func(kept, row_counts(mask).to(losses.dtype))
        if not isinstance(found, Tensor) or found.shape != losses.shape[:1]:
            got = check.seen(found)
            raise ValueError(f"aggregation_func: expected [{len(losses)}] numbers of the anchors, got {got}")
        return found

    def fold(self, losses: Tensor, mask: Tensor, labels: Tensor | None) -> Tensor:
        each = self.of_rows(losses, mask)[:, None]
        inner = native(self.reducer)
        assert inner is not None
        return inner.fold(each, torch.ones_like(each, dtype=torch.bool), labels)

    def finish(self, total: Tensor, count: Tensor) -> Tensor:
        inner = native(self.reducer)
        assert inner is not None
        return inner.finish(total, count)

    def reduce(self, info: Mapping[str, Any], embeddings: Tensor, labels: Tensor | None) -> Tensor:
        kind, losses = info["reduction_type"], info["losses"]
        index = info["indices"]
        method = f"{kind}_reduction"
        if getattr(type(self), method) is not getattr(PerAnchorReducer, method):  # a subclass says it
            return super().reduce(info, embeddings, labels)
        if kind == "triplet":
            raise NotImplementedError(
                "reducer: an anchor's triplets have no number; expected a loss of pairs"
            )
        if kind != "element":
            anchors, others = index
            rows = embeddings.shape[0]
            shape = (rows, max(rows, int(others.max()) + 1 if others.numel() else 0))
            matrix = losses.new_zeros(shape).index_put((anchors, others), losses)
            mask = torch.zeros(shape, dtype=torch.bool, device=losses.device)
            mask[anchors, others] = True
            losses = self.of_rows(matrix, mask)
            index = torch.arange(rows, device=losses.device)
        element = {"losses": losses, "indices": index, "reduction_type": "element"}
        found: Tensor = self.reducer({"loss": element}, embeddings, labels)
        return found


def _keep(theirs: Any) -> nn.Module:
    found = native(theirs)
    return theirs if found is None else found


def _per_anchor(theirs: Any) -> PerAnchorReducer:
    own = theirs.aggregation_func
    # Its default writes into what it was given a moment before, over zeros that it divided by.
    default = getattr(own, "__module__", "").startswith("pytorch_metric_learning.")
    return PerAnchorReducer(_keep(theirs.reducer), None if default else own)


_THEIRS: dict[str, Callable[[Any], BaseReducer]] = {
    "AvgNonZeroReducer": lambda r: AvgNonZeroReducer(),
    "ClassWeightedReducer": lambda r: ClassWeightedReducer(r.weights),
    "DivisorReducer": lambda r: DivisorReducer(),
    "DoNothingReducer": lambda r: DoNothingReducer(),
    "MeanReducer": lambda r: MeanReducer(),
    "MultipleReducers": lambda r: MultipleReducers(
        {k: _keep(v) for k, v in r.reducers.items()}, _keep(r.default_reducer)
    ),
    "PerAnchorReducer": _per_anchor,
    "SumReducer": lambda r: SumReducer(),
    "ThresholdReducer": lambda r: ThresholdReducer(r.low, r.high),
}
_OURS = (
    AvgNonZeroReducer, ClassWeightedReducer, DivisorReducer, DoNothingReducer, MeanReducer, MultipleReducers,
    PerAnchorReducer, SumReducer, ThresholdReducer,
)  # fmt: skip


def native(reducer: object) -> BaseReducer | None:
    """The reducer of this file that a reducer is: itself, or the like of one of pytorch-metric-learning's
    own; None for a user's."""
    kind = type(reducer)
    if kind in _OURS:
        return reducer  # type: ignore[return-value]
    if kind.__module__.startswith("pytorch_metric_learning.reducers") and kind.__name__ in _THEIRS:
        return _THEIRS[kind.__name__](reducer)
    return None
