"""What is not in the formulas: rows without pairs, duplicates, no direction, huge exponents."""

import math

import pytest
import torch
from conftest import BACKENDS, CASES, EXAMPLES, call, needs_compiled

from fastdml import functional as F

backends = pytest.mark.parametrize("backend", BACKENDS)


def unit(*angles: float) -> torch.Tensor:
    """Points of the unit circle: similarities are cosines of differences."""
    a = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([a.cos(), a.sin()], 1)


def lse0(*z: float) -> float:
    return math.log(1 + sum(math.exp(v) for v in z))


@needs_compiled
@pytest.mark.parametrize("name", ["zeros", "one_class", "all_singletons", "single", "duplicates"])
@pytest.mark.parametrize("description", EXAMPLES)
def test_every_problem_has_a_finite_loss_and_gradient(description, name):
    """In half precision; in float64 whatever is compared with the dense form is finite."""
    for found in call(description, CASES[name]().to(torch.float16), "native"):
        assert torch.isfinite(found).all()


@backends
@pytest.mark.parametrize("description", EXAMPLES)
def test_an_embedding_without_direction_has_no_gradient(description, backend):
    if not description.metric.normalized or description.metric.raw_anchors:
        pytest.skip("not normalised")
    case = CASES["zeros"]()
    gradients = call(description, case, backend)[1:]
    g = gradients[1] if description.rows == "proxies" else gradients[0]
    assert (g[case.x.norm(dim=1) == 0] == 0).all()
    assert (g != 0).any()


@backends
@pytest.mark.parametrize("norm", [1e-11, 1e15])
@pytest.mark.parametrize("name", ["multi_similarity", "smooth_ap"])
def test_lengths_near_the_ends_of_float32(name, norm, backend):
    case = CASES["ragged"]()
    loss = getattr(F, name)
    x = torch.nn.functional.normalize(case.x).float()
    true = loss(x, case.y, backend=backend)
    assert loss(x * norm, case.y, backend=backend).item() == pytest.approx(true.item(), rel=1e-4)


# ---- multi-similarity


@backends
def test_ms_row_without_positives(backend):
    """Unmined, only its negative term counts; mined, it is 0 and stays in the mean."""
    x, y = unit(0, 0.5, 2), torch.tensor([1, 1, 2])
    rows = F.multi_similarity(x, y, reduction="none", backend=backend)
    s02, s12 = math.cos(2), math.cos(1.5)
    assert rows[2].item() == pytest.approx(lse0(50 * (s02 - 0.5), 50 * (s12 - 0.5)) / 50, rel=1e-12)
    mined = F.multi_similarity(x, y, epsilon=3.0, reduction="none", backend=backend)
    assert mined[2] == 0 and (mined[:2] > 0).all()
    mean = F.multi_similarity(x, y, epsilon=3.0, backend=backend)
    assert mean.item() == pytest.approx(mined.sum().item() / 3, rel=1e-12)
    kept = F.multi_similarity(x, y, epsilon=3.0, reduction="nonzero", backend=backend)
    assert kept.item() == pytest.approx(mined.sum().item() / 2, rel=1e-12)


@backends
def test_ms_row_without_negatives(backend):
    x, y = unit(0, 0.5, 2), torch.tensor([1, 1, 1])
    assert (F.multi_similarity(x, y, epsilon=0.1, reduction="none", backend=backend) == 0).all()
    rows = F.multi_similarity(x, y, reduction="none", backend=backend)
    expected = lse0(-2 * (math.cos(0.5) - 0.5), -2 * (math.cos(2) - 0.5)) / 2
    assert rows[0].item() == pytest.approx(expected, rel=1e-12)


@backends
def test_ms_batch_of_one(backend):
    x = torch.randn(1, 3, requires_grad=True)
    loss = F.multi_similarity(x, torch.tensor([5]), backend=backend)
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()


@backends
def test_ms_duplicates(backend):
    """The released code drops positives of similarity 1; the paper's formula keeps them."""
    x, y = unit(0, 0, 0.5, 2), torch.tensor([1, 1, 1, 2])
    paper = F.multi_similarity(x, y, reduction="none", backend=backend)
    released = F.multi_similarity(x, y, variant="released", reduction="none", backend=backend)
    one, near, far = -2 * 0.5, -2 * (math.cos(0.5) - 0.5), lse0(50 * (math.cos(2) - 0.5)) / 50
    assert paper[0].item() == pytest.approx(lse0(one, near) / 2 + far, rel=1e-12)
    assert released[0].item() == pytest.approx(lse0(near) / 2 + far, rel=1e-12)


@backends
def test_ms_mining_by_hand(backend):
    """Row 0: hardest negative at cos 1, so positives below cos 1 + epsilon stay; hardest positive at
    cos 1.2, so negatives above cos 1.2 - epsilon stay."""
    x = unit(0, 0.3, 1.2, 1.0, 1.25, 2.5)
    y = torch.tensor([7, 7, 7, 8, 8, 8])
    rows = F.multi_similarity(x, y, epsilon=0.1, reduction="none", backend=backend)
    kept_p, kept_n = [1.2], [1.0, 1.25]
    expected = lse0(*(-2 * (math.cos(a) - 0.5) for a in kept_p)) / 2
    expected += lse0(*(50 * (math.cos(a) - 0.5) for a in kept_n)) / 50
    assert rows[0].item() == pytest.approx(expected, rel=1e-12)


