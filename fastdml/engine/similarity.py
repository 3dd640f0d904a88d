"""How a pair of embeddings becomes a number, and how its weight goes back.

Embeddings are never normalised in memory: a copy of them would cost as much as the gradient. A block
holds raw dot products; scales are applied to it on the way in and to the weights on the way out.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from . import library

# Below this norm an embedding has no direction: its similarities and its gradient are 0.
EPSILON = 1e-12


class Similarity(Protocol):
    name: str

    def scale(self, x: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[rows] factors of the rows of x in a product, or None for 1."""

    def finish_(self, gradient: Tensor, x: Tensor, scale: Tensor | None) -> None:
        """Turns the accumulated products of weights and embeddings into the gradient, in place."""

    def dense(self, x: Tensor) -> Tensor:
        """x as the differentiable reference multiplies it."""


class Dot:
    """s = x . y"""

    name = "dot"

    def scale(self, x: Tensor, dtype: torch.dtype) -> None:
        return None

    def finish_(self, gradient: Tensor, x: Tensor, scale: Tensor | None) -> None:
        return None

    def dense(self, x: Tensor) -> Tensor:
        return x


class Cosine:
    """s = x . y / (|x| |y|); 0 where an embedding is shorter than 1e-12."""

    name = "cosine"

    def scale(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, dtype=dtype)
        return torch.where(norm > EPSILON, norm.reciprocal(), torch.zeros_like(norm))

    def finish_(self, gradient: Tensor, x: Tensor, scale: Tensor | None) -> None:
        # The products already carry 1/|x|; what is left of the normalisation's derivative is to take
        # out the part along x.
        assert scale is not None
        if gradient.device.type == "cpu" and library.load() is not None:
            torch.ops.fastdml_native.remove_radial_(gradient, x, scale)
            return
        step = max(1, (1 << 18) // max(1, x.shape[1]))
        for start in range(0, x.shape[0], step):
            rows = slice(start, start + step)
            block = x[rows].to(gradient.dtype)
            along = (gradient[rows] * block).sum(1) * scale[rows].square()
            gradient[rows] -= along[:, None] * block

    def dense(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        safe = torch.where(norm > EPSILON, norm, torch.ones_like(norm))
        return torch.where(norm > EPSILON, x / safe, torch.zeros_like(x))


SIMILARITIES: dict[str, Similarity] = {s.name: s for s in (Cosine(), Dot())}
