"""How a pair of embeddings becomes a number, and how its weight goes back.

Embeddings are never normalised in memory: a copy of them would cost as much as the gradient. A block
holds raw products x.y; they are turned into similarities or distances in place on the way in, and
derivatives by those into weights of the products on the way out.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import library
from .recompute import recomputed

# Up to this norm, the smallest normal number of float32, an embedding has no direction: its similarities
# and its gradient are 0.
EPSILON = torch.finfo(torch.float32).tiny
# Squared distances below this share of the squared norms are made again from differences: csrc/cpu/
# differences.h.
NEAR = 1 / 1024
# Numbers of one temporary.
_AT_ONCE = 1 << 18
# A gathered pair costs about as much as so many of a whole matrix of distances.
_MATRIX_PAYS = 8
PRODUCT, SQUARED_DISTANCE, DISTANCE = 0, 1, 2  # csrc/cpu/block.h: Metric


def _tiny(dtype: torch.dtype) -> float:
    """Squared distances from products below this share of the squared norms are rounding: they count as 0."""
    return 4 * torch.finfo(dtype).eps


def _scaled_alike(dtype: torch.dtype) -> float:
    """The same of squared distances from differences of scaled embeddings: the rounding of their scales."""
    return 64 * torch.finfo(dtype).eps ** 2


@dataclasses.dataclass(frozen=True)
class Metric:
    """What the number of a pair is.

    kind: PRODUCT x.y, SQUARED_DISTANCE |x - y|^2 or DISTANCE |x - y|.
    normalized: of x/|x| and y/|y|; an embedding no longer than `EPSILON` is then the zero vector.
    clipped: of x/max(|x|, 1): only embeddings outside the unit ball are brought to its surface.
    raw_anchors: the anchor x is taken as it is all the same.
    from_differences: exact, from differences of numbers in double precision: of labels, for which there is
        no gradient.
    """

    # Whether pairs are no function of products and norms, and torch evaluates them.
    in_torch: ClassVar[bool] = False

    name: str
    kind: int
    normalized: bool
    clipped: bool = False
    raw_anchors: bool = False
    from_differences: bool = False

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
        anchors: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> Tensor:
        """Products to similarities or distances, in place. s [R, N]; vectors [R] and [N].

        anchors, candidates: the embeddings [R, D] and [N, D], on the CPU: distances of near pairs are made
            again from their differences.
        """
        if s.device.type == "cpu" and library.load() is not None:
            torch.ops.fastdml_native.similarities_(
                s, row_scale, col_scale, self.kind, row_square, col_square, epsilon, anchors,
                candidates,
            )  # fmt: skip
            return s
        if row_scale is not None and col_scale is not None:
            s.mul_(row_scale[:, None]).mul_(col_scale)
        if self.kind == PRODUCT:
            return s
        assert row_square is not None and col_square is not None
        total = row_square[:, None] + col_square
        s.mul_(-2).add_(total)
        if anchors is None or candidates is None:
            s.masked_fill_(s < _tiny(s.dtype) * total, 0.0)
        else:
            _from_differences_(s, total, anchors, candidates, row_scale, col_scale)
        s.add_(epsilon)
        return s.sqrt_() if self.kind == DISTANCE else s

    def of_products(
        self,
        product: Tensor,
        row_scale: Tensor | None,
        row_square: Tensor | None,
        col_scale: Tensor | None,
        col_square: Tensor | None,
        epsilon: float,
        sets: tuple[Tensor, Tensor] | None,
        i: Tensor,
        j: Tensor,
    ) -> Tensor:
        """[T] what pairs (i, j) are, from their products and their own scales and squared norms, all [T].

        sets: the embeddings, on the CPU: see `apply_`.
        """
        if row_scale is not None and col_scale is not None:
            product = product * row_scale * col_scale
        if self.kind == PRODUCT:
            return product
        assert row_square is not None and col_square is not None
        total = row_square + col_square
        d2 = total - 2 * product
        if sets is None:
            d2 = d2.masked_fill_(d2 < _tiny(d2.dtype) * total, 0.0)
        else:
            near = (d2 < NEAR * total).nonzero()[:, 0]
            scales = None
            if row_scale is not None and col_scale is not None:
                scales = row_scale[near], col_scale[near]
            d2[near] = _again(total[near], *sets, i[near], j[near], scales)
        d2 = d2 + epsilon
        return d2.sqrt_() if self.kind == DISTANCE else d2

    def weigh_(
        self,
        g: Tensor,
        d: Tensor,
        row_scale: Tensor | None,
        col_scale: Tensor | None,
        epsilon: float = 0.0,
    ) -> Tensor:
        """Derivatives g by the numbers d of apply_ to weights of the products, in place; of a block [R, N],
        or of pairs [T] with their own scales.

        Of two embeddings that coincide there is none: two large shares, left in, would cancel badly where
        something is added to their squared distance.
        """
        if self.kind == SQUARED_DISTANCE:
            g.mul_(-2)
            if epsilon:
                g.masked_fill_(d <= epsilon, 0.0)
        elif self.kind == DISTANCE:
            g.div_(d).neg_().masked_fill_(d <= d.new_full((), epsilon).sqrt(), 0.0)
        if row_scale is not None and col_scale is not None:
            g.mul_(row_scale[:, None] if g.dim() == 2 else row_scale).mul_(col_scale)
        return g

    def finish_(
        self, gradient: Tensor, x: Tensor, scale: Tensor | None, total: Tensor | None
    ) -> None:
        """Turns accumulated products of weights and embeddings into the gradient, in place.

        total: [rows] sums of the weights of a row's pairs (each over the other embedding's scale),
            where `needs_totals`.
        """
        if total is not None:
            if self.clipped and scale is not None:
                # On the sphere the pull along x is taken out below: where x is long, a small rest of a large
                # number, and better not put in.
                total = total.masked_fill(scale < 1, 0.0)
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
        kind = wide_type(a, c)
        a, c = a.to(kind), c.to(kind)
        if self.normalized:
            a, c = a if self.raw_anchors else unit(a), unit(c)
        elif self.clipped:
            a, c = _in_ball(a), _in_ball(c)
        if self.kind == PRODUCT:
            return (a * c).sum(1)
        d2 = (a - c).square().sum(1)
        if self.normalized or self.clipped:
            squares = [x.detach().square().sum(1) for x in (a, c)]
            d2 = d2.masked_fill(d2.detach() < _scaled_alike(kind) * (squares[0] + squares[1]), 0.0)
        d2 = d2 + epsilon
        return d2 if self.kind == SQUARED_DISTANCE else _root(d2)

    def listed(self, a: Tensor, c: Tensor) -> Tensor:
        """[M, K] differentiable: row i of a [M, D] with the K rows of c [M, K, D] that are its own."""
        if self.kind != PRODUCT or self.clipped or self.in_torch:
            each = a[:, None].expand(c.shape[0], c.shape[1], -1)
            found = self.paired(each.reshape(-1, a.shape[1]), c.reshape(-1, c.shape[2]))
            return found.view(c.shape[:2])
        kind = wide_type(a, c)
        a, c = a.to(kind), c.to(kind)
        if self.normalized and not self.raw_anchors:
            a = unit(a)
        with without_autocast(a.device):
            s = torch.bmm(c, a[:, :, None])[:, :, 0]
        if not self.normalized:
            return s
        # The candidates' lengths come in afterwards: K times as many rows are not copied for that.
        norm = lengths(c.reshape(-1, c.shape[2])).view(c.shape[:2])
        none = norm <= EPSILON
        return (s / norm.masked_fill(none, 1.0)).masked_fill(none, 0.0)

    def dense(self, a: Tensor, c: Tensor, epsilon: float) -> Tensor:
        """[M, N] differentiable, the whole matrix at once.

        Distances of near pairs are from differences: in float64 with their derivatives, in float32 with
        those of products, as in every executor.
        """
        if self.normalized:
            a, c = a if self.raw_anchors else unit(a), unit(c)
        elif self.clipped:
            a, c = _in_ball(a), _in_ball(c)
        s = products(a, c)
        if self.kind == PRODUCT:
            return s
        squares = [x.square().sum(1) for x in (a, c)]
        if self.normalized:
            # Exactly 1, or 0 for no direction, as in `square`. (Their derivative lies along x: it is 0.)
            squares = [(q > 0.5).to(q.dtype) for q in squares]
        total = squares[0][:, None] + squares[1]
        d2 = total - 2 * s
        near = d2.detach() < NEAR * total.detach()
        if not _told(near) or near.any():
            follow = d2.dtype == torch.float64
            with torch.set_grad_enabled(follow and torch.is_grad_enabled()):
                exact = _from_rows(d2.detach(), total.detach(), a, c, near)
            if self.normalized or self.clipped:
                # What normalising leaves of a difference of embeddings of one direction.
                alike = exact.detach() < _scaled_alike(s.dtype) * total.detach()
                exact = exact.masked_fill(alike, 0.0)
            if not follow:
                exact = torch.where(exact == 0, exact, exact + (d2 - d2.detach()))
            d2 = torch.where(near, exact, d2)
        d2 = d2 + epsilon
        return d2 if self.kind == SQUARED_DISTANCE else _root(d2)

    def differences(self, a: Tensor, c: Tensor, out: Tensor) -> Tensor:
        """[R, N] distances of numbers a [R, E] and c [N, E], in `out`, by blocks of double precision."""
        step = max(1, _AT_ONCE // max(1, c.shape[0]))
        for start in range(0, a.shape[0], step):
            x = a[start : start + step].double()
            d = _differences(x, c.double())
            out[start : start + step] = d if self.kind == DISTANCE else d.square_()
        return out


def _differences(a: Tensor, c: Tensor) -> Tensor:
    if a.shape[1] == 1:
        return (a - c.t()).abs_()
    return exact_distances(a, c)


def exact_distances(a: Tensor, c: Tensor, p: float = 2.0) -> Tensor:
    """[..., M, N] p-norms of differences of a [..., M, E] and c [..., N, E], in float32 at least.

    Differences first: products lose the small distances of points far from the origin. Torch has them in no
    narrower type on a CPU.
    """
    kind = wide_type(a, c)
    return torch.cdist(a.to(kind), c.to(kind), p, compute_mode="donot_use_mm_for_euclid_dist")


def _from_differences_(
    d2: Tensor,
    total: Tensor,
    a: Tensor,
    c: Tensor,
    row_scale: Tensor | None,
    col_scale: Tensor | None,
) -> None:
    """Squared distances d2 [R, N] from products, where they are near beside the squared norms' sum: from
    differences in double precision. As csrc/cpu/differences.cpp does."""
    rows, columns = (d2 < NEAR * total).nonzero(as_tuple=True)
    scales = None
    if row_scale is not None and col_scale is not None:
        scales = row_scale[rows], col_scale[columns]
    d2[rows, columns] = _again(total[rows, columns], a, c, rows, columns, scales)


def _again(
    total: Tensor, a: Tensor, c: Tensor, i: Tensor, j: Tensor, scales: tuple[Tensor, Tensor] | None
) -> Tensor:
    """[T] squared distances of rows i of a and j of c, from their differences; scales: of the rows."""
    found = torch.empty_like(total)
    size = _rows_at_once(a)
    for start in range(0, i.shape[0], size):
        some = slice(start, start + size)
        x, y = a[i[some]].double(), c[j[some]].double()
        if scales is not None:
            x, y = (z * scale[some, None].double() for z, scale in zip((x, y), scales))
        found[some] = (x - y).square().sum(1).to(total.dtype)
    if scales is not None:
        found.masked_fill_(found < _scaled_alike(total.dtype) * total, 0.0)
    return found


def _from_rows(d2: Tensor, total: Tensor, a: Tensor, c: Tensor, near: Tensor) -> Tensor:
    """[M, N] differentiable: squared distances from differences in double precision, at `near` at least."""
    i, j = near.nonzero(as_tuple=True) if _told(near) else (None, None)
    if i is None or j is None or i.shape[0] > max(_rows_at_once(a), near.numel() // _MATRIX_PAYS):
        return exact_distances(a.double(), c.double()).square().to(d2.dtype)
    return d2.index_put((i, j), _again_followed(total[i, j], a, c, i, j))


def _again_followed(total: Tensor, a: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """`_again` of pairs [T], differentiable; one block's rows exist at a time."""
    size = _rows_at_once(a)
    if i.shape[0] <= size or not torch.is_grad_enabled():
        return _again(total, a, c, i, j, None)
    blocks = zip(total.split(size), i.split(size), j.split(size), strict=True)
    return torch.cat([recomputed(_again, (t, a, c, *pair, None)) for t, *pair in blocks])