@backends
def test_ms_huge_exponents(backend):
    """beta (s - base) = 500: the sum of exponentials overflows even float32, the logarithm does not."""
    x, y = unit(0, 0.01, 0.02), torch.tensor([0, 0, 1])
    x = x.float().requires_grad_()
    loss = F.multi_similarity(x, y, alpha=1000, beta=1000, backend=backend)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    wide = F.multi_similarity(x.double(), y, alpha=1000, beta=1000, backend="dense")
    assert loss.item() == pytest.approx(wide.item(), rel=1e-5)


# ---- Proxy-Anchor


@backends
def test_pa_absent_class_only_pushes(backend):
    x, proxies, y = unit(0.2, 1.0), unit(0, 1.5, 3.0), torch.tensor([1, 1])
    rows = F.proxy_anchor(x, y, proxies, reduction="none", backend=backend)

    def push(c, *samples):
        return lse0(*(32 * (math.cos(c - a) + 0.1) for a in samples))

    # One class is present, so its positive term is not divided: rows are averaged over 3.
    pull = lse0(*(-32 * (math.cos(1.5 - a) - 0.1) for a in (0.2, 1.0)))
    assert rows.tolist() == pytest.approx([push(0, 0.2, 1), 3 * pull, push(3, 0.2, 1)], rel=1e-12)


@backends
def test_pa_one_proxy(backend):
    """No negatives at all."""
    x, y = unit(0.2, 1.0), torch.tensor([0, 0])
    loss = F.proxy_anchor(x, y, unit(0), backend=backend)
    expected = lse0(*(-32 * (math.cos(a) - 0.1) for a in (0.2, 1.0)))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@backends
def test_pa_in_half_precision(backend):
    """alpha (s + margin) = 35 overflows a float16 exponential."""
    x = unit(0.0, 0.1, 3.1).half().requires_grad_()
    loss = F.proxy_anchor(x, torch.tensor([0, 1, 1]), unit(0.0, 0.05).half(), backend=backend)
    loss.backward()
    wide = F.proxy_anchor(x.double(), torch.tensor([0, 1, 1]), unit(0.0, 0.05).half().double())
    assert loss.item() == pytest.approx(wide.item(), rel=1e-5)
    assert x.grad.dtype == torch.float16 and torch.isfinite(x.grad).all()


# ---- Smooth-AP


@backends
def test_sap_row_without_positives(backend):
    """Only itself is a positive: the term of its own threshold."""
    x, y = unit(0, 0.1, 0.15), torch.tensor([1, 2, 3])
    rows = F.smooth_ap(x, y, temperature=0.1, reduction="none", backend=backend)

    def above(a):
        return 1 / (1 + math.exp((1 - math.cos(a)) / 0.1))

    assert rows[0].item() == pytest.approx(1 - 1 / (1 + above(0.1) + above(0.15)), rel=1e-12)


@backends
def test_sap_row_without_negatives(backend):
    rows = F.smooth_ap(unit(0, 1, 2), torch.tensor([1, 1, 1]), reduction="none", backend=backend)
    assert rows.abs().max() < 1e-15


@backends
def test_sap_batch_of_one(backend):
    x = torch.randn(1, 3, requires_grad=True)
    loss = F.smooth_ap(x, torch.tensor([5]), backend=backend)
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()


@backends
def test_sap_query_without_positives_in_the_reference(backend):
    """Queries are not their own positives there."""
    x, ref, y = unit(0, 1), unit(0.1, 1.1, 2), torch.tensor([1, 2, 2])
    rows = F.smooth_ap(
        x, torch.tensor([1, 9]), ref_emb=ref, ref_labels=y, temperature=0.3, reduction="none",
        backend=backend,
    )
    above = [1 / (1 + math.exp((math.cos(0.1) - math.cos(a)) / 0.3)) for a in (1.1, 2)]
    assert rows[1] == 0
    assert rows[0].item() == pytest.approx(1 - 1 / (1 + sum(above)), rel=1e-12)


@backends
def test_sap_ranks_by_hand(backend):
    """Nearly hard ranks: positives at ranks 1 (itself), 3 and 4 of 5: AP = (1/1 + 2/3 + 3/4) / 3."""
    x, y = unit(0, 0.5, 1.0, 1.5, 2.0), torch.tensor([1, 2, 1, 1, 2])
    rows = F.smooth_ap(x, y, temperature=1e-3, reduction="none", backend=backend)
    assert rows[0].item() == pytest.approx(1 - (1 + 2 / 3 + 3 / 4) / 3, rel=1e-9)


@backends
def test_sap_duplicates_share_a_rank(backend):
    """Two equal candidates each count half above the other."""
    x, y = unit(0, 0.5, 0.5), torch.tensor([1, 1, 2])
    rows = F.smooth_ap(x, y, temperature=1e-3, reduction="none", backend=backend)
    assert rows[0].item() == pytest.approx(1 - (1 + 2 / 2.5) / 2, rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [20, 100, 1000])
def test_large_logits_have_the_gradient_of_their_largest(length, backend):
    """What the largest exponent is rounded to is the same in every pass, or its share is not 1."""
    g = torch.Generator().manual_seed(1)
    x = length * torch.nn.functional.normalize(torch.randn(40, 32, generator=g))
    x, y = x * (1 + torch.rand(40, 1, generator=g)), torch.arange(40) % 8
    found = []
    for name, kind in ((backend, torch.float32), ("dense", torch.float64)):
        z = x.to(kind).requires_grad_()
        value = F.nt_xent(z, y, similarity="dot", backend=name)
        found.append(torch.autograd.grad(value, z)[0].double())
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[1].abs().max()
