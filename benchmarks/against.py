r"""A step of this tree beside a step of another one (an older checkout, built), in turn.

    python benchmarks/against.py OTHER_TREE [--size 4096] [--dim 128] [--per-class 4] [--threads 2] \
        [--rounds 15] [--forward] [--out DIR]

Each tree has a process of its own that is told when to run, so both meet the same machine. What it frees it
keeps: whether pages go back to the system between steps is luck, and can take as long as a step itself.
The median over rounds of this tree's time over the other's, with the 20th and 80th percentile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from turns import KEPT

ROOT = Path(__file__).resolve().parent.parent

# Losses by the names that both trees have, and their arguments.
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "multi-similarity": ("MultiSimilarityLoss", {}),
    "multi-similarity, mined": ("MultiSimilarityLoss", {"epsilon": 0.1}),
    "contrastive": ("ContrastiveLoss", {}),
    "SupCon": ("SupConLoss", {}),
    "NT-Xent": ("NTXentLoss", {}),
    "circle": ("CircleLoss", {}),
    "binomial deviance": ("BinomialDevianceLoss", {}),
    "lifted structure": ("LiftedStructureLoss", {}),
    "triplets": ("TripletMarginLoss", {}),
    "Proxy-Anchor": ("ProxyAnchorLoss", {"num_classes": 1000, "embedding_size": 0}),
    "SoftTriple": ("SoftTripleLoss", {"num_classes": 1000, "embedding_size": 0}),
    "ArcFace": ("ArcFaceLoss", {"num_classes": 1000, "embedding_size": 0}),
    "Smooth-AP": ("SmoothAPLoss", {}),
    "SupAP": ("SupAPLoss", {}),
    "FastAP": ("FastAPLoss", {}),
    "Recall@k": ("RecallAtKLoss", {}),
    "PNP": ("PNPLoss", {}),
    "AUC, logistic": ("AUCLoss", {"kind": "logistic"}),
}

# Run in the tree's own process: a line of JSON asks for a step, its milliseconds are the answer.
CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from fastdml import losses
size, dim, per_class, threads, forward = map(int, sys.argv[2:])
torch.set_num_threads(threads)
torch.manual_seed(0)
classes = min(1000, max(1, size // per_class))  # no more than the proxies below
labels = torch.arange(size) // per_class % classes
x = (torch.randn(classes, dim)[labels] + torch.randn(size, dim)).requires_grad_()
made = {}
print("ready", flush=True)
for line in sys.stdin:
    name, options, steps = json.loads(line)
    key = (name, json.dumps(options))
    if key not in made:
        torch.manual_seed(1)
        given = {k: dim if k == "embedding_size" else v for k, v in options.items()}
        made[key] = getattr(losses, name)(**given)
    began = time.perf_counter()
    for _ in range(steps):
        with torch.set_grad_enabled(not forward):
            value = made[key](x, labels)
        if not forward:
            torch.autograd.grad(value, x)
    print(json.dumps([1e3 * (time.perf_counter() - began) / steps, float(value.detach())]), flush=True)
"""


class Tree:
    """A tree's process."""

    def __init__(self, path: Path, given: argparse.Namespace) -> None:
        numbers = map(str, (given.size, given.dim, given.per_class, given.threads, int(given.forward)))
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=path,
            env={**os.environ, **KEPT, "PYTHONPATH": str(path)},
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a tree's process ended")
        return line

    def step(self, name: str, options: dict[str, Any], steps: int) -> tuple[float, float]:
        """Milliseconds of one step, and the loss."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, options, steps]) + "\n")
        self.process.stdin.flush()
        ms, value = json.loads(self._line())
        return ms, value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("tree", type=Path)
    add("--size", type=int, default=4096)
    add("--dim", type=int, default=128)
    add("--per-class", type=int, default=4, help="samples of a class; 1,000 classes at most")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=15)
    add("--forward", action="store_true", help="without a gradient")
    add("--loss", action="append", choices=list(LOSSES), help="repeat it (default: all)")
    add("--out", type=Path, help="a folder for against.md")
    given = parser.parse_args()
    trees = [Tree(p.resolve(), given) for p in (ROOT, given.tree)]
    what = "without a gradient" if given.forward else "forward and backward"
    rows = [
        f"B={given.size:,}, D={given.dim}, {given.per_class} per class, float32, {given.threads} thread(s), "
        f"{given.rounds} rounds; {what}.\n",
        "| loss | this tree | the other | ratio | 20th ... 80th percentile |",
        "|---|---:|---:|---:|---|",
    ]
    print(*rows, sep="\n", flush=True)
    for title in given.loss or LOSSES:
        name, options = LOSSES[title]
        first = [tree.step(name, options, 1) for tree in trees]  # loads and allocates
        if abs(first[0][1] - first[1][1]) > 1e-3 * abs(first[1][1]):
            raise SystemExit(f"{title}: the trees differ, {first[0][1]} and {first[1][1]}")
        steps = max(1, round(100 / max(first[1][0], 0.01)) if first[1][0] < 100 else 1)
        times: list[list[float]] = [[], []]
        for turn in range(given.rounds):
            for k in (0, 1) if turn % 2 else (1, 0):
                times[k].append(trees[k].step(name, options, steps)[0])
        ratios = sorted(a / b for a, b in zip(*times))
        low, high = ratios[len(ratios) // 5], ratios[-1 - len(ratios) // 5]
        ours, theirs = map(statistics.median, times)
        rows.append(
            f"| {title} | {ours:.2f} ms | {theirs:.2f} ms | {statistics.median(ratios):.3f} "
            f"| {low:.3f} ... {high:.3f} |"
        )
        print(rows[-1], flush=True)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "against.md").write_text("\n".join(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
