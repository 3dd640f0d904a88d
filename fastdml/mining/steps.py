"""Steps of streams of draws, which repeat where a forward is computed again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..engine import check

_REMEMBERED = 4096


def recomputing() -> bool:
    """Whether a forward runs inside a backward pass, as activation checkpointing has it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _of_random_state() -> int:
    """A number drawn from torch's generator, whoever watches operators."""
    if torch._C._len_torch_dispatch_stack():
        with _disable_current_modes():
            return int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


class Steps:
    """The steps of the latest calls, which one that is computed again in the backward pass must find.

    Checkpointing restores torch's random state before it computes again; so every call draws a number from
    that, which is the same then, and belongs to no other call. (Labels would not do: two calls may have the
    same ones, or one call makes them anew.)
    """

    def __init__(self) -> None:
        self._taken: dict[int, Tensor] = {}

    def take(self, step: Tensor) -> Tensor:
        """The number of a call, below 2^24; step, the number of calls, is raised in place by a new one.

        RuntimeError where a call is computed again whose number was forgotten.
        """
        now = step % check.STREAMS  # a tensor of its own
        if not torch.compiler.is_compiling():
            drawn = _of_random_state()
            if recomputing():
                found = self._taken.get(drawn)
                if found is None:
                    raise RuntimeError(
                        "draws of a call that is computed again in the backward pass were not found: "
                        "activation checkpointing needs preserve_rng_state=True, its default, and at most "
                        f"{_REMEMBERED:,} calls of a loss may wait for their backward pass"
                    )
                return found
            self._taken[drawn] = now
            while len(self._taken) > _REMEMBERED:
                del self._taken[next(iter(self._taken))]
        step += 1
        return now
