"""Triplet losses and pytorch-metric-learning 2.9.0: triplets listed one by one, swapped, drawn; states; and
the rank losses with their default arguments."""

import inspect
import math

import pytest
import torch

from fastdml import functional as F
from fastdml import losses, miners
from fastdml.losses.triplet import listed, swapped
from fastdml.mining.batch import checked
from fastdml.mining.triplets import drawn

pml = pytest.importorskip("pytorch_metric_learning")
if pml.__version__ != "2.9.0":
    pytest.skip("compared with 2.9.0", allow_module_level=True)
from pytorch_metric_learning import losses as theirs  # noqa: E402
from pytorch_metric_learning import miners as their_miners  # noqa: E402
from test_pml_parity import DRAWS, KINDS, compare, draw  # noqa: E402

# nu beyond 1, where the two parts of beta's derivative cannot cancel.
ONE_BETA = {"learn_beta": True, "nu": 2}
EVERY_CLASS = {"num_classes": 7, "learn_beta": True, "nu": 2}
LISTED = [
    ("TripletMarginLoss", {}),
    ("TripletMarginLoss", {"margin": 0.3, "smooth_loss": True}),
    ("TripletMarginLoss", {"margin": 0.3, "swap": True}),
    ("MarginLoss", {}),
    ("MarginLoss", ONE_BETA),
    ("MarginLoss", EVERY_CLASS),
]


def name_of(case):
    return "-".join([case[0], *case[1]])


def both(name, arguments, dtype):
    ours = getattr(losses, name)(**arguments).to(dtype)
    other = getattr(theirs, name)(**arguments).to(dtype)
    ours.load_state_dict(other.state_dict())
    return ours, other


def triplets(seed, y, ref_y=None, count=150):
    """Some of all triplets: anchors, positives and negatives come back in many of them."""
    same = y[:, None] == (y if ref_y is None else ref_y)
    positive = same if ref_y is not None else same & ~torch.eye(len(y), dtype=torch.bool)
    found = torch.stack(torch.where(positive[:, :, None] & ~same[:, None, :]))
    chosen = torch.randperm(found.shape[1], generator=torch.Generator().manual_seed(seed))[:count]
    return tuple(found[:, chosen])


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("case", LISTED, ids=name_of)
def test_a_list_of_triplets_is_not_mixed(case, reference, dtype, tolerance):
    name, arguments = case
    if reference and "swap" in arguments:
        pytest.skip("theirs is at fault: see the test of that fault")
    ours, other = both(name, arguments, dtype)
    for seed in DRAWS:
        x, y = draw(seed, dtype)
        if not reference:
            t = triplets(seed, y)
            assert len(t[0].unique()) < len(t[0])
            compare(ours, other, [x], lambda f, z: f(z, y, t), tolerance)  # noqa: B023
            continue
        ref, ref_y = draw(seed + 1000, dtype, rows=61)
        t = triplets(seed, y, ref_y)
        compare(
            ours, other, [x, ref],
            lambda f, z, r: f(z, y, t, ref_emb=r, ref_labels=ref_y), tolerance,  # noqa: B023
        )  # fmt: skip


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("listed", ["all", "pairs"])
def test_swap(listed, smooth, dtype, tolerance):
    """Over all triplets, and over those of the pairs of a miner."""
    ours, other = both("TripletMarginLoss", {"margin": 0.2, "swap": True, "smooth_loss": smooth}, dtype)
    miner = their_miners.MultiSimilarityMiner(-0.2)
    for seed in DRAWS:
        x, y = draw(seed, dtype)
        pairs = None if listed == "all" else miner(x, y)
        compare(ours, other, [x], lambda f, z: f(z, y, pairs), tolerance)  # noqa: B023


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_swap_takes_the_larger_of_similarities(similarity, listed):
    x, y = draw(0, torch.float64, rows=12, classes=3)
    a, p, n = triplets(0, y, count=10**6)
    u = torch.nn.functional.normalize(x, dim=1) if similarity == "cosine" else x
    s = u @ u.t()
    hinge = (torch.maximum(s[a, n], s[p, n]) - s[a, p] + 0.2).relu()
    true = (hinge.sum() / (hinge > 0).sum()).item()
    ours = losses.TripletMarginLoss(0.2, swap=True, similarity=similarity)
    assert ours(x, y, (a, p, n) if listed else None).item() == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("listed", [False, True])
