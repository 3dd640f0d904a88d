"""What a loss of four widths costs over the loss of the widest.

    python benchmarks/matryoshka.py                          two minutes
    python benchmarks/matryoshka.py --batch 4096 --out FILE  where the table goes as well

Processor time of one thread, forward and backward from embeddings on. The two take turns; medians, and the
median of the ratios of neighbours in time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tables import Table
from torch import Tensor, nn
from turns import ratio, take_turns

from fastdml import losses

WIDTHS = {768: (96, 192, 384, 768), 384: (64, 128, 256, 384), 128: (16, 32, 64, 128)}
Made = Callable[[], nn.Module]
LOSSES: dict[str, Made] = {
    "InfoNCE, two sets": losses.InfoNCELoss,
    "multi-similarity": losses.MultiSimilarityLoss,
    "SupCon": losses.SupConLoss,
    "contrastive": losses.ContrastiveLoss,
    "circle": losses.CircleLoss,
    "NT-Xent": losses.NTXentLoss,
    "triplets": losses.TripletMarginLoss,
}


def step(loss: nn.Module, x: Tensor, other: Tensor) -> Callable[[], None]:
    def run() -> None:
        loss(x.clone().requires_grad_(), other).backward()

    return run


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--batch", type=int, default=2048)
    arguments.add_argument("--turns", type=int, default=7)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table(
        "Matryoshka",
        f"B = {options.batch}, float32, one thread",
        "| loss | widths | plain, ms | of all widths, ms | ratio |",
        "|---|---|---:|---:|---:|",
    )
    for dim, widths in WIDTHS.items():
        x, labels = torch.randn(options.batch, dim), torch.arange(options.batch) // 4
        documents = x + torch.randn(options.batch, dim)
        for name, made in LOSSES.items():
            other = documents if "two sets" in name else labels
            plain = made()
            nested = losses.MatryoshkaLoss(plain, widths)
            steps = {"plain": step(plain, x, other), "nested": step(nested, x, other)}
            found = take_turns(steps, options.turns, clock=time.process_time)
            ms = [1e3 * statistics.median(times) for times in found.values()]
            over = ratio(found, "nested", "plain")
            told = ", ".join(map(str, widths))
            table.add(f"| {name} | {told} | {ms[0]:.0f} | {ms[1]:.0f} | {over:.2f} |")
    table.write(options.out)


if __name__ == "__main__":
    main()
