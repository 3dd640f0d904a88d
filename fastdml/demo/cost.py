"""What one step of mined multi-similarity costs: fused, in plain torch, in another library.

A step is the loss of a batch of embeddings and its gradient. The contenders take turns within one
run, so that whatever else the machine does falls on all of them, and medians are compared. One
whose value or gradient differs is reported as wrong, never as fast.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..losses import MultiSimilarityLoss

ALPHA, BETA, BASE, EPSILON = 2.0, 50.0, 0.5, 0.1
FEWEST_ROUNDS = 3

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Cost:
    """Measurement of one contender on one batch.

    Attributes:
        milliseconds: median of a step; None if it was not measured, ``note`` says why.
        ratio: to the fused step, above 1 where that is faster.
    """

    contender: str
    batch: int
    milliseconds: float | None
    ratio: float | None
    rounds: int
    note: str = ""


def compare_costs(
    batches: list[tuple[torch.Tensor, torch.Tensor]], backend: str, seconds: float
) -> list[Cost]:
    """Costs on every batch of (embeddings ``[B, D]``, labels ``[B]``), the fused step first.

    Args:
        batches: what to measure on; real embeddings, since mining depends on them.
        backend: of the fused loss.
        seconds: time to spend on each batch, roughly.
    """
    fused = MultiSimilarityLoss(ALPHA, BETA, BASE, epsilon=EPSILON, backend=backend)
    steps: dict[str, Step] = {"fastdml": fused, "plain torch": plain_torch}
    skipped = {}
    try:
        steps["pytorch-metric-learning"] = _pytorch_metric_learning()
    except ImportError:
        skipped["pytorch-metric-learning"] = "not installed: pip install fastdml[demo]"
    costs = []
    for embeddings, labels in batches:
        costs += _measure(steps, embeddings.detach(), labels, seconds)
        costs += [Cost(name, len(labels), None, None, 0, note) for name, note in skipped.items()]
    return costs


def plain_torch(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Multi-similarity with its miner, written as one would without this library."""
    unit = F.normalize(embeddings)
    similarity = unit @ unit.T
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    negative = ~same
    with torch.no_grad():
        hardest_positive = similarity.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        hardest_negative = similarity.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        positive = positive & (similarity - EPSILON < hardest_negative)
        negative = negative & (similarity + EPSILON > hardest_positive)
    pull = (-ALPHA * (similarity - BASE)).masked_fill(~positive, -torch.inf)
    push = (BETA * (similarity - BASE)).masked_fill(~negative, -torch.inf)
    # log(1 + sum exp) = log-sum-exp with one more entry of 0.
    pull, push = (F.pad(logits, (0, 1)).logsumexp(1) for logits in (pull, push))
    return (pull / ALPHA + push / BETA).mean()


def _pytorch_metric_learning() -> Step:
    from pytorch_metric_learning.losses import MultiSimilarityLoss as TheirLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    loss, miner = TheirLoss(ALPHA, BETA, BASE), MultiSimilarityMiner(EPSILON)
    return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))


def _measure(
    steps: dict[str, Step], embeddings: torch.Tensor, labels: torch.Tensor, seconds: float
) -> list[Cost]:
    def run(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = embeddings.clone().requires_grad_()
        value = step(leaf, labels)
        value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    truth = {name: run(step) for name, step in steps.items()}  # also warms up
    reference = _truth(embeddings, labels)
    wrong = {name for name, result in truth.items() if not _agree(result, reference)}

    times: dict[str, list[float]] = {name: [] for name in steps}
    deadline = time.perf_counter() + seconds
    while len(times["fastdml"]) < FEWEST_ROUNDS or time.perf_counter() < deadline:
        for name, step in steps.items():
            start = time.perf_counter()
            run(step)
            times[name].append(time.perf_counter() - start)

    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    comparable = "fastdml" not in wrong
    return [
        Cost(
            name,
            len(labels),
            None if name in wrong else median,
            None if name in wrong or not comparable else median / medians["fastdml"],
            len(times[name]),
            "wrong result, not compared" if name in wrong else "",
        )
        for name, median in medians.items()
    ]


def _truth(embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = embeddings.double().requires_grad_()
    value = plain_torch(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def _agree(
    result: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]
) -> bool:
    """Within 0.1 %: a pair on the edge of the mined band may fall on either side in float32."""
    return all(
        bool((got - want).norm() <= 1e-3 * want.norm())
        for got, want in zip(result, reference, strict=True)
    )
