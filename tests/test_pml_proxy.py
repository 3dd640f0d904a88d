"""Proxy losses against pytorch-metric-learning 2.9.0, whose checkpoints they load."""

from __future__ import annotations

import pytest
import torch

from fastdml import losses as ours

theirs = pytest.importorskip("pytorch_metric_learning.losses")

NAMES = [
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "NormalizedSoftmaxLoss",
    "CosFaceLoss",
    "ArcFaceLoss",
    "SubCenterArcFaceLoss",
    "SphereFaceLoss",
    "LargeMarginSoftmaxLoss",
    "SoftTripleLoss",
]
CLASSES, DIM, BATCH = 9, 17, 33


def pair(name: str, dtype: torch.dtype, **arguments):
    """Their loss, and ours with its checkpoint."""
    reference = getattr(theirs, name)(num_classes=CLASSES, embedding_size=DIM, **arguments)
    loss = getattr(ours, name)(CLASSES, DIM, **arguments)
    reference, loss = reference.to(dtype), loss.to(dtype)
    loss.load_state_dict(reference.state_dict())
    return reference, loss


def close(found: torch.Tensor, true: torch.Tensor) -> None:
    tolerance = 1e-9 if true.dtype == torch.float64 else 1e-5
    assert (found - true).abs().max() <= tolerance * true.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_value_gradients_and_logits(name: str, dtype: torch.dtype) -> None:
    for seed in range(8):  # every kind of tuple, full and empty
        torch.manual_seed(seed)
        reference, loss = pair(name, dtype)
        x = torch.randn(BATCH, DIM, dtype=torch.float64).to(dtype)
        y = torch.randint(0, CLASSES, (BATCH,))
        # None, (a1, p, a2, n), (a, p, n), and tuples that name nobody
        length = [0, 4, 3, 4][seed % 4]
        size = 0 if seed % 8 == 7 else 25
        tuples = tuple(torch.randint(0, BATCH, (size,)) for _ in range(length)) or None
        results = []
        for module in (reference, loss):
            leaf = x.clone().requires_grad_()
            value = module(leaf, y, tuples)
            value.backward()
            (weight,) = module.parameters()
            results.append((value.detach(), leaf.grad, weight.grad, module.get_logits(x).detach()))
        for found, true in zip(results[1], results[0]):
            close(found, true)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_begin_alike(name: str) -> None:
    torch.manual_seed(3)
    reference = getattr(theirs, name)(num_classes=CLASSES, embedding_size=DIM)
    torch.manual_seed(3)
    loss = getattr(ours, name)(CLASSES, DIM)
    assert reference.state_dict().keys() == loss.state_dict().keys()
    for key, value in reference.state_dict().items():
        assert torch.equal(value, loss.state_dict()[key]), key


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("ProxyNCALoss", {"softmax_scale": 7}),
        ("SphereFaceLoss", {"margin": 1}),
        ("SphereFaceLoss", {"margin": 3, "scale": 2}),
        ("LargeMarginSoftmaxLoss", {"margin": 2}),
        ("ArcFaceLoss", {"margin": 100, "scale": 5}),
        ("SubCenterArcFaceLoss", {"sub_centers": 5}),
        ("SoftTripleLoss", {"centers_per_class": 2, "la": 5, "gamma": 1, "margin": 0.3}),
        ("ProxyAnchorLoss", {"margin": 0.4, "alpha": 4}),
    ],
)
def test_arguments(name: str, arguments: dict) -> None:
    torch.manual_seed(0)
    reference, loss = pair(name, torch.float64, **arguments)
    x, y = torch.randn(BATCH, DIM, dtype=torch.float64), torch.randint(0, CLASSES, (BATCH,))
    close(loss(x, y).detach(), reference(x, y).detach())


