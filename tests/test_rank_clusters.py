"""Sigmoids of (value - threshold), factorised: every size of a group of thresholds, near and far apart."""

import pytest
import torch
from conftest import distance, needs_compiled

from fastdml import functional as F
from fastdml.bench.kernels import instruction_set
from fastdml.engine import library

LOSSES = {
    "smooth_ap": {"temperature": 0.01},
    "sup_ap": {"temperature": 0.01},
    "recall_at_k": {"rank_temperature": 0.01},
    "pnp": {"variant": "Ds", "anneal": 0.01},
}
ISAS = list(library.load().isas()) if library.load() else []
# A factor's exponent is at most 58 (float32) and is rounded where multiplications and additions are not
# fused: a slope may be off by as many units of rounding, of either factor.
BOUND = {torch.float64: 1e-12, torch.float32: 2 * 58 * torch.finfo(torch.float32).eps}


def run(name, dtype, thresholds, others, backend):
    """A query whose similarities are given: multiples of 2^-10, the same in both types."""
    s = torch.cat([thresholds, others]).double().mul(1024).round().div(1024)
    ref = torch.stack([s, torch.zeros_like(s)], 1).to(dtype)
    ref_y = (torch.arange(len(s)) >= len(thresholds)).long()
    query = torch.tensor([[1.0, 0.0]], dtype=dtype)
    ref.requires_grad_()
    value = getattr(F, name)(
        query, torch.tensor([0]), ref_emb=ref, ref_labels=ref_y, similarity="dot", backend=backend,
        **({} if backend == "dense" else {"sort": False}), **LOSSES[name],
    )  # fmt: skip
    return value.detach(), *torch.autograd.grad(value, ref)


@needs_compiled
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("name", LOSSES)
def test_factors_give_what_differences_give(name, dtype, isa):
    g = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 5, 8, 17):
        for width in (0.05, 0.5, 2.0):  # in a cluster, at its limit, in several
            thresholds = width * (torch.rand(count, generator=g) - 0.5)
            others = 2 * torch.rand(83, generator=g) - 1
            others[:count] = thresholds  # ties
            true = run(name, torch.float64, thresholds, others, "dense")
            try:
                with instruction_set(isa):
                    found = run(name, dtype, thresholds, others, "native")
            except ValueError:
                pytest.skip(f"this processor lacks {isa}")
            for a, b in zip(found, true, strict=True):
                assert distance(a, b) <= BOUND[dtype], (count, width)


@needs_compiled
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("place", [0, 20])
def test_nan_is_in_no_cluster_and_in_every_sum(name, place):
    s = torch.linspace(-1, 1, 64)
    s[place] = torch.nan
    value = run(name, torch.float32, s[:9], s[9:], "native")[0]
    assert value.isnan()
