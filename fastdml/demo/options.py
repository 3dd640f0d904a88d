"""What the user may choose."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import check
from ..engine.dispatch import EXECUTORS
from .losses import DEFAULT_LOSSES, available_losses, canonical_name

BACKENDS = ("auto", *EXECUTORS)


@dataclass(frozen=True)
class Options:
    """Settings of one run of the demo; the fields are the command line's options.

    Raises:
        ValueError: naming the option and what was expected.
    """

    losses: tuple[str, ...] = DEFAULT_LOSSES
    batch_size: int = 256
    per_class: int = 4
    epochs: int = 15
    backend: str = "auto"
    seed: int = 0
    output: Path = Path("demo-output")
    threads: int | None = None
    max_classes: int | None = None
    learning_rate: float = 3e-3
    cost_sizes: tuple[int, ...] = (2048,)
    cost_seconds: float = 4.0

    def __post_init__(self) -> None:
        check.whole(self.batch_size, "batch_size", 1)
        check.whole(self.epochs, "epochs", 1)
        check.whole(self.seed, "seed", 0)
        if self.threads is not None:
            check.whole(self.threads, "threads", 1, 1024)
        if self.per_class < 2:
            raise ValueError(
                f"per_class: expected at least 2, or no anchor has a positive; got {self.per_class}"
            )
        if self.batch_size % self.per_class or self.batch_size < 2 * self.per_class:
            raise ValueError(
                f"batch_size: expected a multiple of per_class={self.per_class} with at least "
                f"two classes, got {self.batch_size}"
            )
        if self.backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.backend}")


# A smoke run of seconds: enough to go through every line, too little to learn much.
_QUICK = {
    "batch_size": 64,
    "epochs": 1,
    "max_classes": 60,
    "cost_sizes": (128,),
    "cost_seconds": 0.2,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the demo."""
    full = Options()
    add = parser.add_argument
    add(
        "--loss",
        action="append",
        metavar="NAME",
        help="loss to train with; repeat it to compare several, or say 'all' for every loss of "
        f"the library that needs no further settings (default: {', '.join(DEFAULT_LOSSES)})",
    )
    add("--batch-size", type=int, metavar="N", help=f"images per batch (default {full.batch_size})")
    add(
        "--per-class",
        type=int,
        metavar="M",
        help=f"images of each class in a batch (default {full.per_class}; losses that compare with "
        "learned proxies take 1, as they need no second image)",
    )
    add(
        "--epochs",
        type=int,
        metavar="N",
        help=f"passes over the training images per loss (default {full.epochs})",
    )
    add(
        "--backend",
        choices=BACKENDS,
        help=f"what computes the loss (default {full.backend}: the fastest that can)",
    )
    add(
        "--seed",
        type=int,
        help=f"chooses the split of classes, the weights, batches and jitter (default {full.seed})",
    )
    add(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"where the plots and results.json go (default ./{full.output})",
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's own choice)")
    add("--quick", action="store_true", help="a smoke run of a few seconds on a few classes")


def from_arguments(arguments: argparse.Namespace) -> Options:
    """The options a command line asks for.

    Raises:
        ValueError: naming the option and what was expected.
    """
    chosen: dict[str, Any] = dict(_QUICK) if arguments.quick else {}
    for name in ("batch_size", "per_class", "epochs", "backend", "seed", "output", "threads"):
        if (value := getattr(arguments, name)) is not None:
            chosen[name] = value
    if arguments.loss:
        names = available_losses() if "all" in arguments.loss else arguments.loss
        chosen["losses"] = tuple(dict.fromkeys(canonical_name(name) for name in names))
    return Options(**chosen)
