"""A loss is the same whatever the length of rows, their origin, their order and the labels' names.

Expected values are the same loss in float64, where nothing here is near the end of the type, or an
independent formula.
"""

import functools
import inspect

import pytest
import torch

import fastdml
from fastdml.engine import similarity
from fastdml.engine.similarity import SIMILARITIES
from fastdml.losses import MODULES
from fastdml.wrappers import Labelled

B, D, C = 24, 8, 6
NEEDED = {"RankedListLoss": {"margin": 0.4, "Tn": 10.0}, "SOPRCLoss": {"num_classes": C},
          "P2SGradLoss": {"num_classes": C, "descriptors_dim": D}}  # fmt: skip
TEACHERS = {
    "DarkRankLoss", "ListwiseSelfDistillationLoss", "PKTLoss", "RKDAngleLoss", "RKDDistanceLoss",
    "RelaxedContrastiveLoss",
}  # fmt: skip
LABELLED = {"DenseTripletLoss", "LogRatioLoss"}
PAIRED = {n for n, m in MODULES.items() if m.paired}
# Manifold and VICReg make no pairs.
NAMES = sorted(n for n, m in MODULES.items() if m.in_torch is None)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


LABELS = torch.arange(C).repeat_interleave(B // C)


def made(name, **options):
    """A loss in evaluation mode, its parameters drawn; None where it does not take the options."""
    signature = inspect.signature(MODULES[name].__init__).parameters
    arguments = dict(NEEDED.get(name, {}))
    if "embedding_size" in signature:
        arguments |= {"num_classes": C, "embedding_size": D}
    try:
        loss = MODULES[name](**arguments, **options).eval()
    except ValueError:
        return None
    for k, p in enumerate(loss.parameters()):
        if p.dim() == 2:
            p.data.copy_(draw(*p.shape, seed=9 + k))
    return loss


def second(name, rows):
    """What a loss takes beside embeddings of `rows` of the batch."""
    if name in PAIRED:
        return draw(B, D, seed=5)[rows]
    if name in TEACHERS:
        return draw(B, D + 3, seed=5)[rows]
    if name in LABELLED:
        return draw(B, seed=5)[rows]
    return LABELS[rows]


def others(name, dtype):
    """Further arguments."""
    if name == "PCELoss":
        return (draw(B, C, seed=6).softmax(1).to(dtype),)
    return ()


def run(name, loss, x, given=None, extra=()):
    """Value and gradient of embeddings x, in float64; proxies and pairs as x is."""
    x = x.detach().clone().requires_grad_()
    given = second(name, slice(None)) if given is None else given
    if name in PAIRED | TEACHERS:
        given = given.to(x.dtype)
    torch.manual_seed(0)
    value = loss.to(x.dtype if x.dtype == torch.float64 else torch.float32)(x, given, *extra)
    value.backward()
    return value.detach().double(), x.grad.double()


def error(found, true):
    return ((found - true).norm() / true.norm().clamp(min=1e-300)).item()


def of_cosines(name):
    loss = made(name)
    return loss.similarity in ("cosine", "distance", "squared_distance")


COSINE = [n for n in NAMES if of_cosines(n)]
# Of differences of embeddings.
UNSCALED = {"RKDAngleLoss"}


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
@pytest.mark.parametrize("name", [n for n in COSINE if n not in UNSCALED])
def test_rows_of_any_length(name, backend):
    """Cosine losses of rows of length 1e-18 to 1e25."""
    loss = made(name, backend=backend)
    length = 10.0 ** torch.linspace(-18, 18, B, dtype=torch.float64)[:, None]
    length[3], length[7], length[11] = 1e25, 1e-30, 3e37
    x = (draw(B, D) * length).float()
    extra = others(name, torch.float64)
    true, slope = run(name, loss, unit(x.double()), extra=extra)
    extra = others(name, torch.float32)
    value, found = run(name, loss, x, extra=extra)
    assert value.item() == pytest.approx(true.item(), rel=2e-5, abs=2e-6)
    found *= x.double().norm(dim=1, keepdim=True)
    assert error(found, slope) < 1e-4
    assert found.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
def test_rows_of_the_least_lengths(backend):
    """Lengths are normal numbers, values are not: a power of two that brings these to 2 would be none."""
    loss = made("MultiSimilarityLoss", backend=backend)
    x = draw(B, D).float()
    x[::2] = x[::2].sign() * 1e-38
    true, slope = run("MultiSimilarityLoss", loss, unit(x.double()))
    value, found = run("MultiSimilarityLoss", loss, x)
    assert value.item() == pytest.approx(true.item(), rel=2e-5)
    assert error(found * x.double().norm(dim=1, keepdim=True), slope) < 1e-4


def raw(name):
    """The loss on raw distances, squared where it takes no others; None where it takes none."""
    for kind in ("raw_distance", "raw_squared_distance"):
        loss = made(name, similarity=kind)
        if loss is not None:
            return loss
    return None


RAW = [n for n in NAMES if raw(n) is not None]


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
@pytest.mark.parametrize("name", RAW)
def test_distances_far_from_the_origin(name, backend):
    """Raw distances of unit noise at an offset of 1,000."""
    loss = raw(name)
    loss.backend = backend
    x = (draw(B, D) + 1000).float()
    for p in loss.parameters():
        if p.dim() == 2:
            p.data += 1000
    given = second(name, slice(None))
    given = given + 1000 if name in PAIRED else given
    true, slope = run(name, loss, x.double(), given)
    value, found = run(name, loss, x, given)
    assert value.item() == pytest.approx(true.item(), rel=1e-4, abs=1e-6)
    assert error(found, slope) < 1e-3


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
@pytest.mark.parametrize("size", [12, 600])
@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (lambda **o: MODULES["LogRatioLoss"](**o), 1e-5),
        (lambda **o: MODULES["LogRatioLoss"](normalize=True, **o), 1e-4),
        (lambda **o: MODULES["LogRatioLoss"](squared_embedding=True, **o), 1e-5),
        (lambda **o: MODULES["DenseTripletLoss"](**o), 1e-4),
        (lambda **o: MODULES["MarginLoss"](epsilon=1e-8, **o), 1e-5),
    ],
)
def test_equal_embeddings_pull_neither(make, bound, size, backend):
    """Where something is added to squared distances, the derivative at 0 is large, and multiplies nothing."""
    x = draw(size, 16).float()
    x[3] = x[7]
    loss = make(backend=backend)
    name = type(loss).__name__
    y = draw(size, seed=5).float() if name in LABELLED else torch.arange(size) // 4
    (_, found), (_, true) = (run(name, loss, t, y) for t in (x, x.double()))
    assert error(found, true) < bound


