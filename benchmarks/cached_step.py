"""What a cached step costs beside its parts: two passes forward, one backward, and the loss.

    python benchmarks/cached_step.py                     a minute
    python benchmarks/cached_step.py --batch 8192 --chunk 256

Processor time of one thread. The step and its parts take turns; medians, and of the ratio that of the turns'.
glibc is told to keep the memory that is freed: what its pages cost when they come back differs more between
turns than what is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from turns import keep_memory, take_turns

import fastdml
from fastdml.losses import MultiSimilarityLoss


def network() -> nn.Module:
    """Convolutions with dropout, on images of 32 x 32."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1), nn.Linear(64 * 16, 64))


def main() -> None:
    keep_memory()
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--batch", type=int, default=2048)
    arguments.add_argument("--chunk", type=int, default=128)
    arguments.add_argument("--turns", type=int, default=9)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, loss = network(), MultiSimilarityLoss()
    x, y = torch.randn(options.batch, 1, 32, 32), torch.arange(options.batch) // 4
    embeddings = torch.randn(options.batch, 64).requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            for part in x.split(options.chunk):
                net(part)

    def both() -> None:
        for part in x.split(options.chunk):
            found: Tensor = net(part)
            found.backward(torch.ones_like(found))

    def of_loss() -> None:
        embeddings.grad = None
        loss(embeddings, y).backward()

    def cached() -> None:
        fastdml.cached_step(net, loss, (x, y), chunk=options.chunk)

    parts: dict[str, Callable[[], None]] = {
        "forward": forward, "forward and backward": both, "the loss": of_loss, "a cached step": cached,
    }  # fmt: skip
    zero = partial(net.zero_grad, set_to_none=False)
    times = take_turns(parts, options.turns, clock=time.process_time, before=zero)
    for name, own in times.items():
        print(f"{name:22} {statistics.median(own) * 1e3:8.1f} ms")
    step = times.pop("a cached step")
    ratios = [whole / sum(own) for whole, *own in zip(step, *times.values(), strict=True)]
    low, over, high = statistics.quantiles(ratios, n=4)
    print(f"over the sum of its parts: {over:.3f} ({low:.3f} ... {high:.3f}, the middle half of the turns)")


if __name__ == "__main__":
    main()
