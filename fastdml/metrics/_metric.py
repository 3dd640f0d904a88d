"""What :class:`RetrievalMetrics` needs of torchmetrics, for where that is not installed."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Metric(nn.Module):
    """States that are lists of tensors, gathered over ranks before compute and put back after it."""

    def __init__(self) -> None:
        super().__init__()
        self._defaults: dict[str, list] = {}
        self._computed: Any = None
        self._synced = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.update = _counted(cls.update)  # type: ignore[method-assign]
        cls.compute = _synchronised(cls.compute)  # type: ignore[method-assign]

    def add_state(self, name: str, default: list, dist_reduce_fx: str) -> None:
        assert default == [] and dist_reduce_fx == "cat"
        self._defaults[name] = default
        setattr(self, name, [])

    def reset(self) -> None:
        """Forgets everything."""
        self._computed = None
        for name in self._defaults:
            setattr(self, name, [])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Adds a batch and returns the metrics of that batch alone."""
        self.update(*args, **kwargs)
        alone = copy.copy(self)
        for name in self._defaults:
            setattr(alone, name, getattr(self, name)[-1:])
        return type(self).compute.__wrapped__(alone)  # type: ignore[attr-defined]

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def compute(self) -> Any:
        raise NotImplementedError

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        for name in self._defaults:
            setattr(self, name, [fn(t) for t in getattr(self, name)])
        return super()._apply(fn, *args, **kwargs)


def _counted(update: Any) -> Any:
    @functools.wraps(update)
    def counted(self: Metric, *args: Any, **kwargs: Any) -> None:
        self._computed = None
        with torch.no_grad():
            update(self, *args, **kwargs)

    return counted


def _synchronised(compute: Any) -> Any:
    @functools.wraps(compute)
    def synchronised(self: Metric) -> Any:
        if self._computed is None:
            held = {name: getattr(self, name) for name in self._defaults}
            try:
                if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                    for name, tensors in held.items():
                        setattr(self, name, gather(tensors))
                self._computed = compute(self)
            finally:
                for name, tensors in held.items():
                    setattr(self, name, tensors)
        return self._computed

    return synchronised


def gather(tensors: list[Tensor]) -> list[Tensor]:
    """The rows of every rank, in the order of the ranks. Each must hold some, of one width and type."""
    if not tensors:
        raise ValueError("embeddings: expected at least one batch on every rank")
    mine = torch.cat(tensors)
    sizes = [torch.zeros(1, dtype=torch.int64, device=mine.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(mine)], device=mine.device))
    most = max(int(n) for n in sizes)
    padded = mine.new_zeros(most, *mine.shape[1:])
    padded[: len(mine)] = mine
    everyone = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everyone, padded)
    return [rows[: int(n)] for rows, n in zip(everyone, sizes)]