DISTANCE = [n for n in NAMES if made(n, similarity="distance") is not None and n not in PAIRED]


def test_the_lists_are_long():
    """Nobody has emptied the parametrisations above."""
    assert len(COSINE) > 40 and len(RAW) > 20 and len(DISTANCE) > 15


def small_classes(radius, classes=C):
    centres = unit(draw(classes, D, seed=2)).repeat_interleave(B // C, 0)
    return centres + radius * draw(len(centres), D, seed=3)


def contrastive(x, y, neg_margin):
    """The contrastive loss of distances of normalised embeddings, from differences."""
    d2 = (unit(x)[:, None] - unit(x)[None]).square().sum(2)
    d = torch.where(d2 > 0, d2, 1.0).sqrt() * (d2 > 0)
    same = y[:, None] == y[None]
    pull = d[same & ~torch.eye(len(y), dtype=torch.bool)]
    push = (neg_margin - d[~same]).relu()
    return sum(t[t > 0].mean() if (t > 0).any() else t.sum() for t in (pull, push))


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
@pytest.mark.parametrize(
    ("dtype", "radius", "bound"), [(torch.float32, 1e-4, 1e-3), (torch.float64, 1e-9, 1e-5)]
)
@pytest.mark.parametrize("classes", [C, 150])
def test_near_pairs(backend, dtype, radius, bound, classes):
    """Small classes, in one call of the compiled library and in the schedule."""
    y = torch.arange(classes).repeat_interleave(B // C)
    x = small_classes(radius, classes).to(dtype)
    leaf = x.double().requires_grad_()
    true = contrastive(leaf, y, 0.1)
    true.backward()
    loss = fastdml.losses.ContrastiveLoss(0, 0.1, similarity="distance", backend=backend)
    value, found = run("ContrastiveLoss", loss, x, y)
    assert value.item() == pytest.approx(true.item(), rel=bound)
    assert error(found, leaf.grad) < bound


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("dim", [5, 16, 19])
def test_all_pairs_are_near(dim, by_columns):
    """Several at once, of values side by side or not; some of them equal rows."""
    y = torch.arange(45) // 5
    x = (draw(1, dim, seed=2) + 1e-3 * draw(45, dim, seed=3)).float()
    x[7], x[8], x[40] = x[6], x[6], x[6]
    x = x.t().contiguous().t() if by_columns else x
    leaf = x.double().requires_grad_()
    true = contrastive(leaf, y, 1e-2)
    true.backward()
    loss = fastdml.losses.ContrastiveLoss(0, 1e-2, similarity="distance", backend="native")
    value, found = run("ContrastiveLoss", loss, x, y)
    assert value.item() == pytest.approx(true.item(), rel=1e-3)
    assert error(found, leaf.grad) < 1e-3


@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("name", DISTANCE)
def test_near_pairs_of_every_loss(name, backend):
    loss = made(name, similarity="distance", backend=backend)
    x = small_classes(1e-4).float()
    true, slope = run(name, loss, x.double())
    value, found = run(name, loss, x)
    assert value.item() == pytest.approx(true.item(), rel=1e-3, abs=1e-6)
    assert error(found, slope) < 1e-3


@pytest.mark.parametrize("at_once", [1 << 18, 1])
@pytest.mark.parametrize("metric", ["squared_distance", "raw_squared_distance"])
def test_near_pairs_alone_are_made_again(metric, at_once, monkeypatch):
    """In blocks, with their derivatives and second ones; all pairs only where many are near."""
    monkeypatch.setattr(similarity, "_AT_ONCE", at_once)
    x = draw(12, 3)
    y = x[:4] + 1e-4 * draw(4, 3, seed=1)
    leaves = x.requires_grad_(), y.requires_grad_()
    dense = functools.partial(SIMILARITIES[metric].dense, epsilon=0.0)

    def found(*leaves):
        d2 = dense(*leaves)
        return d2.detach(), *torch.autograd.grad((d2 * draw(12, 4, seed=2)).sum(), leaves)

    with monkeypatch.context() as patch:
        patch.setattr(similarity, "exact_distances", None)
        few, *slopes = found(*leaves)
        assert torch.autograd.gradgradcheck(dense, leaves)
    monkeypatch.setattr(similarity, "_MATRIX_PAYS", 48)
    torch.testing.assert_close((few, *slopes), found(*leaves), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("backend", ["chunked", "dense"])
def test_a_near_pair_is_as_exact_as_its_numbers(backend):
    x = draw(12, D).float()
    x[6:] = x[:6] + 1e-7
    loss = fastdml.losses.ContrastiveLoss(similarity="raw_distance", backend=backend)
    value = loss(x, torch.arange(12) % 6)
    assert value.item() == pytest.approx((x[:6] - x[6:]).norm(dim=1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("length", [1e-15, 1e15])
def test_angles_of_any_size(length):
    true, slope = run("RKDAngleLoss", made("RKDAngleLoss"), draw(B, D).float())
    value, found = run("RKDAngleLoss", made("RKDAngleLoss"), draw(B, D).float() * length)
    assert value.item() == pytest.approx(true.item(), rel=1e-5)
    assert error(found * length, slope) < 1e-4


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n != "NPairsLoss"]
)  # takes a class's first pair
def test_order_and_names(name):
    """Rows in another order, and labels by other names."""
    loss = made(name)
    x = draw(B, D)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    extra = others(name, torch.float64)
    true, slope = run(name, loss, x, extra=extra)
    moved = tuple(t[order] for t in extra)
    value, found = run(name, loss, x[order], second(name, order), moved)
    assert value.item() == pytest.approx(true.item(), rel=1e-9)
    assert error(found, slope[order]) < 1e-9
    takes_labels = second(name, slice(None)).dtype == torch.int64
    if takes_labels and not list(loss.buffers()) + list(loss.parameters()) and not extra:
        names = torch.tensor([-(2**62), 11, 2**62, 0, -7, 4])
        value, found = run(name, loss, x, names[LABELS])
        assert value.item() == pytest.approx(true.item(), rel=1e-12)
        assert error(found, slope) < 1e-12


def label_distances(y):
    y = y[:, None] if y.dim() == 1 else y
    return (y[:, None] - y[None]).square().sum(2).sqrt()


def log_ratio(x, y):
    """Of label distances y [B, B]."""
    d = ((x[:, None] - x[None]).square().sum(2) + 1e-4 / x.shape[1]).sqrt()
    u = (d + 1e-6).log() - (y + 1e-6).log()
    return 2 * u[~torch.eye(B, dtype=torch.bool)].view(B, -1).var(1).mean()


def dense_triplet(x, y):
    u = unit(x)
    d = (u[:, None] - u[None]).square().sum(2)
    rows = []
    for a in range(B):
        other = torch.arange(B) != a
        closer = y[a, other][:, None] < y[a, other][None]
        rows.append((d[a, other][:, None] - d[a, other][None] + 0.03).relu()[closer].mean())
    return torch.stack(rows).mean()


YEARS = torch.randint(0, 80, (B,), generator=torch.Generator().manual_seed(4))
KINDS = {
    "years": YEARS + 1900,
    "offset": YEARS.float() + 1e5,
    "uniform": torch.rand(B, generator=torch.Generator().manual_seed(4), dtype=torch.float64),
    "nanoseconds": YEARS + 1_700_000_000_000_000_000,
    "places": torch.tensor([4.2e6, 2.3e6, 4.1e6]) + 300 * draw(B, 3, seed=8),
}


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "formula"), [("LogRatioLoss", log_ratio), ("DenseTripletLoss", dense_triplet)]
)
def test_label_distances_are_exact(name, formula, kind, backend):
    labels = KINDS[kind]
    exact = labels if labels.is_floating_point() else labels - labels.min()
    x = draw(B, D)
    leaf = x.clone().requires_grad_()
    true = formula(leaf, label_distances(exact.double()))
    true.backward()
    value, found = run(name, made(name, backend=backend), x.float(), labels)
    assert value.item() == pytest.approx(true.item(), rel=1e-4)
    assert error(found, leaf.grad) < 1e-3


def test_label_distances_hold_no_matrix():
    """A block of differences in double precision is small beside the matrix."""
    from fastdml.engine.similarity import _AT_ONCE, METRICS

    y = torch.arange(3000.0, dtype=torch.float64)[:, None]
    found = METRICS["label_distance"].differences(y[:5], y, torch.empty(5, 3000))
    assert torch.equal(found, (y[:5] - y.t()).abs().float())
    assert _AT_ONCE * 8 <= 4 << 20


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_gradients_are_scaled_before_they_are_rounded(name):
    """With a loss scale, as a gradient scaler has it: nothing is lost between the loss and the rounding."""
    loss = made(name)
    x = draw(B, D).half()
    given, extra = second(name, slice(None)), others(name, torch.float32)
    given = given.float() if given.is_floating_point() else given
    grads = []
    for cast in (False, True):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(0)
        (loss(leaf.float() if cast else leaf, given, *extra) * 1e-6 * 2.0**20).backward()
        grads.append(leaf.grad)
    assert error(grads[0].double(), grads[1].double()) < 2e-3


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
def test_raw_distances_that_overflow_are_refused(backend):
    loss = fastdml.losses.ContrastiveLoss(0, 1, similarity="raw_distance", backend=backend)
    with pytest.raises(ValueError, match=r"^embeddings: .* fit torch.float32"):
        loss(draw(B, D).float() * 1e25, LABELS)
    assert loss(draw(B, D) * 1e25, LABELS) > 1e25


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
def test_products_that_overflow_are_refused(backend):
    loss = fastdml.losses.NTXentLoss(similarity="dot", backend=backend)
    with pytest.raises(ValueError, match=r"^embeddings: .* fit torch.float32"):
        loss(draw(B, D).float() * 1e25, LABELS)
    assert loss(draw(B, D) * 1e25, LABELS) > 1e50


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
def test_long_rows_in_the_ball(backend):
    """Outside of it lengths do not count: their derivative is no small rest of a large one."""
    margins = {"pos_margin": 0.05, "neg_margin": 0.95}
    loss = made("ContrastiveLoss", **margins, similarity="ball_distance", backend=backend)
    x = (draw(B, D) * 10.0 ** torch.linspace(-1, 25, B, dtype=torch.float64)[:, None]).float()
    value, found = run("ContrastiveLoss", loss, x)
    true, slope = run("ContrastiveLoss", loss, x.double())
    length = x.double().norm(dim=1, keepdim=True)
    assert value.item() == pytest.approx(true.item(), rel=1e-5)
    assert error(found * length, slope * length) < 1e-4


@pytest.mark.parametrize("kind, least, most", [(torch.float32, 1e-18, 1e18), (torch.float64, 1e-37, 1e150)])
@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "SupConLoss", "ContrastiveLoss", "ProxyAnchorLoss"])
def test_lengths_that_hold_where_rows_are_not_copied(name, kind, least, most, monkeypatch):
    """As on an accelerator in sets above 64 MiB: right in the range that documents state, else NaN."""
    monkeypatch.setattr(fastdml.engine.conditioning, "fits", lambda x: False)
    loss = made(name, backend="chunked")
    x = draw(B, D)
    true, slope = run(name, loss, x)
    for length in (least, most):
        value, found = run(name, loss, (x * length).to(kind))
        assert value.item() == pytest.approx(true.item(), rel=1e-5)
        assert error(found * length, slope) < 1e-4
    for length in (most * 1e4, 1e-30) if kind == torch.float32 else (most * 1e10,):
        value, found = run(name, loss, (x * length).to(kind))
        assert value.isnan() and found.isnan().any()


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_miners_take_rows_of_any_length(length):
    x = draw(B, D).float()
    for miner in (
        fastdml.miners.MultiSimilarityMiner(),
        fastdml.miners.BatchEasyHardMiner(),
        fastdml.miners.NearestNegativeMiner(2),
    ):
        found, true = tuple(miner(x * length, LABELS)), tuple(miner(x, LABELS))
        assert all(map(torch.equal, found, true))


