"""What a script of pytorch-metric-learning costs with its imports changed: lists of triplets and pairs, a
cross-batch memory with its miner, and what fused miners add to a step.

    python benchmarks/drop_in.py                      all three; minutes
    python benchmarks/drop_in.py --part memory        one of them: lists, memory, miners
    python benchmarks/drop_in.py --largest 100000     lists of at most so many triplets
    python benchmarks/drop_in.py --out FOLDER         where drop-in.csv and drop-in.md go

Contenders take turns in one process; the least of the turns' times is given, and the ratio is that of the two
least. Both must find the same value. Memory is that of a process of its own: the most it held during a step
beyond what it held before, its inputs and lists in memory; what is freed there goes back to the system at
once, so that nothing is held but what is used. A run while others used the machine says so.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from turns import take_turns

from fastdml import losses, miners, set_workspace
from fastdml.bench.device import device
from fastdml.bench.record import environment
from fastdml.wrappers import CrossBatchMemory

LISTS = [
    (rows, dim, count)
    for dim in (128, 512)
    for rows, count in (
        (256, 10**3), (4096, 10**3), (256, 10**4), (1024, 10**4), (256, 10**5), (4096, 10**5),
        (1024, 10**6), (4096, 10**6), (512, 1_800_000), (1024, 10**7), (4096, 10**7),
    )
]  # fmt: skip
KINDS = ("triplet_margin", "triplet_margin_swap", "margin", "contrastive")
FIELDS = ("part", "what", "contender", "seconds", "peak_mib", "value")
Step = Callable[[], float]


def theirs() -> tuple[object, object]:
    from pytorch_metric_learning import losses as their_losses
    from pytorch_metric_learning import miners as their_miners

    return their_losses, their_miners


def list_loss(kind: str, library: str) -> torch.nn.Module:
    from_ = losses if library == "fastdml" else theirs()[0]
    if kind == "margin":
        return from_.MarginLoss()  # type: ignore[attr-defined,no-any-return]
    if kind == "contrastive":
        return from_.ContrastiveLoss()  # type: ignore[attr-defined,no-any-return]
    return from_.TripletMarginLoss(0.2, swap=kind.endswith("swap"))  # type: ignore[attr-defined,no-any-return]


def list_step(kind: str, library: str, rows: int, dim: int, count: int) -> Step:
    """A list in no order but its anchors', as miners return it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=g).requires_grad_()
    y = torch.arange(rows) // 4
    a = torch.randint(rows, (count,), generator=g).sort().values
    p = a // 4 * 4 + torch.randint(4, (count,), generator=g)
    n = torch.randint(rows, (count,), generator=g)
    pairs: tuple[Tensor, ...] = (a, p, n)
    if kind == "contrastive":  # distinct pairs: theirs counts repeats
        if count > rows * rows // 4:
            raise ValueError("no such list")
        at = torch.randperm(rows * rows, generator=g)[:count].sort().values
        some = at // rows // 4 == at % rows // 4
        pairs = (at[some] // rows, at[some] % rows, at[~some] // rows, at[~some] % rows)
        keep = pairs[0] != pairs[1]
        pairs = (pairs[0][keep], pairs[1][keep], *pairs[2:])
    loss = list_loss(kind, library)

    def step() -> float:
        x.grad = None
        value = loss(x, y, pairs)
        value.backward()
        return float(value.item())

    return step


def memory_step(library: str, rows: int = 256, held: int = 65536, dim: int = 128) -> Step:
    """Multi-similarity with its miner against a full memory."""
    g = torch.Generator().manual_seed(0)
    if library == "fastdml":
        memory: torch.nn.Module = CrossBatchMemory(
            losses.MultiSimilarityLoss(), dim, held, miner=miners.MultiSimilarityMiner()
        )
    else:
        of_losses, of_miners = theirs()
        memory = of_losses.CrossBatchMemory(  # type: ignore[attr-defined]
            of_losses.MultiSimilarityLoss(), dim, held, miner=of_miners.MultiSimilarityMiner()  # type: ignore[attr-defined]
        )
        memory.has_been_filled = True
    x = torch.randn(held, dim, generator=g)
    memory.embedding_memory.copy_(torch.nn.functional.normalize(x, dim=1))
    memory.label_memory.copy_(torch.randint(0, held // 4, (held,), generator=g))
    if library == "fastdml":
        memory.filled.fill_(held)
    e = torch.randn(rows, dim, generator=g).requires_grad_()
    y = torch.randint(0, held // 4, (rows,), generator=g)

    def step() -> float:
        e.grad = None
        value = memory(e, y)
        value.backward()
        return float(value.item())

    return step


FUSED = {
    "multi-similarity": (losses.MultiSimilarityLoss, miners.MultiSimilarityMiner),
    "triplet margin, batch-hard": (losses.TripletMarginLoss, miners.BatchHardMiner),
    "triplet margin, easy-hard": (losses.TripletMarginLoss, miners.BatchEasyHardMiner),
    "triplet margin, nearest": (losses.TripletMarginLoss, miners.NearestNegativeMiner),
    "margin, distance-weighted": (losses.MarginLoss, miners.DistanceWeightedMiner),
}


def miner_step(name: str, how: str, rows: int = 4096, dim: int = 128) -> Step:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(rows, dim, generator=g).requires_grad_(), torch.arange(rows) // 4
    loss, miner = (make() for make in FUSED[name])

    def step() -> float:
        x.grad = None
        value = loss(x, y, miner(x, y)) if how == "mined" else loss(x, y)
        value.backward()
        return float(value.item())

    return step


def built(part: str, what: str, contender: str) -> Step:
    if part == "lists":
        kind, rows, dim, count = what.split()
        return list_step(kind, contender, int(rows), int(dim), int(count))
    return memory_step(contender) if part == "memory" else miner_step(what, contender)


def problems(part: str, largest: int) -> list[tuple[str, tuple[str, ...]]]:
    """(what, contenders)."""
    both = ("fastdml", "pytorch-metric-learning")
    if part == "memory":
        return [("256 x 65536, D=128", both)]
    if part == "miners":
        return [(name, ("mined", "all pairs")) for name in FUSED]
    found = []
    for kind in KINDS:
        for rows, dim, count in LISTS:
            short = kind == "triplet_margin" or (dim == 128 and count <= 10**6)
            if count <= largest and short and not (kind == "contrastive" and 4 * count > rows * rows):
                found.append((f"{kind} {rows} {dim} {count}", both))
    return found


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_mib(step: Step) -> float:
    """The most a step holds beyond what was held before it."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    most = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return max(0.0, (most - before) / 2**20)


def memory_of(part: str, what: str, contender: str) -> float:
    command = [sys.executable, __file__, "--one", part, what, contender]
    own_pages = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own_pages)
    return float(done.stdout) if done.returncode == 0 else math.nan


def measured(part: str, what: str, contenders: tuple[str, ...], turns: int) -> list[dict[str, object]]:
    steps = {name: built(part, what, name) for name in contenders}
    values = {name: step() for name, step in steps.items()}
    least = {name: min(times) for name, times in take_turns(steps, turns, budget=20).items()}
    if part != "miners":
        one, other = values.values()
        if abs(one - other) > 1e-4 * abs(other):
            raise SystemExit(f"{what}: the contenders found {one} and {other}")
    del steps
    rows: list[dict[str, object]] = []
    for name in contenders:
        held = memory_of(part, what, name) if part != "miners" else math.nan
        rows.append(dict(zip(FIELDS, (part, what, name, least[name], held, values[name]))))
    return rows


def text(rows: list[dict[str, object]], about: dict[str, object], load: float) -> str:
    head = (__doc__ or "").split("\n\n")[2].strip()
    lines = ["# A script with its imports changed", "", head, ""]
    if load > 0.7 * (os.cpu_count() or 1):
        lines += [f"Preliminary: other work ran on the machine meanwhile (load {load:.1f}).", ""]
    lines += [", ".join(f"{k} {v}" for k, v in about.items() if v not in ("", None)), ""]
    lines += ["| part | what | contender | least time | to the other | own memory |"]
    lines += ["|---|---|---|---:|---:|---:|"]
    for k, row in enumerate(rows):
        other = rows[k + 1 if k % 2 == 0 else k - 1]
        ratio = float(row["seconds"]) / float(other["seconds"])  # type: ignore[arg-type]
        mib = float(row["peak_mib"])  # type: ignore[arg-type]
        held = "" if math.isnan(mib) else f"{mib:.1f} MiB"
        cells = (row["part"], row["what"], row["contender"], f"{float(row['seconds']) * 1e3:.1f} ms")  # type: ignore[arg-type]
        lines.append(f"| {' | '.join(map(str, cells))} | {ratio:.2f} | {held} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--part", choices=["lists", "memory", "miners"], action="append")
    arguments.add_argument("--largest", type=int, default=10**7)
    arguments.add_argument("--turns", type=int, default=7)
    arguments.add_argument("--out", type=Path, default=Path("bench-output"))
    arguments.add_argument("--one", nargs=3, metavar=("PART", "WHAT", "CONTENDER"))
    options = arguments.parse_args()
    if options.one is not None:
        step = built(*options.one)
        if options.one[0] == "lists":  # pages of code are no memory of a step; what is kept between steps is
            step()
            set_workspace(None)
        print(peak_mib(step))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    load = 0.0
    about = environment(device("cpu"))
    for part in options.part or ("lists", "memory", "miners"):
        for what, contenders in problems(part, options.largest):
            load = max(load, os.getloadavg()[0] - torch.get_num_threads())
            rows += measured(part, what, contenders, options.turns)
            print(*rows[-2:], sep="\n", flush=True)
            with (options.out / "drop-in.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            (options.out / "drop-in.md").write_text(text(rows, about, load))


if __name__ == "__main__":
    main()
