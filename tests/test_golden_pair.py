"""The published implementations' values and gradients of the pair losses, by every executor.

similarity="dot" where the released code multiplies the rows it is given: the gradient is theirs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdml import functional as F
from fastdml.engine import library
from fastdml.engine.dispatch import EXECUTORS

HERE = Path(__file__).parent / "golden"
FULL = Path(__file__).parents[2] / "shared" / "golden"
BACKENDS = [
    name for name in EXECUTORS if name in ("dense", "chunked") or (name == "native" and library.load())
]


def cbml(form, **parameters):
    return lambda x, y, **o: F.contrastive_bayesian(
        x, y, form=form, variant="released", similarity="dot", **parameters, **o
    )


def ccp(x, y, proxies, proxy_labels, **o):
    parameters = {"pos_margin": 0.0, "neg_margin": 0.5, "similarity": "ball_distance", **o}
    return 0.1 * F.contrastive(x, y, **parameters) + F.contrastive(
        proxies, proxy_labels, None, x, y, **parameters
    )


GOLDEN: dict[str, Callable[..., torch.Tensor]] = {
    "cbml_log": cbml("log"),
    "cbml_sqrt": cbml("sqrt"),
    "cbml_constant": cbml("constant"),
    "cbml_log_soft": cbml(
        "log", pos_a=0.4, pos_b=0.3, neg_a=0.8, neg_b=0.2, mining_margin=0.5,
        variance_weight=0.5, mean_mix=0.1
    ),
    "calibration": lambda x, y, **o: F.contrastive(
        x, y, pos_margin=0.9, neg_margin=0.6, similarity="cosine", **o
    ),
    "roadmap_pair": lambda x, y, **o: F.xbm_pair(
        x, y, margin=0.5, variant="released", similarity="dot", **o
    ),
    "circle_rows": lambda x, y, **o: F.circle(x, y, m=0.4, gamma=80, **o),
    "circle_global": lambda x, y, **o: F.circle(
        x, y, m=0.25, gamma=256, form="global", similarity="dot", **o
    ),
    "supcon": lambda x, y, **o: F.sup_con(
        x, y, temperature=0.07, base_temperature=0.07, similarity="dot", reduction="mean", **o
    ),
    "siglip": lambda x, z, **o: F.siglip(x, z, 10.0, -10.0, similarity="dot", **o),
    "npair": lambda x, y, anchors, positives, **o: F.n_pairs(
        x, y, form="all", anchors=anchors, positives=positives, l2_reg=0.005, l2_kind="norm",
        similarity="dot", **o
    ),
    "npair_mc": lambda x, z, **o: F.n_pairs_mc(x, z, l2_reg=0.02, l2_kind="squared", **o),
    "ccp_contrastive": ccp,
}


def load(case: str) -> dict[str, torch.Tensor]:
    with np.load(HERE / f"{case}.npz") as stored:
        return {name: torch.from_numpy(np.array(stored[name])) for name in stored}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case: str, backend: str) -> None:
    stored = load(case)
    inputs = {k: v for k, v in stored.items() if k != "loss" and not k.startswith("grad_")}
    wanted = [k.removeprefix("grad_") for k in stored if k.startswith("grad_")]
    for name in wanted:
        inputs[name].requires_grad_()
    value = GOLDEN[case](**inputs, backend=backend)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(stored["loss"].item(), rel=1e-9, abs=0)
    assert wanted
    gradients = torch.autograd.grad(value, [inputs[name] for name in wanted])
    for name, gradient in zip(wanted, gradients):
        true = stored[f"grad_{name}"]
        error = ((gradient - true).abs().max() / true.abs().max()).item()
        assert error < 1e-8, f"gradient of {name}"


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of golden values is not here")
@pytest.mark.parametrize("case", GOLDEN)
def test_copies_equal_the_full_set(case: str) -> None:
    assert (HERE / f"{case}.npz").read_bytes() == (FULL / f"{case}.npz").read_bytes()
