"""Virtual samples between those of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import check
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
        share = torch.rand(first.shape[0], generator=generator, dtype=x.dtype, device=x.device)
    elif not isinstance(share, Tensor):
        raise ValueError(f"share: expected a tensor of numbers, got {type(share).__name__}")
    elif share.shape != first.shape:
        raise ValueError(
            f"share: expected one number for each of {first.shape[0]} pairs, got {tuple(share.shape)}"
        )
    a = share.to(x.dtype)[:, None]
    return torch.cat([x, a * x[first] + (1 - a) * x[second]]), torch.cat([labels, labels[first]])


def pairs_within(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(i, j) of all unordered pairs of equal labels [B], i before j; O(B + pairs) memory."""
    order = labels.sort(stable=True).indices
    _, counts = labels.unique(return_counts=True)
    start = counts.cumsum(0) - counts
    firsts, seconds = [], []
    for size in counts.unique().tolist():
        i, j = torch.triu_indices(size, size, 1, device=labels.device)
        at = start[counts == size, None]
        firsts.append(order[at + i].reshape(-1))
        seconds.append(order[at + j].reshape(-1))
    return torch.cat(firsts), torch.cat(seconds)
