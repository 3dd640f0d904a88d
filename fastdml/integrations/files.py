"""Inputs of an embedder from files: arrays, or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..metrics.extras import require

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Inputs(Protocol):
    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Tensor:
        """Inputs of a batch."""
        ...


class Array:
    """An ``.npy`` file, mapped, or one array of an ``.npz`` file: ``[N, ...]`` as the network takes it."""

    def __init__(self, path: Path, key: str | None) -> None:
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: expected an npy or npz file ({error})") from None
        if isinstance(found, np.lib.npyio.NpzFile):
            if key not in found.files:
                raise ValueError(f"--key: expected one of {', '.join(found.files)}, got {key!r}")
            found = found[key]
        elif key is not None:
            raise ValueError(f"--key: expected with an npz file, got it with {path}")
        if found.ndim < 2 or len(found) == 0 or found.dtype.kind not in "fiu":
            raise ValueError(
                f"{path}: expected numbers [N, ...], got {found.dtype} {tuple(found.shape)}"
            )
        self._array = found

    def __len__(self) -> int:
        return len(self._array)

    def part(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.array(self._array[start:stop]))


class Images:
    """All images below a folder, in the order of their paths.

    Attributes:
        paths: relative to the folder.
        labels: the folder that each image is in, relative to the folder; "." for those right in it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None) -> None:
        if settings is None:
            raise ValueError(
                "a folder of images: expected an embedder that was saved with image=, which says how "
                "inputs are made of them"
            )
        known = {"size": 224, "channels": 3, "mean": 0.0, "std": 1.0}
        if unknown := settings.keys() - known.keys():
            raise ValueError(
                f"image: expected {', '.join(known)}, got {', '.join(sorted(unknown))}"
            )
        chosen = {**known, **settings}
        self._size, self._mode = int(chosen["size"]), "L" if chosen["channels"] == 1 else "RGB"
        self._mean, self._std = (
            torch.as_tensor(chosen[k], dtype=torch.float32, device="cpu").reshape(-1, 1, 1)
            for k in ("mean", "std")
        )
        self._images = require("PIL.Image", "an embedder in files needs", "embed")
        self._folder = folder
        self.paths = sorted(
            p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES
        )
        if not self.paths:
            raise ValueError(f"{folder}: expected images ({', '.join(sorted(SUFFIXES))}), got none")
        self.labels = [str(p.parent) for p in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def part(self, start: int, stop: int) -> Tensor:
        return torch.stack([self._one(self._folder / p) for p in self.paths[start:stop]])

    def _one(self, path: Path) -> Tensor:
        try:
            with self._images.open(path) as opened:
                image = opened.convert(self._mode)
        except OSError as error:
            raise ValueError(f"{path}: expected an image ({error})") from None
        # The whole image, centred in the square, on the ground of 0.
        image.thumbnail((self._size, self._size))
        square = self._images.new(self._mode, (self._size, self._size))
        square.paste(image, ((self._size - image.width) // 2, (self._size - image.height) // 2))
        pixels = torch.from_numpy(np.array(square)).float() / 255
        pixels = pixels[None] if self._mode == "L" else pixels.permute(2, 0, 1)
        return (pixels - self._mean) / self._std
