"""One call of a loss: the description, the tensors and what is wanted."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .lazy import lazy
from .loss import RowLoss, Rows
from .relation import ClassIndex, LabelRelation, Relation


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of similarities in the workspace, and of the teacher's: rows [start, start + size)."""

    start: int
    size: int  # the last block may have fewer
    s: Tensor
    teacher: Tensor | None
    products: bool = False  # s holds products still


@dataclasses.dataclass(eq=False)
class Problem:
    loss: RowLoss
    anchors: Tensor  # [M, D]
    candidates: Tensor  # [N, D]; the same object as anchors where there is one set
    relation: Relation
    statistic: torch.dtype  # of losses, weights and accumulated gradients
    row_weight: Tensor | None = None  # [M] or [M, outputs] weights in the result, or None for 1
    weight: float = 1.0  # times this
    teacher: tuple[Tensor, Tensor] | None = None
    learnable: Tensor | None = None  # [n] scalars that may want a gradient
    row_values: Tensor | None = None  # [M, k]
    col_values: Tensor | None = None  # [k, N]
    swept: bool = False  # col_values hold what the loss's presweep found
    device: torch.device | None = None  # where it would run; None: where the anchors are
    left: Block | None = None  # what a visit of the matrix has left for the next
    again: bool | None = None  # of a presweep: whether the problem it serves visits the same matrix

    @property
    def device_type(self) -> str:
        return (self.device or self.anchors.device).type

    @property
    def one_set(self) -> bool:
        return self.anchors is self.candidates

    @property
    def symmetric(self) -> bool:
        """Whether the matrix of weights is."""
        # Weights of rows that come from `combine` treat rows alike, if the loss says so; those that a
        # caller gives need not, nor need the pairs of a list.
        even = self.row_weight is None or self.loss.combined
        related = isinstance(self.relation, LabelRelation) and self.relation.one_set
        return self.one_set and self.loss.symmetric and even and related

    @property
    def revisited(self) -> bool:
        """Whether the matrix is visited twice, row by row."""
        if self.again is not None:
            return self.again
        return self.loss.combined or (self.one_set and self.loss.presweep() is not None)

    @property
    def excludes_self(self) -> bool:
        return self.one_set and self.loss.self_pair == "exclude"

    @lazy
    def row_scale(self) -> Tensor | None:
        return self.loss.metric.scale(self.anchors, self.statistic, anchors=True)

    @lazy
    def col_scale(self) -> Tensor | None:
        if self.one_set:
            return self.row_scale
        return self.loss.metric.scale(self.candidates, self.statistic)

    @lazy
    def row_square(self) -> Tensor | None:
        return self.loss.metric.square(self.anchors, self.row_scale, self.statistic)

    @lazy
    def col_square(self) -> Tensor | None:
        if self.one_set:
            return self.row_square
        return self.loss.metric.square(self.candidates, self.col_scale, self.statistic)

    @lazy
    def poison(self) -> Tensor:
        """0, or NaN where an embedding, of a teacher too, holds NaN or infinity.

        Added to the outputs of every executor: minima, comparisons and hinges would lose a NaN, and a
        network that has diverged would seem to have a loss of 0.
        """
        sets = {id(x): x for x in (self.anchors, self.candidates, *(self.teacher or ()))}
        parts = [x.sum(dtype=self.statistic) for x in sets.values()]
        return (parts[0] if len(parts) == 1 else torch.stack(parts).sum()) * 0

    @lazy
    def epsilon(self) -> float:
        return self.loss.distance_epsilon(self.anchors.shape[1])

    @lazy
    def scalars(self) -> Tensor | None:
        """Learnable scalars, then those the description computes from the labels."""
        found: list[Tensor | list[float] | None] = [self.learnable]
        if isinstance(self.relation, LabelRelation):
            found.append(self.loss.scalars(self.relation))
        if type(self.loss).count_scalars is not RowLoss.count_scalars:
            found.append(self.loss.count_scalars(*self.relation.counts(self.excludes_self)))
        parts = [self._statistics(values) for values in found if values is not None]
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _statistics(self, values: Tensor | list[float]) -> Tensor:
        if not isinstance(values, list):
            return values.to(self.statistic)
        dtype, device = self.statistic, self.anchors.device
        if device.type == "cpu":
            return torch.tensor(values, dtype=dtype)
        # Filled on the device: a copy from the host would not be captured in a CUDA graph.
        return torch.cat([torch.full((1,), value, dtype=dtype, device=device) for value in values])

    @lazy
    def teacher_problem(self) -> Problem | None:
        """The teacher's pairs as a problem of their own: for its scales and norms."""
        if self.teacher is None:
            return None
        a, c = self.teacher
        kind = self.loss.teacher_similarity or self.loss.similarity
        described = dataclasses.replace(self.loss, similarity=kind)
        theirs = Problem(described, a, c, self.relation, self.statistic)
        theirs.epsilon = 0.0  # `distance_epsilon` is for distances that are differentiated
        return theirs

    def swapped(self, loss: RowLoss) -> Problem:
        """Candidates against anchors."""
        if self.loss.metric.raw_anchors:
            raise ValueError(
                f"similarity: {self.loss.similarity!r} treats samples and candidates differently, "
                f"which {self.loss.name!r} cannot; expected another one"
            )
        return Problem(
            loss,
            self.candidates,
            self.anchors,
            self.relation.swapped(),
            self.statistic,
            learnable=self.learnable,
            device=self.device,
            again=self.one_set,
        )

    @lazy
    def classes(self) -> ClassIndex:
        assert isinstance(self.relation, LabelRelation)
        return self.relation.class_index

    def rows(self, s: Tensor, start: int, stop: int, teacher: Tensor | None = None) -> Rows:
        """The block [start, stop) as the spec sees it; s is [stop - start, N]."""
        positive, negative = self.relation.masks(start, stop)
        pair = None
        if self.excludes_self:
            pair = torch.ones_like(positive)
            own = torch.arange(stop - start, device=s.device)
            pair[own, own + start] = False
            positive, negative = positive & pair, negative & pair
        return Rows(
            s,
            positive,
            negative,
            pair,
            teacher,
            self.scalars,
            None if self.row_values is None else self.row_values[start:stop],
            self.col_values,
        )
