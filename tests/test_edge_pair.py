"""Pair losses against their definitions written as loops, the cases of SPEC 4.2, and extremes."""

import math

import pytest
import torch
from conftest import BACKENDS

from fastdml import functional as F
from fastdml import losses

backends = pytest.mark.parametrize("backend", BACKENDS)


def problem(seed=0, dim=9, sizes=(1, 2, 3, 5, 1), dtype=torch.float64):
    """Classes of these sizes, shuffled; embeddings of any length."""
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)) * 5 - 6, torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=g)]
    x = torch.randn(len(y), dim, generator=g, dtype=torch.float64)
    return (x * torch.rand(len(y), 1, generator=g, dtype=torch.float64) * 3).to(dtype), y


def unit(x):
    return torch.nn.functional.normalize(x.double(), dim=1)


def rows_of(x, y, ref=None, ref_y=None, keep_self=False):
    """(positives' numbers, negatives' numbers) of every row of x @ ref.t()."""
    s = x @ (x if ref is None else ref).t()
    columns = y if ref_y is None else ref_y
    found = []
    for i in range(len(y)):
        others = [j for j in range(len(columns)) if keep_self or ref is not None or j != i]
        p = [s[i, j] for j in others if columns[j] == y[i]]
        n = [s[i, j] for j in others if columns[j] != y[i]]
        found.append((torch.stack(p) if p else s.new_zeros(0), torch.stack(n) if n else s.new_zeros(0)))
    return found


def mean(values):
    values = list(values)
    return sum(values) / max(1, len(values))


def some_mean(t):
    return t.mean() if len(t) else t.sum()


# ---- definitions


def binomial_deviance(x, y):
    def row(p, n):
        return some_mean((1 + (-2 * (p - 0.5)).exp()).log()) + some_mean((1 + (25 * (n - 0.5)).exp()).log())

    return mean(row(p, n) for p, n in rows_of(unit(x), y))


def xbm_pair(x, y):
    return mean((1 - p).sum() + (n - 0.1).relu().sum() for p, n in rows_of(unit(x), y))


def nt_xent(x, y):
    terms = []
    for p, n in rows_of(unit(x), y):
        terms += [-(v / 0.2 - torch.cat([v[None], n]).div(0.2).logsumexp(0)) for v in p]
    return mean(terms)


def sup_con(x, y):
    rows = [
        torch.cat([p, n]).div(0.2).logsumexp(0) - p.mean() / 0.2 if len(p) else x.new_zeros(())
        for p, n in rows_of(unit(x), y)
    ]
    return mean(rows)


def nca(x, y):
    rows = [
        -(torch.cat([p, n]).mul(2).softmax(0)[: len(p)].sum().log())
        for p, n in rows_of(unit(x), y)
        if len(p)
    ]
    return mean(rows)


def circle(x, y):
    rows = []
    for p, n in rows_of(unit(x), y):
        z_p = -8 * (1.4 - p).relu() * (p - 0.6)
        z_n = 8 * (n + 0.4).relu() * (n - 0.4)
        if len(p) and len(n):
            rows.append((1 + z_p.exp().sum() * z_n.exp().sum()).log())
    return mean(rows)


def circle_global(x, y):
    z_p = z_n = 0.0
    s = unit(x) @ unit(x).t()
    for i in range(len(y)):
        for j in range(i):
            if y[i] == y[j]:
                z_p = z_p + (-8 * (1.25 - s[i, j]).relu() * (s[i, j] - 0.75)).exp()
            else:
                z_n = z_n + (8 * (s[i, j] + 0.25).relu() * (s[i, j] - 0.25)).exp()
    return (1 + z_p * z_n).log()


def balanced_nt_xent(x, y):
    pull, push = [], []
    for p, n in rows_of(unit(x), y):
        pull += list(p / 0.3)
        push.append(torch.cat([p, n]).div(0.3).logsumexp(0))
    return 0.7 * -mean(pull) + 0.3 * mean(push)


def balanced_nt_xent_rows(x, y):
    """Mean per row, logarithm of a mean, negatives alone, both terms times the temperature."""
    rows = []
    for p, n in rows_of(unit(x), y):
        level = n.div(0.3).logsumexp(0) - math.log(len(n)) if len(n) else 0.0
        rows.append(-0.7 * some_mean(p) + 0.3 * 0.3 * level)
    return mean(rows)


def balanced_nt_xent_batch(x, y):
    rows = rows_of(unit(x), y)
    return mean(-0.5 * p.sum() / 0.3 + 0.5 * torch.cat([p, n]).div(0.3).logsumexp(0) for p, n in rows)


def spce(x, y):
    n = len(y)
    s = x @ x.t()
    same = (y[:, None] == y).double()
    return s.logsumexp(1).mean() - (same * s).sum() / n**2


