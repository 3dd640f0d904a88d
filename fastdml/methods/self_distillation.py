"""List-wise self-distillation: a network stays near the relations it saw an epoch ago."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses
from ..engine import check


class SelfDistillation(nn.Module):
    """A host loss and the distillation from a frozen copy of the network.

    *Improving Generalization of Metric Learning via Listwise Self-distillation*, Zeng et al., 2022 (arXiv
    2206.08880), section 3: host + w_e distillation, with w_e = (epoch / epochs) alpha temperature^2, from
    a teacher that is the network as it was at the end of the epoch before. Epoch 0 has none.

        lsd = SelfDistillation(model, MultiSimilarityLoss(epsilon=0.1), epochs=150)
        lsd.begin_epoch(epoch)                    # at the beginning of every epoch
        loss = lsd(model(images), labels, images)
        lsd.step()                                # after every step, with an averaged teacher

    Args:
        model: the network; copied, not a submodule.
        loss: the host, called as `loss(embeddings, labels)`.
        epochs: of the schedule.
        alpha: 200 in the paper.
        distillation: called as `loss(embeddings, teacher)`; None: `ListwiseSelfDistillationLoss()`, whose
            temperature enters the weight.
        average: None, or a decay in [0, 1): the teacher is instead the running average of the weights,
            theta_t <- average theta_t + (1 - average) theta, moved by `step` (buffers are copied): an
            option of this library's.
        variant: "paper": the teacher is in evaluation mode; "released": it is left in training mode, so
            that its normalisation and dropout act as the network's.

    State: `teacher` and the epoch, so that training resumes in the middle of an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        epochs: int,
        alpha: float = 200.0,
        *,
        distillation: nn.Module | None = None,
        average: float | None = None,
        variant: str = "paper",
    ) -> None:
        super().__init__()
        check.variant(variant)
        self.loss = loss
        self.epochs = check.count(epochs, "epochs")
        self.alpha = check.non_negative(alpha, "alpha")
        if distillation is None:
            distillation = losses.ListwiseSelfDistillationLoss()
        self.distillation = distillation
        if average is not None:
            check.number(average, "average", "None or a number in [0, 1)", lambda v: 0 <= v < 1)
        self.average = average
        self.variant = variant
        self._model = (model,)  # a tuple hides it from the module
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self._set_mode()
        self.epoch = 0
        self._loaded: int | None = None  # the epoch whose state was loaded, until one begins

    @property
    def weight(self) -> float:
        """w_e of this epoch."""
        temperature = getattr(self.distillation, "temperature", 1.0)
        return self.epoch / self.epochs * self.alpha * temperature**2

    def begin_epoch(self, epoch: int) -> None:
        """The teacher becomes the network as it is now, unless it is an average; or stays what was loaded in
        the middle of this epoch."""
        self.epoch = check.integer(epoch, "epoch", 0, self.epochs)
        loaded, self._loaded = self._loaded, None
        if epoch == loaded:
            return
        if self.average is None or epoch == 0:
            self.teacher.load_state_dict(self._model[0].state_dict())
            self._copy_buffers()  # those that are not part of a state too

    @torch.no_grad()
    def step(self) -> None:
        """Moves an averaged teacher; nothing otherwise."""
        if self.average is None:
            return
        student = self._model[0]
        for mine, theirs in zip(self.teacher.parameters(), student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.average)
        self._copy_buffers()

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        for kept, now in zip(self.teacher.buffers(), self._model[0].buffers(), strict=True):
            kept.copy_(now)

    def forward(self, embeddings: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The loss of embeddings [B, D] and labels [B]; images: what the network was given."""
        loss = self.loss(embeddings, labels)
        if self.weight == 0:
            return loss
        with torch.no_grad():
            teacher = self.teacher(images)
        return loss + self.weight * self.distillation(embeddings, teacher)

    def train(self, mode: bool = True) -> SelfDistillation:
        super().train(mode)
        self._set_mode()
        return self

    def _set_mode(self) -> None:
        self.teacher.train(self.variant == "released" and self.training)

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def set_extra_state(self, state: Any) -> None:
        self.epoch = self._loaded = int(state["epoch"])