def test_numbers_that_are_not_learnt_are_exact_in_float64():
    x, z = draw(B, D), draw(B, D, seed=1)
    s = unit(x) @ unit(z).t() / 0.07
    true = torch.nn.functional.cross_entropy(s, torch.arange(B))
    assert fastdml.losses.InfoNCELoss(0.07)(x, z).item() == pytest.approx(true.item(), rel=1e-14)


# ---- numbers in double precision


def in_double(name, options, exact):
    """The value of a loss made with numbers that float32 would round: made where double is torch's default
    type (exact), or made as usual and converted."""
    torch.set_default_dtype(torch.float64 if exact else torch.float32)
    try:
        torch.manual_seed(0)
        loss = MODULES[name](**options).double()
    finally:
        torch.set_default_dtype(torch.float32)
    for k, p in enumerate(loss.parameters()):
        if p.dim() == 2:
            p.data.copy_(draw(*p.shape, seed=9 + k))
    extra = others(name, torch.float64)
    value = loss.eval()(draw(B, D), second(name, slice(None)), *extra)
    return value, [t for k, t in loss.state_dict().items() if t.dim() < 2]


def forms_of(name):
    """Arguments of every form that holds a number as state."""
    signature = inspect.signature(MODULES[name].__init__).parameters
    plain = dict(NEEDED.get(name, {}))
    if "embedding_size" in signature:
        plain |= {"num_classes": C, "embedding_size": D}
    yield plain
    if "learnable" in MODULES[name].names:
        yield {**plain, "learnable": False}
        yield {**plain, "learnable": True}
    if "learn_beta" in MODULES[name].names:
        yield {**plain, "num_classes": C}
        yield {**plain, "learn_beta": True, "nu": 0.1}
        yield {**plain, "learn_beta": True, "nu": 0.1, "num_classes": C}
    if "class_counts" in MODULES[name].names:
        yield {**plain, "class_counts": [3.3, 1.1, 2.7, 0.1, 5, 1e-3]}