def probabilities(n, classes=4):
    g = torch.Generator().manual_seed(5)
    return torch.rand(n, classes, generator=g, dtype=torch.float64).softmax(1)


def pce(x, y):
    """Pair by pair: sums over classes play no part here."""
    n, ridge, p = len(y), 0.5, probabilities(len(y))
    s = x @ x.t()
    same = (y[:, None] == y).double()
    centres = p.t() @ x / n
    logits = torch.stack([(p[:, k] * s).sum(1) for k in range(4)], 1) / (ridge * n)
    pull = (same * s).sum() / (2 * ridge * n**2)
    return logits.logsumexp(1).mean() - pull - centres.square().sum() / (2 * ridge)


def instance(x, y):
    rows = rows_of(unit(x), y, keep_self=True)
    return mean(torch.cat([p, n]).mul(8).logsumexp(0) - p.mean() * 8 for p, n in rows)


def hinges(x, y):
    """[(d - 0.2)_+ of a row's positives, (1.3 - d)_+ of its negatives] on normalised embeddings."""
    return [
        (((2 - 2 * p).clamp(min=0).sqrt() - 0.2).relu(), (1.3 - (2 - 2 * n).clamp(min=0).sqrt()).relu())
        for p, n in rows_of(unit(x), y)
    ]


AGGREGATE = {
    "pairs": lambda rows: mean(v for r in rows for v in r),
    "active": lambda rows: mean(v for r in rows for v in r if v > 0),
    "rows": lambda rows: mean(r.mean() for r in rows if len(r)),
    "batch": lambda rows: sum(r.sum() for r in rows) / len(rows),
}


def balanced_contrastive(pos, neg, squared):
    def loss(x, y):
        power = 2 if squared else 1
        p, n = zip(*hinges(x, y))
        return 0.6 * AGGREGATE[pos]([v**power for v in p]) + 0.4 * AGGREGATE[neg]([v**power for v in n])

    return loss


def contrastive_bayesian(form):
    term = {"log": torch.log, "sqrt": torch.sqrt, "constant": lambda f: 1 + (f - 1) / 4}[form]

    def loss(x, y):
        total = x.new_zeros((), dtype=torch.float64)
        for p, n in rows_of(unit(x), y):
            if not len(p) or not len(n):
                continue
            mined_p, mined_n = p[p < n.max() + 0.3], n[n > p.min() - 0.3]
            if not len(mined_p) or not len(mined_n):
                continue
            f_p = 1 + ((0.5 - mined_p) / 0.5).exp().sum()
            f_n = 1 + ((mined_n - 1) / 0.1).exp().sum()
            centre = 0.2 * p.mean() + 0.8 * n.mean()
            total = total + term(f_p) + term(f_n) + 0.7 * (n - centre).square().sum()
        return total / len(y)

    return loss


def generalized_lifted(x, y):
    rows = [(p, n) for p, n in rows_of(unit(x), y)]
    d = [((2 - 2 * p).clamp(min=0).sqrt(), (2 - 2 * n).clamp(min=0).sqrt()) for p, n in rows]
    return mean(
        (p.logsumexp(0) + (1 - n).logsumexp(0)).relu() if len(p) and len(n) else p.sum() * 0
        for p, n in d
    )


def n_pairs(one_vs_one, alike):
    """alike(x, z): larger where two embeddings are nearer."""

    def loss(x, y):
        pairs = []
        for c in y.unique():
            found = torch.where(y == c)[0]
            if len(found) > 1:
                pairs.append((found[0], found[1]))
        terms = []
        for k, (a, p) in enumerate(pairs):
            others = [other for m, (_, other) in enumerate(pairs) if m != k]
            gaps = [alike(x[a], x[n]) - alike(x[a], x[p]) for n in others]
            gaps = torch.stack(gaps) if gaps else x.sum() * x.new_zeros(0)
            terms.append((1 + gaps.exp()).log().sum() if one_vs_one else (1 + gaps.exp().sum()).log())
        return mean(terms)

    return loss


def near(x, z):
    return -(x - z).norm()


