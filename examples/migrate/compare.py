"""Runs the three scripts under both libraries with three seeds, in turn, and writes README.md beside itself.

python examples/migrate/compare.py
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from fastdml.bench.device import device
from fastdml.bench.record import environment

HERE = Path(__file__).resolve().parent
SCRIPTS = ("pair_and_miner", "proxies", "memory_and_views")
LIBRARIES = {"fastdml": "fastdml", "pml": "pytorch-metric-learning"}
SEEDS = (0, 1, 2)

TEXT = """# Scripts whose imports change

Three scripts as users of pytorch-metric-learning write them; the imports at their top are all that differs.
They train a small network on the icons of the demonstration and score classes never trained on, turned and
moved.

| script | what it does |
|---|---|
| [pair_and_miner.py](pair_and_miner.py) | multi-similarity with its miner, four samples a class |
| [proxies.py](proxies.py) | Proxy-Anchor, whose proxies have an optimiser of their own |
| [memory_and_views.py](memory_and_views.py) | a memory with its miner, and NT-Xent of two views |

```console
$ python examples/migrate/pair_and_miner.py
$ LIBRARY=pml python examples/migrate/pair_and_miner.py
$ python examples/migrate/compare.py          # the table
```

"""


def run(script, library, seed):
    environment = {**os.environ, "LIBRARY": library}
    command = [sys.executable, str(HERE / f"{script}.py"), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    found = {(s, k): [] for s in SCRIPTS for k in LIBRARIES}
    load = 0.0
    for seed in SEEDS:  # in turn: what disturbs the machine disturbs both
        for script in SCRIPTS:
            for library in LIBRARIES:
                found[script, library].append(run(script, library, seed))
                load = max(load, os.getloadavg()[0])
                print(script, library, seed, found[script, library][-1], flush=True)
    lines = ["| script | library | Recall@1 of three seeds | mean | training, s | of it the losses, s |"]
    lines += ["|---|---|---|---:|---:|---:|"]
    for (script, library), runs in found.items():
        scores = [100 * r["recall@1"] for r in runs]
        least = {k: min(r[k] for r in runs) for k in ("seconds", "loss_seconds")}
        each = ", ".join(f"{s:.1f}" for s in scores)
        lines.append(
            f"| {script} | {LIBRARIES[library]} | {each} | {statistics.mean(scores):.1f} | "
            f"{least['seconds']:.1f} | {least['loss_seconds']:.1f} |"
        )
    about = environment(device("cpu"))
    notes = [f"Seconds are the least of the seeds'. {', '.join(f'{k} {v}' for k, v in about.items() if v)}."]
    if load > 1.5 * (os.cpu_count() or 1):
        notes.append(f"Times are preliminary: other work ran on the machine meanwhile (load {load:.0f}).")
    (HERE / "README.md").write_text(TEXT + "\n".join([*lines, "", *notes]) + "\n")


if __name__ == "__main__":
    main()
