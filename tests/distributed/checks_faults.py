"""What goes wrong on one rank is an error that names it on all, in time."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from fastdml.distributed import RankError, wrap
from fastdml.losses import ArcFaceLoss, SupConLoss
from fastdml.wrappers import CrossBatchMemory

BAD = 1  # the rank that is


def batch(rows: int = 6, dim: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, dim, dtype=dtype, requires_grad=True), torch.arange(rows) // 2


def expect(words: str, function: Callable[[], object], rank: int | None = BAD) -> None:
    try:
        function()
    except RankError as error:
        assert error.rank == rank and f"rank {rank}" in str(error) and words in str(error), error
    except ValueError as error:
        assert rank is None and words in str(error), error
    else:
        raise AssertionError(f"no error: {words}")


def bad() -> bool:
    return dist.get_rank() == BAD


def other_shapes() -> None:
    loss = wrap(SupConLoss())
    expect("[rows, 5]", lambda: loss(*batch(dim=5 if bad() else 4)))
    expect("float64", lambda: loss(*batch(dtype=torch.float64 if bad() else torch.float32)))
    expect("expected 6 rows", lambda: loss(batch()[0], batch(3 if bad() else 6)[1]))
    expect("recorded", lambda: _maybe_without_grad(loss))
    x, y = batch()
    expect("with a gradient", lambda: loss(x.detach() if bad() else x, y))
    expect("the same arguments", lambda: loss(x, y, None, *((x.detach(), y) if bad() else ())))
    expect("expected a tensor", lambda: loss("embeddings" if bad() else x, y))
    expect("unexpected", lambda: loss(x, y, **({"unexpected": 1} if bad() else {})))
    # None of that has left anything behind.
    loss(x, y).backward()
    assert bool(x.grad.isfinite().all())


def _maybe_without_grad(loss: torch.nn.Module) -> Tensor:
    with torch.set_grad_enabled(not bad()):
        return loss(*batch())


def values_that_no_loss_takes() -> None:
    """The batch is everybody's, and so is what is wrong with it."""
    x, y = batch()
    expect("labels", lambda: wrap(ArcFaceLoss(3, 4))(x, y + (9 if bad() else 0)), None)
    assert float(wrap(SupConLoss())(x[:0], y[:0])) == 0
    value = wrap(SupConLoss())(torch.where(torch.tensor(bad()), torch.nan, x), y)
    assert bool(value.isnan())


def an_empty_rank_with_a_memory() -> None:
    memory = CrossBatchMemory(wrap(SupConLoss()), 4, 16)
    rows = 0 if bad() else 6
    for _ in range(2):
        x, y = batch(rows)
        memory(x, y).backward()
        assert x.grad is not None and x.grad.shape == x.shape
    assert int(memory.filled) == 2 * rows


def takes_no_part() -> None:
    group = dist.new_group(timeout=datetime.timedelta(seconds=2))
    if bad():
        time.sleep(9)
        return
    start = time.monotonic()
    expect("did not take part", lambda: wrap(SupConLoss(), group)(*batch()))
    assert time.monotonic() - start < 8


def dies() -> None:
    loss = wrap(SupConLoss())
    x, y = batch()
    value = loss(x, y)  # now ranks know each other's processes
    if bad():
        os._exit(1)
    start = time.monotonic()
    expect("has ended", value.backward)
    assert time.monotonic() - start < 20


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    return {
        "other shapes": other_shapes,
        "values": values_that_no_loss_takes,
        "an empty rank with a memory": an_empty_rank_with_a_memory,
        "takes no part": takes_no_part,
        "dies": dies,
    }
