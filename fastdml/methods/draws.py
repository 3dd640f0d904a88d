"""Random numbers of a method, which its state_dict continues where they stopped."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..engine import check
from ..mining.steps import recomputing


class Draws(nn.Module):
    """A stream of generators, one for every step, each a function of (seed, step) alone.

    A loop that saves a method's `state_dict` in the middle of an epoch goes on with the same draws,
    whatever the global generator did meanwhile; and drawing here moves no other stream.

    Args:
        seed: integer in [0, 2^24).
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = int(check.seed(seed, "seed"))
        self.step = 0

    def next(self, device: torch.device | str) -> torch.Generator:
        """A generator on the device for one step; the stream moves on, in training mode alone.

        RuntimeError where a step is computed again in the backward pass, whose number is not known there.
        """
        if self.training and recomputing():
            raise RuntimeError(
                "draws of a step that is computed again in the backward pass would be others: leave methods "
                "that draw out of activation checkpointing"
            )
        generator = torch.Generator(device)
        generator.manual_seed(_mix((self.seed << 40) + self.step))
        self.step += self.training
        return generator

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed, "step": self.step}

    def set_extra_state(self, state: Any) -> None:
        self.seed, self.step = int(state["seed"]), int(state["step"])


def _mix(x: int) -> int:
    """32 well mixed bits: torch's generator on the CPU looks at no more of a seed (splitmix64)."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return (x ^ (x >> 31)) % 2**32
