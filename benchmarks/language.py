"""Printed functors against those written by hand, and the symmetric schedule against three bare products.

    python benchmarks/language.py functors [--threads 1]
    python benchmarks/language.py schedule [--size 4096] [--dim 128] [--threads 1]

Contenders take turns in one process; the best time of each counts. Needs the tests' descriptions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fastdml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "language"))
import described
import printed


def best_of(contenders: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def functors(repeats: int) -> None:
    """Time of a printed functor over that of the library's, on 256 rows of 4096 pairs in float32."""
    for name, k, one, description in described.examples():
        ours, opened = printed.together([(name, k, one, description)])[f"{name}_{k}"]
        hand, members = printed.by_hand(description)
        proxies = name == "softmax_cross_entropy"
        values = description.example_values(256, 4096)
        if name in ("nt_xent", "proxy_anchor"):
            values["scalars"] = torch.tensor([1.0])
        classes = 4096 if proxies else 1024
        block = printed.Block(256, 4096, torch.float32, 0, classes, not proxies, 0.15, **values)
        outputs = description.outputs
        weight = torch.ones(256 * outputs) if outputs > 1 else None
        found = best_of(
            {
                "printed": lambda i=ours, p=opened, b=block, o=outputs, w=weight: b.run(
                    i, p, o, True, w
                ),
                "by hand": lambda i=hand, p=members, b=block, o=outputs, w=weight: b.run(
                    i, p, o, True, w
                ),
            },
            repeats,
        )
        print(f"{name} {k}: {found['printed'] / found['by hand']:.3f}")


def schedule(size: int, dim: int, repeats: int) -> None:
    """Forward and backward of the symmetric schedule and of rows over three bare products."""
    x = torch.randn(size, dim, requires_grad=True)
    y = torch.arange(size) // 4
    data = x.detach()

    def bare() -> None:
        gradient = torch.zeros_like(data)
        for start in range(0, size, 1024):
            rows = data[start : start + 1024]
            s = rows @ data.t()
            gradient[start : start + 1024] += s @ data
            gradient += s.t() @ rows

    def step(loss: torch.nn.Module, backend: str) -> None:
        loss.backend = backend
        x.grad = None
        loss(x, y).backward()

    for name, k, one, description in described.examples():
        opened, bound = one.arguments(description)
        opened = {key: min(v, 1e9) for key, v in opened.items()}
        try:
            loss = fastdml.row_loss(one.function, parameters={**opened, **bound})
            step(loss, "symmetric")
        except ValueError as error:
            print(f"{name} {k}: {error}")
            continue
        contenders: dict[str, Callable[[], None]] = {"bare": bare}
        for backend in ("symmetric", "native"):
            contenders[backend] = lambda loss=loss, backend=backend: step(loss, backend)
        found = best_of(contenders, repeats)
        shares = ", ".join(f"{b} {found[b] / found['bare']:.3f}" for b in ("symmetric", "native"))
        print(f"{name} {k}: {shares} of three products ({found['bare'] * 1e3:.1f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["functors", "schedule"])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.what == "functors":
        functors(given.repeats)
    else:
        schedule(given.size, given.dim, given.repeats)


if __name__ == "__main__":
    main()
