"""What hard negatives of their own cost InfoNCE over their own products.

    python benchmarks/hard_negatives.py                      a minute
    python benchmarks/hard_negatives.py --batch 4096 --out FILE  where the table goes as well

Processor time of one thread, forward and backward from embeddings on, where queries, documents and negatives
all want gradients. Own products: s = q . n, dq = sum of w n, dn = w q of the K negatives of every query, in
plain torch, right after a step without them, as caches are cold then. The three take turns; medians, and of
the ratio the median over turns. Freed memory is kept: a fresh gradient of the negatives would take most of
the time, in both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tables import Table
from turns import keep_memory, take_turns

from fastdml import losses


def step(batch: int, dim: int, negatives: int) -> Callable[[], None]:
    loss = losses.InfoNCELoss()
    g = torch.Generator().manual_seed(0)
    sets = [torch.randn(batch, dim, generator=g) for _ in range(2)]
    if negatives:
        sets.append(torch.randn(batch, negatives, dim, generator=g))
    leaves = [x.requires_grad_() for x in sets]

    def run() -> None:
        for x in leaves:
            x.grad = None
        queries, documents, *others = leaves
        loss(queries, documents, *others).backward()

    return run


def then_own_products(before: Callable[[], None], batch: int, dim: int, negatives: int) -> Callable[[], None]:
    g = torch.Generator().manual_seed(0)
    q, n = torch.randn(batch, 1, dim, generator=g), torch.randn(batch, negatives, dim, generator=g)

    def run() -> None:
        before()
        s = torch.bmm(n, q.transpose(1, 2))  # [B, K, 1]
        torch.bmm(s.transpose(1, 2), n)
        torch.mul(s, q)  # [B, K, D]: an outer product

    return run


def main() -> None:
    keep_memory()
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--batch", type=int, default=2048)
    arguments.add_argument("--turns", type=int, default=9)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    table = Table(
        "Hard negatives",
        f"B = {options.batch}, float32, one thread",
        "| D | K | without, ms | with, ms | added, ms | own products, ms | added / own |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    )
    for dim in (128, 384, 768):
        for count in (1, 4, 16, 64):
            without = step(options.batch, dim, 0)
            steps = {
                "without": without,
                "with": step(options.batch, dim, count),
                "own": then_own_products(without, options.batch, dim, count),
            }
            found = take_turns(steps, options.turns, clock=time.process_time)
            added = [a - b for a, b in zip(found["with"], found["without"])]
            own = [a - b for a, b in zip(found["own"], found["without"])]
            over = statistics.median(a / b for a, b in zip(added, own))
            times = [1e3 * statistics.median(t) for t in (found["without"], found["with"], added, own)]
            table.add(f"| {dim} | {count} | {' | '.join(f'{t:.1f}' for t in times)} | {over:.2f} |")
    table.write(options.out)


if __name__ == "__main__":
    main()