def test_fault_swap_with_reference(listed):
    """Theirs reads distances of positives to negatives, both candidates, from the anchors' rows."""
    x, y = draw(0, torch.float64, rows=9, classes=3)
    ref, ref_y = draw(1, torch.float64, rows=8, classes=3)
    t = triplets(0, y, ref_y, count=40 if listed else 10**6)
    u, v = (torch.nn.functional.normalize(z, dim=1) for z in (x, ref))
    d, between = torch.cdist(u, v), torch.cdist(v, v)
    a, p, n = t
    hinge = (d[a, p] - torch.minimum(d[a, n], between[p, n]) + 0.2).relu()
    true = (hinge.sum() / (hinge > 0).sum()).item()
    tuple_ = t if listed else None
    ours, other = losses.TripletMarginLoss(0.2, swap=True), theirs.TripletMarginLoss(0.2, swap=True)
    assert ours(x, y, tuple_, ref, ref_y).item() == pytest.approx(true, rel=1e-12)
    assert abs(other(x, y, tuple_, ref, ref_y).item() - true) > 1e-3


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_triplets_of_a_miner(seed, dtype, tolerance):
    """Theirs and ours, which list one negative for every positive."""
    x, y = draw(seed, dtype)
    torch.manual_seed(seed)
    for t in (
        their_miners.DistanceWeightedMiner()(x, y),
        tuple(miners.DistanceWeightedMiner(seed=seed)(x, y)),
        their_miners.BatchHardMiner()(x, y),
    ):
        for name in ("MarginLoss", "TripletMarginLoss"):
            compare(*both(name, {}, dtype), [x], lambda f, z: f(z, y, t), tolerance)  # noqa: B023


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "NTXentLoss", "CircleLoss"])
def test_a_pair_loss_makes_pairs_of_triplets(name):
    """(a, p) and (a, n), here no pair twice."""
    for seed in DRAWS:
        x, y = draw(seed, torch.float64)
        t = their_miners.BatchHardMiner()(x, y)
        ours, other = getattr(losses, name)(), getattr(theirs, name)()
        compare(ours, other, [x], lambda f, z: f(z, y, t), 1e-8)  # noqa: B023


# ---- margin loss