CBML = {"neg_b": 0.1, "mining_margin": 0.3, "variance_weight": 0.7}
DEFINITIONS = {
    "binomial_deviance": (binomial_deviance, F.binomial_deviance, {}),
    "xbm_pair": (xbm_pair, F.xbm_pair, {"margin": 0.1}),
    "nt_xent": (nt_xent, F.nt_xent, {"temperature": 0.2}),
    "sup_con": (sup_con, F.sup_con, {"temperature": 0.2, "reduction": "mean"}),
    "nca": (nca, F.nca, {"softmax_scale": 2, "similarity": "cosine"}),
    "circle": (circle, F.circle, {"m": 0.4, "gamma": 8}),
    "circle_global": (circle_global, F.circle, {"m": 0.25, "gamma": 8, "form": "global"}),
    "balanced_nt_xent": (balanced_nt_xent, F.balanced_nt_xent, {"temperature": 0.3, "entropy_weight": 0.3}),
    "balanced_nt_xent_rows": (
        balanced_nt_xent_rows, F.balanced_nt_xent,
        {"temperature": 0.3, "entropy_weight": 0.3, "aggregation": "rows", "log_mean": True,
         "decoupled": True, "negatives_only": True},
    ),
    "balanced_nt_xent_batch": (
        balanced_nt_xent_batch, F.balanced_nt_xent, {"temperature": 0.3, "aggregation": "batch"},
    ),
    "spce": (spce, F.spce, {}),
    "pce": (pce, lambda x, y, **o: F.pce(x, y, probabilities(len(y)), ridge=0.5, **o), {}),
    "instance": (instance, F.instance, {"gamma": 8}),
    **{
        f"balanced_contrastive_{pos}_{neg}": (
            balanced_contrastive(pos, neg, squared), F.balanced_contrastive,
            {"pos_margin": 0.2, "neg_margin": 1.3, "entropy_weight": 0.4, "pos_aggregation": pos,
             "neg_aggregation": neg, "squared": squared},
        )
        for pos, neg, squared in (
            ("pairs", "active", True), ("active", "rows", False),
            ("rows", "batch", True), ("batch", "pairs", False),
        )
    },
    **{
        f"contrastive_bayesian_{form}": (
            contrastive_bayesian(form), F.contrastive_bayesian, {"form": form, **CBML},
        )
        for form in ("log", "sqrt", "constant")
    },
    "generalized_lifted": (generalized_lifted, F.generalized_lifted_structure, {"variant": "paper"}),
    "n_pairs_ovo": (n_pairs(True, torch.dot), F.n_pairs, {"form": "ovo", "similarity": "dot"}),
    "n_pairs_distance": (n_pairs(False, near), F.n_pairs, {"similarity": "raw_distance"}),
    "n_pairs_ovo_distance": (
        n_pairs(True, near), F.n_pairs, {"form": "ovo", "similarity": "raw_distance"},
    ),
}  # fmt: skip
# Their pairs' own weights are constants for the gradient.
DETACHED = ("circle", "circle_global")


@backends
@pytest.mark.parametrize("name", DEFINITIONS)
def test_definition(name, backend):
    definition, loss, arguments = DEFINITIONS[name]
    x, y = problem()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    true, value = definition(a, y), loss(b, y, backend=backend, **arguments)
    assert value.item() == pytest.approx(true.item(), rel=1e-11)
    if name in DETACHED:
        return
    (expected,), (gradient,) = torch.autograd.grad(true, a), torch.autograd.grad(value, b)
    assert (gradient - expected).abs().max() < 1e-10 * expected.abs().max()


@backends
@pytest.mark.parametrize("kind", ["no positives", "no negatives"])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_definition_of_one_kind_of_pairs(name, kind, backend):
    """No row has a positive, or none has a negative: a sum or mean of no terms is 0."""
    definition, loss, arguments = DEFINITIONS[name]
    x, _ = problem()
    y = torch.arange(len(x)) if kind == "no positives" else torch.full((len(x),), 3)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    true, value = definition(a, y) + 0 * a.sum(), loss(b, y, backend=backend, **arguments)
    assert value.item() == pytest.approx(true.item(), rel=1e-11, abs=1e-14)
    (expected,), (gradient,) = torch.autograd.grad(true, a), torch.autograd.grad(value, b)
    # Where the definition's gradient is 0, its terms cancel to rounding.
    assert (gradient - expected).abs().max() < 1e-10 * expected.abs().max().clamp(min=1e-4)


@backends
@pytest.mark.parametrize("one_vs_one", [False, True])
def test_one_pair_has_no_negative_in_n_pairs_mc(one_vs_one, backend):
    """Beside a second pair there is one: softplus of its lead over the positive."""
    x, ref = problem()[0][:2], problem(1)[0][:2]
    value, gradient = value_and_gradient(
        F.n_pairs_mc, x[:1], ref[:1], one_vs_one=one_vs_one, backend=backend
    )
    assert value == 0 and not gradient.any()
    value = F.n_pairs_mc(x, ref, one_vs_one=one_vs_one, backend=backend)
    s = (x @ ref.t()).tolist()
    true = (math.log1p(math.exp(s[0][1] - s[0][0])) + math.log1p(math.exp(s[1][0] - s[1][1]))) / 2
    assert value.item() == pytest.approx(true, rel=1e-11)


