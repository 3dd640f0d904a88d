"""What :class:`RetrievalMetrics` needs of torchmetrics, for where that is not installed, and beyond it."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Kept:
    """Before a metric: where something in its cycle raises, it holds what it held before the call."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Its lists are emptied in place.
        states = {name: copy.copy(getattr(self, name)) for name in self._defaults}  # type: ignore[attr-defined]
        held = {**vars(self), **states}
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        except BaseException:
            vars(self).update(held)
            raise

    @contextlib.contextmanager
    def sync_context(self, **options: Any) -> Iterator[None]:
        """torchmetrics' own would stay synchronised, and refuse whatever comes next."""
        try:
            with super().sync_context(**options):  # type: ignore[misc]
                yield
        except BaseException:
            if self._is_synced:  # type: ignore[attr-defined]
                self.unsync()  # type: ignore[attr-defined]
            raise


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
        held = {name: len(getattr(self, name)) for name in self._defaults}
        self.update(*args, **kwargs)
        alone = copy.copy(self)
        for name, count in held.items():
            setattr(alone, name, getattr(self, name)[count:])
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
                        own = torch.cat(tensors) if tensors else torch.empty(0, device=_device())
                        setattr(self, name, gather(own))
                self._computed = compute(self)
            finally:
                for name, tensors in held.items():
                    setattr(self, name, tensors)
        return self._computed

    return synchronised


# Types, by numbers that are the same on all ranks.
_TYPES = sorted({t for t in vars(torch).values() if isinstance(t, torch.dtype)}, key=str)


def gather(mine: Tensor, group: Any = None) -> list[Tensor]:
    """Rows ``[n, ...]`` of the ranks that hold some, in the order of ranks, or mine if none does.

    Args:
        mine: ``[n]`` or ``[n, D]``. Without rows its other size and its type do not count.

    Raises:
        ValueError: on all ranks, where rows are of several widths or types.
    """
    shape = [mine.dim(), mine.shape[-1] if mine.dim() > 1 else 1, _TYPES.index(mine.dtype)]
    told = torch.tensor([len(mine), *shape], device=mine.device)
    heads = [torch.empty_like(told) for _ in range(dist.get_world_size(group))]
    dist.all_gather(heads, told, group=group)
    found = [head.tolist() for head in heads]
    kinds = {tuple(kind) for n, *kind in found if n}
    if not kinds:
        return [mine]
    if len(kinds) > 1:
        each = ", ".join(f"{_TYPES[t]} [N, {d}]" for _, d, t in sorted(kinds))
        raise ValueError(f"embeddings: expected one width and type on all ranks, got {each}")
    dims, width, kind = kinds.pop()
    most = max(n for n, *_ in found)
    padded = mine.new_zeros((most, width)[:dims], dtype=_TYPES[kind])
    padded[: len(mine)] = mine if len(mine) else padded[:0]
    everyone = [torch.empty_like(padded) for _ in found]
    dist.all_gather(everyone, padded, group=group)
    return [rows[:n] for rows, (n, *_) in zip(everyone, found) if n]


def _device() -> torch.device:
    """Where a rank without rows takes part in an exchange."""
    nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
