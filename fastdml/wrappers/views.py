"""Self-supervision: the views of a sample are its class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.arguments import NamedArguments
from ..losses.base import total
from .memory import SUPPORTED, _parts_of, over_samples


class SelfSupervisedLoss(NamedArguments):
    """A loss over samples in which the views of one sample are positives of each other.

    Called as `loss(embeddings [B, D], ref_emb [B, D])`, two views; as `loss(embeddings, ref_emb, ref_emb2,
    ...)`, more; or as `loss(views [B, V, D])`, any number.

    Args:
        loss: a loss over samples, of this library or of pytorch-metric-learning.
        symmetric: every view is an anchor against all others; False: `embeddings` (the first of `views`)
            are the anchors and all others the candidates.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True, **unknown: Any) -> None:
        super().__init__(**unknown)
        self.loss = over_samples(loss)
        self.symmetric = check.flag(symmetric, "symmetric")

    @staticmethod
    def supported_losses() -> list[str]:
        """Losses that pytorch-metric-learning takes here; this class takes any loss over samples."""
        return list(SUPPORTED)

    def forward(self, embeddings: Tensor, ref_emb: Tensor | None = None, *more: Tensor) -> Tensor:
        return total(self.parts(embeddings, ref_emb, *more))

    def parts(self, embeddings: Tensor, ref_emb: Tensor | None = None, *more: Tensor) -> list[Any]:
        """The parts of the loss of all views."""
        if ref_emb is None:
            check.tensor(embeddings, "embeddings")
            if embeddings.dim() != 3 or embeddings.shape[1] < 2:
                raise ValueError(
                    "embeddings: expected at least two views [batch, views, dim], or embeddings and "
                    f"ref_emb [batch, dim], got shape {tuple(embeddings.shape)} alone"
                )
            if self.symmetric:
                views = _classes(embeddings).repeat_interleave(embeddings.shape[1])
                return _parts_of(self.loss, embeddings.flatten(0, 1), views)
            embeddings, ref_emb, *rest = embeddings.unbind(1)
            more = tuple(rest)
        check.embeddings(embeddings, "embeddings")
        others = (ref_emb, *more)
        for view in others:
            check.embeddings(view, "ref_emb")
            if view.shape != embeddings.shape:
                raise ValueError(
                    f"ref_emb: expected shape {tuple(embeddings.shape)}, that of embeddings, got "
                    f"{tuple(view.shape)}"
                )
        labels = _classes(embeddings)
        if not self.symmetric:
            ref = others[0] if len(others) == 1 else torch.cat(others)
            # No candidate is an anchor's own, though one tensor may be given for both.
            own = torch.full_like(labels, -1)
            return _parts_of(self.loss, embeddings, labels, None, ref, labels.repeat(len(others)), own=own)
        return _parts_of(self.loss, torch.cat([embeddings, *others]), labels.repeat(1 + len(others)))


def _classes(embeddings: Tensor) -> Tensor:
    return torch.arange(embeddings.shape[0], device=embeddings.device)