EXACT = [(name, k) for name in NAMES for k, _ in enumerate(forms_of(name))]


@pytest.mark.parametrize(("name", "k"), EXACT)
def test_numbers_have_all_their_digits_in_double_precision(name, k):
    """Defaults, and numbers that are learnt, which have not changed yet."""
    options = list(forms_of(name))[k]
    true, state = in_double(name, options, True)
    value, found = in_double(name, options, False)
    assert value.item() == pytest.approx(true.item(), rel=1e-14)
    assert all(map(torch.equal, found, state))


@pytest.mark.parametrize("name", sorted(n for n in NAMES if MODULES[n].function))
def test_functional_forms_have_all_digits_in_double_precision(name):
    """Their defaults are the module's own."""
    module, signature = MODULES[name], inspect.signature(MODULES[name].__init__).parameters
    if {"embedding_size", "descriptors_dim"} & set(signature):
        pytest.skip("proxies have no default")
    options = NEEDED.get(name, {})
    function = getattr(fastdml.functional, module.function)
    known = inspect.signature(function).parameters
    given = {k: v for k, v in options.items() if k in known}
    batch = (draw(B, D), second(name, slice(None)), *others(name, torch.float64))
    torch.manual_seed(0)
    true = module(**options).double().eval()(*batch)
    torch.manual_seed(0)
    assert function(*batch, **given).item() == pytest.approx(true.item(), rel=1e-14)


