"""What all samplers share: seeds, epochs, ranks, and the state that a killed run resumes from."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.utils.data import Sampler

from ..engine import check
from . import arguments


class EpochSampler(Sampler):
    """A sequence of epochs, each of them a function of the seed and its number alone.

    Every ``iter()`` is the next epoch; :meth:`set_epoch` says which comes next. All ranks walk through
    one and the same sequence of steps and each yields its own share, so that nothing is dealt twice.

    Args:
        seed: an integer from 0 to 2^64 - 1. By default drawn from torch's global generator, so that
            ``torch.manual_seed`` governs it; with several replicas, which have to agree, 0.
        rank: which share of every step this process takes (default 0).
        num_replicas: number of shares (default 1). Neither is taken from ``torch.distributed`` unasked,
            since trainers wrap samplers to the same end.

    Raises:
        ValueError: an argument is out of range.
    """

    # Settings that states of earlier versions lack.
    _younger: frozenset[str] = frozenset()

    def __init__(self, seed: int | None, rank: int | None, num_replicas: int | None) -> None:
        if num_replicas is None:
            if rank is not None:
                raise ValueError(f"num_replicas: expected with rank={rank!r}, got None")
            _warn_of_equal_draws(type(self).__name__)
        self.num_replicas = (
            1 if num_replicas is None else check.whole(num_replicas, "num_replicas", 1)
        )
        if rank is None and self.num_replicas > 1:
            raise ValueError(f"rank: expected with num_replicas={num_replicas}, got None")
        self.rank = 0 if rank is None else check.whole(rank, "rank", 0, self.num_replicas - 1)
        if seed is None:
            seed = 0 if self.num_replicas > 1 else int(torch.randint(2**62, (), device="cpu"))
        self._seed = arguments.seed(seed)
        self._go_to(0, 0)

    @abstractmethod
    def __len__(self) -> int:
        """What one epoch yields on this rank."""

    @abstractmethod
    def _draw(self, epoch: int) -> Iterator[Any]:
        """What this rank yields in an epoch."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What must be the same where a state is loaded for it to mean the same sequence."""

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration a function of ``(seed, epoch)`` alone.

        Where a loaded state stands within this very epoch, the iteration goes on from there.
        """
        epoch = check.whole(epoch, "epoch", 0)
        self._go_to(epoch, self._next[1] if epoch == self._next[0] else 0)

    def _go_to(self, epoch: int, position: int) -> None:
        self._now = self._next = (epoch, position)  # position: what of the epoch has been yielded
        self._begun = epoch
        self._latest: object = None

    def __iter__(self) -> Iterator[Any]:
        # Nothing happens before the first item is asked for: a DataLoader with workers makes two
        # iterators and drops one.
        epoch, done = self._now = self._next
        self._next = (epoch + 1, 0)
        self._begun = epoch
        self._latest = walk = object()
        for position, drawn in enumerate(self._draw(epoch), 1):
            if position <= done:
                continue
            if self._latest is walk:
                self._now = (epoch, position)
            yield drawn
        if self._latest is walk:
            self._now = self._next

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where the sampler stands: the same on all ranks, of plain numbers, ready for ``torch.save``.

        Args:
            consumed: what of the epoch last begun has really been used, in what the sampler yields
                (indices, or batches). By default all that was yielded, which is right for a
                ``DataLoader`` without workers; workers fetch ahead (``prefetch_factor`` batches each),
                and only the training loop knows how far it has come.
        """
        epoch, position = self._now
        if consumed is not None:
            # The sampler may be through with the epoch while the training loop is not.
            epoch, position = self._begun, check.whole(consumed, "consumed", 0, len(self))
        return {
            "seed": self._seed,
            "epoch": epoch,
            "position": position,
            "num_replicas": self.num_replicas,
            "settings": self._settings(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iteration go on from the state, bit for bit.

        Raises:
            ValueError: the state is none, of other settings or other data, or stands within an epoch of
                another number of ranks.
        """
        needed = ("seed", "epoch", "position", "num_replicas", "settings")
        if not isinstance(state, dict) or not all(name in state for name in needed):
            got = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"state: expected what state_dict() returns, got {got}")
        settings = state["settings"]
        if not isinstance(settings, dict):
            raise ValueError(
                f"state: expected settings as state_dict() returns them, got {settings!r}"
            )
        for name, expected in self._settings().items():
            found = settings.get(name, expected if name in self._younger else None)
            if found != expected:
                raise ValueError(
                    f"state: expected one of {name}={expected!r}, as here, got {found!r}"
                )
        if state["position"] and state["num_replicas"] != self.num_replicas:
            raise ValueError(
                f"state: expected one of num_replicas={self.num_replicas}, as here, or one from the "
                f"end of an epoch, got num_replicas={state['num_replicas']} within an epoch"
            )
        # All is looked at before anything changes.
        seed = arguments.seed(state["seed"])
        epoch = check.whole(state["epoch"], "epoch", 0)
        position = check.whole(state["position"], "position", 0, len(self))
        self._seed = seed
        self._go_to(epoch, position)


def _warn_of_equal_draws(name: str) -> None:
    if not distributed.is_available() or not distributed.is_initialized():
        return
    if (size := distributed.get_world_size()) > 1:
        warnings.warn(
            f"{name} without rank= and num_replicas= among {size} processes: where their seeds agree "
            "they draw the same batches. Pass rank=dist.get_rank(), num_replicas=dist.get_world_size(); "
            "or num_replicas=1 where something else deals the draws out.",
            stacklevel=4,
        )
