"""Matryoshka: the sum of a loss over cut embeddings, in one sweep or one by one."""

import pytest
import torch
from conftest import BACKENDS
from torch import Tensor

import fastdml
from fastdml import losses
from fastdml.engine import prefixes, problem, widths
from fastdml.engine.autograd import evaluate
from fastdml.engine.executors import symmetric
from fastdml.losses import MatryoshkaLoss
from fastdml.reducers import DoNothingReducer

B, D = 90, 13
WIDTHS, WEIGHTS = (3, 4, 11), (1.0, -0.5, 2.0)
LABELS = torch.arange(B) // 4
AUTO = [b for b in BACKENDS if b != "dense"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=g, dtype=torch.float64)


@pytest.fixture
def together(monkeypatch):
    """How many sums of calls were made in one sweep; small problems too."""
    found = []
    plain = prefixes._together
    monkeypatch.setattr(prefixes, "_together", lambda *a: (found.append(1), plain(*a))[1])
    monkeypatch.setattr(prefixes.one_block, "takes", lambda problem: False)
    return found


def both(loss, *batch, widths=WIDTHS, weights=WEIGHTS, **more):
    """(value, gradients) of Matryoshka, and of the loss on copies of cut embeddings."""

    def evaluated(function):
        leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in batch]
        value = function(leaves)
        wanted = [x for x in leaves if x.requires_grad] + list(loss.parameters())
        upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
        return [value.detach(), *torch.autograd.grad(value, wanted, upstream, allow_unused=True)]

    def cut(leaves, width):
        return [x[..., :width].clone() if x.is_floating_point() else x for x in leaves]

    one = evaluated(lambda x: MatryoshkaLoss(loss, widths, weights)(*x, **more))
    pairs = list(zip(widths, weights, strict=True))
    each = evaluated(lambda x: sum(w * loss(*cut(x, d), **more) for d, w in pairs))
    return one, each


def assert_same(loss, *batch, **more):
    for found, true in zip(*both(loss, *batch, **more), strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-11)


OF_PAIRS = {
    "InfoNCE": lambda b: losses.InfoNCELoss(0.1, learnable=True, backend=b),
    "of rows": lambda b: losses.InfoNCELoss(0.1, learnable=True, reduction="none", backend=b),
    "CLIP": lambda b: losses.CLIPLoss(0.1, backend=b),
    "SigLIP": lambda b: losses.SigLIPLoss(backend=b),
    "distances": lambda b: losses.InfoNCELoss(0.5, similarity="squared_distance", backend=b),
    "dot": lambda b: losses.CLIPLoss(2.0, similarity="dot", backend=b),
}
OF_SAMPLES = {
    "multi-similarity": lambda b: losses.MultiSimilarityLoss(epsilon=0.1, backend=b),
    "SupCon": lambda b: losses.SupConLoss(backend=b),  # a mean over rows above 0
    "contrastive": lambda b: losses.ContrastiveLoss(backend=b),  # symmetric; a mean over active pairs
    "circle": lambda b: losses.CircleLoss(form="global", backend=b),  # a combination of all rows
    "mean of pairs": lambda b: losses.ContrastiveLoss(reduction="mean", backend=b),  # combined as a mean
    "semi-variance": lambda b: losses.SemiVarianceLoss(backend=b),  # all rows weigh alike
    "Smooth-AP": lambda b: losses.SmoothAPLoss(backend=b),
    "triplets": lambda b: losses.TripletMarginLoss(backend=b),
}


@pytest.mark.parametrize("backend", AUTO)
@pytest.mark.parametrize("name", OF_PAIRS)
def test_pairs_in_one_sweep(together, name, backend):
    assert_same(OF_PAIRS[name](backend).double(), drawn(B, D), drawn(B, D, seed=1))
    assert together


@pytest.mark.parametrize("backend", AUTO)
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_samples_in_one_sweep(together, name, backend):
    assert_same(OF_SAMPLES[name](backend).double(), drawn(B, D), LABELS)
    assert together


