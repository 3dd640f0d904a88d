"""pytorch-metric-learning 2.9.0 with the same arguments: the same values where its values are right,
and one test for each fault that a drop-in must not copy."""

import pytest
import torch

import fastdml
from fastdml import losses

pml = pytest.importorskip("pytorch_metric_learning")
if pml.__version__ != "2.9.0":
    pytest.skip("compared with 2.9.0", allow_module_level=True)
from pytorch_metric_learning import losses as theirs  # noqa: E402
from pytorch_metric_learning import miners as their_miners  # noqa: E402

DRAWS = range(4)
KINDS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def draw(seed, dtype, rows=48, classes=7, dim=17):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (rows,), generator=g)


@pytest.fixture
def default_type(request):
    """Theirs fills a tensor of torch's default type, float32, whatever the type of the embeddings."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param if hasattr(request, "param") else torch.float64)
    yield
    torch.set_default_dtype(before)


def with_exact_beta(other):
    """Their margin loss keeps its beta, where it is not learnt, in float32: here it is the number given."""
    if isinstance(other, theirs.MarginLoss) and not isinstance(other.beta, torch.nn.Parameter):
        exact = losses.MarginLoss().beta.item()
        torch.testing.assert_close(other.beta, torch.full_like(other.beta, exact), rtol=1e-7, atol=0)
        other.beta = torch.full_like(other.beta, exact, dtype=torch.float64)
    return other


def compare(ours, other, tensors, call, tolerance):
    """Value and gradients of two losses on the same tensors."""
    found = []
    with_exact_beta(other)
    for loss in (ours, other):
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = call(loss, *leaves)
        parameters = [p for p in loss.parameters() if p.requires_grad]
        found.append([value.detach(), *torch.autograd.grad(value, [*leaves, *parameters])])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_multi_similarity(seed, dtype, tolerance):
    x, y = draw(seed, dtype)
    compare(losses.MultiSimilarityLoss(), theirs.MultiSimilarityLoss(), [x], lambda f, z: f(z, y), tolerance)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_multi_similarity_with_its_miner(seed, dtype, tolerance):
    """Each with its own miner, and ours with theirs: a tuple of another library."""
    x, y = draw(seed, dtype)
    miners = {
        "ours": (fastdml.miners.MultiSimilarityMiner(), losses.MultiSimilarityLoss()),
        "mixed": (their_miners.MultiSimilarityMiner(), losses.MultiSimilarityLoss()),
        "theirs": (their_miners.MultiSimilarityMiner(), theirs.MultiSimilarityLoss()),
    }
    found = {}
    for name, (miner, loss) in miners.items():
        z = x.clone().requires_grad_()
        value = loss(z, y, miner(z, y))
        found[name] = value.detach(), *torch.autograd.grad(value, z)
    for name in ("ours", "mixed"):
        for a, b in zip(found[name], found["theirs"]):
            assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_multi_similarity_with_reference(seed, dtype, tolerance):
    x, y = draw(seed, dtype)
    ref, ref_y = draw(seed + 1000, dtype, rows=61)

    def call(loss, a, b):
        return loss(a, y, ref_emb=b, ref_labels=ref_y)

    compare(losses.MultiSimilarityLoss(), theirs.MultiSimilarityLoss(), [x, ref], call, tolerance)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_proxy_anchor(seed, dtype, tolerance):
    """Nine classes, some without a sample; the state of one loads into the other."""
    x, y = draw(seed, dtype)
    ours, other = losses.ProxyAnchorLoss(9, 17).to(dtype), theirs.ProxyAnchorLoss(9, 17).to(dtype)
    ours.load_state_dict(other.state_dict())
    compare(ours, other, [x], lambda f, z: f(z, y), tolerance)


def gradient(loss, x, y):
    z = x.clone().requires_grad_()
    return torch.autograd.grad(loss(z, y), z)[0]


@pytest.mark.parametrize(
    "default_type,dtype,tolerance", [(k, k, t) for k, t in KINDS], indirect=["default_type"]
)
@pytest.mark.parametrize("seed", DRAWS)
def test_smooth_ap(seed, default_type, dtype, tolerance):
    """Where theirs is right: as many classes as members of each, in order."""
    x, _ = draw(seed, dtype, rows=36)
    y = torch.arange(36) // 6
    ours, other = losses.SmoothAPLoss(), theirs.SmoothAPLoss()
    try:
        compare(ours, other, [x], lambda f, z: f(z, y), tolerance)
    except AssertionError:
        # The sharp sigmoid amplifies the rounding of a similarity by 1 / (4 temperature) = 25: against
        # float64, ours is off by no more than twice what theirs is.
        assert dtype == torch.float32
        true, *both = (gradient(f, z, y) for f, z in ((other, x.double()), (ours, x), (other, x)))
        errors = [(found - true).abs().max() for found in both]
        assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", ["TripletMarginLoss", "TupletMarginLoss", "MarginLoss", "FastAPLoss"])
def test_lists_with_defaults(name, reference, dtype, tolerance):
    if reference and name == "FastAPLoss":
        pytest.skip("theirs takes one set only")
    ours, other = getattr(losses, name)().to(dtype), getattr(theirs, name)().to(dtype)
    for seed in DRAWS:
        x, y = draw(seed, dtype)
        ref, ref_y = draw(seed + 1000, dtype, rows=61)
        if reference:
            compare(ours, other, [x, ref], lambda f, a, b: f(a, y, ref_emb=b, ref_labels=ref_y), tolerance)  # noqa: B023
        else:
            compare(ours, other, [x], lambda f, a: f(a, y), tolerance)  # noqa: B023


# ---- faults


def test_fault_smooth_ap_of_perfect_clusters():
    """Correct only where classes and class sizes are equal in number."""
    y = torch.arange(12) // 4
    x = torch.eye(3)[y]
    assert losses.SmoothAPLoss()(x, y) < 1e-6
    assert theirs.SmoothAPLoss()(x, y) > 0.3


def test_fault_smooth_ap_of_unsorted_labels(default_type):
    x, _ = draw(0, torch.float64, rows=16)
    y, order = torch.arange(16) // 4, torch.randperm(16, generator=torch.Generator().manual_seed(0))
    ours, other = losses.SmoothAPLoss(), theirs.SmoothAPLoss()
    assert ours(x[order], y[order]).item() == pytest.approx(ours(x, y).item(), rel=1e-12)
    assert ours(x, y).item() == pytest.approx(other(x, y).item(), rel=1e-9)
    assert abs(other(x[order], y[order]) - other(x, y)) > 1e-3


def test_fault_smooth_ap_allocates_by_label():
    x, _ = draw(0, torch.float32, rows=16)
    y = torch.arange(16) // 4 + 2**45
    assert losses.SmoothAPLoss()(x, y) == losses.SmoothAPLoss()(x, y - 2**45)
    with pytest.raises(RuntimeError):
        theirs.SmoothAPLoss()(x, y)


def test_fault_one_pair_of_each_kind_is_no_loss():
    x, _ = draw(0, torch.float64, rows=3)
    one = torch.tensor
    pairs = one([0]), one([1]), one([0]), one([2])
    s = torch.nn.functional.normalize(x, dim=1)
    s = s @ s.t()
    row = (1 + (-2 * (s[0, 1] - 0.5)).exp()).log() / 2 + (1 + (50 * (s[0, 2] - 0.5)).exp()).log() / 50
    found = losses.MultiSimilarityLoss()(x, indices_tuple=pairs)
    assert found.item() == pytest.approx(row.item() / 3, rel=1e-9)
    assert theirs.MultiSimilarityLoss()(x, indices_tuple=pairs) == 0


def test_fault_a_copy_of_the_labels_makes_self_pairs():
    """Theirs tells self pairs by the identity of the label tensors."""
    x, y = draw(0, torch.float64)
    ref = {"ref_emb": x, "ref_labels": y.clone()}
    same = {"ref_emb": x, "ref_labels": y}
    ours, other = losses.MultiSimilarityLoss(), theirs.MultiSimilarityLoss()
    assert ours(x, y, **ref) == ours(x, y, **same)  # every pair counts, always
    assert other(x, y, **ref) != other(x, y, **same)


def test_fault_distance_weights_underflow():
    """Two samples of different classes that nearly coincide are the only anchors of theirs."""
    x, _ = draw(0, torch.float32, rows=512, dim=512)
    y = torch.arange(512) // 4
    x[4] = x[0] + 0.1 * x[1]
    anchors, _, _ = their_miners.DistanceWeightedMiner()(x, y)
    assert anchors.unique().tolist() == [0, 4]
    a, p, n = tuple(fastdml.miners.DistanceWeightedMiner(seed=0)(x, y))
    # One negative for each of the three positives of all 512, none beyond the cutoff.
    positive = (y[:, None] == y).fill_diagonal_(False).nonzero()
    order = (a * 512 + p).argsort()
    assert torch.equal(torch.stack([a, p], 1)[order], positive)
    u = torch.nn.functional.normalize(x.double(), dim=1)
    assert (y[a] != y[n]).all() and ((u[a] - u[n]).norm(dim=1) < 1.4 + 1e-6).all()


@pytest.mark.parametrize("name", ["NTXentLoss", "PNPLoss"])
@pytest.mark.parametrize("seed", range(5))
def test_fault_half_precision(name, seed):
    """Their NT-Xent is wrong, their PNP has no finite gradient; in float64 they are right."""
    x, _ = draw(seed, torch.float16, rows=24, dim=8)
    y = torch.arange(24) % 6
    found = []
    half = torch.float16
    for module, dtype in ((theirs, torch.float64), (losses, half), (theirs, half)):
        z = x.to(dtype).requires_grad_()
        value = getattr(module, name)()(z, y)
        found.append((value.item(), torch.autograd.grad(value, z)[0].double()))
    (true, direction), (value, gradient), (wrong, lost) = found
    assert value == pytest.approx(true, rel=1e-5)
    assert (gradient - direction).abs().max() < 2e-3 * direction.abs().max()
    if name == "NTXentLoss":
        assert abs(wrong - true) > 0.05 * true
    else:
        assert not torch.isfinite(lost).all()
