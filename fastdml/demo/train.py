"""The training loop: nothing in it is special to fastdml but the loss it calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ..samplers import MPerClassSampler
from .augment import jitter
from .data import Images
from .losses import build_loss, learns_proxies
from .model import EMBEDDING_SIZE, SmallCNN
from .options import Options
from .progress import Progress

# Proxies learn this many times faster than the network. Proxy-Anchor's recipe says 100 for a
# pretrained network at 1e-4; this one starts from nothing, at a rate 30 times higher already.
PROXY_RATE = 10
EVALUATIONS = 5  # points of the learning curve after the start

Evaluate = Callable[[nn.Module], dict[str, float]]


@dataclass
class Trained:
    """A trained network and how it got there.

    Attributes:
        losses: training loss of every step.
        curve: metrics on unseen classes, by epoch (0 is the untrained network).
        seconds: spent training, evaluations not counted.
        images: training images seen, repetitions counted.
    """

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    curve: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0


def new_model(seed: int) -> SmallCNN:
    """The untrained network, the same for every loss."""
    torch.manual_seed(seed)
    return SmallCNN()


def train(
    name: str, images: Images, evaluate: Evaluate, options: Options, progress: Progress
) -> Trained:
    """Trains a new network with the loss called ``name``.

    Raises:
        ValueError: the batch holds more classes than there are.
        FloatingPointError: the loss is not finite.
    """
    model = new_model(options.seed)
    loss_fn = build_loss(name, len(images.names), EMBEDDING_SIZE, options.backend)
    generator = torch.Generator().manual_seed(options.seed)
    per_class = options.per_class
    if learns_proxies(name):
        # Proxies stand in for the class: as many classes in a batch as there are.
        fits = (m for m in range(1, per_class) if options.batch_size % m == 0)
        per_class = next(
            (m for m in fits if options.batch_size <= m * len(images.names)), per_class
        )
    sampler = MPerClassSampler(
        images.labels,
        per_class,
        options.batch_size,
        length_before_new_iter=max(len(images), options.batch_size),
        seed=options.seed,
    )
    batches = DataLoader(
        TensorDataset(images.pixels, images.labels), options.batch_size, sampler=sampler
    )
    total = options.epochs * len(batches)
    optimizer, schedule = _optimizer(model, loss_fn, options.learning_rate, total)

    every = math.ceil(options.epochs / EVALUATIONS)
    trained = Trained(model, curve={0: evaluate(model)})
    progress.start(name, total)
    for epoch in range(1, options.epochs + 1):
        sampler.set_epoch(epoch)
        for pixels, labels in batches:
            loss = loss_fn(model(jitter(pixels, generator)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            trained.losses.append(loss.item())
            trained.images += len(labels)
            if not math.isfinite(trained.losses[-1]):
                raise FloatingPointError(
                    f"{name}: the loss is {loss.item()} in epoch {epoch}"
                )
            progress.step(trained.losses[-1], len(labels))
        if epoch % every == 0 or epoch == options.epochs:
            with progress.paused():
                trained.curve[epoch] = evaluate(model)
    trained.seconds = progress.seconds
    return trained


def _optimizer(
    model: nn.Module, loss_fn: nn.Module, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, warmed up and annealed; parameters of the loss (proxies) in a faster group."""
    parts = [(model, rate), (loss_fn, rate * PROXY_RATE)]
    parts = [(part, peak) for part, peak in parts if any(True for _ in part.parameters())]
    optimizer = torch.optim.AdamW(
        [{"params": list(part.parameters())} for part, _ in parts], weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [peak for _, peak in parts], total_steps=max(steps, 2), pct_start=0.15
    )
    return optimizer, schedule