def test_a_function_remembers_no_batch():
    """The dynamic margin's histogram moves from batch to batch in a module alone."""
    x, function = draw(B, D), fastdml.functional.dynamic_soft_margin
    value = function(x, LABELS)
    assert function(draw(B, D, seed=1), LABELS) != value == function(x, LABELS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_constants_are_not_rounded_with_a_network(dtype):
    """A temperature in half a network's precision would be another temperature."""
    x, z = draw(B, D).float(), draw(B, D, seed=1).float()
    for make, batch in (
        (lambda: MODULES["InfoNCELoss"](0.07), (x, z)),
        (lambda: MODULES["MarginLoss"](beta=1.1, num_classes=C), (x, LABELS)),
        (lambda: MODULES["SOPRCLoss"](C, prior_mul=0.07).eval(), (x, LABELS)),
        (lambda: MODULES["LateInteractionLoss"](0.07), (x[:, None], z[:, None])),
        (lambda: Labelled(MODULES["SupConLoss"](), class_weights=torch.linspace(0.1, 1, C)), (x, LABELS)),
    ):
        assert torch.equal(make().to(dtype)(*batch), make()(*batch))


def test_a_histogram_that_moves_is_not_rounded_with_a_network():
    x, loss = draw(B, D).float(), MODULES["DynamicSoftMarginLoss"]()
    loss(x, LABELS)
    before = loss.hist_.clone()
    assert torch.equal(loss.bfloat16().hist_, before)


def test_a_number_that_was_learnt_is_not_set_back():
    loss = fastdml.losses.SigLIPLoss()
    loss.log_scale.data += 1
    before = loss.log_scale.item()
    assert loss.double().log_scale.item() == before
    assert loss.bias.item() == -10