@backends
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_is_cross_entropy(symmetric, reduction, backend):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(11, 6, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    z = scale * torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).t()
    target = torch.arange(11)
    true = torch.nn.functional.cross_entropy(z, target, reduction=reduction)
    if symmetric:
        true = (true + torch.nn.functional.cross_entropy(z.t(), target, reduction=reduction)) / 2
    value = F.info_nce(a, b, scale, symmetric=symmetric, reduction=reduction, backend=backend)
    torch.testing.assert_close(value, true, rtol=1e-12, atol=1e-12)
    upstream = torch.linspace(-1, 2, 11, dtype=torch.float64) if reduction == "none" else None
    for found, expected in zip(
        torch.autograd.grad(value, [a, b, scale], upstream),
        torch.autograd.grad(true, [a, b, scale], upstream),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["InfoNCELoss", "CLIPLoss"])
def test_the_temperature_is_learned_where_asked(kind):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 4, generator=g), torch.randn(5, 4, generator=g)
    loss = getattr(losses, kind)(0.1, learnable=True)
    loss(a, b).backward()
    assert loss.log_scale.grad is not None and loss.log_scale.exp().item() == pytest.approx(10)
    assert not list(getattr(losses, kind)(0.1, learnable=False).parameters())


def check_gradients(loss, *leaves):
    """The dense form's are those of finite differences, and the other executors' are the dense form's."""
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *x: loss(*x, backend="dense"), leaves, atol=1e-6)
    true = torch.autograd.grad(loss(*leaves, backend="dense"), leaves)
    for backend in BACKENDS:
        for found, t in zip(torch.autograd.grad(loss(*leaves, backend=backend), leaves), true, strict=True):
            assert (found - t).abs().max() <= 1e-10 * t.abs().max(), backend


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_lifted_structure_gradient_is_that_of_finite_differences(reduction):
    """The registered description is one half of it; the whole is one or two calls."""
    x, y = problem(sizes=(1, 2, 3, 2))
    ref, ref_y = problem(1, sizes=(2, 2, 1, 3))
    check_gradients(lambda a, **o: F.lifted_structure(a, y, reduction=reduction, **o), x)
    check_gradients(
        lambda a, b, **o: F.lifted_structure(a, y, None, b, ref_y, reduction=reduction, **o), x, ref
    )


def test_intra_pair_variance_gradient_goes_through_the_means():
    x, y = problem()
    ref, ref_y = problem(1)
    same = (y[:, None] == y).fill_diagonal_(False)
    pairs = (*torch.where(same), *torch.where(y[:, None] != y))

    def loss(a, **o):
        return F.intra_pair_variance(a, y, pos_eps=0.1, neg_eps=0.2, **o)

    check_gradients(loss, x)
    check_gradients(lambda a, b, **o: loss(a, ref_emb=b, ref_labels=ref_y, **o), x, ref)
    for backend in BACKENDS:
        if backend != "native":
            found = loss(x, indices_tuple=pairs, backend=backend).item()
            assert found == pytest.approx(loss(x).item(), rel=1e-12)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_signal_to_noise_gradient_goes_through_the_signal(similarity):
    x, y = problem()
    ref, ref_y = problem(1)
    kind = {"pos_margin": 0.1, "neg_margin": 2.0, "similarity": similarity}
    check_gradients(
        lambda a, b, **o: F.signal_to_noise_contrastive(a, y, None, b, ref_y, **kind, **o), x, ref
    )


# ---- SPEC 4.2


def pulled_apart(count=4, dim=6):
    """Two tight classes far from each other: no hinge is active."""
    y = torch.arange(2 * count) % 2
    return torch.eye(dim, dtype=torch.float64)[y], y


