"""Networks that are trained before an entry is: what every entry begins from, and the source of transfer.

Each is trained once, and kept in the budget's shared folder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastdml.demo.model import EMBEDDING_SIZE, SmallCNN

if TYPE_CHECKING:
    from .plan import Budget, Plan

# Smaller than the demo's, so that the whole board takes hours, not days, of a CPU.
WIDTH, DEPTH = 16, 4
PRETRAINING_SEED, SOURCE_SEED = 200, 201
PRETRAINING_BATCH = 128

State = dict[str, Tensor]


def network_type() -> torch.dtype:
    """What the network computes in: bfloat16, at half the time of float32, where the processor has it;
    elsewhere it is emulated, at a tenth of the speed."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32


def network(size: int = EMBEDDING_SIZE) -> SmallCNN:
    """Every entry's, before any training."""
    return SmallCNN(size, WIDTH, DEPTH)


def pretrained(budget: Budget) -> State:
    """Of `network()`, after `budget.pretraining` steps of classification.

    Its characters are in no other part of the board. Every entry and seed begins there: networks that are
    tuned begin from one state in practice too.
    """
    from . import data
    from .entries import loss_plan
    from .run import fit

    steps = budget.pretraining
    batch = min(budget.batch, PRETRAINING_BATCH)

    def train() -> State:
        task = data.load(data.SPARE_GLYPHS)
        own = dataclasses.replace(budget, steps=steps, batch=batch, rate=3e-3, proxy_rate=10.0, pretraining=0)
        trained = loss_plan("normalized_softmax")(task, own, PRETRAINING_SEED)
        fit(trained)
        return trained.model.state_dict()

    return _kept(budget.shared / f"pretrained-{steps}-{batch}.pt", train)


def source_network(plan: Plan) -> nn.Module:
    """The multi-similarity network of the same task and budget. One for all seeds: they say how much an entry
    varies, not its source. Its time is not the entry's."""
    from .entries import loss_plan
    from .run import fit

    budget = plan.budget

    def train() -> State:
        own = dataclasses.replace(budget, rate=3e-3, proxy_rate=10.0)
        source = loss_plan("multi_similarity")(plan.task, own, SOURCE_SEED)
        fit(source)
        return source.model.state_dict()

    of = (plan.task.name, len(plan.labels), budget.pretraining, budget.steps, budget.batch)
    model = network()
    model.load_state_dict(_kept(budget.shared / f"source-{'-'.join(map(str, of))}.pt", train))
    return model


def _kept(path: Path, train: Callable[[], State]) -> State:
    if not path.exists():
        state = train()
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")  # another process may want it at the same time
        torch.save(state, own)
        own.replace(path)
    return torch.load(path, weights_only=True)