ONE_SET = {
    **{name: OF_SAMPLES[name] for name in ("multi-similarity", "SupCon", "contrastive", "circle")},
    "two sweeps": lambda b: losses.NTXentLoss(backend=b),
    "distances": lambda b: losses.ContrastiveLoss(similarity="distance", backend=b),
    "dot": lambda b: losses.SupConLoss(2.0, similarity="dot", backend=b),
    "learnt": lambda b: losses.SupConLoss(torch.nn.Parameter(torch.tensor(0.3)), backend=b),
}


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("name", ONE_SET)
def test_pairs_visited_once_for_both_ends(monkeypatch, together, name, rows):
    """In trapezoids of some rows or of one; the matrix multiplied once a pass, for all widths."""
    monkeypatch.setattr(symmetric, "_ROWS", rows)
    runs = []
    plain = symmetric.Run.run
    monkeypatch.setattr(symmetric.Run, "run", lambda self, w: runs.append(len(self.each)) or plain(self, w))
    loss = ONE_SET[name]("symmetric").double()
    assert_same(loss, drawn(B, D), LABELS)
    assert together == [1] and len(WIDTHS) in runs


@pytest.mark.parametrize("widths", [(13,), (1, 2, 3, 5, 8, 13), (12, 13)])
def test_any_widths_in_several_blocks(together, widths):
    fastdml.set_workspace(1 << 16)
    x, y, weights = drawn(301, D), drawn(301, D, seed=1), tuple(0.5 + k for k in range(len(widths)))
    for loss in (losses.CLIPLoss(0.1).double(), losses.InfoNCELoss(0.1, symmetric=True, backend="chunked")):
        assert_same(loss, x, y, widths=widths, weights=weights)
    for loss in (
        losses.MultiSimilarityLoss(),
        losses.TripletMarginLoss(),  # a mean over what is counted: two visits
        losses.CircleLoss(form="global", backend="chunked"),
    ):
        assert_same(loss, x, torch.arange(301) % 50, widths=widths, weights=weights)
    assert bool(together) == (len(widths) > 1)


@pytest.mark.parametrize("backend", AUTO)
def test_a_second_visit_begins_where_the_first_ended(monkeypatch, backend):
    """The products of that block are not made again."""
    fastdml.set_workspace(1 << 17)
    visited, grown = [], []
    plain, grow = prefixes.Visit, prefixes.grow
    monkeypatch.setattr(prefixes, "Visit", lambda *a: visited.append(a[2]) or plain(*a))
    monkeypatch.setattr(prefixes, "grow", lambda *a: grown.append(1) or grow(*a))
    x = drawn(301, D).requires_grad_()
    MatryoshkaLoss(losses.TripletMarginLoss(backend=backend), WIDTHS)(x, torch.arange(301) % 50).backward()
    starts = visited[:: len(WIDTHS)]
    blocks = len(starts) // 2
    assert blocks > 1 and starts[blocks:] == starts[:blocks][::-1]
    assert len(grown) == (2 * blocks - 1) * len(WIDTHS)


def test_hard_negatives_masks_and_other_matrices(together):
    loss = losses.InfoNCELoss(
        0.1, learnable=True, negatives=("qd", "qq", "dd"), false_negative_margin=0.1, backend="chunked"
    ).double()
    more = {"ids": torch.arange(B) % 80, "guide": drawn(B, 5), "ref_guide": drawn(B, 5, seed=3)}
    guide = drawn(B, 2, 5, seed=4)
    assert_same(loss, drawn(B, D), drawn(B, D, seed=1), drawn(B, 2, D, seed=2), hard_guide=guide, **more)
    assert len(together) == 3


def test_proxies(together):
    loss = losses.ProxyAnchorLoss(30, D).double()
    x = drawn(B, D).requires_grad_()
    found = torch.autograd.grad(MatryoshkaLoss(loss, WIDTHS)(x, LABELS), (x, loss.proxies))
    true = sum(
        fastdml.functional.proxy_anchor(x[:, :d].clone(), LABELS, loss.proxies[:, :d].clone()) for d in WIDTHS
    )
    for f, t in zip(found, torch.autograd.grad(true, (x, loss.proxies)), strict=True):
        torch.testing.assert_close(f, t, rtol=1e-10, atol=1e-12)
    assert together


def test_a_large_classifier_stored_by_columns(together, monkeypatch):
    """Beyond some size its weight is used as it lies."""
    monkeypatch.setattr(problem, "_COPIED", 0)
    loss = losses.ArcFaceLoss(30, D).double()
    x = drawn(B, D).requires_grad_()
    (found,) = torch.autograd.grad(MatryoshkaLoss(loss, WIDTHS)(x, LABELS), loss.W)
    true = sum(fastdml.functional.arc_face(x[:, :d].clone(), LABELS, loss.W[:d].t()) for d in WIDTHS)
    torch.testing.assert_close(found, *torch.autograd.grad(true, loss.W), rtol=1e-10, atol=1e-12)
    assert together


