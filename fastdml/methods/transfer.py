"""Embedding transfer: a network learns the relations that another one sees."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import losses

View = Callable[[Tensor], Tensor]


class EmbeddingTransfer(nn.Module):
    """A relational loss between a network's embeddings and a frozen source network's.

    *Embedding Transfer with Label Relaxation for Improved Metric Learning*, Kim et al., CVPR 2021 (arXiv
    2103.14908): no labels; each image comes in two augmented views; the target's dimension may be smaller
    than the source's, and its embeddings are not normalised (retrieval is by Euclidean distance).

        transfer = EmbeddingTransfer(source)
        images = views(images, augment, augment)
        loss = transfer(target(images), images)

    Args:
        source: a network; put in evaluation mode whenever it is asked. It is not a submodule, so neither
            moved, nor trained, nor saved with this module.
        loss: called as `loss(embeddings, teacher)`; None: `RelaxedContrastiveLoss()`. Any loss that
            compares relations fits (RKD, PKT, DarkRank, list-wise distillation).
    """

    def __init__(self, source: nn.Module, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.loss: nn.Module = losses.RelaxedContrastiveLoss() if loss is None else loss
        self._source = (source.eval(),)  # a tuple hides it from the module

    @torch.no_grad()
    def relations(self, images: Tensor) -> Tensor:
        """The source's embeddings [B, E] of a batch; to compute them once and keep them."""
        return self._source[0].eval()(images)  # whoever holds it may have called train() since

    def forward(
        self, embeddings: Tensor, images: Tensor | None = None, *, teacher: Tensor | None = None
    ) -> Tensor:
        """The loss of the target's embeddings [B, D] of `images`, or of those with the source's
        embeddings `teacher` [B, E].

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        if (images is None) == (teacher is None):
            raise ValueError("images: expected either images or teacher")
        if teacher is None:
            assert images is not None
            teacher = self.relations(images)
        return self.loss(embeddings, teacher)


def views(images: Tensor, *augmentations: View) -> Tensor:
    """One batch of several augmented views: [V B, ...], view by view. Labels repeat V times."""
    if not augmentations:
        raise ValueError("augmentations: expected at least one, got none")
    return torch.cat([augment(images) for augment in augmentations])
