"""What a rank holds at a batch of 65,536 over 4 ranks, against what `fastdml.explain` says."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

import fastdml
from fastdml import losses
from fastdml.distributed import wrap

ROWS, DIM = 65536, 32


def resident(key: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))


def peak(loss: nn.Module, schedule: str) -> None:
    mine = ROWS // dist.get_world_size()
    together = wrap(loss, schedule=schedule)
    predicted = fastdml.explain(together, mine, D=DIM, per_class=4).memory
    x = torch.randn(mine, DIM, requires_grad=True)
    y = torch.arange(mine) // 4 + (dist.get_rank() << 20)
    if isinstance(loss, losses.SigLIPLoss):
        y = torch.randn(mine, DIM)
    together(x[:64], y[:64]).backward()  # what is made once
    x.grad = torch.zeros_like(x)
    fastdml.set_workspace(None)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = resident("VmRSS")
    together(x, y).backward()
    found = resident("VmHWM") - before
    told = f"{type(loss).__name__} {schedule}: {found >> 20} MiB, {predicted >> 20} predicted"
    if dist.get_rank() == 0 and "FASTDML_TIMES" in os.environ:
        print(told, flush=True)
    assert predicted / 2 < found < 1.2 * predicted, told


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    return {
        "gather": functools.partial(peak, losses.MultiSimilarityLoss(), "gather"),
        "ring": functools.partial(peak, losses.SigLIPLoss(), "ring"),
    }
