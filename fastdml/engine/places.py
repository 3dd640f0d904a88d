"""Operators whose results have as many elements as the data says, so that a compiled graph can hold them."""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define("places(Tensor mask) -> Tensor")
_library.define("pairs_within(Tensor labels) -> (Tensor, Tensor)")


def places(mask: Tensor) -> Tensor:
    """int64 indices of the True ones of mask [N], ascending."""
    found: Tensor = torch.ops.fastdml.places(mask)
    return found


def pairs_within(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(i, j) of all unordered pairs of equal labels [B], i before j; O(B + pairs) memory."""
    first, second = torch.ops.fastdml.pairs_within(labels)
    return first, second


def _places(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 0]


def _pairs_within(labels: Tensor) -> tuple[Tensor, Tensor]:
    order = labels.sort(stable=True).indices
    _, counts = labels.unique(return_counts=True)
    start = counts.cumsum(0) - counts
    firsts, seconds = [order[:0]], [order[:0]]
    for size in counts.unique().tolist():
        i, j = torch.triu_indices(size, size, 1, device=labels.device)
        at = start[counts == size, None]
        firsts.append(order[at + i].reshape(-1))
        seconds.append(order[at + j].reshape(-1))
    return torch.cat(firsts), torch.cat(seconds)


def _unknown(like: Tensor, tensors: int) -> tuple[Tensor, ...]:
    size = torch.library.get_ctx().new_dynamic_size()
    return tuple(like.new_empty(size, dtype=torch.int64) for _ in range(tensors))


_library.impl("places", _places, "CompositeExplicitAutograd")
_library.impl("pairs_within", _pairs_within, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::places", lambda mask: _unknown(mask, 1)[0], lib=_library)
torch.library.register_fake("fastdml::pairs_within", lambda labels: _unknown(labels, 2), lib=_library)