def test_what_cannot_share_runs_one_by_one(together):
    """Rows without a direction in some width, listed triplets, pairs that are gathered, a backend's name."""
    x, y = drawn(B, D), drawn(B, D, seed=1)
    x[5, :3], x[6, :4] = 0, 1e-25
    assert_same(losses.InfoNCELoss(0.1), x, y)
    assert_same(losses.InfoNCELoss(0.1, backend="dense"), drawn(B, D), y)
    a, p, n = torch.tensor([0, 4, 9]), torch.tensor([1, 5, 8]), torch.tensor([20, 30, 40])
    assert_same(losses.TripletMarginLoss(), drawn(B, D), LABELS, indices_tuple=(a, p, n))
    assert_same(losses.NPairsLoss(), drawn(B, D), LABELS)
    assert not together


def test_candidates_tokens_and_proxies_of_other_names():
    x, candidates, scores = drawn(7, D), drawn(7, 4, D), drawn(7, 4)
    cut = lambda t: t[..., :3]  # noqa: E731
    for loss in (losses.MarginMSELoss(), losses.CandidateKLLoss()):
        true = loss(cut(x), cut(candidates), scores) + loss(x, candidates, scores)
        torch.testing.assert_close(MatryoshkaLoss(loss, (3, D))(x, candidates, scores), true)
    tokens, late = drawn(7, 2, D, seed=1), losses.LateInteractionLoss()
    true = late(cut(tokens), cut(candidates)) + late(tokens, candidates)
    torch.testing.assert_close(MatryoshkaLoss(late, (3, D))(tokens, candidates), true)
    with pytest.raises(ValueError, match=r"^queries: expected at least 14 dimensions"):
        MatryoshkaLoss(late, (14,))(tokens, candidates)
    own, classes = losses.ManifoldLoss(D, K=3).double(), torch.arange(7) % 3
    narrow = losses.ManifoldLoss(3, K=3).double()
    narrow.proxies.data = cut(own.proxies.data)
    true = narrow(cut(x), indices_tuple=classes) + own(x, indices_tuple=classes)
    torch.testing.assert_close(MatryoshkaLoss(own, (3, D))(x, indices_tuple=classes), true)


def test_regularizers_are_of_every_width():
    loss = losses.SupConLoss(embedding_regularizer=lambda e: e.square().mean(), embedding_reg_weight=0.1)
    assert_same(loss, drawn(B, D), LABELS)


@pytest.mark.parametrize("locked", ["queries", "documents"])
def test_a_locked_tower_costs_no_product(together, monkeypatch, locked):
    x = drawn(B, D).requires_grad_(locked != "queries")
    y = drawn(B, D, seed=1).requires_grad_(locked != "documents")
    made = []
    for name in ("multiply", "accumulate_"):
        plain = getattr(widths, name)
        monkeypatch.setattr(widths, name, lambda *a, _f=plain: (made.append(1), _f(*a))[1])
    MatryoshkaLoss(losses.InfoNCELoss(0.1), WIDTHS)(x, y).backward()
    assert len(made) == 2 * len(WIDTHS)  # a slice each of the similarities and of one gradient


def test_views_half_precision_and_one_graph(together):
    x = torch.randn(B, D)
    loss = MatryoshkaLoss(losses.SelfSupervisedLoss(losses.NTXentLoss()), (4, D))
    alone = losses.SelfSupervisedLoss(losses.NTXentLoss())
    true = alone(x[:, :4], x[:, :4] + 0.1) + alone(x, x + 0.1)
    torch.testing.assert_close(loss(x, x + 0.1), true)
    half = MatryoshkaLoss(losses.InfoNCELoss(0.1), (4, D))
    with torch.autocast("cpu", torch.bfloat16):
        value = half(x.bfloat16().requires_grad_(), x.bfloat16())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(half(x, x).item(), rel=0.02)
    step = torch.compile(lambda a, b: half(a, b), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(x, x.flip(0)), half(x, x.flip(0)))


