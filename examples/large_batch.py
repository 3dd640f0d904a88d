"""Trains on a batch that its activations would not fit into memory with.

    python examples/large_batch.py --batch 16384 --chunk 512
    torchrun --standalone --nproc-per-node 2 examples/large_batch.py --batch 16384 --chunk 512

Two lines make it a script of several processes: DDP around the network, `wrap` around the loss. Both print
the same losses, and so does `--chunk 16384`, which is the plain step: characters in other fonts, of
classes that are not trained on, are what is retrieved.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import fastdml
from fastdml.distributed import wrap
from fastdml.losses import MultiSimilarityLoss
from fastdml.metrics import retrieval_metrics
from fastdml.samplers import MPerClassSampler


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parser().parse_args(argv)
    several = "RANK" in os.environ  # torchrun
    if several:
        distributed.init_process_group("gloo")
    try:
        return train(options)
    finally:
        if several:
            distributed.destroy_process_group()


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument(
        "--batch", type=int, default=16384, help="images of all ranks (default 16384)"
    )
    found.add_argument("--per-class", type=int, default=8, help="images of each class (default 8)")
    found.add_argument("--chunk", type=int, default=512, help="images at a time (default 512)")
    found.add_argument("--steps", type=int, default=20, help="(default 20)")
    found.add_argument("--rate", type=float, default=3e-3, help="of learning (default 3e-3)")
    found.add_argument(
        "--validate", type=int, default=8000, help="images to retrieve (default 8000)"
    )
    found.add_argument("--schedule", default="gather", help="of several processes: gather or ring")
    found.add_argument("--data", type=Path, help="glyphs32.npz or icons32.npz (default: the package's)")
    found.add_argument("--output", type=Path, help="write the losses there, as JSON")
    return found


def train(options: argparse.Namespace) -> dict[str, object]:
    rank, world = (
        (distributed.get_rank(), distributed.get_world_size())
        if distributed.is_initialized()
        else (0, 1)
    )
    pixels, labels = images(options.data, part="train")
    # One sequence of batches on all ranks, which share each batch: the same training as in one process.
    batches = MPerClassSampler(
        labels, options.per_class, options.batch, options.steps * options.batch, batches=True, seed=0,
        num_replicas=1,
    )  # fmt: skip
    torch.manual_seed(0)
    network: nn.Module = Network()
    if world > 1:
        network = DistributedDataParallel(network)
    loss = wrap(MultiSimilarityLoss(epsilon=0.1), schedule=options.schedule)
    optimizer = torch.optim.AdamW(network.parameters(), options.rate)

    before = score(network, options)
    losses = []
    for step, chosen in enumerate(batches, 1):
        start = time.perf_counter()
        own = torch.tensor(chosen[rank::world])
        optimizer.zero_grad()
        value = fastdml.cached_step(network, loss, (pixels[own], labels[own]), chunk=options.chunk)
        optimizer.step()
        losses.append(value.item())
        if rank == 0:
            seconds = time.perf_counter() - start
            print(f"step {step:3}   loss {losses[-1]:.5f}   {seconds:.1f} s", flush=True)
    after = score(network, options)
    if rank == 0:
        for name in before:
            print(f"{name:12} {before[name]:.3f} untrained, {after[name]:.3f} trained")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"largest memory of the process {peak:,} MiB")
        if options.output is not None:
            options.output.write_text(json.dumps(losses))
    return {"losses": losses, "before": before, "after": after}


class Network(nn.Module):
    """Four convolutions. Group norm: batch norm would see chunks instead of the batch."""

    def __init__(self, width: int = 24, embedding_size: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 1), (1, 2), (2, 4), (4, 4)):
            layers += [
                nn.Conv2d(1 if not layers else inputs * width, outputs * width, 3, 2, padding=1),
                nn.GroupNorm(outputs * 4, outputs * width),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.embed = nn.Linear(4 * width, embedding_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embed(self.features(pixels[:, None].float() / 255).mean(dim=(2, 3)))


def images(path: Path | None, part: str) -> tuple[Tensor, Tensor]:
    """Images ``[N, 32, 32]`` uint8 and labels from 0 on of one part, train or val, whose classes do not
    overlap: of the characters, or of the icons, half of whose classes are trained on."""
    folder = importlib.resources.files("fastdml.demo") / "data"
    known = [path] if path else [folder / name for name in ("glyphs32.npz", "icons32.npz")]
    found = next(file for file in known if path or file.is_file())
    with found.open("rb") as file, np.load(file) as arrays:
        if "images" in arrays:
            pixels, labels = arrays["images"], arrays["label"]
            own = (arrays["split"] == arrays["split_names"].tolist().index(part))[labels]
        else:
            labels = np.unique(arrays["y"], return_inverse=True)[1]
            by_class = labels.argsort(kind="stable")
            pixels, labels = arrays["X"][by_class], labels[by_class]
            own = labels % 2 == ("train", "val").index(part)
    _, labels = np.unique(labels[own], return_inverse=True)
    return torch.from_numpy(pixels[own]), torch.from_numpy(labels)


@torch.no_grad()
def score(network: nn.Module, options: argparse.Namespace) -> dict[str, float]:
    """Retrieval of characters that are not trained on."""
    pixels, labels = images(options.data, part="val")
    pixels, labels = pixels[: options.validate], labels[: options.validate]
    embeddings = torch.cat([network(some) for some in pixels.split(options.chunk)])
    return retrieval_metrics(embeddings, labels)


if __name__ == "__main__":
    main()
