"""The one buffer an executor may use beyond inputs, gradients and a few vectors."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_DEFAULT = {"cpu": 16 << 20, "cuda": 192 << 20}
# On CUDA a block is no larger than serves a purpose: this many rows, so that adding to the candidates'
# gradient costs less memory traffic than its product takes, or what stays in the cache.
_CUDA_ROWS = 1024
_CUDA_CACHE = 32 << 20
# Where fewer rows than these fit the default, that is too small. What such a problem holds besides, class
# numbers and scales of its columns, comes out of the same 44 MiB.
_WIDE = 128
_WIDEST = 44 << 20
_WIDE_COLUMN = 12
_limits = dict(_DEFAULT)


class _Local(threading.local):
    """The buffers of a thread, by name and type."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}


_local = _Local()


def set_workspace(size: int | None, device: str = "cpu") -> None:
    """Bounds the memory in which blocks of similarities are held.

    Args:
        size: bytes, at least 64 KiB; None restores the default (16 MiB on the CPU, 192 MiB on CUDA).
        device: "cpu" or "cuda".

    The default is doubled where fewer than 128 rows would fit (on the CPU, more than 32,768 candidates in
    float32); a size that is set is kept to, but for one row at least.

    Larger blocks cost memory and, beyond the caches, time; smaller ones make the matrix products
    inefficient. Results do not depend on it beyond rounding.

    Raises:
        ValueError: for a size under 64 KiB or an unknown device.
    """
    if not isinstance(device, str) or device not in _DEFAULT:
        raise ValueError(f"device: expected one of {sorted(_DEFAULT)}, got {device!r}")
    if size is not None:
        number = isinstance(size, (int, float)) and not isinstance(size, bool)
        if not number or not 64 << 10 <= size < 1 << 62:
            raise ValueError(f"size: expected at least 65536 bytes, got {size!r}")
    _limits[device] = _DEFAULT[device] if size is None else int(size)
    _local.buffers.clear()


def workspace_limit(
    device_type: str, columns: int = 0, bytes_per_pair: int = 0, revisited: bool = False
) -> int:
    """Bytes an executor may hold on a device, for rows of `columns` pairs.

    revisited: two visits of the matrix share a block: the larger it is, the more that saves.
    """
    limit = _limits.get(device_type, _DEFAULT["cuda"])
    row = columns * bytes_per_pair
    if device_type != "cpu" or limit != _DEFAULT["cpu"]:
        return limit
    if limit >= _WIDE * row:
        return 2 * limit if revisited else limit
    # Every block passes over all candidates and their gradient: with few rows that is all it does.
    return min(_WIDE * row, max(2 * limit, _WIDEST - _WIDE_COLUMN * columns))


def block_limit(
    device_type: str, columns: int, bytes_per_pair: int, revisited: bool = False
) -> int:
    """Bytes a block of rows of `columns` pairs may take; revisited: see `workspace_limit`."""
    limit = workspace_limit(device_type, columns, bytes_per_pair, revisited)
    if device_type == "cpu":
        return limit
    return min(limit, max(_CUDA_ROWS * columns * bytes_per_pair, _CUDA_CACHE))


def rows_within(limit: int, columns: int, bytes_per_pair: int, rows: int, together: int = 1) -> int:
    """Rows of `columns` pairs that fit in `limit` bytes, a multiple of those that go together: at least as
    many, at most `rows`."""
    fit = max(together, limit // max(1, columns * bytes_per_pair))
    if fit >= rows:
        return rows
    # Full blocks of a multiple of 16 rows keep the matrix products on their fast path.
    full = math.lcm(together, 16)
    return fit - fit % (full if fit >= full else together)


def buffer(name: str, count: int, like: Tensor) -> Tensor:
    """`count` uninitialised values of the type of `like`.

    On the CPU the buffer of a thread is kept between calls: a fresh one would be paged in anew every
    step, which costs more than the arithmetic of a small batch. On CUDA torch's allocator keeps it.
    """
    if like.device.type != "cpu":
        return torch.empty(count, dtype=like.dtype, device=like.device)
    key = name, like.dtype
    held = _local.buffers.get(key)
    if held is None or held.numel() < count:
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            held = torch.empty(count, dtype=like.dtype, device="cpu")
        # One odd huge row must not pin its memory for good.
        if count * like.element_size() <= workspace_limit("cpu", revisited=True):
            _local.buffers[key] = held
    return held[:count]
