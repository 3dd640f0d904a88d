"""Pair losses against pytorch-metric-learning 2.9.0 with the same arguments: the same values where its
values are right, and one test for each fault that a drop-in must not copy."""

import math

import pytest
import torch

from fastdml import losses

pml = pytest.importorskip("pytorch_metric_learning")
if pml.__version__ != "2.9.0":
    pytest.skip("compared with 2.9.0", allow_module_level=True)
from pytorch_metric_learning import losses as theirs  # noqa: E402

DRAWS = range(4)
KINDS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]

# name of the class, arguments; all with the defaults first.
BOTH = [
    ("ContrastiveLoss", {}),
    ("ContrastiveLoss", {"pos_margin": 0.2, "neg_margin": 1.4}),
    ("NTXentLoss", {}),
    ("NTXentLoss", {"temperature": 0.5}),
    ("SupConLoss", {}),
    ("SupConLoss", {"temperature": 0.3}),
    ("CircleLoss", {}),
    ("CircleLoss", {"m": 0.25, "gamma": 16}),
    ("GeneralizedLiftedStructureLoss", {}),
    ("GeneralizedLiftedStructureLoss", {"neg_margin": 1.5, "pos_margin": 0.2}),
    ("IntraPairVarianceLoss", {}),
    ("IntraPairVarianceLoss", {"pos_eps": 0.1, "neg_eps": 0.3}),
    ("NCALoss", {}),
    ("NCALoss", {"softmax_scale": 5}),
    ("SignalToNoiseRatioContrastiveLoss", {}),
    ("SignalToNoiseRatioContrastiveLoss", {"pos_margin": 0.1, "neg_margin": 2.1}),
]
# Those whose reference form is missing, refused, or at fault.
ONE_SET = [
    ("LiftedStructureLoss", {}),
    ("LiftedStructureLoss", {"neg_margin": 0.5, "pos_margin": 0.1}),
    ("NPairsLoss", {}),
]


class Softplus(torch.nn.Module):
    """By its definition; torch's is the identity beyond 20, which leaves exp(-20) = 2e-9 out."""

    def forward(self, z):
        return torch.logaddexp(z, torch.zeros_like(z))


def both(name, arguments):
    """Our loss and theirs, the fault of its softplus mended (`test_fault_softplus_beyond_20`)."""
    ours, other = getattr(losses, name)(**arguments), getattr(theirs, name)(**arguments)
    if name == "CircleLoss":
        other.soft_plus = Softplus()
    return ours, other


def name_of(case):
    name, arguments = case
    return "-".join([name, *map(str, arguments.values())])


def draw(seed, dtype, rows=48, classes=7, dim=17):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (rows,), generator=g)


def compare(ours, other, tensors, call, tolerance):
    """Value and gradients of two losses on the same tensors."""
    found = []
    for loss in (ours, other):
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = call(loss, *leaves)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for a, b in zip(*found, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("case", BOTH + ONE_SET, ids=name_of)
def test_one_set(case, seed, dtype, tolerance):
    name, arguments = case
    x, y = draw(seed, dtype)
    ours, other = both(name, arguments)
    compare(ours, other, [x], lambda f, z: f(z, y), tolerance)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("case", BOTH, ids=name_of)
def test_with_reference(case, seed, dtype, tolerance):
    name, arguments = case
    x, y = draw(seed, dtype)
    ref, ref_y = draw(seed + 1000, dtype, rows=61)
    ours, other = both(name, arguments)

    def call(loss, a, b):
        return loss(a, y, ref_emb=b, ref_labels=ref_y)

    compare(ours, other, [x, ref], call, tolerance)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "NTXentLoss", "SupConLoss", "CircleLoss",
                                  "GeneralizedLiftedStructureLoss", "IntraPairVarianceLoss"])  # fmt: skip
def test_with_index_tuples_and_no_labels(name, seed, dtype, tolerance):
    """Half of all pairs, each once. (Pairs that are listed twice count once in ours.)"""
    x, y = draw(seed, dtype)
    g = torch.Generator().manual_seed(seed)
    same = (y[:, None] == y).fill_diagonal_(False)
    half = torch.rand(same.shape, generator=g) < 0.5
    pairs = (*torch.where(same & half), *torch.where((y[:, None] != y) & half))
    compare(
        getattr(losses, name)(), getattr(theirs, name)(), [x],
        lambda f, z: f(z, indices_tuple=pairs), tolerance,
    )  # fmt: skip


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_instance_with_different_labels(seed, dtype, tolerance):
    """Where theirs is right: every sample its own class, in ascending order."""
    # Of two dimensions, where neighbours compete: else the loss is 1e-3 of logits of 16, whose rounding in
    # float32 (theirs, too) is beyond the tolerance.
    x, _ = draw(seed, dtype, rows=20, dim=2)
    y = torch.arange(20) * 3 - 7
    compare(losses.InstanceLoss(16), theirs.InstanceLoss(16), [x], lambda f, z: f(z, y), tolerance)


