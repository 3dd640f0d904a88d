"""The source of embedding transfer: the multi-similarity network of the same task and seed."""

from __future__ import annotations

import dataclasses
import os

import torch
from torch import nn

from .plan import Plan, network


def source_network(plan: Plan) -> nn.Module:
    """Trained with the whole budget, once, and kept in the shared folder; its time is not the entry's."""
    from .entries import loss_plan
    from .run import fit

    budget = plan.budget
    name = f"source-{plan.task.name}-{len(plan.labels)}-{budget.steps}-{budget.batch}-{plan.seed}.pt"
    path = budget.shared / name
    model = network()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    source = loss_plan("multi_similarity")(
        plan.task, dataclasses.replace(budget, rate=3e-3, proxy_rate=10.0), plan.seed
    )
    fit(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_suffix(f".{os.getpid()}")  # another process may want it at the same time
    torch.save(source.model.state_dict(), own)
    own.replace(path)
    model.load_state_dict(source.model.state_dict())
    return model
