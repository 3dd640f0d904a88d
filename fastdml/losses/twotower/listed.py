"""What losses of candidate lists share: a row has a few numbers, and there is no matrix of all pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from ...engine import check, own_candidates
from ...engine.distances import metric_of
from ..base import Loss, total

__all__: list[str] = []


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Row losses [B] as a mean, of no rows 0, a sum or themselves."""
    if reduction == "none":
        return losses
    return losses.sum() / (max(1, losses.shape[0]) if reduction == "mean" else 1)


@dataclasses.dataclass(frozen=True, eq=False)
class OfRows:
    """A part of a loss that is a number of every row alone: `function` of the row's arguments, reduced."""

    function: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]  # [B, ...] each
    reduction: str

    def evaluate(self) -> Tensor:
        return reduced(self.function(*self.arguments), self.reduction)


class ListedLoss(Loss):
    """A loss called as `loss(embeddings [B, D], candidates [B, K, D], teacher_scores [B, K])`: a teacher's
    scores of every row's own candidates, which get no gradient. Keyword arguments: see `Loss`."""

    in_torch = "in torch, on the pairs that are listed"
    least: ClassVar[int] = 1  # candidates
    reductions = ("mean", "sum", "none")

    def calls(self, embeddings: Tensor, candidates: Tensor, teacher_scores: Tensor) -> list[Any]:
        check.embeddings(embeddings, "embeddings", self.validate)
        rows, width = embeddings.shape
        check.tensor(candidates, "candidates")
        check.tensor(teacher_scores, "teacher_scores")
        shape = tuple(candidates.shape)
        if len(shape) != 3 or shape[0] != rows or shape[2] != width or shape[1] < self.least:
            raise ValueError(
                f"candidates: expected shape [{rows}, K, {width}] of K >= {self.least}, got {shape}"
            )
        check.same_device(candidates, embeddings, "candidates", "embeddings")
        check.shape(teacher_scores, "teacher_scores", shape[:2])
        check.same_device(teacher_scores, embeddings, "teacher_scores", "embeddings")
        if self.validate:
            check.embeddings(candidates.reshape(-1, width), "candidates", True)
            check.embeddings(teacher_scores, "teacher_scores", True)
        return [OfRows(self._rows, (embeddings, candidates, teacher_scores.detach()), self.reduction)]

    def _rows(self, embeddings: Tensor, candidates: Tensor, teacher_scores: Tensor) -> Tensor:
        metric = metric_of(self.similarity)
        s = metric.sign * own_candidates.values(metric, embeddings, candidates)
        return self.of_scores(s, teacher_scores.to(s.dtype))

    def of_scores(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[B] row losses of scores [B, K]."""
        raise NotImplementedError

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, candidates: Tensor, teacher_scores: Tensor
    ) -> Tensor:
        """The loss of embeddings [B, D], each row's own candidates [B, K, D], and a teacher's scores of them
        [B, K].

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, candidates, teacher_scores))