def value_and_gradient(loss, x, *arguments, **options):
    x = x.clone().requires_grad_()
    value = loss(x, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


ZERO_WITHOUT_POSITIVES = {
    "circle": F.circle,
    "contrastive_bayesian": F.contrastive_bayesian,
    "sup_con": F.sup_con,
    "nt_xent": F.nt_xent,
    "nca": F.nca,
    "lifted_structure": F.lifted_structure,
    "n_pairs": F.n_pairs,
    "n_pairs_all": lambda *a, **o: F.n_pairs(*a, form="all", **o),
    "generalized_lifted": lambda *a, **o: F.generalized_lifted_structure(*a, variant="paper", **o),
}
ZERO_WITHOUT_NEGATIVES = {
    "circle": F.circle,
    "contrastive_bayesian": F.contrastive_bayesian,
    "nt_xent": F.nt_xent,
    "nca": F.nca,
    "lifted_structure": F.lifted_structure,
    "n_pairs": F.n_pairs,
    "n_pairs_all": lambda *a, **o: F.n_pairs(*a, form="all", **o),
    "generalized_lifted": lambda *a, **o: F.generalized_lifted_structure(*a, variant="paper", **o),
}


@backends
@pytest.mark.parametrize("name", ZERO_WITHOUT_POSITIVES)
def test_no_row_has_a_positive(name, backend):
    x, _ = problem()
    loss, labels = ZERO_WITHOUT_POSITIVES[name], torch.arange(len(x))
    value, gradient = value_and_gradient(loss, x, labels, backend=backend)
    assert value == 0 and (gradient == 0).all()


@backends
@pytest.mark.parametrize("name", ZERO_WITHOUT_NEGATIVES)
def test_no_row_has_a_negative(name, backend):
    x, _ = problem()
    y = torch.zeros(len(x), dtype=torch.long)
    value, gradient = value_and_gradient(ZERO_WITHOUT_NEGATIVES[name], x, y, backend=backend)
    assert value == 0 and (gradient == 0).all()


@backends
@pytest.mark.parametrize("loss", [F.circle, F.contrastive_bayesian, F.sup_con], ids=lambda f: f.__name__)
def test_rows_without_positives_stay_in_the_mean(loss, backend):
    x, y = problem(sizes=(3, 4, 1, 1, 1))
    rows = loss(x, y, reduction="none", backend=backend)
    single = (y[:, None] == y).sum(1) == 1
    assert (rows[single] == 0).all() and (rows[~single] > 0).all()
    assert loss(x, y, reduction="mean", backend=backend).item() == pytest.approx(rows.sum().item() / 10)


@backends
def test_n_pair_draws_only_anchors_with_a_positive(backend):
    x, y = problem(sizes=(2, 3, 1, 1))
    kept = (y[:, None] == y).sum(1) > 1
    seen = set()
    for seed in range(30):
        rows = F.n_pairs(
            x, y, form="all", generator=torch.Generator().manual_seed(seed), reduction="none",
            backend=backend,
        )  # fmt: skip
        assert (rows > 0).sum() == kept.sum()
        seen.add(round(rows.sum().item(), 9))
        mean_of_kept = F.n_pairs(
            x, y, form="all", generator=torch.Generator().manual_seed(seed), backend=backend
        )
        assert mean_of_kept.item() == pytest.approx(rows.sum().item() / len(rows))
    assert 1 < len(seen) <= 8  # the class of 3 has two choices each, the class of 2 one
    # Two samples of one class and no choice: the mean over anchors, not over the batch.
    pair, labels = x[:3], torch.tensor([0, 0, 1])
    s = unit(pair) @ unit(pair).t()
    true = (math.log1p(math.exp(s[0, 2] - s[0, 1])) + math.log1p(math.exp(s[1, 2] - s[0, 1]))) / 2
    assert F.n_pairs(pair, labels, form="all", backend=backend).item() == pytest.approx(true, rel=1e-12)


@backends
@pytest.mark.parametrize("reduction", ["nonzero", "mean", "sum"])
def test_no_hinge_is_active(reduction, backend):
    x, y = pulled_apart()
    for similarity, margins in (("distance", (0.1, 1.0)), ("cosine", (0.9, 0.6))):
        value, gradient = value_and_gradient(
            F.contrastive, x, y, pos_margin=margins[0], neg_margin=margins[1],
            similarity=similarity, reduction=reduction, backend=backend,
        )  # fmt: skip
        assert value == 0 and (gradient == 0).all()


@backends
@pytest.mark.parametrize(
    "make",
    [
        losses.CalibrationLoss,
        lambda **o: losses.ContrastiveLoss(0.1, 1.0, similarity="ball_distance", **o),
        lambda **o: losses.BalancedContrastiveLoss(entropy_weight=0, **o),
        losses.SignalToNoiseRatioContrastiveLoss,
        losses.MarginLoss,
    ],
    ids=["calibration", "chance constraints", "balanced", "signal to noise", "margin"],
)
def test_no_hinge_of_a_module_is_active(make, backend):
    """A sum of no terms is 0, whatever it is divided by."""
    x, y = pulled_apart()
    loss = make(backend=backend)
    value, gradient = value_and_gradient(loss, x, y)
    assert value == 0 and (gradient == 0).all()
    value, _ = value_and_gradient(loss, x, torch.arange(len(x)) // 2 % 2)  # mixed
    assert value > 0


@backends
@pytest.mark.parametrize("similarity", ["distance", "ball_distance", "raw_distance"])
def test_identical_rows_have_no_gradient_at_distance_0(similarity, backend):
    g = torch.Generator().manual_seed(0)
    point = torch.randn(1, 5, generator=g, dtype=torch.float64)
    x = torch.cat([point.expand(3, 5), point * 0, -point])
    y = torch.tensor([0, 0, 1, 2, 3])
    for loss in (F.contrastive, F.generalized_lifted_structure, F.lifted_structure):
        value, gradient = value_and_gradient(loss, x, y, similarity=similarity, backend=backend)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
    value, gradient = value_and_gradient(
        F.contrastive, x[:3], y[:3], similarity=similarity, neg_margin=0.7, backend=backend
    )
    assert value.item() == pytest.approx(0.7) and (gradient == 0).all()


@backends
@pytest.mark.parametrize(
    "loss,arguments",
    [(F.xbm_pair, {}), (F.contrastive_bayesian, {}), (F.binomial_deviance, {})],
    ids=["xbm_pair", "contrastive_bayesian", "binomial_deviance"],
)
def test_duplicates_are_dropped_by_released_code_only(loss, arguments, backend):
    """A duplicate of the anchor is a positive, or nothing at all."""
    far = torch.tensor([[0.8, 0.6, 0.0], [0.7, 0.1, 0.7]], dtype=torch.float64)
    same = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    ref, ref_y = torch.cat([same, far]), torch.tensor([0, 0, 1])
    without = {"ref_emb": ref[1:], "ref_labels": ref_y[1:]}
    y = torch.tensor([0])
    given = {"ref_emb": ref, "ref_labels": ref_y, "backend": backend, **arguments}
    released = loss(same, y, variant="released", **given)
    assert released.item() == pytest.approx(
        loss(same, y, variant="released", backend=backend, **without, **arguments).item(), rel=1e-12
    )
    paper = loss(same, y, variant="paper", **given)
    if loss is F.xbm_pair:  # a duplicate costs 1 - s = 0 in either; released negatives cost s, not s - m
        s = (same @ torch.nn.functional.normalize(far[1:]).t()).item()
        assert released.item() - paper.item() == pytest.approx(0.5 if s > 0.5 else 0)
    else:
        assert abs(released.item() - paper.item()) > 1e-3


@backends
def test_sup_con_and_nt_xent_of_one_positive_are_info_nce(backend):
    x, _ = problem(sizes=(2, 2, 2, 2))
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    a = F.sup_con(x, y, temperature=0.3, backend=backend)
    b = F.nt_xent(x, y, temperature=0.3, backend=backend)
    assert a.item() == pytest.approx(b.item(), rel=1e-12)


# ---- extremes

def paired(loss, **arguments):
    """A loss of pairs of rows, of the batch against itself turned by one row."""
    return lambda x, y, **o: loss(x, x.roll(1, 0), **arguments, **o)


EXTREMES = {
    "multi_similarity": F.multi_similarity,
    "multi_similarity_sharp": lambda *a, **o: F.multi_similarity(*a, alpha=1e3, beta=1e3, **o),
    "multi_similarity_mined": lambda *a, **o: F.multi_similarity(*a, epsilon=0.1, **o),
    "info_nce_cold": paired(F.info_nce, scale=1e3),
    "clip_cold": paired(F.info_nce, scale=1e3, symmetric=True),
    "siglip_sharp": paired(F.siglip, scale=1e3, bias=-10.0),
    "contrastive": F.contrastive,
    "contrastive_cosine": lambda *a, **o: F.contrastive(
        *a, pos_margin=0.9, neg_margin=0.5, similarity="cosine", **o
    ),
    "contrastive_ball": lambda *a, **o: F.contrastive(*a, similarity="ball_distance", **o),
    "binomial_deviance": F.binomial_deviance,
    "xbm_pair": F.xbm_pair,
    "nt_xent": F.nt_xent,
    "nt_xent_cold": lambda *a, **o: F.nt_xent(*a, temperature=1e-3, **o),
    "sup_con": F.sup_con,
    "sup_con_cold": lambda *a, **o: F.sup_con(*a, temperature=1e-3, **o),
    "circle": F.circle,
    # The mean over all rows: whether a loss of exp(-320) counts as above 0 is up to the type.
    "circle_sharp": lambda *a, **o: F.circle(*a, gamma=1e3, reduction="mean", **o),
    "circle_global": lambda *a, **o: F.circle(*a, form="global", **o),
    "nca": F.nca,
    "nca_sharp": lambda *a, **o: F.nca(*a, softmax_scale=1e3, **o),
    "instance": F.instance,
    "instance_sharp": lambda *a, **o: F.instance(*a, gamma=1e3, **o),
    "balanced_nt_xent_cold": lambda *a, **o: F.balanced_nt_xent(*a, temperature=1e-3, **o),
    "balanced_contrastive": F.balanced_contrastive,
    "contrastive_bayesian": F.contrastive_bayesian,
    "contrastive_bayesian_sqrt": lambda *a, **o: F.contrastive_bayesian(*a, form="sqrt", **o),
    "contrastive_bayesian_constant": lambda *a, **o: F.contrastive_bayesian(*a, form="constant", **o),
    "lifted_structure": F.lifted_structure,
    "generalized_lifted_structure": F.generalized_lifted_structure,
    "intra_pair_variance": F.intra_pair_variance,
    "signal_to_noise_contrastive": F.signal_to_noise_contrastive,
    "n_pairs": F.n_pairs,
    "n_pairs_ovo": lambda *a, **o: F.n_pairs(*a, form="ovo", **o),
}
RAW = {
    "spce": F.spce,
    "n_pairs": lambda *a, **o: F.n_pairs(*a, similarity="dot", **o),
    "n_pairs_ovo": lambda *a, **o: F.n_pairs(*a, form="ovo", similarity="dot", **o),
    "contrastive_raw": lambda *a, **o: F.contrastive(*a, similarity="raw_distance", neg_margin=100, **o),
    "generalized_raw": lambda *a, **o: F.generalized_lifted_structure(*a, similarity="raw_distance", **o),
    "pce": lambda x, y, **o: F.pce(x, y, probabilities(len(y)), **o),
}


def extreme(dtype=torch.float64):
    """Equal, opposite and orthogonal embeddings within and across classes: s is 1, -1 and 0 exactly."""
    e = torch.eye(4, dtype=dtype)
    x = torch.stack([e[0], e[0], -e[0], e[1], -e[1], e[0], e[2], e[2], e[3], e[1]])
    return x, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])


