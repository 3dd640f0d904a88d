"""Training with pytorch-metric-learning's loss or with ours is the same training, and no class that both
libraries have is left without a comparison."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdml import losses

pml = pytest.importorskip("pytorch_metric_learning")
if pml.__version__ != "2.9.0":
    pytest.skip("compared with 2.9.0", allow_module_level=True)
from pytorch_metric_learning import losses as theirs  # noqa: E402

CLASSES, DIM, STEPS = 6, 8, 50
LOSSES = {
    "MultiSimilarityLoss": {},
    "ContrastiveLoss": {},
    "SupConLoss": {"temperature": 0.5},
    "ProxyAnchorLoss": {"num_classes": CLASSES, "embedding_size": DIM},
    "ArcFaceLoss": {"num_classes": CLASSES, "embedding_size": DIM, "scale": 8},
    "SoftTripleLoss": {"num_classes": CLASSES, "embedding_size": DIM, "centers_per_class": 3},
}


def trained(loss: nn.Module, network: nn.Module) -> list[torch.Tensor]:
    """All parameters after the steps."""
    g = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, 5, generator=g, dtype=torch.float64)
    parameters = [*network.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for _ in range(STEPS):
        y = torch.randint(0, CLASSES, (32,), generator=g)
        x = centres[y] + torch.randn(32, 5, generator=g, dtype=torch.float64)
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("name", LOSSES)
def test_fifty_steps_end_in_the_same_place(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, DIM)).double()
    before = [p.detach().clone() for p in network.parameters()]
    other = getattr(theirs, name)(**LOSSES[name]).double()
    own = getattr(losses, name)(**LOSSES[name]).double()
    own.load_state_dict(other.state_dict())  # a checkpoint of theirs is one of ours
    ends = [trained(loss, copy.deepcopy(network)) for loss in (own, other)]
    assert len(ends[0]) == len(ends[1])
    for ours, expected in zip(*ends):
        assert (ours - expected).abs().max() < 1e-6
    # It went somewhere.
    assert max((a - b).abs().max() for a, b in zip(before, ends[0])) > 1e-2


def test_every_class_of_both_is_compared():
    both = {name for name in losses.MODULES if hasattr(theirs, name)}
    assert len(both) >= 27
    files = [f for f in Path(__file__).parent.glob("test_*.py") if f.name != Path(__file__).name]
    compared = [text for f in files if "pytorch_metric_learning" in (text := f.read_text())]
    assert not {name for name in both if not any(name in text for text in compared)}
