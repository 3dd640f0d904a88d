"""Losses over relations against values of the published implementations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdml import functional as F
from fastdml import losses
from fastdml.engine import library

HERE = Path(__file__).parent / "golden"
BACKENDS = ["dense", "chunked"] + (["native"] if library.load() is not None else [])
Call = Callable[..., Tensor]


def host_and_lists(x: Tensor, found: dict[str, Tensor], **options: str) -> Tensor:
    """Epoch 50 of 150 beside the host of the release: multi-similarity, a mean over kept anchors."""
    lists = losses.ListwiseSelfDistillationLoss()
    host = F.multi_similarity(
        x, found["y"], alpha=2, beta=40, base=0.5, epsilon=0.1, reduction="nonzero",
        similarity="dot", variant="released", **options,
    )  # fmt: skip
    distilled = F.listwise_self_distillation(x, found["teacher"], **options)
    return host + lists.scheduled_weight(50, 150) * distilled


# case -> (call, tolerance of value, of gradient)
CASES: dict[str, tuple[Call, float, float]] = {
    "relaxed_contrastive": (
        lambda x, z, **o: F.relaxed_contrastive(x, z["source"], **o), 1e-9, 1e-8,
    ),
    "relaxed_contrastive_b": (
        lambda x, z, **o: F.relaxed_contrastive(x, z["source"], sigma=0.5, delta=1.5, **o), 1e-9, 1e-8,
    ),
    "rkd_distance": (lambda x, z, **o: F.rkd_distance(x, z["source"], **o), 1e-9, 1e-8),
    "rkd_angle": (lambda x, z, **o: F.rkd_angle(x, z["source"], **o), 1e-9, 1e-8),
    "pkt": (lambda x, z, **o: F.pkt(x, z["source"], variant="released", **o), 1e-9, 1e-8),
    "lsd": (host_and_lists, 1e-9, 1e-8),
    "log_ratio": (
        lambda x, z, **o: F.log_ratio(
            x, label_distance=z["label_distance"], variant="released", **o
        ), 1e-9, 1e-8,
    ),
    # The release takes embeddings that the network normalised.
    "dense_triplet": (
        lambda x, z, **o: F.dense_triplet(
            x, label_distance=z["label_distance"], normalize=False, variant="released", **o
        ), 1e-9, 1e-8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case: str, backend: str) -> None:
    call, of_value, of_gradient = CASES[case]
    found = {k: torch.from_numpy(v) for k, v in np.load(HERE / f"{case}.npz").items()}
    x = found["x"].requires_grad_()
    loss = call(x, found, backend=backend)
    assert loss.item() == pytest.approx(float(found["loss"]), rel=of_value)
    (gradient,) = torch.autograd.grad(loss, x)
    true = found["grad_x"]
    assert (gradient - true).abs().max() <= of_gradient * true.abs().max()