@backends
@pytest.mark.parametrize("dtype,length", [
    (torch.float64, 1.0), (torch.float32, 1.0), (torch.float32, 1e3), (torch.float16, 1.0),
])  # fmt: skip
@pytest.mark.parametrize("name", EXTREMES)
def test_similarities_of_one_and_minus_one(name, dtype, length, backend):
    x, y = extreme(dtype)
    x = x * length
    true, direction = value_and_gradient(EXTREMES[name], x.double(), y, backend="dense")
    value, gradient = value_and_gradient(EXTREMES[name], x, y, backend=backend)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype and torch.isfinite(gradient).all()
    assert value.item() == pytest.approx(true.item(), rel=2e-6, abs=1e-6)
    # Roots are steep near 0 and exponentials of 1e3 s amplify the last place of s.
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-3}.get(dtype, 2e-2)
    # Where the gradient vanishes, terms of gamma times the derivative by a similarity cancel.
    terms = 256 if name == "circle_global" else 1
    scale = direction.abs().max().clamp(min=terms * 1e-3 / length)
    assert (gradient.double() - direction).abs().max() < tolerance * scale


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", [*EXTREMES, *RAW])
def test_narrow_types_are_near_float64(name, dtype, backend):
    """... of the same rounded inputs."""
    loss = {**EXTREMES, **RAW}[name]
    x, y = problem(sizes=(4, 3, 5, 2, 1), dtype=dtype)
    true, direction = value_and_gradient(loss, x.double(), y, backend="dense")
    value, gradient = value_and_gradient(loss, x, y, backend=backend)
    assert value.item() == pytest.approx(true.item(), rel=2e-4, abs=1e-5)
    tolerance = 2e-3 if dtype == torch.float32 else 2e-2
    assert (gradient.double() - direction).abs().max() < tolerance * direction.abs().max()


