"""Tile sizes: fixed, by kernel, architecture, type and dimension.

The fixed sizes are chosen to compile without spills (benchmarks/results/triton-resources.md has what
was compiled). They have not been timed.
"""

from __future__ import annotations

import dataclasses
import os
import re

import torch

PRECISIONS = ("ieee", "tf32", "tf32x3")
FLOAT32 = "FASTDML_TRITON_FLOAT32"  # variable of the environment; see `precision`
AMPLE = 160 << 10  # bytes of shared memory that tiles of whole embeddings need
MOST_CENTRES = 64  # of a class, which lie in one tile


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a tile: rows that stay, rows that stream past, depth of a product, output columns."""

    stay: int
    stream: int
    depth: int
    output: int
    warps: int
    stages: int

    def narrow(self, centres: int) -> int:
        """Rows that stream past at once where labels are compared. The centres of a class stay together."""
        if centres > 1:
            return self.stream
        return self.stream // 2 if self.stream >= 64 or interpreted() else self.stream

    def holding(self, centres: int) -> Config:
        """As wide on either side as the centres of a class, padded, which lie in one tile."""
        least = padded(centres)
        return dataclasses.replace(
            self, stay=max(self.stay, least), stream=max(self.stream, least)
        )


def padded(centres: int) -> int:
    """Places of a class along an axis of tiles."""
    return 1 << (centres - 1).bit_length()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and at least 16, the least a product takes."""
    return max(16, 1 << (max(1, n) - 1).bit_length())


def interpreted() -> bool:
    """Whether Triton runs its CPU interpreter (TRITON_INTERPRET=1)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _family(arch: int) -> int:
    """Whose rules a compute capability follows: the smaller Blackwell makes products in registers too."""
    return 80 if arch < 90 or arch >= 120 else arch


def _depth(width: int, shared: int, most: int = 256) -> int:
    """How much of D is loaded at once: up to `most` all of it, where shared memory is ample."""
    return min(width, most if shared >= AMPLE else 64) if width <= 256 else 64


def statistics_config(
    arch: int, dtype: torch.dtype, d: int, precision: str, heavy: int = 0,
    slots: int = 0, light: bool = False, teacher: bool = False, shared: int = AMPLE,
) -> Config:  # fmt: skip
    """For kernel 1. arch: compute capability, as 90; heavy, light: see TileLoss; slots: of a ListLoss;
    shared: bytes of shared memory that a block may have."""
    arch, width = _family(arch), power_of_two(d)
    if dtype == torch.float32:
        # Three products hold their operands three times over.
        return Config(64, 32 if slots or precision == "tf32x3" else 64, min(width, 32), 0, 8, 2)
    depth = _depth(width, shared, 128 if teacher else 256)  # the teacher's tiles lie beside the others
    if slots and arch < 90:  # products are made in registers, which are full of sums
        return Config(128, 16, depth, 0, 8, 2)
    if light and arch == 90 and not 0 < heavy <= d:  # the widest that has no spills
        stages = 2 if 64 < width <= 256 else 3
        return Config(128, 256 if width <= 128 else 128, depth, 0, 8, stages)
    # Blackwell keeps accumulators outside the registers, and reads a whole tile of them at once.
    # Where D is several chunks, a thread of Hopper holds less of the operands than of one deep chunk.
    full = 0 < heavy <= d and not (arch == 90 and width > 256)
    stream = 32 if full or arch >= 100 or slots else 64
    held = width <= 128 or (arch == 90 and width > 256)
    return Config(128, stream, depth, 0, 8, 3 if held and arch != 80 else 2)


def weights_config(
    arch: int, dtype: torch.dtype, d: int, precision: str, teacher: bool = False, states: int = 0,
    slots: int = 0, wide: bool = False, shared: int = AMPLE,
) -> Config:  # fmt: skip
    """For kernel 2, which also holds the gradient of the rows that stay, and `states` values of each."""
    arch, width = _family(arch), power_of_two(d)
    if dtype == torch.float32:
        depth = min(width, 16 if precision == "ieee" else 32)
        if slots:
            return Config(128, 16, depth, min(width, 32), 8, 2)
        return Config(128, 32, depth, min(width, 64), 8, 2)
    depth = _depth(width, shared)
    output = min(width, 256)
    if slots:  # two weights in the making beside the gradient
        # Eight warps of products made in registers are 128 rows: 64 would all be computed twice.
        return Config(128, 16, depth, min(output, 128), 8, 2)
    if width <= 128:
        # Before Hopper products are made in registers, which many states do not leave room for; nor do those
        # of ranked lists beside distances anywhere.
        if wide and arch == 90:
            return Config(128, 128, depth, output, 8, 2)
        narrow = teacher or arch >= 100 or states > (3 if arch < 90 else 8)
        two = arch == 80 or (arch >= 100 and states > 0)  # these take the registers of a third stage
        return Config(128, 32 if narrow else 64, depth, output, 8, 2 if two else 3)
    # Two chunks of D, and many states beside them.
    stream = 16 if states > 3 and width > 256 else 32
    return Config(128 if arch != 80 else 64, stream, depth, output, 8, 2)


def written_config(
    arch: int, dtype: torch.dtype, d: int, precision: str, teacher: bool = False, states: int = 0,
    slots: int = 0, wide: bool = False, shared: int = AMPLE,
) -> Config:  # fmt: skip
    """For kernel 2 where it writes weights: tiles are as wide as registers allow without a gradient."""
    arch, width = _family(arch), power_of_two(d)
    if dtype == torch.float32:
        depth = min(width, 16 if precision == "ieee" else 32)
        return Config(128, 16 if slots else 32, depth, 16, 8, 2)
    widest = wide and arch == 90
    stream = 16 if slots else 32 if arch >= 100 or teacher else 128 if widest else 64
    depth = 32 if widest and states > 3 else 64  # many states leave no room for addresses of a deep tile
    return Config(128, stream, min(width, depth), 16, 8, 2 if arch == 80 else 3)


def interpreter_config(d: int) -> Config:
    """Small tiles, so that small tests have ragged edges, several chunks of D and several splits."""
    width = power_of_two(d)
    depth = min(width, 32 if d < 512 else 128)
    return Config(32, 16, depth, depth, 4, 1)


def architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shared_memory(device: torch.device) -> int:
    """Bytes of it that a block may have."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", AMPLE))


def triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:3])


def skips_zeros(arch: int) -> bool:
    """Whether tiles of zero weights may be skipped. Triton 3.6 cannot compile the question for Blackwell
    ("parent layout must have at least rank >= 2"), 3.9 can."""
    return arch < 100 or triton_version() >= (3, 9)


def precision(dtype: torch.dtype, forced: str | None = None) -> str:
    """How float32 products are made: "ieee", "tf32", or "tf32x3", three TF32 products for one.

    As torch makes its own on CUDA: TF32 where torch.set_float32_matmul_precision,
    torch.backends.cuda.matmul.allow_tf32 or any level of fp32_precision allows it. Torch has no name for
    "tf32x3", which is nearly as exact as "ieee" and runs on tensor cores: FASTDML_TRITON_FLOAT32 goes
    before torch's setting, and `forced` before both.
    """
    name, asked = "precision", forced
    if asked is None:
        name, asked = FLOAT32, os.environ.get(FLOAT32) or None
    if asked is not None and asked not in PRECISIONS:
        raise ValueError(f"{name}: expected 'ieee', 'tf32' or 'tf32x3', got {asked!r}")
    if dtype != torch.float32:
        return forced or "tf32"  # has no effect on half precision
    if asked is not None:
        return asked
    # What the older functions set shows here too; asking them after the newer setting raises.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def splits(blocks: int, tiles: int, processors: int, bytes_per_split: int) -> int:
    """Into how many parts the streamed side is cut, so that every processor has work.

    A function of sizes only: the order of sums, and so every bit of the result, depends on nothing
    else. At most 256 MiB go to partial results.
    """
    most = max(1, min(tiles, 64, (1 << 28) // max(1, bytes_per_split)))
    best, best_share = 1, 0.0
    for n in range(1, most + 1):
        programs = blocks * n
        share = programs / (-(-programs // processors) * processors)
        if share > best_share + 0.02:
            best, best_share = n, share
        if best_share > 0.9:
            break
    return best
