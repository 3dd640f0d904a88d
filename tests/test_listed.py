"""Lists of pairs and triplets: every way of reading them against differentiable float64 on the whole matrix,
and compiled losses of listed pairs against their specification."""

import pytest
import torch
from conftest import needs_compiled

import fastdml
from fastdml import losses
from fastdml.engine import dispatch, library, listed
from fastdml.engine.call import Call
from fastdml.engine.op import computed
from fastdml.engine.pair_values import pair_values
from fastdml.engine.problem import Problem
from fastdml.engine.registry import LOSSES
from fastdml.engine.similarity import SIMILARITIES

WAYS = ("blocks", "sparse_blocks", "pair_by_pair")


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(library, "load", lambda: None)
    elif library.load() is None:
        pytest.skip("the compiled library is not installed")
    return request.param


@pytest.fixture
def small_blocks():
    fastdml.set_workspace(64 << 10)
    yield
    fastdml.set_workspace(None)


def choose(way, monkeypatch):
    monkeypatch.setattr(listed, "_SHORT", 0 if way == "pair_by_pair" else float("inf"))
    monkeypatch.setattr(listed, "_DENSE", 0 if way == "blocks" else float("inf"))


def pairs(rows, columns, count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(rows, (count,), generator=g), torch.randint(columns, (count,), generator=g)


def embeddings(rows, seed, dtype):
    """Some within the unit ball, some beyond."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 7, generator=g, dtype=torch.float64)
    x[::3] *= 0.2
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_what_pairs_are(similarity, one_set, way, form, small_blocks, monkeypatch):
    """Values and gradients of two lists that share their rows, and of a third, in several blocks of rows."""
    if one_set and similarity == "projection":
        pytest.skip("it treats anchors and candidates differently")
    choose(way, monkeypatch)
    x = embeddings(300, 1, torch.float64)
    y = x if one_set else embeddings(170, 2, torch.float64)
    i, j = pairs(300, y.shape[0], 900)
    lists = [(i, j), (i, j.roll(5)), pairs(300, y.shape[0], 50, 3)]
    found = pair_values(similarity, x, None if one_set else y, lists, 1e-3)
    matrix = SIMILARITIES[similarity].dense(x, y, 1e-3)
    weights = [torch.linspace(-1, 2, len(rows), dtype=torch.float64) for rows, _ in lists]
    for value, at in zip(found, lists):
        torch.testing.assert_close(value, matrix[at], rtol=1e-9, atol=1e-9)
    leaves = [x] if one_set else [x, y]
    ours = torch.autograd.grad(sum((v * w).sum() for v, w in zip(found, weights)), leaves)
    true = torch.autograd.grad(sum((matrix[at] * w).sum() for at, w in zip(lists, weights)), leaves)
    for mine, theirs in zip(ours, true):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("way", WAYS)
def test_hostile_embeddings(way, form, monkeypatch):
    """Rows far out of range, distances from a common offset, an own pair and a copy: as in every executor."""
    choose(way, monkeypatch)
    for similarity, change in (("cosine", lambda x: x * 1e25), ("raw_distance", lambda x: x + 1000)):
        x = change(embeddings(40, 1, torch.float32).detach())
        x[3] = x[2]
        x.requires_grad_()
        i, j = pairs(40, 40, 200)
        i[:3], j[:3] = torch.tensor([2, 4, 2]), torch.tensor([3, 4, 7])
        wide = x.detach().double().requires_grad_()
        true = SIMILARITIES[similarity].paired(wide[i], wide[j])
        (found,) = pair_values(similarity, x, None, [(i, j)])
        torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5)
        d, (d_true,) = torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(true.sum(), wide)
        assert (d.double() - d_true).norm() <= 1e-3 * d_true.norm()


def test_orders_and_threads_change_no_bit(form, small_blocks):
    """Rows in any order; each row's sum is in the list's own order, however many threads there are."""
    x = embeddings(300, 1, torch.float32)
    i, j = pairs(300, 300, 20_000)
    order = i.argsort(stable=True)
    found, before = [], torch.get_num_threads()
    try:
        for rows, columns, threads in ((i, j, 1), (i, j, 3), (i[order], j[order], 2)):
            torch.set_num_threads(threads)
            (value,) = pair_values("distance", x, None, [(rows, columns)])
            found.append(torch.autograd.grad(value.square().sum(), x)[0])
    finally:
        torch.set_num_threads(before)
    if form == "compiled":
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], found[2])


def test_no_pair_and_one_embedding(form):
    x = embeddings(1, 1, torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    (value,) = pair_values("cosine", x, None, [(none, none)])
    assert value.shape == (0,)
    assert not torch.autograd.grad(value.sum(), x)[0].any()
    loss = losses.TripletMarginLoss()
    assert loss(x, None, (none, none, none)).item() == 0


def test_a_second_derivative_is_refused():
    x = embeddings(5, 1, torch.float32)
    (value,) = pair_values("cosine", x, None, [pairs(5, 5, 9)])
    (d,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        d.sum().backward()


def test_a_kept_graph_gives_the_gradient_again():
    x = embeddings(6, 1, torch.float64)
    a, p = pairs(6, 6, 30)
    for loss in (losses.TripletMarginLoss(0.3), losses.MarginLoss(learn_beta=True, nu=0.5)):
        value = loss(x, torch.arange(6), (a, p, p.roll(1)))
        first = torch.autograd.grad(value, x, retain_graph=True)[0]
        second = torch.autograd.grad(3 * value, x)[0]
        torch.testing.assert_close(second, 3 * first)


# ---- losses of listed pairs, by compiled functors


def call_of(loss, one_set, seed=0):
    """Some pairs of a batch, in no order, some twice, some rows without any, own pairs among them."""
    g = torch.Generator().manual_seed(seed)
    rows, columns = 23, 23 if one_set else 31
    x = torch.randn(rows, 6, generator=g, dtype=torch.float64).requires_grad_()
    y = None if one_set else torch.randn(columns, 6, generator=g, dtype=torch.float64).requires_grad_()
    kind = torch.randint(0, 3, (rows, columns), generator=g)
    kind[5] = 0
    kind[7][kind[7] == 1] = 0
    kind[8][kind[8] == 2] = 0
    some = []
    for which in (1, 2):
        i, j = (kind == which).nonzero(as_tuple=True)
        order = torch.cat([torch.arange(len(i)), torch.arange(9)])[torch.randperm(len(i) + 9, generator=g)]
        some += [i[order], j[order]]
    values = {k: v.to(torch.float64) for k, v in loss.example_values(rows, columns).items()}
    own = None if one_set else 2
    return Call(loss, x, y, pairs=tuple(some), own=own, **values)


def compiled_examples():
    return [
        pytest.param(example, id=f"{name}-{k}")
        for name, kind in sorted(LOSSES.items())
        if kind.rows == kind.columns == "samples" and kind.tuples == "pairs"
        for k, example in enumerate(kind.examples())
        if example.teacher_similarity is None
    ]


@needs_compiled
@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("loss", compiled_examples())
def test_a_list_in_a_compiled_functor(loss, one_set):
    """The same as the specification on masks, value and gradients, where the functor takes lists."""
    call = call_of(loss, one_set)
    reason = dispatch.EXECUTORS["native"].refuses(Problem.of(call))
    if reason is not None:
        pytest.skip(reason)
    chunked = computed(call.replace(backend="chunked"), [True] * 5)
    found = computed(call.replace(backend="native"), [True] * 5)
    for mine, theirs in zip(found, chunked):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


@needs_compiled
def test_lists_without_words_of_all_pairs_stay_in_torch():
    """What counts candidates, reads other pairs, or draws by their place, has its specification."""
    x, y = embeddings(12, 1, torch.float32), torch.arange(12) % 4
    t = (*pairs(12, 12, 20), *pairs(12, 12, 20, 2))
    for loss in (losses.RankedListLoss(0.4, 1), losses.SPCELoss(), losses.RecallAtKLoss()):
        assert fastdml.explain(loss, x, y, t).executor == "chunked"
    for loss in (losses.ContrastiveLoss(), losses.MultiSimilarityLoss(), losses.TripletMarginLoss()):
        assert fastdml.explain(loss, x, y, t).executor == "native"


@needs_compiled
def test_few_pairs_of_many_candidates():
    """Rows whose few pairs are sorted, not marked in a row of all candidates."""
    x = embeddings(200, 1, torch.float64)
    a, p = pairs(200, 200, 600)
    t = (a, p, a.roll(1), p)
    for loss in (losses.ContrastiveLoss, losses.CircleLoss):
        found = [loss(backend=b)(x, None, t) for b in ("native", "chunked")]
        torch.testing.assert_close(*found, rtol=1e-10, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in found))


OF_PAIRS = [
    name
    for name, kind in losses.MODULES.items()
    if issubclass(kind, losses.base.SampleLoss)
    and kind.__module__.split(".")[2] in ("pair", "softmax")
]


@pytest.mark.parametrize("name", [*OF_PAIRS, "swapped", "dynamic"])
def test_repeats_count_once_and_own_pairs_not_at_all(name, form):
    """In losses whose lists run in torch too."""
    build = {
        "swapped": lambda: losses.TripletMarginLoss(0.5, swap=True),
        "dynamic": losses.DynamicSoftMarginLoss,
        "RankedListLoss": lambda: losses.RankedListLoss(0.4, 4),
    }
    loss = build.get(name, losses.MODULES.get(name))().eval()
    if name in ("InstanceLoss", "SPCELoss") or loss.description().tuples == "weights":
        pytest.skip("a sample is its own positive, or weighs")
    x, y = embeddings(12, 1, torch.float64), torch.arange(12) // 3
    a, p, b, n = (
        torch.tensor(t) for t in ([0, 0, 1, 3], [1, 2, 2, 4], [0, 0, 1, 3], [5, 8, 9, 11])
    )
    again = (
        torch.cat([a, a[:2], b]),
        torch.cat([p, p[:2], b]),
        torch.cat([b[1:3], a, b]),
        torch.cat([n[1:3], a, n]),
    )
    values = [loss(x, y, t) for t in ((a, p, b, n), again)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in values))
    ref = x.detach().roll(2, 0).requires_grad_()
    if name == "NPairsLoss":
        return
    of_two = [
        loss(
            x,
            y,
            tuple((t + 2) % 12 if k % 2 else t for k, t in enumerate(some)),
            ref,
            y.roll(2),
            own=(torch.arange(12) + 2) % 12,
        )
        for some in ((a, p, b, n), again)
    ]
    torch.testing.assert_close(*of_two)


def test_pairs_are_not_multiplied_in_autocast_s_type(form):
    x, y = embeddings(40, 1, torch.float32), torch.arange(40) // 4
    a, p = (y[:, None] == y).nonzero(as_tuple=True)
    for loss in (losses.TripletMarginLoss(0.3), losses.LiftedStructureLoss()):
        found = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found.append(loss(x, y, (a, p, (p + 7) % 40)))
        assert torch.equal(*found)
