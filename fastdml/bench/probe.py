"""One step of one contender in a process of its own: its peak memory, and whether it runs at all.

A contender that exhausts memory or never ends takes only this process with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from . import contenders
from .device import device, is_out_of_memory
from .workload import Workload

_PREFIX = "fastdml-probe "


@dataclasses.dataclass(frozen=True)
class Probe:
    """status: ok, unavailable, out of memory, timed out or failed. peak: bytes beyond the inputs,
    gradients included; extra: without the gradients. seconds: of the one step."""

    status: str
    note: str = ""
    seconds: float = 0.0
    peak: int = -1
    extra: int = -1


def probe(
    name: str, workload: Workload, *, threads: int, memory_limit: int, timeout: float
) -> Probe:
    """Runs a contender in a fresh process within `memory_limit` bytes and `timeout` seconds."""
    request = {
        "name": name,
        "workload": dataclasses.asdict(workload),
        "threads": threads,
        "memory_limit": memory_limit,
    }
    # Freed memory is given back at once (glibc): what making the data left behind would be used again by
    # the step, and not be seen.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(request)],
            capture_output=True,
            text=True,
            timeout=timeout + 60,  # starting and making the data do not count
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Probe("timed out", f"no result within {timeout:.0f} s")
    for line in done.stdout.splitlines():
        if line.startswith(_PREFIX):
            found = Probe(**json.loads(line.removeprefix(_PREFIX)))
            if found.status == "ok" and found.seconds > timeout:
                return dataclasses.replace(found, status="timed out")
            return found
    if done.returncode in (-9, -6, -11):  # killed by the system, or aborted by a failed allocation
        return Probe("out of memory", f"the process ended with signal {-done.returncode}")
    last = done.stderr.strip().splitlines()[-1:] or ["no output"]
    return Probe("failed", last[0][:200])


def run(name: str, workload: Workload, memory_limit: int) -> Probe:
    """What the child does."""
    on = device(workload.device)
    try:
        # Loads code and libraries and starts threads, none of which belongs to the step.
        contenders.make(name, workload.small())()
        step = contenders.make(name, workload)
    except contenders.Unavailable as reason:
        return Probe("unavailable", str(reason))
    except ValueError as error:
        return Probe("unavailable", str(error))
    on.limit(memory_limit)
    try:
        with on.peak() as peak:
            seconds = on.time(step)
    except Exception as error:
        if is_out_of_memory(error):
            return Probe("out of memory", f"within {memory_limit / 2**30:.1f} GiB")
        return Probe("failed", f"{type(error).__name__}: {error}"[:200])
    gradients = sum(g.nbytes for g in (x.grad for x in step.leaves.values()) if g is not None)
    return Probe("ok", "", seconds, peak.bytes, max(0, peak.bytes - gradients))


def _child(text: str) -> None:
    request = json.loads(text)
    torch.set_num_threads(request["threads"])
    fields = request["workload"]
    fields["options"] = tuple(tuple(pair) for pair in fields["options"])
    found = run(request["name"], Workload(**fields), request["memory_limit"])
    print(_PREFIX + json.dumps(dataclasses.asdict(found)), flush=True)


if __name__ == "__main__":
    _child(sys.argv[1])
