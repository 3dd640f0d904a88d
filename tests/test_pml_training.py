"""Training with pytorch-metric-learning's loss or with ours is the same training, and no class that both
libraries have is left without a comparison."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdml import losses

pml = pytest.importorskip("pytorch_metric_learning")
if pml.__version__ != "2.9.0":
    pytest.skip("compared with 2.9.0", allow_module_level=True)
from pytorch_metric_learning import losses as theirs  # noqa: E402
from test_pml_parity import with_exact_beta  # noqa: E402

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


# Of other batches, or with faults of theirs on these: test_pml_table and test_pml_more.
FAULTY = ("AngularLoss", "DynamicSoftMarginLoss", "P2SGradLoss")
BOTH = sorted(
    name for name, module in losses.MODULES.items()
    if hasattr(theirs, name) and module.in_torch is None and name not in FAULTY
)  # fmt: skip
ARGUMENTS = {
    "RankedListLoss": {"margin": 0.4, "Tn": 10.0},
    "ThresholdConsistentMarginLoss": {"margin_plus": 0.4, "margin_minus": 0.1},
}
OURS = {"RankedListLoss": {"detach_weights": False}}
# Where theirs is right only for these labels: it takes the number of a class for a column.
LABELS = {"InstanceLoss": torch.arange(36)}


def arguments(name):
    """What both libraries' classes of a name cannot be made without."""
    required = inspect.signature(getattr(losses, name).__init__).parameters
    sizes = {"num_classes": CLASSES, "embedding_size": 17}
    given = {k: v for k, v in sizes.items() if k in required and name != "MarginLoss"}
    return given | ARGUMENTS.get(name, {})


AMPLIFIED = ("SmoothAPLoss", "FastAPLoss")


def value_and_gradients(loss, x, y):
    """The loss of x [B, D], its gradient, and those of the loss's parameters."""
    z = x.clone().requires_grad_()
    value = loss(z, y)
    return [value.detach(), *torch.autograd.grad(value, [z, *loss.parameters()])]


def at_an_edge(x, bins):
    """Whether a similarity is so near the edge of a bin that rounding decides which slope is its own."""
    u = nn.functional.normalize(x.double(), dim=1)
    place = (u @ u.t() + 1) * bins / 2
    return bool(((place - place.round()).abs().fill_diagonal_(1) < 1e-4).any())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", BOTH)
def test_every_class_of_both_has_the_same_value_and_gradient(name, dtype, tolerance):
    """With the same arguments, and the defaults of each for the rest.

    Classes come in order and are as many as their members, where their Smooth-AP is right too.
    """
    module, given = getattr(theirs, name), arguments(name)
    y = LABELS.get(name, torch.arange(36) // 6)
    compared, before = 0, torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of tensors that theirs fills
    try:
        torch.manual_seed(0)
        other = module(**given).to(dtype)
        own = getattr(losses, name)(**given, **OURS.get(name, {})).to(dtype)
        if list(own.parameters()):
            own.load_state_dict(other.state_dict())
        for seed in range(4):
            g = torch.Generator().manual_seed(seed)
            x = torch.randn(36, 17, generator=g, dtype=torch.float64).to(dtype)
            if name == "HistogramLoss" and at_an_edge(x, 100):
                continue
            expected = value_and_gradients(other, x, y)
            assert expected[1].any()
            for k, (a, b) in enumerate(zip(value_and_gradients(own, x, y), expected, strict=True)):
                if (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3):
                    continue
                # A sharp sigmoid, or a narrow bin, amplifies the rounding of a similarity: against
                # float64, ours is off by no more than twice what theirs is.
                assert dtype == torch.float32 and name in AMPLIFIED
                torch.set_default_dtype(torch.float64)
                true = value_and_gradients(copy.deepcopy(other).double(), x.double(), y)[k]
                torch.set_default_dtype(dtype)
                assert (a - true).abs().max() <= 2 * (b - true).abs().max()
            compared += 1
        assert compared >= 2
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", [n for n in BOTH if n != "ThresholdConsistentMarginLoss"])  # reads the batch
def test_a_reference_is_taken_alike(name, dtype, tolerance):
    """What theirs takes ours takes, with the same result; lifted structure's is a fault of theirs."""
    given = arguments(name)
    own = getattr(losses, name)(**given, **OURS.get(name, {})).to(dtype)
    other = with_exact_beta(getattr(theirs, name)(**given).to(dtype))
    y, ref_y = torch.arange(36) // 6, torch.arange(41) % 6
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        x, ref = (torch.randn(n, 17, generator=g, dtype=torch.float64).to(dtype) for n in (36, 41))
        leaves = [x.requires_grad_(), ref.requires_grad_()]
        try:
            expected = other(x, y, ref_emb=ref, ref_labels=ref_y)
        except ValueError as refusal:
            assert "ref_emb is not supported" in str(refusal)
            return
        found = own(x, y, ref_emb=ref, ref_labels=ref_y)
        slopes = zip(*(torch.autograd.grad(v, leaves) for v in (found, expected)))
        for a, b in [(found.detach(), expected.detach()), *slopes]:
            near = (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)
            assert near != (name == "LiftedStructureLoss")


def test_no_class_of_both_is_left_out():
    """Those of theirs that are not here are listed in the table of differences."""
    assert len(BOTH) >= 27
    missing = {
        name
        for name, found in vars(theirs).items()
        if inspect.isclass(found) and issubclass(found, nn.Module) and not hasattr(losses, name)
    }
    told = (Path(__file__).parent.parent / "docs" / "compatibility.md").read_text()
    abstract = {
        "BaseLossWrapper", "BaseMetricLossFunction", "EmbeddingRegularizerMixin", "WeightRegularizerMixin",
    }  # fmt: skip
    assert not {name for name in missing - abstract if f"`{name}`" not in told}
