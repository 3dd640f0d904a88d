"""Philox4x32-10 in torch: the random numbers of csrc/rows/mining.h, for specifications and miners."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a b; int64 holds no product of 64 bits, so b comes in halves."""
    upper, lower = a * (b >> 16), a * (b & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & _MASK


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Four words (int64 tensors below 2^32) of a counter of four and a key of two such words.

    *Parallel Random Numbers: As Easy as 1, 2, 3*, Salmon et al., SC 2011. The tensors broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a_high, a_low = _multiply(0xD2511F53, c0)
        b_high, b_low = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = b_high ^ c1 ^ k0, b_low, a_high ^ c3 ^ k1, a_low
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def uniforms(
    columns: Tensor, rows: Tensor, draws: int, seed: Tensor, step: Tensor, dtype: torch.dtype
) -> Tensor:
    """[R, N, draws] numbers in (0, 1) of rows [R, 1] and columns [N]; seed, step: below 2^24."""
    zero = torch.zeros((), dtype=torch.int64, device=columns.device)
    found = []
    for block in range(-(-draws // 4)):
        counter = (columns, rows, zero + block, zero)
        found += torch.broadcast_tensors(*philox(counter, (seed, step)))
    if draws == 0:
        return torch.empty(rows.shape[0], columns.shape[0], 0, dtype=dtype, device=columns.device)
    words = torch.stack(found[:draws], dim=-1)
    return ((words >> 9).to(dtype) + 0.5) * 2.0**-23
