"""How a pair of embeddings becomes a number, and how its weight goes back.

Embeddings are never normalised in memory: a copy of them would cost as much as the gradient. A block
holds raw products x.y; they are turned into similarities or distances in place on the way in, and
derivatives by those into weights of the products on the way out.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from . import library

# Below this norm an embedding has no direction: its similarities and its gradient are 0.
EPSILON = 1e-12
PRODUCT, SQUARED_DISTANCE, DISTANCE = 0, 1, 2  # csrc/cpu/block.h: Metric


def _tiny(dtype: torch.dtype) -> float:
    """Squared distances below this share of the squared norms are rounding: they count as 0."""
    return 4 * torch.finfo(dtype).eps


@dataclasses.dataclass(frozen=True)
class Metric:
    """What the number of a pair is.

    kind: PRODUCT x.y, SQUARED_DISTANCE |x - y|^2 or DISTANCE |x - y|.
    normalized: of x/|x| and y/|y|; an embedding shorter than 1e-12 is then the zero vector.
    clipped: of x/max(|x|, 1): only embeddings outside the unit ball are brought to its surface.
    raw_anchors: the anchor x is taken as it is all the same.
    """

    name: str
    kind: int
    normalized: bool
    clipped: bool = False
    raw_anchors: bool = False

    @property
    def sign(self) -> float:
        """1 where more alike means a larger number, -1 for distances."""
        return 1.0 if self.kind == PRODUCT else -1.0

    @property
    def needs_totals(self) -> bool:
        """Distances of raw embeddings also pull an embedding along itself."""
        return self.kind != PRODUCT and not self.normalized

    def scale(self, x: Tensor, dtype: torch.dtype, anchors: bool = False) -> Tensor | None:
        """[rows] factors of the rows of x (anchors or candidates) in a product, or None for 1."""
        if not (self.normalized or self.clipped):
            return None
        if self.clipped:
            return torch.linalg.vector_norm(x, dim=1, dtype=dtype).clamp(min=1).reciprocal()
        if anchors and self.raw_anchors:
            return torch.ones(x.shape[0], dtype=dtype, device=x.device)
        by_rows = x.shape[1] <= 1 or x.stride(1) == 1
        if x.device.type == "cpu" and by_rows and x.dtype == dtype and library.load() is not None:
            scale = x.new_empty(x.shape[0])
            torch.ops.fastdml_native.inverse_norm_(scale, x, EPSILON)
            return scale
        norm = torch.linalg.vector_norm(x, dim=1, dtype=dtype)
        return norm.reciprocal().masked_fill_(norm <= EPSILON, 0.0)

    def square(self, x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """[rows] squared norms of the scaled rows of x, where the kind needs them."""
        if self.kind == PRODUCT:
            return None
        if self.clipped:
            return torch.linalg.vector_norm(x, dim=1, dtype=dtype).clamp(max=1).square()
        if scale is not None:
            return (scale > 0).to(dtype)
        return torch.linalg.vector_norm(x, dim=1, dtype=dtype).square()

    def apply_(
        self,
        s: Tensor,
        row_scale: Tensor | None,
        col_scale: Tensor | None,
        row_square: Tensor | None,
        col_square: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        """Products to similarities or distances, in place. s [R, N]; vectors [R] and [N]."""
        if s.device.type == "cpu" and library.load() is not None:
            torch.ops.fastdml_native.similarities_(
                s, row_scale, col_scale, self.kind, row_square, col_square, epsilon
            )
            return s
        if row_scale is not None and col_scale is not None:
            s.mul_(row_scale[:, None]).mul_(col_scale)
        if self.kind == PRODUCT:
            return s
        assert row_square is not None and col_square is not None
        total = row_square[:, None] + col_square
        s.mul_(-2).add_(total)
        s.masked_fill_(s < _tiny(s.dtype) * total, 0.0).add_(epsilon)
        return s.sqrt_() if self.kind == DISTANCE else s

    def weigh_(
        self, g: Tensor, d: Tensor, row_scale: Tensor | None, col_scale: Tensor | None
    ) -> Tensor:
        """Derivatives g by the numbers d of apply_ to weights of the products, in place."""
        if self.kind == SQUARED_DISTANCE:
            g.mul_(-2)
        elif self.kind == DISTANCE:
            g.div_(d).neg_().masked_fill_(d <= 0, 0.0)
        if row_scale is not None and col_scale is not None:
            g.mul_(row_scale[:, None]).mul_(col_scale)
        return g

    def finish_(
        self, gradient: Tensor, x: Tensor, scale: Tensor | None, total: Tensor | None
    ) -> None:
        """Turns accumulated products of weights and embeddings into the gradient, in place.

        total: [rows] sums of the weights of a row's pairs (each over the other embedding's scale),
            where `needs_totals`.
        """
        if total is not None:
            _subtract_scaled_(gradient, x, total)
        if scale is None:
            return
        if self.clipped:  # inside the ball nothing was normalised, and nothing is taken out
            scale = torch.where(scale < 1, scale, torch.zeros_like(scale))
        # The products already carry 1/|x|; what is left of the normalisation's derivative is to take
        # out the part along x.
        if _compiled_takes(gradient, x):
            torch.ops.fastdml_native.remove_radial_(gradient, x, scale)
            return
        for rows in _slices(x):
            block = x[rows].to(gradient.dtype)
            along = (gradient[rows] * block).sum(1) * scale[rows].square()
            gradient[rows] -= along[:, None] * block

    def paired(self, a: Tensor, c: Tensor, epsilon: float = 0.0) -> Tensor:
        """[M] differentiable: row i of a [M, D] with row i of c [M, D]."""
        kind = torch.promote_types(torch.promote_types(a.dtype, c.dtype), torch.float32)
        a, c = a.to(kind), c.to(kind)
        if self.normalized:
            a, c = a if self.raw_anchors else unit(a), unit(c)
        elif self.clipped:
            a, c = _in_ball(a), _in_ball(c)
        if self.kind == PRODUCT:
            return (a * c).sum(1)
        d2 = (a - c).square().sum(1) + epsilon
        return d2 if self.kind == SQUARED_DISTANCE else _root(d2)

    def dense(self, a: Tensor, c: Tensor, epsilon: float) -> Tensor:
        """[M, N] differentiable, the whole matrix at once."""
        given_a, given_c = a, c
        if self.normalized:
            a, c = a if self.raw_anchors else unit(a), unit(c)
        elif self.clipped:
            a, c = _in_ball(a), _in_ball(c)
        if self.kind == PRODUCT:
            return a @ c.t()
        s = products(a, c)
        squares = [x.square().sum(1) for x in (a, c)]
        if self.normalized:
            # Exactly 1, or 0 for no direction, as in `square`. (Their derivative lies along x: it is 0.)
            squares = [(q > 0.5).to(q.dtype) for q in squares]
        elif self.clipped:
            long = [torch.linalg.vector_norm(x, dim=1) > 1 for x in (given_a, given_c)]
            squares = [q.masked_fill(m, 1.0) for q, m in zip(squares, long)]
        total = squares[0][:, None] + squares[1]
        d2 = total - 2 * s
        d2 = torch.where(d2 < _tiny(s.dtype) * total, torch.zeros_like(d2), d2) + epsilon
        if self.kind == SQUARED_DISTANCE:
            return d2
        return _root(d2)


def products(a: Tensor, c: Tensor) -> Tensor:
    """[M, N] products of the rows of a and c, from which the reference makes distances."""
    return a @ c.t()


def unit(x: Tensor) -> Tensor:
    """x [rows, D] at length 1, differentiable; 0 where it has no direction. NaN stays."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    safe = torch.where(norm <= EPSILON, torch.ones_like(norm), norm)
    return torch.where(norm <= EPSILON, torch.zeros_like(x), x / safe)


