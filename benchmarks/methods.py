"""What the methods cost beside the losses that they go with.

    python benchmarks/methods.py [--quick] [--rounds N] [--threads N] [--output FILE]

Contenders of one comparison run in turn in one process; medians, and ratios round by round. Memory is the
most that the resident set of a process of its own held during the step beyond what it held before, after a
small problem has loaded libraries.

| what | at most |
|---|---|
| DAS: sampling and its backward, of a step of multi-similarity on what it returns, B = 4,096 | 15 % |
| IAA: copies and their backward, of a step of the rectangular loss, B = 4,096 | 15 % |
| CCP: relocation of 10,000 classes, pool 12, K = 8, D = 128 | 2 s |
| EL-nivMF: T = 5, C = 10,000, B = 256, D = 128, over its three bare products | 2 |
| the same: memory beyond inputs and gradients (its matrix would take 49 MiB a copy) | 128 MiB |
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from turns import ratio, take_turns  # noqa: E402

from fastdml import losses, methods  # noqa: E402
from fastdml.bench.device import device  # noqa: E402

D = 128
Step = Callable[[], object]


def batch(size: int, classes: int) -> tuple[Tensor, Tensor]:
    """Clusters of four."""
    labels = torch.randperm(classes)[: size // 4].repeat_interleave(4)
    centers = torch.randn(classes, D)
    return centers[labels] + 0.7 * torch.randn(size, D), labels


def backward(made: Callable[[Tensor], Tensor], x: Tensor) -> Step:
    """A forward and backward from embeddings."""

    def step() -> Tensor | None:
        leaf = x.clone().requires_grad_()
        made(leaf).backward()
        return leaf.grad

    return step


def das(size: int, rounds: int) -> tuple[float, str]:
    x, y = batch(size, 2 * size)
    sampling = methods.DenselyAnchoredSampling(2 * size, D)
    host = losses.MultiSimilarityLoss(epsilon=0.1)
    whole = methods.DASLoss(host, sampling)
    upstream = torch.randn(size * 4, D)
    times = take_turns(
        {
            "das": backward(lambda v: (sampling(v, y)[0] * upstream).sum(), x),
            "whole": backward(lambda v: whole(v, y), x),
            "host": backward(lambda v: host(v, y), x),
        },
        rounds,
    )
    alone = ratio(times, "das", "host")
    return ratio(times, "das", "whole"), (
        f"{1e3 * statistics.median(times['das']):.1f} ms; {alone:.0%} of a step of the host on the "
        f"{size} real samples alone"
    )


def iaa(size: int, rounds: int) -> tuple[float, str]:
    x, y = batch(size, 2 * size)
    augmentation = methods.IntraClassAugmentation(2 * size, D)
    augmentation.estimate(x, y)
    whole = methods.IAALoss(losses.MultiSimilarityLoss(epsilon=0.1), augmentation)
    upstream = torch.randn(size * 4, D)
    times = take_turns(
        {
            "iaa": backward(lambda v: (augmentation(v, y)[0] * upstream).sum(), x),
            "whole": backward(lambda v: whole(v, y), x),
            "estimate": lambda: augmentation.estimate(x, y),
        },
        rounds,
    )
    return ratio(times, "iaa", "whole"), (
        f"{1e3 * statistics.median(times['iaa']):.1f} ms; statistics and correction of "
        f"{2 * size} classes from {size} samples, once in some epochs: "
        f"{statistics.median(times['estimate']):.2f} s"
    )


def ccp(classes: int, rounds: int) -> tuple[float, str]:
    pool, proxies = torch.randn(classes, 12, D), torch.randn(classes, 8, D)
    times = take_turns({"move": lambda: methods.greedy_k_centers(pool, proxies, 8)}, rounds)
    return statistics.median(times["move"]), f"{classes} classes x 12"


def _nivmf(classes: int, size: int) -> tuple[Step, Step]:
    """A step, and its three products."""
    loss = methods.NonIsotropicVMFLoss(classes, D)
    x, y = 30 * torch.randn(size, D) / D**0.5, torch.randint(classes, (size,))
    rows, columns = torch.randn(5 * size, D), torch.randn(classes, D)
    s = torch.empty(5 * size, classes)
    outputs = torch.empty_like(rows), torch.empty_like(columns)

    def products() -> None:
        torch.mm(rows, columns.T, out=s)
        torch.mm(s, columns, out=outputs[0])
        torch.mm(s.T, rows, out=outputs[1])

    return backward(lambda v: loss(v, y), x), products


def nivmf(classes: int, rounds: int) -> tuple[float, str]:
    step, products = _nivmf(classes, 256)
    times = take_turns({"nivmf": step, "products": products}, rounds)
    return ratio(times, "nivmf", "products"), (
        f"{1e3 * statistics.median(times['nivmf']):.0f} ms, C = {classes}"
    )


def nivmf_memory(classes: int, rounds: int) -> tuple[float, str]:
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", str(classes)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout), "MiB"


def _print_memory(classes: int) -> None:
    _nivmf(300, 32)[0]()  # loads libraries
    loss = methods.NonIsotropicVMFLoss(classes, D)
    for p in loss.parameters():
        p.grad = torch.zeros_like(p)
    x, y = 30 * torch.randn(256, D) / D**0.5, torch.randint(classes, (256,))
    step = backward(lambda v: loss(v, y), x)
    with device("cpu").peak() as peak:
        step()
    print(peak.bytes / 2**20)


Measure = Callable[[int, int], tuple[float, str]]
# What: (how, size, size of a quick run, bound, format of the number).
COSTS: dict[str, tuple[Measure, int, int, float, str]] = {
    "DAS, share of its step": (das, 4096, 512, 0.15, "{:.1%}"),
    "IAA, share of its step": (iaa, 4096, 512, 0.15, "{:.1%}"),
    "CCP, relocation in seconds": (ccp, 10_000, 1_000, 2.0, "{:.2f}"),
    "EL-nivMF, over its products": (nivmf, 10_000, 2_000, 2.0, "{:.2f}"),
    "EL-nivMF, memory in MiB": (nivmf_memory, 10_000, 2_000, 128.0, "{:.0f}"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; says nothing of the bounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="a Markdown file, beside printing")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory_of:
        _print_memory(options.memory_of)
        return 0
    lines = [
        f"{platform.processor() or platform.machine()}, {options.threads} threads, "
        f"torch {torch.__version__}, {options.rounds} rounds" + (", quick" * options.quick),
        "",
        "| what | measured | at most | | note |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    missed = 0
    for name, (measure, size, small, bound, form) in COSTS.items():
        value, note = measure(small if options.quick else size, options.rounds)
        kept = value <= bound
        missed += not kept
        verdict = "" if options.quick else "kept" if kept else "missed"
        lines.append(f"| {name} | {form.format(value)} | {form.format(bound)} | {verdict} | {note} |")
        print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("# Cost of the methods\n\n" + "\n".join(lines) + "\n")
    return int(bool(missed) and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
