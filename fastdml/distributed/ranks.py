"""The processes that share a batch, and what they send each other: one place for all transport."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Seconds in which whoever lives has noticed that somebody does not, or that nobody comes.
_ROLL_CALL = 3.0


class RankError(RuntimeError):
    """Something is wrong with one rank; the message says which. rank: its number, -1 if nobody knows."""

    def __init__(self, message: str, rank: int = -1) -> None:
        super().__init__(message)
        self.rank = rank


class Ranks:
    """The processes of a group; one process alone where torch.distributed is not initialised.

    group: of torch.distributed; None: all processes. Whatever fails in transport is a `RankError`.
    """

    def __init__(self, group: Any = None) -> None:
        if group is not None and not _is_group(group):
            raise ValueError(f"group: expected a process group of torch.distributed or None, got {group!r}")
        self.group = group
        # Where each rank runs, as the last header told: (host, process) of each.
        self._places: list[tuple[int, int]] = []
        self._calls = 0  # roll calls

    @property
    def several(self) -> bool:
        return dist.is_available() and dist.is_initialized()

    @property
    def size(self) -> int:
        found = dist.get_world_size(self.group) if self.several else 1
        if found < 1:
            raise ValueError("group: expected one that this process is in")
        return found

    @property
    def rank(self) -> int:
        """This process's, in the group."""
        return dist.get_rank(self.group) if self.several else 0

    def __getstate__(self) -> dict[str, Any]:
        if self.group is not None:
            raise TypeError("a process group cannot be pickled; wrap the loss with group=None for that")
        return self.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return Ranks(self.group)  # a group is of the process, and a copy of a model is in the same ones

    # Collectives. Every rank calls the same ones in the same order.

    def headers(self, own: Sequence[int], device: torch.device) -> list[list[int]]:
        """int64 numbers of every rank, equally many."""
        mine = torch.tensor([*self._identity(), *own], dtype=torch.int64, device=device)
        found = self.equal(mine).tolist()
        self._places = [(row[0], row[1]) for row in found]
        return [row[2:] for row in found]

    def equal(self, x: Tensor) -> Tensor:
        """[ranks, ...] of x of one shape on all ranks."""
        if self.size == 1:
            return x[None]
        flat = _bytes(x)
        found = flat.new_empty(self.size * flat.numel())
        with self._watched():
            _named("all_gather_single", "all_gather_into_tensor")(found, flat, group=self.group)
        return found.view(x.dtype).view(self.size, *x.shape)

    def gather(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """[sum of counts, ...]: the rows of all ranks, of which x [counts[rank], ...] are this one's."""
        if self.size == 1:
            return x.contiguous()
        most = max(counts)
        found = self.equal(_padded(x, most))
        if min(counts) == most:
            return found.flatten(0, 1)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    def scatter(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """[counts[rank], ...]: this rank's rows of the sum over ranks of x [sum of counts, ...]."""
        if self.size == 1:
            return x
        most = max(counts)
        # Partial sums of half precision would lose what single precision keeps.
        kind = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        parts = x.to(kind).contiguous()
        if min(counts) != most:
            parts = torch.cat([_padded(rows, most) for rows in parts.split(list(counts))])
        found = parts.new_empty(most, *x.shape[1:])
        with self._watched():
            _named("reduce_scatter_single", "reduce_scatter_tensor")(found, parts, group=self.group)
        return found[: counts[self.rank]].to(x.dtype)

    def total(self, x: Tensor, operation: str = "sum") -> Tensor:
        """The sum (or "max", "min") over ranks of x, of one shape on all."""
        if self.size == 1 or x.numel() == 0:
            return x
        found = x.detach().clone(memory_format=torch.contiguous_format)
        with self._watched():
            dist.all_reduce(found, getattr(dist.ReduceOp, operation.upper()), group=self.group)
        return found

    def texts(self, own: str, device: torch.device) -> list[str]:
        """A text of every rank: what went wrong there."""
        data = own.encode()[:4096]
        mine = torch.zeros(4096, dtype=torch.uint8, device=device)
        mine[: len(data)] = torch.tensor(list(data), dtype=torch.uint8, device=device)
        return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in self.equal(mine).tolist()]

    # Point to point: a ring.

    def pass_on(self, blocks: Sequence[Tensor], rooms: Sequence[Tensor], tag: int = 0) -> list[Any]:
        """Starts sending blocks to the next rank, and receiving as many from the one before into rooms."""
        after, before = (self._global((self.rank + step) % self.size) for step in (1, -1))
        operations = []
        for k, (block, room) in enumerate(zip(blocks, rooms, strict=True)):
            number = 4 * tag + k
            operations.append(dist.P2POp(dist.isend, _bytes(block), after, self.group, number))
            operations.append(dist.P2POp(dist.irecv, _bytes(room), before, self.group, number))
        operations = [o for o in operations if o.tensor.numel()]
        with self._watched():
            return dist.batch_isend_irecv(operations) if operations else []

    def wait(self, works: Sequence[Any]) -> None:
        """Until those are done."""
        with self._watched():
            for work in works:
                work.wait()

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    # Who is missing.

    def _identity(self) -> tuple[int, int]:
        return zlib.crc32(os.uname().nodename.encode()), os.getpid()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except RankError:
            raise
        except RuntimeError as error:
            missing = self._missing()
            text = str(error).strip().split("\n")[0]
            if not missing:
                raise RankError(f"rank {self.rank}: an exchange with the others failed: {text}") from error
            who = ", ".join(f"rank {r}" for r in missing)
            kind = "has ended" if self._ended(missing[0]) else "did not take part"
            raise RankError(f"{who} {kind}, as rank {self.rank} found: {text}", missing[0]) from error

    def _missing(self) -> list[int]:
        """Ranks that have ended or do not answer."""
        others = [r for r in range(self.size) if r != self.rank]
        self._calls += 1
        until = time.monotonic() + _ROLL_CALL
        answered = {self.rank}
        store = self._store()
        if store is not None:
            with contextlib.suppress(Exception):
                store.set(self._key(self.rank), b"here")
        while time.monotonic() < until:
            ended = [r for r in others if self._ended(r)]
            if ended:
                return ended
            if store is not None:
                with contextlib.suppress(Exception):
                    answered |= {r for r in others if store.check([self._key(r)])}
            if len(answered) == self.size:
                return []
            time.sleep(0.05)
        return [r for r in others if r not in answered]

    def _ended(self, rank: int) -> bool:
        """Whether a rank's process is known to have ended: one of this machine's can be asked for."""
        if rank >= len(self._places):
            return False
        host, process = self._places[rank]
        if host != self._identity()[0]:
            return False
        try:
            with open(f"/proc/{process}/stat", encoding="utf-8") as file:
                return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
        except OSError:
            return os.path.isdir("/proc/self")

    def _key(self, rank: int) -> str:
        name = "all" if self.group is None else str(dist.get_process_group_ranks(self.group))
        return f"fastdml/{name}/{self._calls}/{rank}"

    @staticmethod
    def _store() -> Any:
        try:
            return dist.distributed_c10d._get_default_store()
        except (AttributeError, RuntimeError, ValueError):
            return None


def _is_group(group: object) -> bool:
    """Whether this is a group, or what `new_group` gives a process that is not in it."""
    if not dist.is_available():
        return False
    return isinstance(group, dist.ProcessGroup) or group == dist.GroupMember.NON_GROUP_MEMBER


def _named(now: str, before: str, of: Any = None) -> Any:
    """A collective by the name that this version of torch has for it."""
    of = of or dist
    return getattr(of, now, None) or getattr(of, before)


def _bytes(x: Tensor) -> Tensor:
    """The memory of x, in which every backend moves every type."""
    return x.detach().contiguous().flatten().view(torch.uint8)


def _padded(x: Tensor, rows: int) -> Tensor:
    if x.shape[0] == rows:
        return x
    return torch.cat([x, x.new_zeros(rows - x.shape[0], *x.shape[1:])])