@pytest.mark.parametrize("seed", DRAWS)
def test_n_pairs_from_a_tuple(seed):
    x, y = draw(seed, torch.float64)
    same = (y[:, None] == y).fill_diagonal_(False)
    a, p = torch.where(same)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    pairs = (a[order], p[order], a[:1], a[:1])
    compare(losses.NPairsLoss(), theirs.NPairsLoss(), [x], lambda f, z: f(z, y, pairs), 1e-9)


# ---- faults


def value_and_gradient(loss, x, *arguments, **named):
    x = x.clone().requires_grad_()
    value = loss(x, *arguments, **named)
    return value.detach(), torch.autograd.grad(value, x)[0]


def angle(degrees):
    a = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([a.cos(), a.sin()], -1)


def sigma(z):
    return 1 / (1 + math.exp(-z))


S_P, S_N = math.cos(math.radians(60)), math.cos(math.radians(80))
ONE_PAIR_OF_EACH = {
    "ContrastiveLoss": ({}, 2 * math.sin(math.radians(30))),  # the negative is beyond its margin
    "NTXentLoss": ({"temperature": 0.5}, math.log1p(math.exp((S_N - S_P) / 0.5))),
    "SupConLoss": ({"temperature": 0.5}, math.log1p(math.exp((S_N - S_P) / 0.5))),
    "CircleLoss": (
        {"m": 0.4, "gamma": 4},
        math.log1p(math.exp(-4 * (1.4 - S_P) * (S_P - 0.6) + 4 * (S_N + 0.4) * (S_N - 0.4))),
    ),
    "MultiSimilarityLoss": (
        {},
        math.log1p(math.exp(-2 * (S_P - 0.5))) / 2 + math.log1p(math.exp(50 * (S_N - 0.5))) / 50,
    ),
}


def test_fault_softplus_beyond_20():
    """Of the derivative of their circle loss 2e-9 is missing."""
    ours, mended = both("CircleLoss", {"gamma": 16})
    other, missing = theirs.CircleLoss(gamma=16), 0.0
    for seed in DRAWS:
        found = []
        for loss in (ours, mended, other):
            x, y = draw(seed, torch.float64)
            x.requires_grad_()
            found.append(torch.autograd.grad(loss(x, y), x)[0])
        own, right, wrong = found
        assert (own - right).abs().max() < 1e-12 * right.abs().max()
        missing = max(missing, ((wrong - right).abs().max() / right.abs().max()).item())
    assert 1e-10 < missing < 3e-9


@pytest.mark.parametrize("name", ONE_PAIR_OF_EACH)
def test_fault_one_positive_and_one_negative_pair(name):
    """Fault 2: it takes exactly one pair of each kind for none."""
    arguments, true = ONE_PAIR_OF_EACH[name]
    x, ref = angle([0.0]), angle([60.0, 80.0])
    y, ref_y = torch.tensor([3]), torch.tensor([3, 4])
    ours, other = getattr(losses, name)(**arguments), getattr(theirs, name)(**arguments)
    value, gradient = value_and_gradient(ours, x, y, ref_emb=ref, ref_labels=ref_y)
    assert value.item() == pytest.approx(true, rel=1e-12)
    assert gradient.abs().max() > 1e-3
    assert other(x, y, ref_emb=ref, ref_labels=ref_y) == 0


def test_fault_lifted_structure_with_reference():
    """Fault 3: it compares indices of one set with indices of the other."""
    x, y = draw(0, torch.float64, rows=5, classes=3)
    ref, ref_y = draw(1, torch.float64, rows=7, classes=3)
    a, r = (torch.nn.functional.normalize(t, dim=1) for t in (x, ref))
    d = torch.cdist(a, r)
    total, count = 0.0, 0
    for i in range(5):
        for p in range(7):
            if y[i] != ref_y[p]:
                continue
            terms = [1 - d[i, n] for n in range(7) if ref_y[n] != y[i]]
            terms += [1 - d[k, p] for k in range(5) if y[k] != ref_y[p]]
            excess = torch.stack(terms).logsumexp(0) + d[i, p]
            total, count = total + excess.relu() ** 2 / 2, count + 1
    true = (total / count).item()
    ours, other = losses.LiftedStructureLoss(), theirs.LiftedStructureLoss()
    assert ours(x, y, ref_emb=ref, ref_labels=ref_y).item() == pytest.approx(true, rel=1e-12)
    assert abs(other(x, y, ref_emb=ref, ref_labels=ref_y).item() - true) > 1e-3 * true


