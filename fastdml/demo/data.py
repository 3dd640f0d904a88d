"""1,248 Phosphor icons in 6 styles as 32 x 32 grey images (MIT licence beside the file)."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Images:
    """Images of one split.

    Attributes:
        pixels: ``[N, 1, 32, 32]`` float32 in [0, 1], ink 1 on ground 0.
        labels: ``[N]`` int64, numbered from 0 within the split.
        names: class name of each label.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def load_icons(seed: int = 0, max_classes: int | None = None) -> tuple[Images, Images]:
    """Training and test images: half of the classes each, none in both.

    Args:
        seed: which half trains.
        max_classes: keep this many of each half, for quick runs.
    """
    resource = importlib.resources.files(__package__) / "data" / "icons32.npz"
    with resource.open("rb") as file, np.load(file) as arrays:
        pixels, names = arrays["X"], arrays["y"]
    classes, numbers = np.unique(names, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    half = len(classes) // 2
    return (
        _select(pixels, numbers, classes, order[:half][:max_classes]),
        _select(pixels, numbers, classes, order[half:][:max_classes]),
    )


def _select(
    pixels: np.ndarray, numbers: np.ndarray, classes: np.ndarray, chosen: np.ndarray
) -> Images:
    chosen = np.sort(chosen)
    keep = np.isin(numbers, chosen)
    return Images(
        torch.from_numpy(pixels[keep]).unsqueeze(1).float() / 255,
        torch.from_numpy(np.searchsorted(chosen, numbers[keep])),
        tuple(str(name) for name in classes[chosen]),
    )