def test_weight_and_embedding_regularizers() -> None:
    from pytorch_metric_learning.regularizers import LpRegularizer, SparseCentersRegularizer

    torch.manual_seed(0)
    options = {
        "weight_regularizer": SparseCentersRegularizer(CLASSES, 10),
        "weight_reg_weight": 0.2,
        "embedding_regularizer": LpRegularizer(),
        "embedding_reg_weight": 0.3,
    }
    reference, loss = pair("SoftTripleLoss", torch.float64, **options)
    x, y = torch.randn(BATCH, DIM, dtype=torch.float64), torch.randint(0, CLASSES, (BATCH,))
    close(loss(x, y).detach(), reference(x, y).detach())


def test_outliers_of_sub_centers() -> None:
    torch.manual_seed(0)
    reference, loss = pair("SubCenterArcFaceLoss", torch.float64)
    x, y = torch.randn(60, DIM, dtype=torch.float64), torch.randint(0, CLASSES - 1, (60,))
    # At their default of 75 degrees most random samples are outliers; their other mode returns a pair too.
    for threshold in (75, 100):
        true, centers = reference.get_outliers(x, y, threshold)
        found, own = loss.get_outliers(x, y, threshold)
        assert found.tolist() == true.tolist()
        seen = y.unique()
        close(own[:, seen], centers[:, seen])
    assert (own[:, CLASSES - 1] == 0).all()  # theirs is uninitialised memory
    assert loss.get_outliers(x, y, 75, return_dominant_centers=False).dim() == 1


# Faults of 2.9.0 that are not copied.


def test_an_embedding_equal_to_its_weight() -> None:
    """Their ArcFace divides by the sine of an angle of 0."""
    torch.manual_seed(0)
    reference, loss = pair("ArcFaceLoss", torch.float64)
    x = torch.zeros(1, DIM, dtype=torch.float64)
    x[0, 0] = 1
    with torch.no_grad():
        for module in (reference, loss):
            module.W.normal_(generator=torch.Generator().manual_seed(1))
            module.W[:, 0] = x[0]
    gradients = []
    for module in (reference, loss):
        leaf = x.clone().requires_grad_()
        module(leaf, torch.tensor([0])).backward()
        gradients.append(leaf.grad)
    assert not torch.isfinite(gradients[0]).all()
    assert torch.isfinite(gradients[1]).all() and torch.isfinite(loss.W.grad).all()


def test_half_precision_keeps_the_parameter() -> None:
    """Theirs becomes half precision for good after one batch."""
    reference, loss = pair("CosFaceLoss", torch.float32)
    x, y = torch.randn(4, DIM, dtype=torch.bfloat16), torch.arange(4)
    reference(x, y)
    loss(x, y).backward()
    assert reference.W.dtype == torch.bfloat16
    assert loss.W.dtype == loss.W.grad.dtype == torch.float32


def test_gradient_beyond_the_range_of_exp() -> None:
    """Their Proxy-NCA drops a sample whose probability underflows: here all; ours pulls it hardest."""
    torch.manual_seed(0)
    reference, loss = pair("ProxyNCALoss", torch.float32, softmax_scale=60)
    with torch.no_grad():
        for module in (reference, loss):
            module.proxies.zero_()
            module.proxies[torch.arange(CLASSES), torch.arange(CLASSES)] = 1
    x = torch.zeros(1, DIM)
    x[0, 1], x[0, 0] = 1, -0.2
    values, gradients = [], []
    for module in (reference, loss):
        leaf = x.clone().requires_grad_()
        value = module(leaf, torch.tensor([0]))
        value.backward()
        values.append(value.item())
        gradients.append(leaf.grad)
    true = torch.nn.functional.normalize(x).double() @ loss.proxies.double().t() * 120
    expected = torch.nn.functional.cross_entropy(true, torch.tensor([0])).item()
    assert not values[0] > 0 and not gradients[0].norm() > 0  # NaN, or 0 where others remain
    assert values[1] == pytest.approx(expected, rel=1e-5) and gradients[1][0, 0] < -1