@backends
@pytest.mark.parametrize("name", RAW)
def test_long_embeddings(name, backend):
    """Products of 1e6: sums of exponentials must not leave their logarithms."""
    x, y = problem(sizes=(4, 3, 5), dtype=torch.float32)
    x = x * 1e3
    true, direction = value_and_gradient(RAW[name], x.double(), y, backend="dense")
    value, gradient = value_and_gradient(RAW[name], x, y, backend=backend)
    assert torch.isfinite(gradient).all()
    assert value.item() == pytest.approx(true.item(), rel=1e-5)
    assert (gradient.double() - direction).abs().max() < 1e-3 * direction.abs().max()


@backends
def test_a_hot_and_a_cold_softmax(backend):
    """At temperature 1e-3 the loss is the gap to the best negative over the temperature."""
    x, y = problem(sizes=(2, 2, 2))
    value = F.nt_xent(x, y, temperature=1e-3, reduction="none", backend=backend)
    rows = rows_of(unit(x), y)
    true = torch.stack([(n.max() - p[0]).relu() * 1e3 for p, n in rows])
    assert (value - true).abs().max() < 1.0  # log 2 where two are nearly equal
    float32 = F.nt_xent(x.float(), y, temperature=1e-3, reduction="none", backend=backend)
    assert (float32 - value).abs().max() < 1e-3 * value.abs().max()


