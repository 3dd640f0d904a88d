"""Short cuts of small batches: they must change no result and hide from nobody who watches."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdml import losses
from fastdml.engine import library
from fastdml.engine.similarity import EPSILON, SIMILARITIES
from fastdml.losses import MultiSimilarityLoss
from fastdml.losses.proxy.proxies import ProxyLoss


@pytest.mark.skipif(library.load() is None, reason="needs the compiled library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (7, 15), (5, 16), (9, 333), (300, 64)])
def test_inverse_norms(shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    x[0] *= 0  # no direction
    if shape[0] > 2:
        x[1] *= 0.1 * EPSILON / x[1].norm()  # too short to have one
        x[2] *= 1e10
    found = SIMILARITIES["cosine"].scale(x, dtype)
    norm = x.double().norm(dim=1)
    wanted = torch.where(norm > EPSILON, 1 / norm, 0).to(dtype)
    torch.testing.assert_close(found, wanted, rtol=4 * torch.finfo(dtype).eps, atol=0)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_one_operator_is_seen_by_who_watches():
    x, y = torch.randn(12, 5, requires_grad=True), torch.arange(12) // 3
    loss = MultiSimilarityLoss()
    wanted = loss(x, y)
    with Watch() as watch:
        found = loss(x, y)
    assert watch.seen == ["fastdml.row_loss.default"]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "SupConLoss", "ProxyAnchorLoss", "ArcFaceLoss"])
def test_a_loss_that_was_called_is_copied(name):
    """What it has found of itself, and keeps for the next call, cannot be pickled."""
    kind = getattr(losses, name)
    loss = kind(4, 5) if issubclass(kind, ProxyLoss) else kind()
    x, y = torch.randn(12, 5), torch.arange(12) // 3
    wanted = loss(x, y)
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert torch.equal(other(x, y), wanted)
