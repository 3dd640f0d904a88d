"""Processes that are started once for a number of ranks and then run every check.

A check is a function of the ranks, `check(world)`, that raises where something does not hold. All checks of
a module run in one order on all ranks; each rank writes what it found.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def run(checks: str, size: int, folder: Path, timeout: float = 300) -> dict[str, str]:
    """What `size` ranks found: by the name of a check, nothing or what went wrong. checks: a module here."""
    path = os.pathsep.join([str(ROOT), str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, checks, str(rank), str(size), str(folder)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    until = time.monotonic() + timeout
    said = []
    for process in started:
        try:
            said.append(process.communicate(timeout=max(1, until - time.monotonic()))[0])
        except subprocess.TimeoutExpired:
            process.kill()
            said.append("killed: it took too long\n" + process.communicate()[0])
    found: dict[str, str] = {}
    for rank in range(size):
        file = folder / f"{rank}.json"
        results = json.loads(file.read_text()) if file.exists() else {"started": said[rank][-3000:] or "ended"}
        for name, wrong in results.items():
            found[name] = found.get(name, "") + (f"rank {rank}: {wrong}\n" if wrong else "")
    return found


def _main(checks: str, rank: int, size: int, folder: Path) -> None:
    import datetime

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60)
    )
    results: dict[str, str] = {"started": ""}
    for name, check in importlib.import_module(checks).CHECKS(size).items():
        start = time.perf_counter()
        try:
            check()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc(limit=-6)
        if os.environ.get("FASTDML_TIMES") and rank == 0:
            print(f"{time.perf_counter() - start:6.2f} {name}", flush=True)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
