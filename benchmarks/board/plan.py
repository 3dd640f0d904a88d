"""How an entry of the leaderboard trains: a network, a loss, batches, and what happens around a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdml.demo.augment import jitter
from fastdml.demo.data import Images
from fastdml.demo.model import EMBEDDING_SIZE, embed
from fastdml.metrics import map_at_r
from fastdml.samplers import MPerClassSampler

from .data import Task
from .networks import network, network_type, pretrained

D = EMBEDDING_SIZE


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every entry has: `steps` batches of `batch` images.

    rate: of the network, None for an entry's own; proxy_rate: how many times faster what a loss learns
    moves. pretraining: steps before the entry's own (`networks.pretrained`); 0: the network begins from
    nothing. dtype: the network's. shared: a folder for what several entries need.
    """

    steps: int
    batch: int
    rate: float = 3e-3
    proxy_rate: float = 10.0
    pretraining: int = 0
    dtype: torch.dtype = dataclasses.field(default_factory=network_type)
    shared: Path = Path("leaderboard-output")


class Plan:
    """The plain case: one embedding, `loss(embeddings, labels)`, class-balanced batches.

    Entries override what they need. A step is: `begin`, a batch, `outputs`, `objective`, backward,
    `gradients`, the optimiser, `end`.
    """

    per_class = 4
    views = 1  # jittered copies of every image in a batch

    def __init__(self, task: Task, budget: Budget, seed: int) -> None:
        self.task, self.budget, self.seed = task, budget, seed
        torch.manual_seed(seed)
        self.model: nn.Module = self.network()
        self.jitters = torch.Generator().manual_seed(seed)
        self.learnt: list[nn.Module] = []  # parameters that move `proxy_rate` times faster
        self.labels = task.train.labels
        self.classes = len(task.train.names)
        self.build()

    def network(self, size: int = D) -> nn.Module:
        """What training begins from. The last layer is new where it has another size."""
        model = network(size)
        if self.budget.pretraining:
            known = pretrained(self.budget)
            fits = {k: v for k, v in known.items() if v.shape == model.state_dict()[k].shape}
            model.load_state_dict(fits, strict=False)
        return model

    def build(self) -> None:
        """Makes the loss: `self.loss`, and what it learns: `self.learnt`."""
        raise NotImplementedError

    loss: nn.Module

    def steps_per_epoch(self) -> int:
        return max(1, len(self.labels) // self.budget.batch)

    def batches(self) -> Iterator[Tensor]:
        """Indices of batches, without end."""
        per_class = self.per_class
        size = min(self.budget.batch // self.views, per_class * self.classes)
        size -= size % per_class
        sampler = MPerClassSampler(
            self.labels, per_class, size, max(size, len(self.labels)), seed=self.seed
        )
        epoch = 0
        while True:
            sampler.set_epoch(epoch)
            yield from torch.tensor(list(sampler)).split(size)
            epoch += 1

    def images(self, rows: Tensor) -> Tensor:
        pixels = self.task.train.pixels[rows]
        return torch.cat([jitter(pixels, self.jitters) for _ in range(self.views)])

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the objective is a function of."""
        return (self.model(images),)

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        return self.loss(outputs[0], labels)

    def begin(self, step: int) -> None:
        """Before a step."""

    def gradients(self) -> None:
        """Between backward and the optimiser."""

    def end(self, step: int) -> None:
        """After a step."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameters of the optimiser, each with its rate."""
        rate, seen = self.budget.rate, set()
        groups = []
        for part, factor in [(self.model, 1.0), *((m, self.budget.proxy_rate) for m in self.learnt)]:
            own = [p for p in part.parameters() if p.requires_grad and id(p) not in seen]
            seen.update(map(id, own))
            if own:
                groups.append({"params": own, "lr": rate * factor})
        return groups

    def embed(self, images: Tensor) -> Tensor:
        """Test embeddings."""
        return embed(self.model, images)

    def train_embeddings(self) -> Tensor:
        """Of all training images as they are, for methods that look at them."""
        return self.embed(self.task.train.pixels)

    def validation(self) -> float:
        return score(self, self.task.val)


def score(plan: Plan, images: Images) -> float:
    """MAP@R, which every choice of a setting goes by."""
    return map_at_r(plan.embed(images.pixels), images.labels)
