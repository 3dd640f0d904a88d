"""Processes that are started once for a number of ranks and then run every check.

`CHECKS(size)` of a module are functions by name, each of which raises where something does not hold. All
ranks run them in one order, and each writes what it found. `prepare()`, if it has one, is called before.
"""

from __future__ import annotations

import datetime
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
    """What `size` ranks found: by the name of a check, nothing or what went wrong. checks: a module here, or
    of the integrations'."""
    path = os.pathsep.join(map(str, [ROOT, HERE.parent, HERE, HERE.parent / "integrations"]))
    done = subprocess.run(
        [sys.executable, __file__, checks, str(size), str(folder)], capture_output=True, text=True,
        timeout=timeout, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, str] = {}
    for rank in range(size):
        file = folder / f"{rank}.json"
        results = {"started": (done.stdout + done.stderr)[-3000:] or "ended"}
        if file.exists():
            results = json.loads(file.read_text())
        for name, wrong in results.items():
            found[name] = found.get(name, "") + (f"rank {rank}: {wrong}\n" if wrong else "")
    return found


def _main(checks: str, size: int, folder: Path) -> None:
    """Forks after the imports, which take longer than the checks."""
    import torch

    torch.set_num_threads(1)
    module = importlib.import_module(checks)
    getattr(module, "prepare", lambda: None)()
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                _rank(module, rank, size, folder)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _rank(module: object, rank: int, size: int, folder: Path) -> None:
    import torch.distributed as dist

    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60)
    )
    results, slow = {"started": ""}, []
    file = folder / f"{rank}.json"
    for name, check in module.CHECKS(size).items():
        start = time.perf_counter()
        try:
            check()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc(limit=-6)
        slow.append((time.perf_counter() - start, name))
        file.write_text(json.dumps(results))  # the next one may be this process's last
    if rank == 0 and "FASTDML_TIMES" in os.environ:
        print(*(f"{seconds:.2f} {name}" for seconds, name in sorted(slow)[-8:]), sep="\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