class InDouble(torch.nn.Module):
    """Theirs sums beta's derivative over thousands of triplets one by one: in float32 that is right to
    1e-5 only, so what is compared with is its float64."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss.double()

    def forward(self, x, y, indices_tuple=None, ref_emb=None, ref_labels=None):
        ref_emb = None if ref_emb is None else ref_emb.double()
        return self.loss(x.double(), y, indices_tuple, ref_emb, ref_labels)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("arguments", [ONE_BETA, EVERY_CLASS], ids=["one", "each"])
def test_margin_with_learnt_beta(arguments, reference, dtype, tolerance):
    ours, other = both("MarginLoss", arguments, dtype)
    for seed in DRAWS:
        x, y = draw(seed, dtype)
        ref = draw(seed + 1000, dtype, rows=61) if reference else (None, None)
        compare(ours, InDouble(other), [x], lambda f, z: f(z, y, None, *ref), tolerance)  # noqa: B023


@pytest.mark.parametrize("listed", ["no", "pairs", "triplets"])
def test_one_learnt_beta_is_added_once(listed):
    """However many triplets there are; not at all where there is none."""
    x, y = draw(0, torch.float64)
    a, p, n = triplets(0, y, count=3)
    indices = {"no": None, "pairs": (a, p, a, n), "triplets": (a, p, n)}[listed]
    reductions = {}
    for reduction in ("mean", "sum", "none", "nonzero"):
        kind = {"learn_beta": True, "reduction": reduction}
        plain, heavy = (losses.MarginLoss(nu=nu, **kind).double() for nu in (0, 0.5))
        reductions[reduction] = (heavy(x, y, indices) - plain(x, y, indices)).sum().item()
    assert reductions == pytest.approx(dict.fromkeys(reductions, 0.5 * 1.2), rel=1e-12)
    assert losses.MarginLoss(nu=0.5, learn_beta=True)(x, torch.arange(len(x))) == 0
    empty = (torch.zeros(0, dtype=torch.long),) * 3
    value = losses.MarginLoss(nu=0.5, learn_beta=True)(x.requires_grad_(), y, empty)
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("per_anchor", ["all", 3])
@pytest.mark.parametrize("name,arguments", [
    ("TripletMarginLoss", {}), ("MarginLoss", {}), ("MarginLoss", {"num_classes": 4}),
    ("MarginLoss", {"learn_beta": True}), ("MarginLoss", EVERY_CLASS),
])  # fmt: skip
def test_states_load_strictly(name, arguments, per_anchor):
    ours, other = (
        getattr(module, name)(**arguments, triplets_per_anchor=per_anchor) for module in (losses, theirs)
    )
    for p in other.parameters():
        p.data += 0.25
    assert list(ours.load_state_dict(other.state_dict())) == [[], []]
    for a, b in zip(ours.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    if per_anchor == "all":
        other.load_state_dict(ours.state_dict())


# ---- triplets drawn


@pytest.mark.parametrize("make", [losses.TripletMarginLoss, losses.MarginLoss])
def test_drawn_triplets_are_reproducible(make):
    x, y = draw(0, torch.float64)
    loss = make(margin=2.0, triplets_per_anchor=5, seed=3)
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    first, second = loss(x, y), loss(x, y)
    assert first != second
    loss.load_state_dict(state)
    assert loss(x, y) == first and loss(x, y) == second
    loss.eval()
    assert loss(x, y) == loss(x, y)
    assert make(margin=2.0, triplets_per_anchor=5, seed=4)(x, y) != first
    all_of_them = make(margin=2.0)(x, y)
    assert abs(make(margin=2.0, triplets_per_anchor=2000)(x, y) - all_of_them) < 0.01 * all_of_them


@pytest.mark.parametrize("reference", [False, True])
def test_drawn_triplets_are_uniform(reference):
    """Every positive of an anchor and every negative of it, none else, equally often."""
    stats = pytest.importorskip("scipy.stats")
    y = torch.tensor([3, -1, 3, 3, 8, -1, 3])
    columns = torch.tensor([8, 3, 3, -1, 5, 3]) if reference else y
    count = 4000
    x, ref = torch.ones(len(y), 2), torch.ones(len(columns), 2)
    batch = checked(x, y, None, *((ref, columns) if reference else ()))
    t = drawn(batch, count, (7, 1))
    kept = t.valid.reshape(len(y), count)
    others = torch.arange(len(columns))
    for i in range(len(y)):
        own = (columns == y[i]) & ((others != i) | reference)
        assert kept[i].all() == own.any() and kept[i].any() == own.any()
        if not own.any():
            continue
        for index, mask in ((t.p, own), (t.n, columns != y[i])):
            found = torch.bincount(index.reshape(len(y), count)[i], minlength=len(columns))
            assert not found[~mask].any()
            assert mask.sum() == 1 or stats.chisquare(found[mask].numpy()).pvalue > 1e-4
    assert torch.equal(t.a.reshape(len(y), count), torch.arange(len(y))[:, None].expand(-1, count))


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("arguments", [{"name": "TripletMarginLoss", "swap": True}, {"name": "MarginLoss"}])
def test_drawn_triplets_are_a_list(arguments, dtype, tolerance):
    """Theirs, handed the triplets that ours draws."""
    name, *rest = arguments.values()
    kind = {"swap": True} if rest else {}
    for seed in DRAWS:
        x, y = draw(seed, dtype, classes=20)
        t = drawn(checked(x, y), 4, (seed, 0))
        found = tuple(index[t.valid] for index in (t.a, t.p, t.n))
        ours = getattr(losses, name)(**kind, triplets_per_anchor=4, seed=seed)
        other = getattr(theirs, name)(**kind)
        compare(
            ours, other, [x],
            lambda f, z: f(z, y) if f is ours else f(z, y, found), tolerance,  # noqa: B023
        )  # fmt: skip


@pytest.mark.parametrize("name,arguments", [
    ("TripletMarginLoss", {"swap": True}), ("TripletMarginLoss", {"triplets_per_anchor": 2}),
    ("MarginLoss", {"triplets_per_anchor": 2}), ("TripletMarginLoss", {}),
])  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "nonzero"])
def test_no_triplet_gives_zero_and_a_zero_gradient(name, arguments, reduction):
    x, _ = draw(0, torch.float64, rows=5)
    loss = getattr(losses, name)(reduction=reduction, **arguments)
    empty = (torch.zeros(0, dtype=torch.long),) * 3
    for y in (torch.arange(5), torch.zeros(5, dtype=torch.long)):
        for indices in (None, empty):
            z = x.clone().requires_grad_()
            value = loss(z, y, indices)
            (gradient,) = torch.autograd.grad(value.sum(), z)
            assert not value.any() and not gradient.any()
            assert value.shape == ((5,) if reduction == "none" else ())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("swap", [False, True])
def test_half_precision_is_accumulated_in_float32(swap, dtype):
    """The same loss of the same numbers; only the gradient is rounded."""
    x, y = draw(0, dtype)
    t, loss = triplets(0, y), losses.TripletMarginLoss(swap=swap)
    z, w = x.clone().requires_grad_(), x.float().requires_grad_()
    found, expected = loss(z, y, t), loss(w, y, t)
    (g,), (h,) = torch.autograd.grad(found, z), torch.autograd.grad(expected, w)
    assert found.dtype == torch.float32 and g.dtype == dtype
    assert found == expected
    assert torch.equal(g, h.to(dtype))


def test_nan_is_not_passed_over():
    x, y = draw(0, torch.float32)
    t = triplets(0, y)
    x[t[2][0]] = torch.nan
    for loss in (losses.TripletMarginLoss(), losses.TripletMarginLoss(swap=True), losses.MarginLoss()):
        assert loss(x, y, t).isnan()
    assert losses.TripletMarginLoss(swap=True)(x, y).isnan()


def test_blocks_change_nothing(monkeypatch):
    """Long lists are computed in blocks, again in the backward pass."""
    x, y = draw(0, torch.float64)
    t = triplets(0, y)
    cases = [
        lambda z: F.triplet_margin(z, y, t, swap=True), lambda z: F.triplet_margin(z, y, swap=True),
        lambda z: F.margin(z, y, t, reduction="sum"),
        lambda z: F.triplet_margin(z, y, triplets_per_anchor=3, seed=5),
    ]  # fmt: skip
    found = []
    for at_once in (1 << 20, 40):  # of 150 triplets
        monkeypatch.setattr(listed, "_MOST", at_once)
        monkeypatch.setattr(swapped, "_AT_ONCE", at_once)
        for case in cases:
            z = x.clone().requires_grad_()
            value = case(z)
            found.append((value.detach(), *torch.autograd.grad(value, z)))
    for whole, part in zip(found[: len(cases)], found[len(cases) :]):
        for a, b in zip(whole, part):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_reductions_of_listed_triplets():
    x, y = draw(0, torch.float64)
    t = triplets(0, y)
    u = torch.nn.functional.normalize(x, dim=1)
    d = torch.cdist(u, u)
    hinge = (d[t[0], t[1]] - d[t[0], t[2]] + 0.05).relu()
    rows = torch.zeros(len(x), dtype=torch.float64).index_add(0, t[0], hinge)
    expected = {
        ("mean", "active"): hinge[hinge > 0].mean(), ("mean", "triplets"): hinge.mean(),
        ("mean", "anchors"): rows.mean(), ("sum", "active"): hinge.sum(),
        ("nonzero", "active"): rows[rows > 0].mean(), ("none", "active"): rows,
    }  # fmt: skip
    for (reduction, normalizer), true in expected.items():
        z = x.clone().requires_grad_()
        value = F.triplet_margin(z, y, t, reduction=reduction, normalizer=normalizer)
        torch.testing.assert_close(value.detach(), true, rtol=1e-9, atol=1e-12)
        (g,) = torch.autograd.grad(value.sum(), z)
        assert g.abs().max() > 0
    margins = F.margin(x, y, t, reduction="none", normalizer="triplets")
    assert margins.sum().item() == pytest.approx(F.margin(x, y, t, reduction="sum").item(), rel=1e-12)


# ---- arguments

BY_FORM = [("CircleLoss", "m"), ("CircleLoss", "gamma")]  # None: theirs with the form that theirs has


@pytest.mark.parametrize("name", [n for n in losses.MODULES if hasattr(theirs, n)])
def test_arguments_are_where_theirs_are(name):
    """Names, order and defaults."""
    given, expected = (
        [p for p in inspect.signature(getattr(module, name).__init__).parameters.values()
         if p.kind is p.POSITIONAL_OR_KEYWORD]
        for module in (losses, theirs)
    )  # fmt: skip
    for ours, other in zip(given, expected):
        assert ours.name == other.name
        assert ours.default == other.default or (ours.default is None and (name, ours.name) in BY_FORM)
    assert len(given) >= len(expected)


# ---- rank losses with default arguments


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_ranked_list(seed, dtype, tolerance):
    """Margin and temperature have no default."""
    x, y = draw(seed, dtype)
    # Half of each kind, and not: which of the two shares is whose.
    for given in ((0.4, 5), (0.4, 5, 0.2)):
        ours, other = losses.RankedListLoss(*given), theirs.RankedListLoss(*given)
        compare(ours, other, [x], lambda f, z: f(z, y), tolerance)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_pnp(seed, dtype, tolerance):
    x, y = draw(seed, dtype)
    # The sharp sigmoid amplifies the rounding of a similarity by 1 / (4 anneal) = 25.
    sharp = 25 if dtype == torch.float32 else 1
    compare(losses.PNPLoss(), theirs.PNPLoss(), [x], lambda f, z: f(z, y), sharp * tolerance)


def away_from_edges(seed, width=0.02, rows=12):
    """Plane vectors, no two of whose cosines are within a tenth of a bin of an edge, where the derivative
    jumps."""
    g = torch.Generator().manual_seed(seed)
    angles = torch.zeros(0, dtype=torch.float64)
    while len(angles) < rows:
        one = torch.rand(1, generator=g, dtype=torch.float64) * 2 * math.pi
        place = ((one - angles).cos() + 1) / width
        if ((place - place.round()).abs() > 0.1).all():
            angles = torch.cat([angles, one])
    lengths = 0.5 + torch.rand(rows, generator=g, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths[:, None]


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_histogram(seed, dtype, tolerance):
    """Of classes of four: theirs leaves out pairs of singletons."""
    x, y = away_from_edges(seed).to(dtype), torch.arange(12) % 3
    if dtype == torch.float32:  # a share is a similarity over the width of a bin: its rounding too
        tolerance = 4 * torch.finfo(dtype).eps / 0.02
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # theirs rounds edges to it
    try:
        compare(losses.HistogramLoss(), theirs.HistogramLoss(), [x], lambda f, z: f(z, y), tolerance)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype,tolerance", KINDS)
@pytest.mark.parametrize("seed", DRAWS)
def test_instance(seed, dtype, tolerance):
    """Where theirs is right: every sample its own class, in ascending order."""
    # Within a fifth of a radian: neighbours compete although logits are 64 times a cosine.
    g = torch.Generator().manual_seed(seed)
    angle = torch.rand(20, generator=g, dtype=torch.float64) / 5
    x, y = torch.stack([angle.cos(), angle.sin()], 1).to(dtype), torch.arange(20) * 3 - 7
    compare(losses.InstanceLoss(), theirs.InstanceLoss(), [x], lambda f, z: f(z, y), tolerance)
