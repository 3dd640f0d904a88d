"""What a second pass through a network needs to be the first one again: random numbers and buffers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class RandomState:
    """The generators of torch (CPU and the devices given), Python and numpy, as they stand.

    Networks draw from all of them: dropout from torch's, layer-drop and augmentation from any.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._torch = torch.get_rng_state()
        self._devices = {
            device: torch.get_device_module(device).get_rng_state(device) for device in devices
        }
        self._python = random.getstate()
        self._numpy = np.random.get_state()

    def restore(self) -> None:
        torch.set_rng_state(self._torch)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, device)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def generators(tensors: Iterable[Tensor], model: Callable[..., Any]) -> set[torch.device]:
    """Devices whose generator a network may draw from: those of its inputs and parameters."""
    found = {t.device for t in tensors}
    if isinstance(model, nn.Module):
        found |= {p.device for p in model.parameters()}
    return {device for device in found if device.type not in ("cpu", "meta")}


@contextmanager
def random_state_kept(devices: Iterable[torch.device]) -> Iterator[None]:
    """Afterwards all generators are where they were."""
    before = RandomState(devices)
    try:
        yield
    finally:
        before.restore()


class Buffers:
    """Buffers of modules as they stand: running statistics, power iterations, counters; written in place or
    bound anew by a pass, as `self.mean = 0.9 * self.mean + ...` does."""

    def __init__(self) -> None:
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: dict[tuple[int, str], tuple[nn.Module, Tensor | None]] = {}

    def save(self, model: Callable[..., Any]) -> None:
        """Those of one more module; what is there already stays as it was."""
        for module in model.modules() if isinstance(model, nn.Module) else ():
            for name, buffer in module._buffers.items():
                if (id(module), name) in self._places:
                    continue
                self._places[id(module), name] = module, buffer
                if buffer is not None and id(buffer) not in self._saved:
                    self._saved[id(buffer)] = (buffer, buffer.detach().clone())

    def restore(self) -> None:
        for (_, name), (module, buffer) in self._places.items():
            module._buffers[name] = buffer
        for buffer, saved in self._saved.values():
            # .data: most buffers have not changed and may be part of somebody's graph, which a write
            # would make useless; batch-norm writes past autograd too.
            buffer.data.copy_(saved)
