"""What losses over continuous labels share: label distances for one anchor or for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import autograd, check
from ...engine.loss import RowLoss
from ...engine.op import statistic_type
from ...engine.registry import handle
from ..options import check_options
from .relations import relational_loss
from ..representation import arguments


def _check_distances(embeddings: Tensor, distance: Tensor, validate: bool) -> None:
    """The label distances of the first sample to the others."""
    check.embeddings(embeddings, "embeddings", validate)
    expected = (embeddings.shape[0] - 1,)
    if not isinstance(distance, Tensor) or tuple(distance.shape) != expected:
        got = tuple(distance.shape) if isinstance(distance, Tensor) else type(distance).__name__
        raise ValueError(
            f"label_distance: expected shape {list(expected)}, from the first sample to each other "
            f"one, got {got}"
        )
    check.same_device(distance, embeddings, "label_distance", "embeddings")
    check.distances(distance, "label_distance", validate)
    if expected[0] == 0:
        raise ValueError("embeddings: expected an anchor and at least one other sample, got 1 row")


def _rounded_share(embeddings: Tensor, variant: str) -> float:
    """A factor of the loss: the released code rounds one over the number of pairs to float32."""
    check.variant(variant)
    others = embeddings.shape[0] - 1
    pairs = max(1, others * (others - 1) // 2)
    if variant == "paper":
        return 1.0
    return pairs * torch.tensor(1 / pairs, dtype=torch.float32).item()


def _one_anchor(
    description: RowLoss,
    embeddings: Tensor,
    distance: Tensor,
    *,
    squared: bool = False,
    backend: str = "auto",
    reduction: str = "mean",
    validate: bool = False,
) -> Tensor:
    """The loss of the first sample as anchor; distance: [B - 1] label distances to the others, squared
    here if the loss compares squares."""
    check_options(reduction, backend)
    _check_distances(embeddings, distance, validate)
    everything = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
    return autograd.row_loss(
        embeddings[:1],
        embeddings[1:],
        everything[:1],
        everything[1:],
        loss=handle(description),
        col_values=(distance.square() if squared else distance).detach()[None],
        backend=backend,
        reduction=reduction,
    )


def _all_anchors(
    description: RowLoss, embeddings: Tensor, labels: Tensor, **options: Any
) -> Tensor:
    """The mean over all samples as anchors; labels: [B] numbers or [B, E] vectors."""
    if isinstance(labels, Tensor) and labels.dim() == 1:
        labels = labels[:, None]
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        labels = labels.to(statistic_type(embeddings))
    return relational_loss(description, embeddings, labels, name="labels", **options)


def labelled_loss(
    describe: Callable[[bool], RowLoss],
    embeddings: Tensor,
    labels: Tensor | None,
    label_distance: Tensor | None,
    variant: str,
    squared: bool = False,
    **options: Any,
) -> Tensor:
    """A loss of embeddings and continuous labels, or label distances from the first sample.

    describe: of whether label distances are given. variant: "paper", or "released", which rounds one
    over the number of pairs to float32 where they are. squared: whether those enter as squares.
    """
    check.embeddings(embeddings, "embeddings")
    share = _rounded_share(embeddings, variant)
    if (labels is None) == (label_distance is None):
        raise ValueError("labels: expected either labels or label_distance")
    description = describe(label_distance is not None)
    if label_distance is not None:
        loss = _one_anchor(description, embeddings, label_distance, squared=squared, **options)
        return loss if share == 1 else share * loss
    assert labels is not None
    return _all_anchors(description, embeddings, labels, **options)


class LabelledLoss(nn.Module):
    """A loss of embeddings and continuous labels.

    Args:
        reduction: "mean" over anchors, "sum" or "none".
        backend, validate: see `SampleLoss`.
    """

    def __init__(
        self, *, reduction: str = "mean", backend: str = "auto", validate: bool = False
    ) -> None:
        super().__init__()
        check_options(reduction, backend)
        self.reduction = reduction
        self.backend = backend
        self.validate = validate

    def description(self) -> RowLoss:
        """The loss with all samples as anchors, as mathematics."""
        raise NotImplementedError

    def losses(
        self, embeddings: Tensor, labels: Tensor | None, label_distance: Tensor | None
    ) -> Tensor:
        """The loss of the arguments of `forward`."""
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        label_distance: Tensor | None = None,
    ) -> Tensor:
        """The loss of embeddings [B, D].

        Args:
            labels: [B] numbers or [B, E] vectors, whose Euclidean distances are the label distances:
                every sample is an anchor.
            label_distance: instead of labels: [B - 1] distances from the first sample, the only
                anchor, to the others, as in the released code. Taken as they are.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return self.losses(embeddings, labels, label_distance)

    def options(self) -> dict[str, Any]:
        """Keywords of the functional form that every such loss has."""
        names = ("reduction", "backend", "validate")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return arguments(self)
