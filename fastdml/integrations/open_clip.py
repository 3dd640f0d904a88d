"""open_clip's ClipLoss and SigLipLoss, by their signatures: in linear memory, over ranks through
`fastdml.distributed`.

    loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)

open_clip itself is not imported: what its training calls is this. Where value or gradients are another's:
docs/integrations.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..distributed import Distributed, wrap
from ..distributed.words import spread
from ..functional import info_nce, siglip
from ..losses import InfoNCELoss, SigLIPLoss

__all__ = ["ClipLoss", "SigLipLoss"]

_IMPLEMENTATIONS = {"bidir": "ring", "shift": "ring", "reduce": "gather", "gather": "gather"}


class ClipLoss(nn.Module):
    """CLIP's loss of image and text features of all ranks.

    Args:
        local_loss, gather_with_grad: as there. With gather_with_grad the mean of the ranks' gradients is the
            gradient. Without it a rank has the derivative by its own features, which mean is a share of; and
            with local_loss too, that of its own rows alone, the others' features being constants.
        cache_labels: nothing is to be cached; taken for the signature's sake.
        rank, world_size: as torch.distributed has them.
        use_horovod: False.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod: expected False, ranks are those of torch.distributed")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        gradient = "mean" if gather_with_grad else "sum"
        clip = InfoNCELoss(symmetric=True, learnable=True, similarity="dot")
        self._of_all = _Scaled(wrap(clip, gradient=gradient), "log_scale")

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Any:
        """The loss of row i of image_features [B, D] with row i of text_features [B, D], by their products.

        Args:
            logit_scale: the factor of products, one number > 0: the exponential of what is learnt.
            logit_bias: in both softmaxes it cancels; its gradient is 0.
            output_dict: return {"contrastive_loss": the loss}.
        """
        _check_scale(logit_scale)
        if self.world_size == 1:
            loss = info_nce(
                image_features, text_features, logit_scale, symmetric=True, similarity="dot"
            )
        else:
            check_ranks(self.rank, self.world_size)
            if self.local_loss and not self.gather_with_grad:
                loss = self._of_own_rows(image_features, text_features, logit_scale)
            else:
                loss = self._of_all(image_features, text_features, logit_scale)
        if isinstance(logit_bias, Tensor):
            loss = loss + 0.0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss

    def _of_own_rows(self, images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
        own = self.rank * len(images)
        of_images, of_texts = (
            info_nce(rows, gathered(columns), scale, own=own, similarity="dot")
            for rows, columns in ((images, texts), (texts, images))
        )
        return 0.5 * (of_images + of_texts)


class SigLipLoss(nn.Module):
    """SigLIP's loss of image and text features of all ranks.

    Args:
        cache_labels: nothing is to be cached; taken for the signature's sake.
        rank, world_size: as torch.distributed has them.
        dist_impl: "bidir" (None) and "shift": texts travel from rank to rank; "gather" and "reduce": every
            rank has all of them.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"
        if self.dist_impl not in _IMPLEMENTATIONS:
            raise ValueError(f"dist_impl: expected one of {[*_IMPLEMENTATIONS]}, got {dist_impl!r}")
        schedule = _IMPLEMENTATIONS[self.dist_impl]
        self._of_all = _Scaled(wrap(SigLIPLoss(similarity="dot"), schedule=schedule), "log_scale", "bias")

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        output_dict: bool = False,
    ) -> Any:
        """The loss of row i of image_features [B, D] with row i of text_features [B, D], by their products.

        Args:
            logit_scale, logit_bias: one number each: the factor of products, > 0, and what is added (None:
                nothing).
            output_dict: return {"contrastive_loss": the loss}.
        """
        _check_scale(logit_scale)
        if logit_bias is None:
            logit_bias = image_features.new_zeros(())
        if self.world_size == 1:
            loss = siglip(image_features, text_features, logit_scale, logit_bias, similarity="dot")
        else:
            check_ranks(self.rank, self.world_size)
            loss = self._of_all(image_features, text_features, logit_scale, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss


class _Scaled(nn.Module):
    """A wrapped loss with tensors of the caller's in place of its learnt scale and bias, whose whole gradient
    every rank has."""

    def __init__(self, loss: Distributed, *names: str) -> None:
        super().__init__()
        # No submodule: its own scale is never used, and is no parameter of whoever has this.
        self._loss = [loss]
        self._names = names

    def forward(self, images: Tensor, texts: Tensor, *scaled: Tensor | float) -> Tensor:
        loss = self._loss[0]
        learnt = tuple(torch.as_tensor(x, dtype=torch.float64, device=images.device) for x in scaled)
        if loss.gradient == "sum":  # which leaves a rank its part of what a loss learns
            learnt = tuple(spread(x, loss.ranks) for x in learnt)
        scale, *bias = (x.reshape(()) for x in learnt)
        given = {f"loss.{name}": x for name, x in zip(self._names, (scale.log(), *bias))}
        found: Tensor = torch.func.functional_call(loss, given, (images, texts))
        return found


def _check_scale(given: object) -> None:
    """None, in the functional forms, is a scale of their own."""
    if given is None:
        raise ValueError("logit_scale: expected one number > 0, got None")


def gathered(x: Tensor) -> Tensor:
    """The rows of all ranks, equally many of each, as constants."""
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x.detach().contiguous())
    return torch.cat(found)


def check_ranks(rank: int, world_size: int) -> None:
    there = dist.is_available() and dist.is_initialized()
    known = (dist.get_rank(), dist.get_world_size()) if there else (0, 1)
    for name, given, own in zip(("rank", "world_size"), (rank, world_size), known):
        if given != own:
            raise ValueError(f"{name}: expected {own}, as torch.distributed has it, got {given}")
