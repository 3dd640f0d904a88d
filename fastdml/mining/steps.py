"""Steps of streams of draws, which repeat where a forward is computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine import check

_REMEMBERED = 64


def recomputing() -> bool:
    """Whether a forward runs inside a backward pass, as activation checkpointing has it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Steps:
    """The steps of the latest calls, by their labels: a call that is computed again in the backward pass
    must draw what it drew before."""

    def __init__(self) -> None:
        self._taken: dict[tuple[Any, ...], Tensor] = {}

    def take(self, step: Tensor, labels: Tensor) -> Tensor:
        """The number of a call, below 2^24; step, the number of calls, is raised in place by a new one."""
        now = step % check.STREAMS  # a tensor of its own
        if not torch.compiler.is_compiling():
            key = labels.data_ptr(), _version(labels), labels.shape[0]
            if recomputing():
                return self._taken.get(key, now)
            self._taken[key] = now
            while len(self._taken) > _REMEMBERED:
                del self._taken[next(iter(self._taken))]
        step += 1
        return now


def _version(labels: Tensor) -> int:
    return 0 if labels.is_inference() else labels._version