def test_fault_nt_xent_loses_its_gradient():
    """Fault 4: log(ratio + tiny) is flat once the ratio is below the smallest float32."""
    x = angle([0.0, 180.0, 1.0, 181.0]).float()
    y = torch.tensor([0, 0, 1, 1])
    value, gradient = value_and_gradient(losses.NTXentLoss(0.01), x, y)
    # A gap of about 200: each anchor's positive is opposite, a negative next to it.
    assert value == pytest.approx(200, rel=0.01)
    assert gradient.abs().max() > 0.1
    _, lost = value_and_gradient(theirs.NTXentLoss(0.01), x, y)
    assert lost.abs().max() < 1e-3 * gradient.abs().max()


def test_fault_sup_con_of_one_class():
    """Fault 5: no negative at all counts as no loss; the definition has positives in its sum."""
    x, _ = draw(0, torch.float64, rows=6)
    y = torch.zeros(6, dtype=torch.long)
    s = torch.nn.functional.normalize(x, dim=1)
    z = (s @ s.t() / 0.1)[~torch.eye(6, dtype=torch.bool)].view(6, 5)
    true = (z.logsumexp(1) - z.mean(1)).mean().item()
    assert losses.SupConLoss()(x, y).item() == pytest.approx(true, rel=1e-12)
    assert theirs.SupConLoss()(x, y) == 0


def test_fault_instance_takes_a_class_for_a_column():
    """Fault 5: with classes of several samples its target is column number `class`."""
    x, y = draw(0, torch.float64, rows=12, classes=3)
    z = torch.nn.functional.normalize(x, dim=1)
    z = z @ z.t() * 64
    same = (y[:, None] == y).double()
    true = (-(same / same.sum(1, keepdim=True)) * z.log_softmax(1)).sum(1).mean().item()
    assert losses.InstanceLoss()(x, y).item() == pytest.approx(true, rel=1e-12)
    wrong = torch.nn.functional.cross_entropy(z, y.unique(return_inverse=True)[1]).item()
    assert theirs.InstanceLoss()(x, y).item() == pytest.approx(wrong, rel=1e-9)
    assert abs(wrong - true) > 1


def test_fault_nca_of_singletons():
    """Fault 5: the mean over no row."""
    x, _ = draw(0, torch.float64, rows=6)
    y = torch.arange(6)
    value, gradient = value_and_gradient(losses.NCALoss(), x, y)
    assert value == 0 and (gradient == 0).all()
    assert torch.isnan(theirs.NCALoss()(x, y))


def test_fault_signal_to_noise_of_a_constant_embedding():
    """No signal: theirs divides by 0."""
    x, y = draw(0, torch.float64, rows=8, classes=2)
    x[3] = 1.5
    value, gradient = value_and_gradient(losses.SignalToNoiseRatioContrastiveLoss(), x, y)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    other, lost = value_and_gradient(theirs.SignalToNoiseRatioContrastiveLoss(), x, y)
    assert not (torch.isfinite(other) and torch.isfinite(lost).all())


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("number", [0.7, 123.456])
def test_a_constant_of_any_size_has_no_signal(number, similarity):
    """Also where the mean of its numbers is rounded: as zeros."""
    for dim in (33, 96, 100):
        x, y = draw(0, torch.float32, rows=8, classes=2, dim=dim)
        loss = losses.SignalToNoiseRatioContrastiveLoss(reduction="sum", similarity=similarity)
        x[3] = 0
        true = loss(x, y)
        x[3] = number
        torch.testing.assert_close(loss(x, y), true, rtol=1e-4, atol=0)


def test_departure_repeated_pairs():
    """No fault: a pair that is listed twice counts twice in theirs, once in ours."""
    x = angle([0.0, 60.0, 80.0, 200.0])
    once = tuple(torch.tensor(t) for t in ([0, 1], [1, 0], [0, 1], [2, 2]))
    twice = tuple(torch.cat([t, t[:1]]) for t in once)
    ours, other = losses.NTXentLoss(0.5), theirs.NTXentLoss(0.5)
    assert ours(x, indices_tuple=once).item() == pytest.approx(other(x, indices_tuple=once).item(), rel=1e-9)
    assert ours(x, indices_tuple=twice) == ours(x, indices_tuple=once)
    assert abs(other(x, indices_tuple=twice) - other(x, indices_tuple=once)) > 1e-3
