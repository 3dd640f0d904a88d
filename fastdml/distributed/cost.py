"""What a step of a wrapped loss sends and holds, on every rank: formulas, which tests compare with counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..engine import schedule as blocks
from ..engine.call import Call
from ..engine.dispatch import EXECUTORS
from ..engine.loss import RowLoss
from ..engine.problem import Problem
from ..explain import Explanation, of_call
from ..explain import Sizes as Batch
from .arguments import NUMBERS_TOLD
from .ring import refuses, rounds
from .statistics import BYTES

_LABEL = 8
# Of the columns: labels as they come, are told and are used, and their classes' numbers.
_OF_COLUMNS = 3 * _LABEL + 6 * 4
# Of an output of every row, where the loss is made of all: told, and in double precision in `combine`.
_OF_OUTPUTS = 6 * 8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A batch that is shared out evenly. rows: of a rank, padded to those of the largest; bytes: of a number
    of the embeddings; labelled: how many arguments are labels."""

    ranks: int
    rows: int
    dimension: int
    bytes: int = 4
    labelled: int = 1

    @property
    def block(self) -> int:
        """Bytes of a rank's embeddings."""
        return self.rows * self.dimension * self.bytes

    @property
    def wide(self) -> int:
        """Bytes of their derivatives."""
        return self.rows * self.dimension * max(4, self.bytes)


@dataclasses.dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends for one step, forwards and backwards."""

    forward: int
    backward: int


def told(sizes: Sizes) -> int:
    """Of shapes, types and labels, which every rank gets of all others."""
    return (sizes.ranks - 1) * (NUMBERS_TOLD * 8 + sizes.labelled * sizes.rows * _LABEL)


def value(sizes: Sizes, numbers: int = 1) -> int:
    """Of the all-reduce of numbers in double precision: 2 (W - 1) / W of their bytes."""
    return 2 * (sizes.ranks - 1) * 8 * numbers // sizes.ranks


def gathered(sizes: Sizes, loss: RowLoss | None = None) -> Sent:
    """The exchange of "gather": an all-gather of the candidates, a reduce-scatter of their derivatives, and
    the value. Where columns are swept first (loss), an all-gather of the rows and of what the sweep finds
    too; where the value is made of all rows' outputs, an all-gather of these in its place."""
    each = (sizes.ranks - 1) * sizes.block
    forward = told(sizes) + each
    if loss is None:
        return Sent(forward + value(sizes), each)
    if swept := _swept(sizes, loss):
        forward += each + swept
    if loss.combined:
        outputs = (sizes.ranks - 1) * sizes.rows * loss.outputs * max(4, sizes.bytes)
        return Sent(forward + outputs, each)
    return Sent(forward + value(sizes, 2 if loss.counted else 1), each)


def ring(sizes: Sizes, loss: RowLoss) -> Sent:
    """The exchange of "ring": blocks go round once for every sweep; their derivatives go round and home.
    What a sweep of the columns finds is gathered."""
    sweeps = rounds(loss) * (sizes.ranks - 1) * sizes.block
    home = sizes.ranks * sizes.wide if sizes.ranks > 1 else 0
    return Sent(told(sizes) + sweeps + _swept(sizes, loss) + home + value(sizes), 0)


def _swept(sizes: Sizes, loss: RowLoss) -> int:
    """Of what a sweep of the columns finds, where there is one."""
    before = loss.presweep()
    numbers = 0 if before is None else (sizes.ranks - 1) * sizes.rows * before.outputs
    return numbers * max(4, sizes.bytes)


def held(sizes: Sizes, schedule: str, workspace: int) -> int:
    """Bytes of a rank beside its own rows and their gradient, at the most.

    workspace: of blocks of similarities. An exchange holds what it sends a second time (gloo does; NCCL has
    buffers of its own).
    """
    columns = sizes.ranks * sizes.rows * _OF_COLUMNS
    if schedule == "gather":
        # The rows of all ranks and their derivatives, which are sent; both parts of this rank's own.
        everything = sizes.ranks * (sizes.block + 2 * sizes.wide)
        return everything + 2 * sizes.wide + columns + workspace
    # A block that is worked on and one that arrives; derivatives: this rank's rows', and of a block's columns
    # those made, those that arrive and those that leave.
    return 2 * sizes.block + 4 * sizes.wide + columns + workspace


def explained(loss: Any, batch: Batch, backend: str | None, device: torch.device) -> Explanation:
    """What one rank of a wrapped loss runs; batch: of a rank."""
    size = loss.ranks.size
    whole = dataclasses.replace(batch, M=batch.M * size, N=None if batch.N is None else batch.N * size)
    calls = [part for part in whole.calls(loss.loss) if isinstance(part, Call)]
    if not calls:
        raise ValueError(f"loss: {type(loss.loss).__name__} makes no call of the engine for such a batch")
    call = calls[0]
    mine = batch.M if call.anchors.shape[0] == whole.M else -(-call.anchors.shape[0] // size)
    candidates = call.columns
    labels = call.anchor_labels if call.candidate_labels is None else call.candidate_labels
    of_block = loss.schedule == "ring"
    if of_block and (reason := refuses(call.loss)) is not None:
        raise ValueError(f"schedule: {reason}; expected 'gather'")
    seen = -(-candidates.shape[0] // size) if of_block else candidates.shape[0]
    assert call.anchor_labels is not None and labels is not None
    own = 0 if call.candidates is None else None
    bare = call.replace(row_values=None, col_values=None, teacher=(), before=None, own=own)
    share = bare.replace(
        anchors=call.anchors[:mine],
        candidates=candidates[:seen],
        anchor_labels=call.anchor_labels[:mine],
        candidate_labels=labels[:seen],
    )
    found = of_call(share, backend, device)
    executor, problem = EXECUTORS[found.executor], Problem.of(share, device)
    workspace = blocks.block_rows(problem, executor) * seen * executor.bytes_per_pair(problem)  # type: ignore[arg-type, attr-defined]
    plan, name = found.plan, found.executor
    if of_block and not call.loss.additive:
        workspace = min(workspace, 1 << 24) * BYTES // 4
        plan, name = "statistics of rows, merged block by block, in torch", "ring"
    if call.loss.combined:
        workspace += size * mine * call.loss.outputs * _OF_OUTPUTS
    sizes = Sizes(size, batch.M, batch.D, call.anchors.element_size())
    way = f"{loss.schedule} over {size} ranks"
    if of_block:
        way += f", columns {rounds(call.loss)} times round"
    return dataclasses.replace(
        found, executor=name, columns=candidates.shape[0], plan=f"{way}; {plan}",
        memory=held(sizes, loss.schedule, workspace),
    )  # fmt: skip