WRONG = {
    "dims: expected ascending": lambda: MatryoshkaLoss(losses.SupConLoss(), (4, 4)),
    "dims: expected a positive integer": lambda: MatryoshkaLoss(losses.SupConLoss(), (0, 4)),
    "reducer: expected one that makes a number of the loss, got DoNothingReducer": lambda: MatryoshkaLoss(
        losses.Labelled(losses.SupConLoss(reducer=DoNothingReducer()), 0), (2, 4)
    ),
    "weights: expected 2 numbers": lambda: MatryoshkaLoss(losses.SupConLoss(), (2, 4), (1,)),
    "loss: expected a loss of fastdml": lambda: MatryoshkaLoss(torch.nn.Linear(2, 2), (2, 4)),
    "embeddings: expected at least 14 dimensions, got 13": lambda: MatryoshkaLoss(
        losses.SupConLoss(), (2, 14)
    )(torch.randn(4, 13), torch.arange(4)),
    "embeddings: expected at least 4 dimensions, got 0": lambda: MatryoshkaLoss(
        losses.SupConLoss(), (2, 4)
    )(torch.tensor(1.0), torch.arange(4)),
    "ref_emb: expected dimension 13, as in embeddings, got shape (4, 12)": lambda: MatryoshkaLoss(
        losses.SupConLoss(), (2, 4)
    )(torch.randn(4, 13), torch.arange(4), ref_emb=torch.randn(4, 12), ref_labels=torch.arange(4)),
    "embeddings of another view: expected dimension 13": lambda: MatryoshkaLoss(
        losses.SelfSupervisedLoss(losses.NTXentLoss()), (2, 4)
    )(torch.randn(4, 13), torch.randn(4, 13), torch.randn(4, 9)),
    "loss: expected one whose vectors are of the call, got MultipleLosses of ProxyAnchorLoss; put Matry": (
        lambda: MatryoshkaLoss(losses.MultipleLosses([losses.ProxyAnchorLoss(3, 13)]), (2, 4))
    ),
    "loss: expected one whose vectors are of the call, got CrossBatchMemory, which keeps": lambda: (
        MatryoshkaLoss(losses.CrossBatchMemory(losses.ContrastiveLoss(), 13, 64), (2, 4))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_say_what_is_wrong(message):
    with pytest.raises(ValueError) as found:
        WRONG[message]()
    assert str(found.value).startswith(message)


def test_views_are_all_cut():
    a, b, c = (drawn(8, D, seed=k) for k in range(3))
    views = losses.SelfSupervisedLoss(losses.NTXentLoss())
    loss = MatryoshkaLoss(views, WIDTHS)
    true = sum(views(a[:, :w], b[:, :w], c[:, :w]) for w in WIDTHS)
    torch.testing.assert_close(loss(a, b, c), true)
    torch.testing.assert_close(loss(torch.stack([a, b, c], 1)), true)


def test_too_many_arguments():
    x = drawn(B, D)
    with pytest.raises(TypeError, match="at most 5 arguments by place, got 6"):
        MatryoshkaLoss(losses.ProxyAnchorLoss(30, D), WIDTHS)(x, LABELS, None, None, None, "surplus")


def test_of_another():
    x, inner = drawn(B, D), MatryoshkaLoss(losses.ProxyAnchorLoss(30, D), [2, 3]).double()
    torch.testing.assert_close(MatryoshkaLoss(inner, WIDTHS)(x, LABELS), 3 * inner(x, LABELS))


def test_values_of_candidates_that_want_a_gradient():
    x, y, pairs = drawn(20, 16), torch.arange(20) % 4, (torch.arange(10),) * 3
    loss = losses.ProxyAnchorLoss(4, 16).double()
    (call,) = loss.proxy_calls(x, y, loss.proxies.detach(), pairs)
    values = call.col_values.clone().requires_grad_()
    call = call.replace(col_values=values, backend="chunked")
    a, c = call.anchors, call.candidates
    calls = [call.replace(anchors=a[:, :w], candidates=c[:, :w]) for w in (4, 16)]
    found = torch.autograd.grad(prefixes.total(calls, (0.3, 1.0)), values)
    apart = sum(w * evaluate(c) for c, w in zip(calls, (0.3, 1.0), strict=True))
    torch.testing.assert_close(found, torch.autograd.grad(apart, values))


def test_the_bias_of_the_classes_goes_with_their_proxies():
    loss = losses.SmoothedCrossEntropyLoss(30, D).double()
    for p in loss.parameters():
        torch.nn.init.normal_(p)
    x = drawn(B, D)
    value = MatryoshkaLoss(loss, WIDTHS, WEIGHTS)(x, LABELS)
    true = sum(
        w
        * fastdml.functional.smoothed_cross_entropy(x[:, :d], LABELS, loss.weight[:, :d], loss.bias)
        for d, w in zip(WIDTHS, WEIGHTS, strict=True)
    )
    torch.testing.assert_close(value, true)
    for f, t in zip(
        *(torch.autograd.grad(v, (loss.weight, loss.bias)) for v in (value, true)), strict=True
    ):
        torch.testing.assert_close(f, t)
