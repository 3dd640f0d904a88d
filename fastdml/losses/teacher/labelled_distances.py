"""What losses over continuous labels share: label distances for one anchor or for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call
from ...engine.loss import RowLoss
from ..base import total
from .relations import RelationalLoss, check_teacher


def _check_distances(embeddings: Tensor, distance: Tensor, validate: bool) -> None:
    """The label distances of the first sample to the others."""
    check.embeddings(embeddings, "embeddings", validate)
    others = max(0, embeddings.shape[0] - 1)
    check.shape(distance, "label_distance", [others], ", from the first sample to each other one")
    check.same_device(distance, embeddings, "label_distance", "embeddings")
    check.distances(distance, "label_distance", validate)


def _rounded_share(embeddings: Tensor, variant: str) -> float:
    """A factor of the loss: the released code rounds one over the number of pairs to float32."""
    check.variant(variant)
    others = max(0, embeddings.shape[0] - 1)
    pairs = max(1, others * (others - 1) // 2)
    if variant == "paper":
        return 1.0
    return pairs * torch.tensor(1 / pairs, dtype=torch.float32, device="cpu").item()


def _in_double(labels: Tensor) -> Tensor:
    """Labels in double precision, in which their differences are taken; integers from the first one on,
    as large ones (times in nanoseconds) have more digits than that."""
    if not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool:
        labels = labels.to(torch.int64) - labels[:1].to(torch.int64)
    return labels if labels.is_complex() else labels.double()


class LabelledLoss(RelationalLoss):
    """A loss of embeddings and continuous labels. Keyword arguments: see `Loss`.

    variant: "paper", or "released", which rounds one over the number of pairs to float32 where label
        distances are given.
    """

    _settled = False

    def __init__(
        self, *, variant: str = "paper", similarity: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(similarity=similarity, **kwargs)
        check.variant(variant)
        self.variant = variant
        self._asked = similarity is not None or kwargs.get("distance") is not None

    def settle_similarity(self) -> None:
        """Other arguments say what the similarity is: one that differs is refused, not ignored."""
        wanted = self.description().similarity
        if self._asked:
            self._expect(wanted, self.similarity)
        self.similarity = wanted
        self._settled = True

    def _expect(self, wanted: str, similarity: str) -> None:
        if similarity != wanted:
            raise ValueError(f"similarity: expected {wanted!r}, by the other arguments, got {similarity!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "similarity" and self._settled:
            self._expect(self.description().similarity, value)
        super().__setattr__(name, value)

    def described(self, given: bool) -> RowLoss:
        """The loss as mathematics; given: with label distances from one anchor."""
        raise NotImplementedError

    def description(self) -> RowLoss:
        """The loss with all samples as anchors, as mathematics."""
        return self.described(False)

    def given_distances(self, distance: Tensor) -> Tensor:
        """Label distances as the loss compares them."""
        return distance

    def calls(  # type: ignore[override]
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        label_distance: Tensor | None = None,
    ) -> list[Any]:
        check.embeddings(embeddings, "embeddings", self.validate)
        if (labels is None) == (label_distance is None):
            raise ValueError("labels: expected either labels or label_distance")
        if label_distance is not None:
            return [self._of_one_anchor(embeddings, label_distance)]
        if (
            not isinstance(labels, Tensor)
            or labels.dim() == 0
            or labels.is_complex()
            or labels.dtype == torch.bool
        ):
            got = type(labels).__name__
            if isinstance(labels, Tensor):
                got = f"{labels.dtype} {tuple(labels.shape)}"
            raise ValueError(
                f"labels: expected a tensor of numbers [batch] or [batch, any], got {got}"
            )
        if labels.dim() == 1:
            labels = labels[:, None]
        labels = _in_double(labels)
        check_teacher(embeddings, labels, "labels", self.validate)
        return [self.relational_call(self.description(), embeddings, labels, weight=self.weight)]

    def _of_one_anchor(self, embeddings: Tensor, distance: Tensor) -> Call:
        """The loss of the first sample as anchor; distance: [B - 1] label distances to the others."""
        _check_distances(embeddings, distance, self.validate)
        everything = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
        return self.call(
            self.described(True),
            embeddings[:1],
            candidates=embeddings[1:],
            anchor_labels=everything[:1],
            candidate_labels=everything[1:],
            col_values=self.given_distances(distance).detach()[None],
            weight=self.weight * _rounded_share(embeddings, self.variant),
        )

    def forward(  # type: ignore[override]
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
        return total(self.parts(embeddings, labels, label_distance))
