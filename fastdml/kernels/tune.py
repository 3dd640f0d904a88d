"""Opt-in autotuning: times tile sizes on the device and keeps the quickest.

FASTDML_TRITON_AUTOTUNE=1 times every new kernel, loss, type and dimension once in a process, at the
first call that meets it; any other value is the path of a JSON file that keeps what was found, for later
processes to read. The first calls wait for the device (not while a CUDA graph is captured: then nothing
is timed). Without the variable sizes are fixed: those in `measured.json` beside this file, where a GPU
has measured them, else the rules of configs.py. Both files have the same form: from "architecture/
Triton version/type/dimension/kernel/loss", and what else calls of a loss differ in, to the sizes.

The order of sums depends on the sizes, so the last bits of a result do as well.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .configs import Config, triton_version

VARIABLE = "FASTDML_TRITON_AUTOTUNE"
MEASURED = Path(__file__).with_name("measured.json")
_found: dict[str, Config] = {}


def key(kernel: str, loss: str, arch: int, dtype: torch.dtype, d: int, **sizes: object) -> str:
    """sizes: what else they depend on, as far as it is not 0 or False."""
    version = ".".join(map(str, triton_version()[:2]))
    further = (f"{name}={value}" for name, value in sizes.items() if value)
    return "/".join((f"sm_{arch}", version, str(dtype)[6:], str(d), kernel, loss, *further))


def choose(name: str, fixed: Config, run: Callable[[Config], object]) -> Config:
    """The sizes for a kernel. run: launches it with given sizes."""
    asked = os.environ.get(VARIABLE, "0")
    known = _load(MEASURED).get(name, fixed)
    if asked in ("", "0"):
        return known
    path = None if asked == "1" else Path(asked)
    found = _found.get(name) or (path and _load(path).get(name))
    if found:
        return found
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return known
    times = {config: seconds(run, config) for config in candidates(known)}
    best = min(times, key=lambda config: times[config])
    _found[name] = best
    if path is not None:
        _save(path)
    return best


def candidates(fixed: Config) -> Iterator[Config]:
    """The sizes worth timing; the fixed ones first, which win a tie."""
    seen = set()
    for stay, stream in ((0, 0), (128, 64), (128, 32), (128, 128), (64, 64), (64, 32), (64, 128)):
        for warps in (fixed.warps, 12 - fixed.warps):
            for stages in (fixed.stages, 2, 3, 4):
                one = dataclasses.replace(
                    fixed,
                    stay=stay or fixed.stay,
                    stream=stream or fixed.stream,
                    warps=warps,
                    stages=stages,
                )
                if one not in seen:
                    seen.add(one)
                    yield one


def seconds(run: Callable[[Config], object], config: Config) -> float:
    """The quickest of a few runs; infinite where the sizes do not fit the device."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        run(config)  # compiles
    except (CompilationError, OutOfResources, PTXASError):
        return float("inf")
    except RuntimeError as error:  # of a pass of the compiler, which has no type of its own
        if "PassManager::run failed" not in str(error):
            raise
        return float("inf")
    best = float("inf")
    for _ in range(5):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(config)
        stop.record()
        stop.synchronize()
        best = min(best, start.elapsed_time(stop) / 1e3)
    return best


@functools.lru_cache(maxsize=8)
def _load(path: Path) -> dict[str, Config]:
    if not path.exists():
        return {}
    return {name: Config(**sizes) for name, sizes in json.loads(path.read_text()).items()}


def _save(path: Path) -> None:
    found = {**_load.__wrapped__(path), **_found}
    text = json.dumps({name: dataclasses.asdict(c) for name, c in sorted(found.items())}, indent=1)
    # Written beside and moved, so that another process reads the old file or the new one.
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text + "\n")
    beside.replace(path)
