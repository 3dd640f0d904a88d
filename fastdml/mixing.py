"""Virtual samples between those of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import check
from .engine.places import pairs_within
from .engine.similarity import unit


def similarity_mixup(
    embeddings: Tensor,
    labels: Tensor,
    *,
    share: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """SiMix: the batch, normalised, followed by a mixture of every pair of samples of one class.

    *Recall@k Surrogate Loss with Large Batches and Similarity Mixup*, Patel et al., CVPR 2022 (arXiv
    2108.11179), section 3.3: a x_i + (1 - a) x_j with a uniform in (0, 1) for each pair. Mixtures are not
    normalised again, so that the similarities to them are mixtures of similarities: use
    `similarity="dot"` in the loss. B samples in classes of 4 become 10 per class.

    Args:
        embeddings: [B, D]. labels: [B] integers.
        share: [number of pairs] values of a, in the order of `pairs_within`, or None to draw them.
        generator: of the draws.

    Returns:
        (embeddings [B + pairs, D], labels [B + pairs]), differentiable in embeddings.
    """
    check.embeddings(embeddings, "embeddings")
    labels = check.labels(labels, embeddings.shape[0], embeddings.device, "labels", "embeddings")
    first, second = pairs_within(labels)
    x = unit(embeddings)
    if share is None:
        # Not torch.rand: with a generator it takes no size that a graph leaves open.
        share = x.new_empty(first.shape[0]).uniform_(generator=generator)
    elif not isinstance(share, Tensor):
        raise ValueError(f"share: expected a tensor of numbers, got {type(share).__name__}")
    elif share.shape != first.shape:
        raise ValueError(
            f"share: expected one number for each of {first.shape[0]} pairs, got {tuple(share.shape)}"
        )
    a = share.to(x.dtype)[:, None]
    return torch.cat([x, a * x[first] + (1 - a) * x[second]]), torch.cat([labels, labels[first]])
