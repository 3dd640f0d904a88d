"""Losses of a user's own in pytorch-metric-learning's form: the base classes to derive from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...mining.batch import checked
from ...mining.pairs import all_pairs
from ..base import SampleLoss

__all__: list[str] = []  # classes to derive from: no losses yet


@dataclasses.dataclass(frozen=True)
class Computed:
    """The dict of losses that a user's `compute_loss` makes of a batch."""

    loss: BaseMetricLossFunction
    arguments: tuple[Any, ...]

    def elements(self, name: str) -> dict[str, Any]:
        """The dict."""
        return dict(self.loss.compute_loss(*self.arguments))

    def evaluate(self) -> Any:
        return self.loss.reducer(self.elements(""), self.arguments[0], self.arguments[1])


class BaseMetricLossFunction(SampleLoss):
    """A loss that a user derives: `compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)`
    returns {name: {"losses": [T], "indices": ..., "reduction_type": ...}} as in pytorch-metric-learning, and
    the reducer makes the loss of it. reduction_type: "element" (indices [T]), "pos_pair", "neg_pair" (two of
    [T]), "triplet" (three of [T]) or "already_reduced" (a number; indices None).

    Where candidates hold own copies of rows (`own=`, a memory), indices_tuple lists all other pairs, as
    pytorch-metric-learning's memory hands them in. It runs in plain torch with whatever memory it takes;
    `fastdml.row_loss` makes a fused loss of a function of one row. Keyword arguments: see `SampleLoss`;
    `_sub_loss_names()` names the parts where there are several.
    """

    default_similarity = "distance"
    reducers = {}
    reductions = ("mean", "sum", "nonzero")

    @property
    def part_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.sub_loss_names())

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> Mapping[str, Mapping[str, Any]]:
        """The parts of the loss. Without other candidates ref_emb is embeddings, and ref_labels labels."""
        raise NotImplementedError

    def zero_loss(self) -> dict[str, Any]:
        """A part that is 0."""
        return {"losses": 0, "indices": None, "reduction_type": "already_reduced"}

    def zero_losses(self) -> dict[str, Any]:
        """All parts 0."""
        return {name: self.zero_loss() for name in self.sub_loss_names()}

    def _sub_loss_names(self) -> list[str]:
        return ["loss"]

    def sub_loss_names(self) -> list[str]:
        """The names of the parts."""
        return self._sub_loss_names()

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> list[Any]:
        if labels is not None or indices_tuple is not None or own is not None:
            batch = checked(embeddings, labels, indices_tuple, ref_emb, ref_labels, own, self.validate)
            if not batch.listed and batch.has_own_copies():  # `compute_loss` knows of no copies
                indices_tuple = all_pairs(batch)
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        return [Computed(self, (embeddings, labels, indices_tuple, ref_emb, ref_labels))]


class GenericPairLoss(BaseMetricLossFunction):
    """A loss of pairs that a user derives by `_compute_loss`, on the matrix of all distances.

    Args:
        mat_based_loss: True: `_compute_loss(mat, pos_mask, neg_mask)` of a matrix [B, N] and of masks of its
            type; False: `_compute_loss(pos_pairs, neg_pairs, indices_tuple)` of the numbers [P], [Q] of the
            pairs (a1, p), (a2, n).

    Without any pair the loss is 0. Other arguments: see `BaseMetricLossFunction`.
    """

    def __init__(self, mat_based_loss: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_method = self.mat_based_loss if mat_based_loss else self.pair_based_loss

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> Mapping[str, Mapping[str, Any]]:
        other = None if ref_emb is embeddings else ref_emb
        batch = checked(embeddings, labels, indices_tuple, other, None if other is None else ref_labels)
        pairs = all_pairs(batch)
        if all(t.shape[0] == 0 for t in pairs):
            return self.zero_losses()
        found: Mapping[str, Mapping[str, Any]] = self.loss_method(self.distance(embeddings, ref_emb), pairs)
        return found

    def _compute_loss(self, *given: Any) -> Mapping[str, Mapping[str, Any]]:
        raise NotImplementedError

    def mat_based_loss(self, mat: Tensor, indices_tuple: Any) -> Mapping[str, Mapping[str, Any]]:
        """`_compute_loss` of masks."""
        a1, p, a2, n = indices_tuple
        positive, negative = torch.zeros_like(mat), torch.zeros_like(mat)
        positive[a1, p] = 1
        negative[a2, n] = 1
        return self._compute_loss(mat, positive, negative)

    def pair_based_loss(self, mat: Tensor, indices_tuple: Any) -> Mapping[str, Mapping[str, Any]]:
        """`_compute_loss` of pairs."""
        a1, p, a2, n = indices_tuple
        return self._compute_loss(mat[a1, p], mat[a2, n], indices_tuple)
