"""Numbers of described losses that are tensors: read at every call, with a gradient, on every executor."""

import pytest
import torch
from conftest import PARAMETERS, fill, needs_compiled

from fastdml import functional, losses, reducers

OPEN = {n: m for n, m in losses.MODULES.items() if m.open}
B = 18
SIZES = {"num_classes": 6, "embedding_size": 5}


def batch():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(B, 5, dtype=torch.float64, generator=g)
    return x, torch.arange(B) // 3, torch.randn(B, 4, dtype=torch.float64, generator=g)


def made(module, backend, **numbers):
    torch.manual_seed(0)
    given = fill(module.__init__, **{**PARAMETERS, **SIZES})
    if module.__name__ == "MultiSimilarityLoss":
        given["epsilon"] = 0.1
    return module(**{**given, **numbers}, backend=backend).double()


def value(loss, x):
    _, y, teacher = batch()
    further = teacher if "teacher" in fill(loss.forward, embeddings=x, labels=y, teacher=teacher) else y
    return loss(x, further)


def usual(module):
    """The numbers that may be tensors, as the module has them."""
    plain = made(module, "dense")
    found = {name: getattr(plain, name) for name in module.open}
    # 0 may be the end of what is allowed.
    return {k: float(v) or 0.05 for k, v in found.items() if v is not None}


def parameters(numbers):
    return {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for k, v in numbers.items()}


@pytest.mark.parametrize("name", OPEN)
def test_derivatives_by_all_numbers(name):
    module, numbers = OPEN[name], usual(OPEN[name])
    found = {}
    for backend in ("dense", "chunked"):
        loss = made(module, backend, **parameters(numbers))
        assert set(numbers) <= {n for n, _ in loss.named_parameters()}
        x = batch()[0].requires_grad_()
        result = value(loss, x)
        leaves = [getattr(loss, k) for k in numbers]
        found[backend] = [result.detach(), *torch.autograd.grad(result, [x, *leaves])]
    for a, b in zip(found["chunked"], found["dense"]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    plain = value(made(module, "dense", **numbers), batch()[0])
    torch.testing.assert_close(found["dense"][0], plain.detach(), rtol=1e-12, atol=1e-14)
    if made(module, "dense").description().detaches:
        return
    for k, (key, at) in enumerate(numbers.items()):
        step = 1e-6
        ends = [
            float(value(made(module, "dense", **{**numbers, key: at + d}), batch()[0]).detach())
            for d in (step, -step)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(found["dense"][2 + k]) == pytest.approx(slope, rel=1e-4, abs=1e-6), key


@needs_compiled
def test_compiled_at_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
    module = losses.NTXentLoss
    found = []
    for backend in ("native", "dense"):
        loss = made(module, backend, **parameters({"temperature": 0.3}))
        x = batch()[0].requires_grad_()
        found.append(torch.autograd.grad(value(loss, x), [x, loss.temperature]))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_tensor_that_is_no_parameter_is_followed_every_time():
    """The functional form keeps no graph of an earlier call."""
    x, y, _ = batch()
    logarithm = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        (d,) = torch.autograd.grad(functional.multi_similarity(x, y, alpha=logarithm.exp()), logarithm)
        assert torch.isfinite(d) and d != 0


def test_wrong_tensors():
    with pytest.raises(ValueError, match="alpha: expected a number or a tensor of one"):
        losses.MultiSimilarityLoss(alpha=torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match="margin: expected a number, got a parameter"):
        losses.TripletMarginLoss(margin=torch.nn.Parameter(torch.tensor(0.1)))
    temperature = torch.nn.Parameter(torch.tensor(0.1))
    with pytest.raises(ValueError, match="base_temperature: expected None"):
        losses.SupConLoss(temperature, base_temperature=0.1)


def test_a_parametrized_number():
    x = batch()[0]
    for loss, name in (
        (losses.MultiSimilarityLoss(base=torch.nn.Parameter(torch.tensor(0.3)), backend="dense"), "base"),
        (losses.NTXentLoss(torch.nn.Parameter(torch.tensor(0.3)), backend="dense"), "temperature"),
    ):
        truth = value(loss, x)
        torch.nn.utils.parametrize.register_parametrization(loss, name, torch.nn.Identity())
        torch.testing.assert_close(value(loss, x), truth)


def test_a_module_is_the_same_to_others_while_it_is_described(monkeypatch):
    loss = losses.MultiSimilarityLoss(base=torch.nn.Parameter(torch.tensor(0.3)), backend="dense")
    seen, made = [], loss.describes.__post_init__

    def looking(self):
        seen.append(loss.base is loss._parameters["base"])
        made(self)

    monkeypatch.setattr(loss.describes, "__post_init__", looking)
    loss.description()
    assert seen == [True]


def slopes_by_differences(name, numbers, further, **options):
    """Derivatives by the numbers, each moved a little."""

    def found(**moved):
        loss = made(OPEN[name], "auto", **{**numbers, **moved}, **options)
        return float(loss(*further).detach())

    step = 1e-6
    return [
        (found(**{k: v + step}) - found(**{k: v - step})) / (2 * step) for k, v in numbers.items()
    ]


IN_PIECES = [n for n, m in OPEN.items() if made(m, "auto").description().in_pieces]


@pytest.mark.parametrize("reducer", [reducers.ThresholdReducer(low=1e-3), reducers.PerAnchorReducer()])
@pytest.mark.parametrize("name", IN_PIECES)
def test_elements_that_a_reducer_object_takes_read_learnt_numbers(name, reducer):
    numbers = usual(OPEN[name])
    loss = made(OPEN[name], "auto", **parameters(numbers), reducer=reducer)
    x, y, _ = batch()
    value = loss(x, y)
    found = torch.autograd.grad(value, [getattr(loss, k) for k in numbers])
    for slope, true in zip(found, slopes_by_differences(name, numbers, (x, y), reducer=reducer)):
        assert slope.item() == pytest.approx(true, rel=1e-4, abs=1e-6)
    assert value.item() == pytest.approx(
        float(made(OPEN[name], "auto", **numbers, reducer=reducer)(x, y))
    )


@pytest.mark.parametrize("name", ["ProxyAnchorLoss", "CosFaceLoss"])
def test_samples_weigh_as_an_index_tuple_names_them_beside_learnt_numbers(name):
    numbers = usual(OPEN[name])
    x, y, _ = batch()
    pairs = torch.arange(6), torch.arange(6) + 1, torch.arange(6) + 9
    loss = made(OPEN[name], "auto", **parameters(numbers))
    value = loss(x, y, pairs)
    found = torch.autograd.grad(value, [getattr(loss, k) for k in numbers])
    for slope, true in zip(found, slopes_by_differences(name, numbers, (x, y, pairs))):
        assert slope.item() == pytest.approx(true, rel=1e-4, abs=1e-6)
    assert value.item() == pytest.approx(float(made(OPEN[name], "auto", **numbers)(x, y, pairs)))