def _told(x: Tensor) -> bool:
    """Whether values may be asked for, if need be with a wait: not where there are none, nor in a graph."""
    return not (torch.compiler.is_compiling() or x.is_meta or torch._C._len_torch_dispatch_stack())


def _rows_at_once(x: Tensor) -> int:
    return max(1, _AT_ONCE // max(1, x.shape[1]))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """No narrower type within this than tensors have. (Meta tensors know no autocast.)"""
    known = device.type != "meta"
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()


def products(a: Tensor, c: Tensor) -> Tensor:
    """[M, N] products of the rows of a and c, from which the reference makes similarities and distances; in
    their type, which autocast would narrow."""
    with without_autocast(a.device):
        return a @ c.t()


def unit(x: Tensor, p: float = 2.0) -> Tensor:
    """x [rows, D] over its p-norms, differentiable; 0 where it has no direction. NaN stays."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return unit(x.float(), p).to(x.dtype)
    near_one, exponent = _near_one(x)
    norm = torch.linalg.vector_norm(near_one, p, dim=1, keepdim=True)
    none = norm * power_of_two(exponent, x.dtype) <= EPSILON
    safe = torch.where(none, torch.ones_like(norm), norm)
    return torch.where(none, torch.zeros_like(x), near_one / safe)


def wide_type(*tensors: Tensor) -> torch.dtype:
    """float64 where one is, else float32. (torch promotes no type of 8 bits.)"""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def lengths(x: Tensor) -> Tensor:
    """[rows, 1] lengths of the rows of x [rows, D], differentiable; in float32, or float64 for such rows."""
    x = x.to(wide_type(x))
    near_one, exponent = _near_one(x)
    norm = torch.linalg.vector_norm(near_one, dim=1, keepdim=True)
    return norm * power_of_two(exponent, x.dtype)


def _near_one(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over the powers of two [rows, 1] of their largest values, and the exponents of these: squares of
    long rows overflow, and those of short ones vanish."""
    if x.shape[1] == 0:
        return x, torch.zeros(x.shape[0], 1, dtype=torch.int32, device=x.device)
    most = 1000 if x.dtype == torch.float64 else 120
    exponent = torch.frexp(x.detach().abs().amax(1, keepdim=True)).exponent.clamp(-most, most)
    return x * power_of_two(-exponent, x.dtype), exponent


def _root(d2: Tensor) -> Tensor:
    """The root, whose derivative at 0 is taken to be 0. NaN stays."""
    safe = torch.where(d2 <= 0, torch.ones_like(d2), d2)
    return torch.where(d2 <= 0, torch.zeros_like(d2), safe.sqrt())


def _in_ball(x: Tensor) -> Tensor:
    # On the sphere itself nothing is normalised, and nothing along x is taken out of the gradient.
    return torch.where(torch.linalg.vector_norm(x, dim=1, keepdim=True) > 1, unit(x), x)


def power_of_two(exponent: Tensor, kind: torch.dtype) -> Tensor:
    """2^exponent in float32 or float64, of normal numbers, exactly: by its bits."""
    if kind == torch.float64:
        return (exponent.to(torch.int64) + 1023 << 52).view(kind)
    return (exponent.to(torch.int32) + 127 << 23).view(kind)


def _compiled_takes(gradient: Tensor, x: Tensor) -> bool:
    """Whether remove_radial_ of the compiled library does: on the CPU matrices of one type stored alike,
    on CUDA matrices stored by rows, x of any type."""
    if not library.runs_on(gradient.device):
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

# What a teacher's pairs may be besides.
METRICS: dict[str, Metric] = {
    **SIMILARITIES,
    "label_distance": Metric("label_distance", DISTANCE, False, from_differences=True),
    "label_squared_distance": Metric(
        "label_squared_distance", SQUARED_DISTANCE, False, from_differences=True
    ),
}
