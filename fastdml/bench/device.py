"""All that differs between processors: timing, peak memory, memory limits, names."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


class Peak:
    """Peak of memory in use beyond what was in use at the start. bytes: -1 until known."""

    bytes = -1


class Cpu:
    name = "cpu"
    # What a peak means here.
    memory_kind = "resident set of a fresh process"

    def time(self, step: Callable[[], object]) -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def peak(self) -> Iterator[Peak]:
        found = Peak()
        # Writing 5 resets the high-water mark of the resident set (Linux).
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        yield found
        found.bytes = max(0, _status("VmHWM") - before)

    def limit(self, extra: int) -> None:
        """From now on this process gets at most `extra` more bytes."""
        import resource

        total = _status("VmData") + extra
        resource.setrlimit(resource.RLIMIT_DATA, (total, total))

    def describe(self) -> str:
        with contextlib.suppress(OSError):
            found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
            if found:
                return found[1].strip()
        return platform.processor() or platform.machine()

    def available(self) -> int:
        """Bytes that could be used now."""
        found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
        return int(found[1]) * 1024 if found else 4 << 30


class Cuda:
    memory_kind = "torch.cuda allocator"

    def __init__(self, name: str) -> None:
        self.name = name

    def time(self, step: Callable[[], object]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.name)
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize(self.name)
        return start.elapsed_time(stop) * 1e-3

    @contextlib.contextmanager
    def peak(self) -> Iterator[Peak]:
        found = Peak()
        torch.cuda.synchronize(self.name)
        torch.cuda.reset_peak_memory_stats(self.name)
        before = torch.cuda.memory_allocated(self.name)
        yield found
        torch.cuda.synchronize(self.name)
        found.bytes = torch.cuda.max_memory_allocated(self.name) - before

    def limit(self, extra: int) -> None:
        total = torch.cuda.get_device_properties(self.name).total_memory
        share = (torch.cuda.memory_allocated(self.name) + extra) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), self.name)

    def describe(self) -> str:
        return torch.cuda.get_device_name(self.name)

    def available(self) -> int:
        return torch.cuda.mem_get_info(self.name)[0]


Device = Cpu | Cuda


def device(name: str) -> Device:
    """Raises ValueError for a device that is not here."""
    kind = torch.device(name).type
    if kind == "cpu":
        return Cpu()
    if kind == "cuda" and torch.cuda.is_available():
        return Cuda(name)
    raise ValueError(f"--device: expected cpu, or cuda where there is one, got {name!r}")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def machine(on: Device) -> dict[str, Any]:
    """What identifies the machine in a result."""
    ours = hasattr(os, "sched_getaffinity")
    return {
        "cpu": Cpu().describe(),
        "cores": len(os.sched_getaffinity(0)) if ours else os.cpu_count(),
        "gpu": "" if on.name == "cpu" else on.describe(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "",
    }


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024
