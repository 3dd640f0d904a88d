"""What losses share that compare the relations of a batch with those a teacher sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call
from ...engine.loss import RowLoss
from ..base import Loss, total


def check_teacher(embeddings: Tensor, teacher: Tensor, name: str, validate: bool) -> None:
    """Embeddings [B, D] and the teacher's of the same samples, [B, any dimension]."""
    check.embeddings(embeddings, "embeddings", validate)
    check.embeddings(teacher, name, validate)
    if teacher.shape[0] != embeddings.shape[0]:
        raise ValueError(
            f"{name}: expected {embeddings.shape[0]} rows, one per row of embeddings, "
            f"got {teacher.shape[0]}"
        )
    if teacher.device != embeddings.device:
        raise ValueError(
            f"{name}: expected device {embeddings.device}, that of embeddings, got {teacher.device}"
        )


class RelationalLoss(Loss):
    """A loss called as `loss(embeddings [B, D], teacher [B, E])`, rows of the same samples.

    The teacher's embeddings may have another dimension; no gradient goes to them.

    Args:
        weight: factor of the loss.
        reduction: "mean" over samples, "sum", "nonzero" or, where a loss has row losses, "none".
        similarity, backend, validate: see `Loss`.
    """

    def __init__(self, *, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = check.finite(weight, "weight")

    def calls(self, embeddings: Tensor, teacher: Tensor) -> list[Any]:
        check_teacher(embeddings, teacher, "teacher", self.validate)
        return [self.relational_call(self.description(), embeddings, teacher, weight=self.weight)]

    def relational_call(
        self, description: RowLoss, embeddings: Tensor, teacher: Tensor, **fields: Any
    ) -> Call:
        """The call of all pairs of the batch and the same pairs of the teacher's embeddings."""
        everything = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
        return self.call(
            description,
            embeddings,
            anchor_labels=everything,
            teacher=(teacher.detach(),),
            **fields,
        )

    def forward(self, embeddings: Tensor, teacher: Tensor) -> Tensor:
        """The loss.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, teacher))
