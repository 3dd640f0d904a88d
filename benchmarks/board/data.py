"""Two sets of real images, each in classes to train on, to choose settings by, and to test on."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fastdml
from fastdml.demo.augment import jitter
from fastdml.demo.data import Images, load_icons

NAMES = ("icons", "glyphs")
ALL_GLYPHS = "all glyphs"  # with every training class, for batches of thousands
SPARE_GLYPHS = "spare glyphs"  # with the training classes that "glyphs" leaves out
_FOLDER = Path(fastdml.__file__).parent / "demo" / "data"
_TESTED = 600  # classes of the glyphs' test part that are used: all would take most of the time
# Of the training part: a run sees about as many images of each class as it does of an icon. Of all 2,562 it
# would see eight, too few for a proxy to find its class.
_TRAINED = 600


@dataclasses.dataclass(frozen=True)
class Task:
    """Three parts without a class in common. Test and validation images stay as they are here."""

    name: str
    train: Images
    val: Images
    test: Images


@functools.lru_cache(maxsize=2)
def load(name: str, max_classes: int | None = None) -> Task:
    """max_classes: of each part, for quick runs."""
    if name == "icons":
        return _icons(max_classes)
    if name in ("glyphs", ALL_GLYPHS, SPARE_GLYPHS):
        return _glyphs(name, max_classes)
    raise ValueError(f"task: expected one of {', '.join(NAMES)}, got {name!r}")


def _icons(max_classes: int | None) -> Task:
    """The demo's halves; a tenth of the training classes becomes the validation part. Images to test on
    are jittered once: otherwise raw pixels find them."""
    training, test = load_icons(0)
    first = len(training.names) * 9 // 10
    parts = [
        _part(training, range(first)),
        _jittered(_part(training, range(first, len(training.names))), 1),
        _jittered(test, 2),
    ]
    return Task("icons", *(_part(p, range(len(p.names))[:max_classes]) for p in parts))


def _glyphs(name: str, max_classes: int | None) -> Task:
    trained = {ALL_GLYPHS: slice(None), SPARE_GLYPHS: slice(_TRAINED, None)}
    used = {0: trained.get(name, slice(_TRAINED)), 2: slice(_TESTED)}
    with np.load(_FOLDER / "glyphs32.npz") as z:
        images, label, split = z["images"], z["label"], z["split"]
        names = [chr(c) for c in z["codepoint"]]
    parts = []
    for part in range(3):
        classes = np.flatnonzero(split == part)
        if part in used:
            classes = np.sort(np.random.default_rng(0).permutation(classes)[used[part]])
        classes = classes[:max_classes]
        rows = np.isin(label, classes)
        parts.append(
            Images(
                torch.from_numpy(images[rows]).unsqueeze(1).float() / 255,
                torch.from_numpy(np.searchsorted(classes, label[rows])),
                tuple(names[c] for c in classes),
            )
        )
    return Task(name, *parts)


def _part(images: Images, classes: range) -> Images:
    """Classes in a row of a set, numbered from 0."""
    keep = (images.labels >= classes.start) & (images.labels < classes.stop)
    return Images(
        images.pixels[keep],
        images.labels[keep] - classes.start,
        images.names[classes.start : classes.stop],
    )


def _jittered(images: Images, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return dataclasses.replace(images, pixels=jitter(images.pixels, generator))


def ndcg_at_10(neighbours: Tensor, labels: Tensor) -> float:
    """Of neighbours [N, >= 10] (of the set itself), with binary relevance; over queries that have any."""
    relevant = (labels[neighbours[:, :10]] == labels[:, None]).double()
    discount = (torch.arange(10, dtype=torch.float64) + 2).log2().reciprocal()
    others = torch.bincount(labels)[labels] - 1
    best = discount.cumsum(0)[(others.clamp(1, 10) - 1)]
    return float(((relevant * discount).sum(1) / best)[others > 0].mean())
