"""What losses share that compare the relations of a batch with those a teacher sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import autograd, check
from ...engine.loss import RowLoss
from ...engine.registry import handle
from ..options import check_options
from ..representation import arguments


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


def relational_loss(
    description: RowLoss,
    embeddings: Tensor,
    teacher: Tensor,
    *,
    scalars: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
    name: str = "teacher",
) -> Tensor:
    """A loss of all pairs of the batch [B, D] and the same pairs of a teacher's embeddings [B, E].

    No gradient goes to the teacher. reduction: over rows; backend, validate: see `SampleLoss`.
    """
    check_options(reduction, backend, description.similarity)
    check_teacher(embeddings, teacher, name, validate)
    everything = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
    return autograd.row_loss(
        embeddings,
        None,
        everything,
        None,
        loss=handle(description),
        teacher=[teacher.detach()],
        scalars=scalars,
        backend=backend,
        reduction=reduction,
    )


class RelationalLoss(nn.Module):
    """A loss called as `loss(embeddings [B, D], teacher [B, E])`, rows of the same samples.

    The teacher's embeddings may have another dimension; no gradient goes to them.

    Args:
        weight: factor of the loss.
        reduction: "mean" over samples, "sum", "nonzero" or, where a loss has row losses, "none".
        backend, validate: see `SampleLoss`.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        reduction: str = "mean",
        backend: str = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_options(reduction, backend)
        self.weight = check.finite(weight, "weight")
        self.reduction = reduction
        self.backend = backend
        self.validate = validate

    def function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        """The functional form and this loss's own arguments."""
        raise NotImplementedError

    def description(self) -> RowLoss:
        """The loss as mathematics."""
        raise NotImplementedError

    def forward(self, embeddings: Tensor, teacher: Tensor) -> Tensor:
        """The loss.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        call, arguments = self.function()
        loss = call(
            embeddings,
            teacher,
            reduction=self.reduction,
            backend=self.backend,
            validate=self.validate,
            **arguments,
        )
        return loss if self.weight == 1 else self.weight * loss

    def extra_repr(self) -> str:
        return arguments(self)
