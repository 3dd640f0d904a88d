"""Weights of samples, made of an index tuple, for losses that compare no listed pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine import check
from ..engine.call import statistic_type
from .lazy import LazyPairs


def sample_weights(
    indices_tuple: object,
    embeddings: Tensor,
    anchors_only: bool = False,
    ref_emb: Tensor | None = None,
) -> Tensor | None:
    """[B] weights of the samples that an index tuple names: count / largest count. None without any.

    Every entry of (a1, p, a2, n) or (a, p, n) counts, or only those of its anchors; with ref_emb, of
    which positives and negatives are rows, only the anchors do.
    """
    if indices_tuple is None:
        return None
    if isinstance(indices_tuple, LazyPairs):
        indices_tuple = indices_tuple.listed()
    size = embeddings.shape[0]
    columns = size if ref_emb is None else ref_emb.shape[0]
    a1, p, a2, n = check.pairs(indices_tuple, size, columns, embeddings)
    anchors = [a1] if len(indices_tuple) == 3 else [a1, a2]  # type: ignore[arg-type]
    anchors_only = anchors_only or ref_emb is not None
    named = torch.cat(anchors if anchors_only else [*anchors, p, n])
    if named.numel() == 0:
        return None
    counts = torch.bincount(named, minlength=size)
    return counts.to(statistic_type(embeddings, ref_emb)) / counts.max()
