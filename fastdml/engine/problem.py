"""One call of a loss: the description, the tensors and what is wanted."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from .loss import RowLoss, Rows
from .relation import ClassIndex, LabelRelation, Relation


@dataclasses.dataclass(eq=False)
class Problem:
    loss: RowLoss
    anchors: Tensor  # [M, D]
    candidates: Tensor  # [N, D]; the same object as anchors where there is one set
    relation: Relation
    statistic: torch.dtype  # of losses, weights and accumulated gradients
    row_weight: Tensor | None = None  # [M] weights of the rows in the result, or None for 1
    weight: float = 1.0  # times this
    teacher: tuple[Tensor, Tensor] | None = None
    device: torch.device | None = None  # where it would run; None: where the anchors are

    @property
    def device_type(self) -> str:
        return (self.device or self.anchors.device).type

    @property
    def one_set(self) -> bool:
        return self.anchors is self.candidates

    @property
    def excludes_self(self) -> bool:
        return self.one_set and self.loss.self_pair == "exclude"

    @functools.cached_property
    def row_scale(self) -> Tensor | None:
        return self.loss.metric.scale(self.anchors, self.statistic)

    @functools.cached_property
    def col_scale(self) -> Tensor | None:
        if self.one_set:
            return self.row_scale
        return self.loss.metric.scale(self.candidates, self.statistic)

    @functools.cached_property
    def scalars(self) -> Tensor | None:
        if not isinstance(self.relation, LabelRelation):
            return None
        found = self.loss.scalars(self.relation.anchor_labels, self.relation.candidate_labels)
        return None if found is None else found.to(self.statistic)

    @functools.cached_property
    def classes(self) -> ClassIndex:
        assert isinstance(self.relation, LabelRelation)
        return self.relation.class_index()

    def rows(self, s: Tensor, start: int, stop: int, teacher: Tensor | None = None) -> Rows:
        """The block [start, stop) as the spec sees it; s is [stop - start, N]."""
        positive, negative = self.relation.masks(start, stop)
        pair = None
        if self.excludes_self:
            pair = torch.ones_like(positive)
            own = torch.arange(stop - start, device=s.device)
            pair[own, own + start] = False
            positive, negative = positive & pair, negative & pair
        return Rows(s, positive, negative, pair, teacher, self.scalars)
