"""Processes that are started once, as several numbers of ranks one after another, and run every check.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
Wanted = Sequence[tuple[int, Sequence[str]]]  # numbers of ranks, and the modules of checks that these run


def run(wanted: Wanted, folder: Path, timeout: float = 600) -> dict[str, str]:
    """What the ranks found: by "size module check" nothing or what went wrong; by "size" whether these ranks
    have started. Modules are here, or the integrations'."""
    path = os.pathsep.join(map(str, [ROOT, HERE.parent, HERE, HERE.parent / "integrations"]))
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(wanted), str(folder)], capture_output=True, text=True,
        timeout=timeout, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, str] = {}
    for size, _ in wanted:
        for rank in range(size):
            file = folder / str(size) / f"{rank}.json"
            results = {"": (done.stdout + done.stderr)[-3000:] or "ended"}
            if file.exists():
                results = json.loads(file.read_text())
            for name, wrong in results.items():
                key = f"{size} {name}".strip()
                found[key] = found.get(key, "") + (f"rank {rank}: {wrong}\n" if wrong else "")
    if "FASTDML_TIMES" in os.environ:
        (folder / "times").write_text(done.stdout)
    return found


def once(request: Any, factory: Any, name: str, wanted: Wanted) -> dict[str, str]:
    """`run` in a fixture of pytest, by whichever worker is the first to need it. name: of what is run."""
    from filelock import FileLock

    folder = factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # that all workers have
    results = folder / f"{name}.json"
    with FileLock(folder / f"{name}.lock"):
        if not results.exists():
            (folder / name).mkdir()
            results.write_text(json.dumps(run(wanted, folder / name)))
    found: dict[str, str] = json.loads(results.read_text())
    return found


def _main(wanted: Wanted, folder: Path) -> None:
    """Forks after the imports, which take longer than many checks."""
    import torch

    torch.set_num_threads(1)
    for size, names in wanted:
        modules = [importlib.import_module(name) for name in names]
        for module in modules:
            getattr(module, "prepare", lambda: None)()
        (folder / str(size)).mkdir()
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                try:
                    _rank(modules, rank, size, folder / str(size))
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


def _rank(modules: Sequence[object], rank: int, size: int, folder: Path) -> None:
    import torch.distributed as dist

    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=60)
    )
    results, slow = {"": ""}, []
    file = folder / f"{rank}.json"
    for module in modules:
        for check, function in module.CHECKS(size).items():
            start, name = time.process_time(), f"{module.__name__} {check}"
            try:
                function()
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc(limit=-6)
            slow.append((time.process_time() - start, name))
            file.write_text(json.dumps(results))  # the next one may be this process's last
    if rank == 0 and "FASTDML_TIMES" in os.environ:
        total = sum(seconds for seconds, _ in slow)
        longest = (f"{seconds:.2f} {name}" for seconds, name in sorted(slow)[-12:])
        print(f"{size} ranks: {total:.1f} s of a processor each", *longest, sep="\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]), Path(sys.argv[2]))
