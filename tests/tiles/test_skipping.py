"""Tiles without a weight are not multiplied, and tiles that cannot count are not visited.

The embeddings of columns whose weights are all 0 are overwritten by NaN before a kernel reads them. Where
their tiles are skipped nothing of that shows, to the last bit; a single product with them, by weights of
zero, is NaN.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from triton_mode import DEVICE  # (before triton is imported)

import fastdml.losses  # noqa: F401  (they are registered)
from fastdml.engine.executors.triton import functor_of
from fastdml.engine.registry import LOSSES
from fastdml.kernels import launch
from fastdml.kernels.rows import tile_rows
from fastdml.kernels.tile import Pass, TileLoss
from fastdml.kernels.tiles import triplet_margin
from fastdml.losses.triplet.triplet_margin import TripletMargin

import triton  # isort: skip
import triton.language as tl  # isort: skip

# A class fills whole tiles of every size that a device, or the interpreter, takes.
SIZE = 128 if DEVICE == "cuda" else 32
POISONED = 2  # the class whose columns hold NaN

# Losses whose weights are exactly 0 between distant classes.
SPARSE = {
    "contrastive": LOSSES["contrastive"](1.0, 0.5, similarity="cosine"),
    "contrastive_distance": LOSSES["contrastive"](0.0, 0.8),
    "multi_similarity": LOSSES["multi_similarity"](2.0, 40.0, 0.5, 0.1, 1 - 1e-5),
}


def batch():
    """Three classes: the first two 37 degrees apart, the last one at right angles to both."""
    g = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 24)
    centres[1, 0], centres[1, 1] = 0.8, 0.6
    labels = torch.arange(3).repeat_interleave(SIZE)
    x = centres[labels] + 0.1 * torch.randn(3 * SIZE, 24, generator=g)
    mixed = torch.randperm(len(x), generator=g)
    return x[mixed].to(DEVICE), labels[mixed].to(DEVICE)


def tile_of(name):
    loss = SPARSE[name]
    functor = functor_of(loss)
    return functor.tile(loss), functor.parameters(loss), launch.Numbers(loss.similarity)


def run(tile, parameters, pair, x, labels, **options):
    weight = torch.full((len(x), tile.outputs), 1e-2, device=DEVICE)
    return tile_rows(
        tile, x, x, labels, labels, parameters=parameters, pair=pair, exclude_self=True,
        row_weight=weight if tile.outputs > 1 else weight[:, 0], **options,
    )  # fmt: skip


def poison_stream(monkeypatch, kernel, label=POISONED):
    """From now on columns of that label are NaN for `kernel`; rows and norms stay."""
    plain = getattr(launch, kernel)

    def poisoned(loss, stay, stream, *args, **options):
        bad = (stream.labels == label)[:, None]
        stream = dataclasses.replace(stream, x=stream.x.masked_fill(bad, float("nan")))
        return plain(loss, stay, stream, *args, **options)

    monkeypatch.setattr(launch, kernel, poisoned)


@pytest.mark.parametrize("name", SPARSE)
def test_tiles_of_zero_weights_are_not_multiplied(name, monkeypatch):
    tile, parameters, pair = tile_of(name)
    x, labels = batch()
    clean = run(tile, parameters, pair, x, labels).d_anchors
    others = labels != POISONED
    assert (clean[others].abs().amax(1) > 0).all()
    poison_stream(monkeypatch, "weights")
    found = run(tile, parameters, pair, x, labels).d_anchors
    assert torch.equal(found[others], clean[others])
    # The same without the skipping: that the poison is strong enough.
    every = dataclasses.replace(tile, sparse=False)
    assert run(every, parameters, pair, x, labels).d_anchors[others].isnan().all()


def test_order_of_labels_empties_tiles(monkeypatch):
    """Among rows in any order every tile holds a positive, and so some weight."""
    tile, parameters, pair = tile_of("contrastive")
    x, labels = batch()
    others = labels != POISONED
    poison_stream(monkeypatch, "weights")
    ordered = run(tile, parameters, pair, x, labels, order=True).d_anchors
    mixed = run(tile, parameters, pair, x, labels, order=False).d_anchors
    assert torch.isfinite(ordered[others]).all()
    assert mixed[others].isnan().all()


@triton.jit
def everything(s, t, positive, row, p):
    return (tl.abs(s),)


@triton.jit
def as_it_is(stats, p):
    return stats


def test_tiles_without_positives_are_not_visited():
    """A sweep in which positives alone count reads no column far from them."""
    x, labels = batch()
    order = labels.argsort(stable=True)
    x, labels = x[order], labels[order]
    bad = x.masked_fill((labels == POISONED)[:, None], float("nan"))
    rows, columns = (launch.Side(z, labels, sorted=True) for z in (x, bad))
    parameters = launch.parameter_tensor((), x.device)

    def sums(positives_only):
        sweep = Pass(("sum",), everything, positives_only)
        loss = TileLoss("everything", (sweep,), as_it_is, everything, states=0)
        return launch.statistics(loss, rows, columns, parameters, launch.Numbers("dot"))[0][0]

    others = labels != POISONED
    assert torch.isfinite(sums(True)[others]).all()
    assert sums(False)[others].isnan().all()


def test_lists_of_thresholds_skip_as_well(monkeypatch):
    """Six classes of 16: the last one is far from all, the first two are close to each other."""
    g = torch.Generator().manual_seed(0)
    centres = torch.eye(6, 24)
    centres[1, 0] = 1.0
    labels = torch.arange(6).repeat_interleave(16)
    x = (centres[labels] + 0.1 * torch.randn(96, 24, generator=g)).to(DEVICE)
    labels = labels.to(DEVICE)
    description = TripletMargin(0.2, normalizer="triplets", similarity="cosine")
    tile, parameters = triplet_margin.tile(description), triplet_margin.parameters(description)

    def gradient(tile):
        return tile_rows(
            tile, x, x, labels, labels, parameters=parameters, exclude_self=True, weight=1e-3
        ).d_anchors[: 4 * 16]  # blocks of rows without the last class

    clean = gradient(tile)
    assert (clean[:32].abs().amax(1) > 0).all()
    poison_stream(monkeypatch, "weights", label=5)
    assert torch.equal(gradient(tile), clean)
    assert gradient(dataclasses.replace(tile, sparse=False)).isnan().all()
