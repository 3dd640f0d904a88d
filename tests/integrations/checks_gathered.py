"""Over ranks: drop-ins beside the losses that they stand in for. What a trainer uses is the mean of the
ranks' gradients, and of their values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from others import Lazy, open_clip
from torch import Tensor

our_clip, their_clip = Lazy("fastdml.integrations.open_clip"), Lazy("open_clip.loss")
ours = Lazy("fastdml.integrations.sentence_transformers")
theirs = Lazy("sentence_transformers.sentence_transformer.losses")

ROWS, DIM = 5, 7


def prepare() -> None:
    """Imports what the ranks need, once for all."""
    open_clip()
    assert ours.MatryoshkaLoss and our_clip.ClipLoss and their_clip.ClipLoss


def drawn(count: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(10 + dist.get_rank())
    found = torch.randn(count, ROWS, DIM, generator=g, dtype=torch.float64)
    return [x.requires_grad_() for x in found + found[0] * torch.arange(count).view(-1, 1, 1).clamp(max=1)]


def mean(x: Tensor) -> Tensor:
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def compare(mine: list[Tensor], other: list[Tensor], own: int) -> None:
    """own: how many of them, the value and features, count rank by rank; of others the mean over ranks."""
    assert len(mine) == len(other)
    for k, (a, b) in enumerate(zip(mine, other)):
        a, b = (x if 0 < k < own else mean(x) for x in (a, b))
        assert bool(b.any()) or k > own, k
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda m, k=k: f"{k}: {m}")


def clip(kind: str, bias: bool = True, **options: Any) -> None:
    found = []
    for library in (our_clip, their_clip):
        x, y = drawn(2)
        numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, -1.0)]
        numbers = numbers[: 1 + (bias and kind == "SigLipLoss")]
        loss = getattr(library, kind)(rank=dist.get_rank(), world_size=dist.get_world_size(), **options)
        value = loss(x, y, *numbers, *[None] * (not bias))
        if library is our_clip:  # numbers that are not learnt
            torch.testing.assert_close(loss(x, y, *(v.item() for v in numbers), *[None] * (not bias)), value)
        found.append([value.detach(), *torch.autograd.grad(value, [x, y, *numbers])])
    compare(*found, own=3)


def sentences(kind: str, columns: int, dims: bool = False, **options: Any) -> None:
    found = []
    for library in (ours, theirs):
        given = drawn(columns)
        loss = getattr(library, kind)(torch.nn.Identity(), gather_across_devices=True, **options)
        if dims and library is ours:
            loss.widths = [(3, 0.5), (DIM, 2.0)]
            value = loss.compute_loss_from_embeddings(given, None)
        elif dims:
            cut = [[torch.nn.functional.normalize(e[:, :d], dim=1) for e in given] for d in (3, DIM)]
            parts = [loss.compute_loss_from_embeddings(e, None) for e in cut]
            value = 0.5 * parts[0] + 2.0 * parts[1]
        else:
            value = loss.compute_loss_from_embeddings(given, None)
        found.append([value.detach(), *torch.autograd.grad(value, given)])
    compare(*found, own=1 + columns)


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    ranking = "MultipleNegativesRankingLoss"
    both = ("query_to_doc", "doc_to_query")
    return {
        "ClipLoss, gathered with gradients": partial(clip, "ClipLoss", gather_with_grad=True),
        "ClipLoss, local, with gradients": partial(clip, "ClipLoss", local_loss=True, gather_with_grad=True),
        "ClipLoss, gathered": partial(clip, "ClipLoss"),
        "ClipLoss, local": partial(clip, "ClipLoss", local_loss=True),
        "SigLipLoss": partial(clip, "SigLipLoss"),
        "SigLipLoss, no bias": partial(clip, "SigLipLoss", bias=False),
        "SigLipLoss, gathered": partial(clip, "SigLipLoss", dist_impl="gather"),
        "ranking with hard negatives": partial(sentences, ranking, 3),
        "ranking both ways": partial(sentences, ranking, 2, directions=both, partition_mode="per_direction"),
        "ranking with queries": partial(sentences, ranking, 2, directions=("query_to_doc", "query_to_query")),
        "ranking jointly": partial(sentences, ranking, 2, directions=(*both, "query_to_query", "doc_to_doc")),
        "ranking of several widths": partial(sentences, ranking, 3, dims=True),
    }