# ---- bad arguments

BAD = [
    (losses.NTXentLoss, {"temperature": 0}, "temperature"),
    (losses.SupConLoss, {"temperature": -1}, "temperature"),
    (losses.SupConLoss, {"base_temperature": 0}, "base_temperature"),
    (losses.InfoNCELoss, {"temperature": float("inf")}, "temperature"),
    (losses.InfoNCELoss, {"reduction": "nonzero"}, "reduction"),
    (losses.CircleLoss, {"gamma": 0}, "gamma"),
    (losses.CircleLoss, {"form": "rings"}, "form"),
    (losses.NCALoss, {"softmax_scale": 0}, "softmax_scale"),
    (losses.InstanceLoss, {"gamma": 0}, "gamma"),
    (losses.BinomialDevianceLoss, {"alpha": 0}, "alpha"),
    (losses.BinomialDevianceLoss, {"variant": "new"}, "variant"),
    (losses.XBMPairLoss, {"margin": float("nan")}, "margin"),
    (losses.ContrastiveLoss, {"reduction": "none"}, "reduction"),
    (losses.ContrastiveLoss, {"similarity": "manhattan"}, "similarity"),
    (losses.ContrastiveBayesianLoss, {"form": "cube"}, "form"),
    (losses.ContrastiveBayesianLoss, {"neg_b": 0}, "neg_b"),
    (losses.GeneralizedLiftedStructureLoss, {"variant": "old"}, "variant"),
    (losses.LiftedStructureLoss, {"neg_margin": float("inf")}, "neg_margin"),
    (losses.SignalToNoiseRatioContrastiveLoss, {"similarity": "distance"}, "similarity"),
    (losses.BalancedNTXentLoss, {"entropy_weight": 1.5}, "entropy_weight"),
    (losses.BalancedNTXentLoss, {"aggregation": "active"}, "aggregation"),
    (losses.BalancedContrastiveLoss, {"pos_aggregation": "all"}, "pos_aggregation"),
    (losses.NPairsLoss, {"form": "all-pairs"}, "form"),
    (losses.NPairsLoss, {"l2_kind": "l1"}, "l2_kind"),
    (losses.NPairsLoss, {"l2_reg": -1}, "l2_reg"),
    (losses.PCELoss, {"ridge": 0}, "ridge"),
]


@pytest.mark.parametrize("loss,arguments,name", BAD, ids=lambda v: getattr(v, "__name__", None))
def test_bad_arguments_are_named(loss, arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        loss(**arguments)


def test_bad_calls_are_named():
    x, y = problem()
    with pytest.raises(ValueError, match=r"^reduction: "):
        F.lifted_structure(x, y, reduction="none")
    with pytest.raises(ValueError, match=r"^reduction: "):
        F.circle(x, y, form="global", reduction="none")
    with pytest.raises(ValueError, match=r"^ref_emb: "):
        losses.NPairsLoss()(x, y, ref_emb=x, ref_labels=y)
    with pytest.raises(ValueError, match=r"^labels: "):
        F.n_pairs(x)
    with pytest.raises(ValueError, match=r"^positives: "):
        F.n_pairs(x, y, anchors=y[:1])
    with pytest.raises(ValueError, match=r"^ref_emb: "):
        F.info_nce(x, x[:3])
    with pytest.raises(ValueError, match=r"^probabilities: "):
        F.pce(x, y, x[:2])
    with pytest.raises(ValueError, match=r"^labels: "):
        F.intra_pair_variance(x)


@pytest.mark.parametrize("temperature", [3.0, -4.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_exponents_of_pairs_that_do_not_count_in_a_ranked_list(backend, temperature):
    """Raw distances far beyond both radii: the exponentials of these pairs overflow."""
    x = 60 * torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    x[1::2] = x[::2] + torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    y, leaf, true = torch.arange(16) // 2, x.clone().requires_grad_(), x.double().requires_grad_()
    loss = losses.RankedListLoss(
        0.4, temperature, 0.5, 1.4, temperature, similarity="raw_distance", backend=backend
    )
    value = loss(leaf, y)
    d = (true[::2] - true[1::2]).norm(dim=1)  # one positive each, and no negative near enough
    weight = (temperature * (d - 1)).exp()
    rows = 0.5 * weight * (d - 1) / (weight + 16e-5) * (d > 1)
    torch.testing.assert_close(value, rows.mean().float())
    (found,), (wanted,) = torch.autograd.grad(value, leaf), torch.autograd.grad(rows.mean(), true)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-3, atol=1e-5)
