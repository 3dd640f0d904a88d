"""One training run, and what it measures."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdml.metrics import nearest_neighbours, retrieval_metrics

from .data import ndcg_at_10
from .plan import Plan

Tick = Callable[[int, float], None]


@dataclasses.dataclass
class Fit:
    """Processor seconds of every step, and of its objective alone (forward, backward to embeddings)."""

    steps: list[float] = dataclasses.field(default_factory=list)
    objectives: list[float] = dataclasses.field(default_factory=list)
    memory: float = 0.0  # MiB that the objective's tensors took at most, in the last step


def fit(plan: Plan, tick: Tick = lambda step, loss: None) -> Fit:
    """Trains; AdamW, warmed up and annealed. tick(step, loss) is told of every step.

    The objective is float32's, whatever the network's type.

    Raises:
        RuntimeError: the loss is not finite.
    """
    groups, total = plan.groups(), plan.budget.steps
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in groups], total_steps=max(total, 2), pct_start=0.15
    )
    batches, fitted = plan.batches(), Fit()
    targets = getattr(plan, "targets", lambda rows: plan.labels[rows])
    for step in range(total):
        began = time.process_time()
        plan.begin(step)
        rows = next(batches)
        labels = targets(rows).repeat(plan.views)
        images = plan.images(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.budget.dtype == torch.bfloat16):
            outputs = tuple(x.float() for x in plan.outputs(images))
        optimizer.zero_grad()
        leaves = tuple(t.detach().requires_grad_() for t in outputs)
        inside = time.process_time()
        if step == total - 1:
            loss, fitted.memory = _with_memory(plan, leaves, labels, images)
        else:
            loss = plan.objective(leaves, labels, images)
            loss.backward()
        fitted.objectives.append(time.process_time() - inside)
        torch.autograd.backward(outputs, [x.grad for x in leaves])
        plan.gradients()
        optimizer.step()
        schedule.step()
        plan.end(step)
        fitted.steps.append(time.process_time() - began)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"the loss is {value} in step {step}")
        tick(step, value)
    return fitted


def _with_memory(
    plan: Plan, leaves: tuple[Tensor, ...], labels: Tensor, images: Tensor
) -> tuple[Tensor, float]:
    """The loss after backward, and the peak of what torch's CPU allocator gave out meanwhile, in MiB."""
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = plan.objective(leaves, labels, images)
        loss.backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return loss, peak / 2**20


def evaluate(plan: Plan) -> dict[str, float]:
    """Recall@1, MAP@R and nDCG@10 on the test classes."""
    test = plan.task.test
    embeddings = plan.embed(test.pixels)
    found = retrieval_metrics(embeddings, test.labels, 1)
    neighbours = nearest_neighbours(embeddings, 10)
    return {**found, "ndcg@10": ndcg_at_10(neighbours, test.labels)}


def measure(plan: Plan, tick: Tick = lambda step, loss: None) -> dict[str, Any]:
    """Trains and tests."""
    began = time.process_time()
    fitted = fit(plan, tick)
    later = slice(min(3, len(fitted.steps) - 1), None)  # the first steps load and allocate
    return {
        **evaluate(plan),
        "step_ms": 1e3 * statistics.median(fitted.steps[later]),
        "mean_step_ms": 1e3 * statistics.mean(fitted.steps[later]),
        "objective_ms": 1e3 * statistics.median(fitted.objectives[later]),
        "objective_mib": fitted.memory,
        "seconds": time.process_time() - began,
    }
