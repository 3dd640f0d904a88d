"""Wrappers of pytorch-metric-learning take our losses, alone and with our miners."""

import pytest
import torch
from others import Lazy

from fastdml import losses, miners

theirs, their_miners = Lazy("pytorch_metric_learning.losses"), Lazy("pytorch_metric_learning.miners")

WRAPPED = {
    "SelfSupervisedLoss": lambda loss, miner: theirs.SelfSupervisedLoss(loss),
    "CrossBatchMemory": lambda loss, miner: theirs.CrossBatchMemory(loss, 6, 64, miner),
    "MultipleLosses": lambda loss, miner: theirs.MultipleLosses([loss, loss], [miner, None], [2.0, 0.5]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_of_theirs(name):
    """Two calls: a memory is empty before the first."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 24, 6, generator=g, dtype=torch.float64).requires_grad_()
    y = torch.arange(24) % 5

    def found(loss, miner):
        wrapper = WRAPPED[name](loss, miner).double()
        value = sum(wrapper(e, x[0].detach() if name == "SelfSupervisedLoss" else y) for e in x)
        return value.detach(), torch.autograd.grad(value, x)[0]

    mine = found(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner())
    other = found(theirs.MultiSimilarityLoss(), their_miners.MultiSimilarityMiner())
    for a, b in zip(mine, other, strict=True):
        assert bool(b.any())
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
