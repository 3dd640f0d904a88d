"""The symmetric schedule, and rows, of losses in the row language over three bare products.

    python benchmarks/language.py [--size 4096] [--dim 128] [--threads 1] [--forward]

Contenders take turns in one process; the best time of each counts. The first run compiles.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
from turns import take_turns

from fastdml import losses

LOSSES = {
    "multi-similarity": losses.MultiSimilarityLoss,
    "multi-similarity, mined": lambda **k: losses.MultiSimilarityLoss(epsilon=0.1, **k),
    "contrastive": losses.ContrastiveLoss,
    "SupCon": losses.SupConLoss,
    "circle": losses.CircleLoss,
    "binomial deviance": losses.BinomialDevianceLoss,
    "NT-Xent": losses.NTXentLoss,
}


def schedule(size: int, dim: int, repeats: int, gradient: bool) -> None:
    """Forward, and backward, of both over three bare products."""
    x = torch.randn(size, dim, requires_grad=gradient)
    y = torch.arange(size) // 4
    data = x.detach()

    def bare() -> None:
        total = torch.zeros_like(data)
        for start in range(0, size, 1024):
            rows = data[start : start + 1024]
            s = rows @ data.t()
            total[start : start + 1024] += s @ data
            total += s.t() @ rows

    def step(loss: torch.nn.Module) -> None:
        x.grad = None
        value = loss(x, y)
        if gradient:
            value.backward()

    for name, make in LOSSES.items():
        contenders: dict[str, Callable[[], None]] = {"bare": bare}
        for backend in ("symmetric", "native"):
            contenders[backend] = functools.partial(step, make(backend=backend))
        found = {name: min(times) for name, times in take_turns(contenders, repeats).items()}
        shares = ", ".join(f"{b} {found[b] / found['bare']:.3f}" for b in ("symmetric", "native"))
        print(f"{name}: {shares} of three products ({found['bare'] * 1e3:.1f} ms)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--forward", action="store_true", help="without a gradient")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    schedule(given.size, given.dim, given.repeats, not given.forward)


if __name__ == "__main__":
    main()
