"""Self-supervision: the views of a sample are its class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.arguments import NamedArguments
from ..losses.base import SampleLoss, total


class SelfSupervisedLoss(NamedArguments):
    """A loss over samples in which the views of one sample are positives of each other.

    Called as `loss(embeddings [B, D], ref_emb [B, D])`, two views; or `loss(views [B, V, D])`, any number.

    Args:
        loss: a loss over samples.
        symmetric: every view is an anchor against all others; False: `embeddings` are the anchors and
            `ref_emb` the candidates.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    def __init__(self, loss: SampleLoss, symmetric: bool = True, **unknown: Any) -> None:
        super().__init__(**unknown)
        if not isinstance(loss, SampleLoss):
            raise ValueError(
                f"loss: expected a loss over samples of fastdml.losses, got {type(loss).__name__}"
            )
        self.loss = loss
        self.symmetric = check.flag(symmetric, "symmetric")

    def forward(self, embeddings: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        return total(self.parts(embeddings, ref_emb))

    def parts(self, embeddings: Tensor, ref_emb: Tensor | None = None) -> list[Any]:
        """The parts of the loss of all views."""
        if ref_emb is None:
            if embeddings.dim() != 3 or not self.symmetric:
                raise ValueError(
                    "embeddings: expected views [batch, views, dim] of a symmetric loss, or embeddings and "
                    f"ref_emb [batch, dim], got shape {tuple(embeddings.shape)} alone"
                )
            labels = torch.arange(embeddings.shape[0], device=embeddings.device)
            labels = labels.repeat_interleave(embeddings.shape[1])
            return self.loss.parts(embeddings.flatten(0, 1), labels)
        check.embeddings(embeddings, "embeddings")
        check.embeddings(ref_emb, "ref_emb")
        if ref_emb.shape != embeddings.shape:
            raise ValueError(
                f"ref_emb: expected shape {tuple(embeddings.shape)}, that of embeddings, got "
                f"{tuple(ref_emb.shape)}"
            )
        labels = torch.arange(embeddings.shape[0], device=embeddings.device)
        if not self.symmetric:
            return self.loss.parts(embeddings, labels, None, ref_emb, labels)
        return self.loss.parts(torch.cat([embeddings, ref_emb]), torch.cat([labels, labels]))