def _root(d2: Tensor) -> Tensor:
    """The root, whose derivative at 0 is taken to be 0. NaN stays."""
    safe = torch.where(d2 <= 0, torch.ones_like(d2), d2)
    return torch.where(d2 <= 0, torch.zeros_like(d2), safe.sqrt())


def _in_ball(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    # On the sphere itself nothing is normalised, and nothing along x is taken out of the gradient.
    outside = norm > 1
    return torch.where(outside, x / torch.where(outside, norm, torch.ones_like(norm)), x)


def _compiled_takes(gradient: Tensor, x: Tensor) -> bool:
    """Whether remove_radial_ of the compiled library does: on the CPU matrices of one type stored alike,
    on CUDA matrices stored by rows, x of any type."""
    if not library.runs_on(gradient.device.type):
        return False
    if gradient.device.type == "cpu":
        return gradient.stride() == x.stride() and gradient.dtype == x.dtype
    return gradient.is_contiguous() and (x.shape[1] <= 1 or x.stride(1) == 1)


def _slices(x: Tensor) -> list[slice]:
    """Rows in pieces of a megabyte, so that temporaries stay small; of 32 on an accelerator, where many
    small calls cost more."""
    size = 1 << 18 if x.device.type == "cpu" else 1 << 23
    step = max(1, size // max(1, x.shape[1]))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


def _subtract_scaled_(gradient: Tensor, x: Tensor, factor: Tensor) -> None:
    for rows in _slices(x):
        gradient[rows] -= factor[rows, None] * x[rows].to(gradient.dtype)


SIMILARITIES: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("cosine", PRODUCT, True),
        Metric("dot", PRODUCT, False),
        Metric("projection", PRODUCT, True, raw_anchors=True),
        Metric("distance", DISTANCE, True),
        Metric("squared_distance", SQUARED_DISTANCE, True),
        Metric("raw_distance", DISTANCE, False),
        Metric("raw_squared_distance", SQUARED_DISTANCE, False),
        Metric("ball_distance", DISTANCE, False, clipped=True),
    )
}
