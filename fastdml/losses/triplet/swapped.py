"""All triplets of a batch whose negatives count from the anchor or from the positive: class by class.

Of a class of k samples the products with all N candidates are made once, [k, N]; an anchor's triplets are
then elementwise maxima of its row with those of its positives. Blocks of classes, anchors and positives are
bounded, and the backward pass makes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...engine import library
from ...engine.autograd import once, refuse_transforms
from ...engine.distances import metric_of
from ...engine.recompute import save, saved
from ...engine.similarity import without_autocast
from ...engine.summed import add_

_AT_ONCE = 1 << 20  # numbers of a temporary
_LOW = -1e30  # of a pair that is none: no excess over any other

_SHAPE = "Tensor x, Tensor y, Tensor labels, Tensor columns, Tensor copy, str similarity, float direction"
_FORM = "float margin, bool smooth"
_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define(f"swapped_triplets({_SHAPE}, {_FORM}) -> (Tensor, Tensor)")
_library.define(f"swapped_triplets_backward(Tensor weight, {_SHAPE}, {_FORM}) -> (Tensor, Tensor)")


def swapped_sums(*arguments: Any) -> tuple[Tensor, Tensor]:
    """([B] sums of every anchor's triplets, [B] how many of them are above 0).

    Arguments: anchors x [B, D] and candidates y [N, D], their labels, the candidates that are the anchors'
    own copies (int64 [B], -1 for none), the similarity, 1 or -1 if that is a distance, the margin, and
    whether the hinge is smooth.
    """
    refuse_transforms()
    loss, active = _Sums.apply(*arguments)
    return loss, active


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *fixed: Any) -> tuple[Tensor, Tensor]:
        loss, active = torch.ops.fastdml.swapped_triplets(x, y, *fixed)
        save(ctx, x, y, *fixed[:3])
        ctx.form = fixed[3:]
        ctx.mark_non_differentiable(active)
        return loss, active

    @staticmethod
    def backward(ctx: Any, weight: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *fixed = saved(ctx)
        with without_autocast(weight.device):
            found = torch.ops.fastdml.swapped_triplets_backward(
                weight.contiguous(), x, y, *fixed, *ctx.form
            )
        return (*once(found, (x, y)), *[None] * 7)


def _forward(
    x: Tensor, y: Tensor, labels: Tensor, columns: Tensor, copy: Tensor,
    similarity: str, direction: float, margin: float, smooth: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    loss, active = x.new_zeros(x.shape[0]), x.new_zeros(x.shape[0])
    dense = metric_of(similarity).dense
    for a, p, every in _blocks(labels, columns, y.shape[0]):
        from_anchor = dense(x[a.flatten()], y, 0.0).mul_(direction).unflatten(0, a.shape)
        from_positive = dense(y[p.flatten()], y, 0.0).mul_(direction).unflatten(0, p.shape)
        near = _near(from_anchor, a, p, copy)
        if _compiled(x, smooth):
            loss[a] += from_anchor.sum(2) * 0  # a NaN that no comparison sees
            _without_class(from_anchor, from_positive, every)
            sums, above = torch.empty_like(near[..., 0]), torch.empty_like(near[..., 0])
            torch.ops.fastdml_native.swapped_sums_(sums, above, from_anchor, from_positive, near, margin)
            loss[a] += sums
            active[a] += above
            continue
        _without_class(from_anchor, from_positive, every)
        for some in _anchors(from_anchor, p.shape[1]):
            excess = torch.maximum(from_anchor[:, some, None], from_positive[:, None])
            excess.sub_((near[:, some] - margin)[..., None])
            at = a[:, some]
            active[at] += (excess > 0).sum((2, 3))
            cost = torch.nn.functional.softplus(excess) if smooth else excess.relu_()
            loss[at] += cost.sum((2, 3))
    return loss, active


def _backward(
    weight: Tensor, x: Tensor, y: Tensor, labels: Tensor, columns: Tensor, copy: Tensor,
    similarity: str, direction: float, margin: float, smooth: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    d_x, d_y = torch.zeros_like(x), torch.zeros_like(y)
    dense = metric_of(similarity).dense
    half = x.new_full((), 0.5)  # of two that are equal, as torch.maximum has it
    for a, p, every in _blocks(labels, columns, y.shape[0]):
        leaves = [t.detach().requires_grad_() for t in (x[a.flatten()], y[p.flatten()], y)]
        with torch.enable_grad():
            found = [dense(leaf, leaves[2], 0.0) for leaf in leaves[:2]]
        from_anchor, from_positive = (
            (f.detach() * direction).unflatten(0, at.shape) for f, at in zip(found, (a, p))
        )
        near = _near(from_anchor, a, p, copy)
        _without_class(from_anchor, from_positive, every)
        d_anchor, d_positive = torch.zeros_like(from_anchor), torch.zeros_like(from_positive)
        if _compiled(x, smooth):
            pull = torch.empty_like(near)
            torch.ops.fastdml_native.swapped_slopes_(
                d_anchor, d_positive, pull, weight[a], from_anchor, from_positive, near, margin
            )
            d_anchor.scatter_add_(2, p[:, None].expand_as(pull), pull)
        for some in () if _compiled(x, smooth) else _anchors(from_anchor, p.shape[1]):
            one, other = from_anchor[:, some, None], from_positive[:, None]
            excess = torch.maximum(one, other).sub_((near[:, some] - margin)[..., None])
            w = excess.sigmoid_() if smooth else (excess > 0).to(excess.dtype)
            w.mul_(weight[a[:, some], None, None])
            of_anchor = torch.heaviside(torch.sub(one, other), half).mul_(w)
            d_anchor[:, some] = of_anchor.sum(2)
            d_positive += w.sub(of_anchor).sum(1)
            pulled = p[:, None].expand(-1, a[:, some].shape[1], -1)
            d_anchor[:, some] = d_anchor[:, some].scatter_add(2, pulled, -w.sum(3))
        upstream = [(d * direction).flatten(0, 1) for d in (d_anchor, d_positive)]
        d_a, d_p, d_c = torch.autograd.grad(found, leaves, upstream)
        add_(d_x, a.flatten(), d_a)
        add_(d_y, p.flatten(), d_p)
        d_y += d_c
    return d_x, d_y


def _compiled(x: Tensor, smooth: bool) -> bool:
    """Whether the compiled library takes the triplets: of a hinge, on the CPU."""
    return not smooth and x.device.type == "cpu" and library.load() is not None


def _blocks(labels: Tensor, columns: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(anchors [U, R], positives [U, P], all candidates [U, K] of their classes) of blocks of U classes."""
    rows, order = labels.argsort(stable=True), columns.argsort(stable=True)
    classes, sizes = labels.unique(return_counts=True)
    first = sizes.cumsum(0) - sizes
    found = columns[order].contiguous()
    start = torch.searchsorted(found, classes)
    kept = torch.searchsorted(found, classes, right=True) - start
    most = max(1, _AT_ONCE // max(1, count))  # rows of products
    for size, others in torch.stack([sizes, kept], 1).unique(dim=0).tolist():
        if others == 0:
            continue
        alike = ((sizes == size) & (kept == others)).nonzero()[:, 0]
        anchors = rows[first[alike, None] + torch.arange(size, device=rows.device)]
        members = order[start[alike, None] + torch.arange(others, device=rows.device)]
        together = max(1, most // max(size, others, size * others))
        for block in range(0, len(alike), together):
            every = members[block : block + together]
            for a in anchors[block : block + together].split(most, dim=1):
                for p in every.split(most, dim=1):
                    yield a, p, every


def _near(from_anchor: Tensor, a: Tensor, p: Tensor, copy: Tensor) -> Tensor:
    """[U, R, P] of the positive pairs; so near that nothing is nearer, of a sample and its own copy."""
    near = from_anchor.gather(2, p[:, None].expand(-1, a.shape[1], -1))
    return near.masked_fill_(copy[a][..., None] == p[:, None], -2 * _LOW)


def _without_class(from_anchor: Tensor, from_positive: Tensor, every: Tensor) -> None:
    for t in (from_anchor, from_positive):
        t.scatter_(2, every[:, None].expand(-1, t.shape[1], -1), _LOW)


def _anchors(from_anchor: Tensor, positives: int) -> Iterator[slice]:
    """Anchors whose triplets are held at once."""
    classes, rows, columns = from_anchor.shape
    size = max(1, _AT_ONCE // (classes * positives * columns))
    for start in range(0, rows, size):
        yield slice(start, start + size)


_library.impl("swapped_triplets", _forward, "CompositeExplicitAutograd")
_library.impl("swapped_triplets_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fastdml::swapped_triplets",
    lambda x, *_: (x.new_empty(x.shape[0]), x.new_empty(x.shape[0])),
    lib=_library,
)
torch.library.register_fake(
    "fastdml::swapped_triplets_backward",
    lambda _, x, y, *fixed: (torch.empty_like(x), torch.empty_like(y)),
    lib=_library,
)
