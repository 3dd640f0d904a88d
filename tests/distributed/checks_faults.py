"""What goes wrong on one rank is an error that names it on all, in time."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from fastdml import losses
from fastdml.distributed import RankError, shard, wrap
from fastdml.losses import ArcFaceLoss, ContrastiveLoss, InfoNCELoss, SupConLoss
from fastdml.miners import MultiSimilarityMiner
from fastdml.wrappers import CrossBatchMemory, Labelled, SelfSupervisedLoss

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


def index_tensors() -> None:
    """They name the rank's own rows, and are as many on all ranks."""
    x, y = batch()
    i = torch.arange(3)
    right, loss = (i, i + 1, i, i + 2), wrap(ContrastiveLoss())
    for words, wrong in (
        ("n in [0, 6)", (i, i + 1, i, i + 6)),
        ("p in [0, 6)", (i, i - 1, i, i + 2)),
        ("a1 and p of equal length", (i, i[:2], i, i + 2)),
        ("a1 to be a 1-D tensor of integers", (i.double(), i + 1, i, i + 2)),
        ("a1 to be a 1-D tensor of integers", ([0], [1], [0], [2])),
        ("of length 2", (i, i + 1)),
        ("indices_tuple of 3 tensors", (i, i + 1, i + 2)),
        ("indices_tuple (a function)", lambda a, c: (a[:, None] == c, a[:, None] != c)),
    ):
        expect(words, lambda wrong=wrong: loss(x, y, wrong if bad() else right))
    mined = wrap(ContrastiveLoss(), miner=MultiSimilarityMiner())
    expect("expected None with a miner", lambda: mined(x, y, *((right,) if bad() else ())))


def own_copies_and_partners() -> None:
    """They stand among the rank's own candidates."""
    x, y = batch()
    partners, index = wrap(InfoNCELoss()), torch.arange(6)
    for words, wrong in (
        ("own: expected indices of ref_emb in [0, 6)", index + 1),
        ("own: expected shape [6]", index[:4]),
        ("ref_emb: expected 9 rows", 3),
        ("own: expected a number", 1.5),
    ):
        expect(words, lambda wrong=wrong: partners(x, x.detach() + 1, own=wrong if bad() else 0))
    loss = wrap(SupConLoss())
    expect("own: expected None", lambda: loss(x, y, own=0 if bad() else None))
    torch.testing.assert_close(loss(x, y, None, x, y, own=index), loss(x, y))


def numbers_of_rows() -> None:
    """Also where too few on one rank and too many on another are as many as there should be."""
    x, y = batch()
    rows = 6 + (0, -1, 1)[dist.get_rank()]
    z, w, index = torch.randn(rows, 4), torch.ones(rows), torch.arange(rows)
    d = x.detach() + 1
    for words, loss, given, named in (
        ("ref_emb", losses.CoSENTLoss(), (z, y.float()), {}),
        ("ref_emb", losses.VICRegLoss(), (), {"ref_emb": z}),
        ("ref_emb", SelfSupervisedLoss(losses.NTXentLoss()), (z,), {}),
        ("more 0", SelfSupervisedLoss(losses.NTXentLoss()), (d, z), {}),
        ("ref_emb", InfoNCELoss(), (z,), {}),
        ("hard_negatives", InfoNCELoss(), (d, z[:, None]), {}),
        ("hard_weights", InfoNCELoss(), (d, d[:, None]), {"hard_weights": w[:, None]}),
        ("ids", InfoNCELoss(), (x,), {"ids": index}),
        ("sample_weights", Labelled(SupConLoss()), (y,), {"sample_weights": w}),
        ("ref_labels", SupConLoss(), (y, None, x, index), {}),
    ):
        expect(f"{words}: expected 6 rows", lambda: wrap(loss)(x, *given, **named))  # noqa: B023


def other_arguments() -> None:
    """What one rank has and others have not, whatever comes after it."""
    x, y = batch()
    loss, d = wrap(InfoNCELoss()), x.detach() + 1
    expect("the same arguments", lambda: loss(x, d, *((d[:, None],) if bad() else ())))
    expect("labels: expected a tensor", lambda: wrap(SupConLoss())(x, y.tolist() if bad() else y))
    classes = shard(lambda n: ArcFaceLoss(n, 4), 3)
    expect("labels: expected a tensor", lambda: classes(x, y.tolist() if bad() else y))


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


def outside_of_the_group() -> None:
    group, (x, y) = dist.new_group([r for r in range(dist.get_world_size()) if r != BAD]), batch()
    loss = wrap(SupConLoss(), group)
    if bad():
        expect("group: expected one that this process is in", lambda: loss(x, y), None)
        expect("group: expected", lambda: shard(lambda n: ArcFaceLoss(n, 4), 3, group), None)
    else:
        assert bool(loss(x, y).isfinite())


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
        "index tensors": index_tensors,
        "own copies and partners": own_copies_and_partners,
        "numbers of rows": numbers_of_rows,
        "other arguments": other_arguments,
        "values": values_that_no_loss_takes,
        "an empty rank with a memory": an_empty_rank_with_a_memory,
        "outside of the group": outside_of_the_group,
        "takes no part": takes_no_part,
        "dies": dies,
    }
