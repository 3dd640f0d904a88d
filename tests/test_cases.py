"""Small scenes that users of such libraries meet, each with its right value: plain torch in float64, or the
peer where it is right. What is about numbers, samplers and metrics has files of its own."""

import copy
import io
import pickle
import re

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import cross_entropy, normalize

import fastdml
from fastdml import losses, miners

B = 24
g = torch.Generator().manual_seed(0)
e = torch.randn(B, 8, generator=g)
y = torch.arange(B) // 4


def cosines(x: Tensor, z: Tensor) -> Tensor:
    return normalize(x.double()) @ normalize(z.double()).T


def value_and_gradient(loss, x, *batch, **more):
    x = x.clone().requires_grad_()
    value = loss(x, *batch, **more)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def same(found, true, **bounds):
    for f, t in zip(found, true, strict=True):
        torch.testing.assert_close(f, t, **(bounds or {"rtol": 2e-5, "atol": 2e-6}))


# ---- a sample and its own copy


def over_samples():
    """Losses of embeddings and labels alone, made with their defaults."""
    for name, module in losses.MODULES.items():
        try:
            loss = module()
        except TypeError:
            continue
        if isinstance(loss, fastdml.losses.base.SampleLoss):
            yield name


@pytest.mark.parametrize("name", list(over_samples()))
def test_the_same_tensor_as_both_sets_is_one_set(name):
    loss = getattr(losses, name)()
    true = value_and_gradient(loss, e, y)
    if name == "NPairsLoss":  # one batch
        with pytest.raises(ValueError, match=r"^ref_emb: "):
            loss(e, y, ref_emb=e, ref_labels=y)
        return
    same(value_and_gradient(lambda x: loss(x, y, ref_emb=x, ref_labels=y), e), true)
    same(value_and_gradient(lambda x: loss(x, y, ref_emb=x, ref_labels=y.clone()), e), true)


@pytest.mark.parametrize("name", list(over_samples()))
@pytest.mark.parametrize("with_own", [False, True])
def test_a_function_of_indices_is_its_labels(name, with_own):
    """Whether it calls a sample its own positive or not: that is the loss's affair."""
    loss = getattr(losses, name)()

    def relation(i, j):
        positive = y[i][:, None] == y[j]
        return positive if with_own else positive & (i[:, None] != j), ~positive

    if name in ("LiftedStructureLoss", "NPairsLoss"):
        with pytest.raises(ValueError, match=r"^indices_tuple: "):
            loss(e, y, relation)
        return
    labels = y if name == "SOPRCLoss" else None
    same(value_and_gradient(loss, e, labels, relation), value_and_gradient(loss, e, y))


def test_all_pairs_listed_are_the_labels():
    same_class = y[:, None] == y
    other = ~torch.eye(B, dtype=torch.bool)
    pairs = (*(same_class & other).nonzero(as_tuple=True), *(~same_class).nonzero(as_tuple=True))
    for name in ("AUCLoss", "SupAPLoss", "SoftBinAPLoss", "ROADMAPLoss", "SPCELoss", "SupConLoss"):
        loss = getattr(losses, name)()
        same(value_and_gradient(loss, e, y, pairs), value_and_gradient(loss, e, y))


def column(t: Tensor) -> Tensor:
    """The same as a view with gaps."""
    return torch.stack([t, t + 1], 1)[:, 0]


def test_labels_and_places_of_own_copies_may_be_views():
    x, r, own = e[:6], torch.cat([e[:6], e[8:14]]), torch.arange(6)
    pairs = tuple(torch.tensor(t) for t in ([0, 1], [0, 7], [2, 3], [2, 9]))
    more = {"ref_emb": r, "ref_labels": y[:12]}
    supcon, fast_ap = losses.SupConLoss(), losses.FastAPLoss(reference_scale=True)
    viewed = value_and_gradient(supcon, x, column(y[:6]), tuple(map(column, pairs)), own=column(own), **more)
    same(viewed, value_and_gradient(supcon, x, y[:6], pairs, own=own, **more))
    same(value_and_gradient(fast_ap, e, column(y)), value_and_gradient(fast_ap, e, y))


# ---- relations other than labels


def test_samples_of_several_classes():
    several = torch.rand(B, 5, generator=torch.Generator().manual_seed(3)) < 0.3
    several[torch.arange(B), torch.arange(B) % 5] = True
    positive = (several.float() @ several.float().T > 0).fill_diagonal_(False)
    negative = (~positive).fill_diagonal_(False)
    z = (cosines(e, e) / 0.1).fill_diagonal_(-torch.inf)
    log_p = z - z.logsumexp(1, keepdim=True)
    rows = -log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1)
    true = rows[rows > 0].mean().float()
    loss = losses.SupConLoss()
    of_indices = loss(e, None, lambda i, j: (positive[i][:, j], negative[i][:, j]))
    listed = loss(e, None, (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True)))
    same([of_indices, listed], [true, true])
    with pytest.raises(ValueError, match=r"^labels: expected shape \[24\]"):
        loss(e, several.long())
    with pytest.raises(ValueError, match=r"^indices_tuple: expected"):
        loss(e, None, (positive, negative))


def test_samples_without_a_label():
    """As negatives only, by a function of indices; proxies have none for them."""
    labels = y.clone()
    labels[[1, 6, 9, 15]] = -1
    known = labels >= 0

    def relation(i, j):
        equal = labels[i][:, None] == labels[j]
        return equal & known[i][:, None], ~equal & known[i][:, None]

    z = (cosines(e, e) / 0.1).fill_diagonal_(-torch.inf)
    positive = ((labels[:, None] == labels) & known[:, None]).fill_diagonal_(False)
    rows = z.logsumexp(1) - z.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1)
    true = rows[positive.any(1)].mean().float()
    same([losses.SupConLoss()(e, None, relation)], [true])
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 6\)"):
        losses.ArcFaceLoss(6, 8)(e, labels)


def test_a_document_that_answers_two_queries():
    """Duplicates of the positive are left out by a function of indices."""
    q, documents = e[:4], e[10:13]
    which = torch.tensor([0, 1, 2, 0])
    shown = documents[which]

    def relation(i, j):
        return i[:, None] == j, which[i][:, None] != which[j]

    s = cosines(q, shown) / 0.1
    duplicate = (which[:, None] == which).fill_diagonal_(False)
    true = cross_entropy(s.masked_fill(duplicate, -torch.inf), torch.arange(4)).float()
    same([losses.SupConLoss(0.1, reduction="mean")(q, None, relation, ref_emb=shown)], [true])


def test_weights_of_positives_are_refused_by_name():
    overlap = torch.rand(B, B)
    with pytest.raises(ValueError, match=r"^labels: expected integer labels, got torch.float32"):
        losses.SupConLoss()(e, overlap)
    with pytest.raises(ValueError, match=r"^indices_tuple: expected the function to return a bool"):
        losses.SupConLoss()(e, None, lambda i, j: (overlap[i][:, j], 1 - overlap[i][:, j]))
    with pytest.raises(ValueError, match=r"^fn: expected a function of p, or .* one of \(s, p, n, w\)"):
        fastdml.row_loss(lambda s, p, n, w: (s * w).sum(1))


def test_queries_positives_and_negatives_without_labels():
    q, p, n = e[:12], e[12:], e.flip(0)[:12] + 0.3
    i = torch.arange(12)
    batch = dict(indices_tuple=(i, i, i + 12), ref_emb=torch.cat([p, n]))

    def distances(z: Tensor) -> Tensor:
        return (normalize(q.double()) - normalize(z.double())).norm(dim=1)

    terms = (distances(p) - distances(n) + 0.2).relu().float()
    active = terms[terms > 0].mean()
    wanted = {
        ("mean", "active"): active, ("nonzero", "active"): active, ("sum", "active"): terms.sum(),
        ("none", "active"): terms, ("mean", "triplets"): terms.mean(), ("mean", "anchors"): terms.mean(),
    }  # fmt: skip
    for (reduction, normalizer), true in wanted.items():
        loss = losses.TripletMarginLoss(0.2, reduction=reduction, normalizer=normalizer)
        same([loss(q, **batch)], [true])


# ---- half precision


@pytest.mark.parametrize("name", ["SupConLoss", "MultiSimilarityLoss", "CircleLoss", "TripletMarginLoss"])
def test_a_scaled_loss_in_half_precision_keeps_small_gradients(name):
    """As under a GradScaler: rounded to the input's type only after the upstream factor."""
    h = normalize(torch.randn(128, 32, generator=g)).repeat_interleave(4, 0)
    h = (h + 0.02 * torch.randn(512, 32, generator=g)).half()
    labels = torch.arange(512) // 4
    loss = getattr(losses, name)(**({"margin": 0.9} if name == "TripletMarginLoss" else {}))
    x, z = h.clone().requires_grad_(), h.double().requires_grad_()
    (loss(x, labels) * 65536.0).backward()
    loss(z, labels).backward()
    assert (x.grad.double() / 65536 - z.grad).norm() < 1e-3 * z.grad.norm()


# ---- miners


def test_a_miner_s_result_is_a_tuple():
    for miner in (miners.BatchHardMiner(), miners.DistanceWeightedMiner(), miners.MultiSimilarityMiner()):
        found = miner(e, y)
        assert isinstance(found, tuple) and len(found) == miner.tensors
        file = io.BytesIO()
        torch.save(found, file)
        file.seek(0)
        for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), torch.load(file)):
            assert type(other) is tuple
            assert all(torch.equal(a, b) for a, b in zip(other, found, strict=True))
        torch.nn.ModuleDict({"miner": miner}).to("cpu").eval()
    miner = miners.BatchHardMiner()
    found = miner(e, y)
    assert miner.num_triplets == len(found[0])


def test_a_miner_s_result_goes_to_losses_of_other_libraries():
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    found = miners.BatchHardMiner()(e, y)
    same([losses.TripletMarginLoss()(e, y, found)], [theirs.TripletMarginLoss()(e, y, found)])
    found = miners.MultiSimilarityMiner()(e, y)
    same([losses.ContrastiveLoss()(e, y, found)], [theirs.ContrastiveLoss()(e, y, found)])


def test_a_miner_called_on_detached_embeddings_is_fused():
    """So is one called on equal labels: no list is made."""
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    x = e.clone().requires_grad_()
    for embeddings, labels in ((x, y), (x.detach(), y), (x, y.clone())):
        found = miner(embeddings, labels)
        same([loss(x, y, found)], [loss(x, y, tuple(miner(x, y)))])
        assert "not listed" in repr(found)


def test_a_miner_of_other_samples_says_that_it_is_listed():
    from fastdml.mining import lazy

    lazy._say_once.cache_clear()
    found = miners.MultiSimilarityMiner()(e.clone(), y)
    with pytest.warns(UserWarning, match=r"^indices_tuple: 'multi_similarity' would apply the miner's rule"):
        losses.MultiSimilarityLoss()(e, y, found)


def test_samples_that_changed_since_they_were_mined():
    x = e.clone()
    found = miners.MultiSimilarityMiner()(x, y)
    x /= x.norm(dim=1, keepdim=True)
    with pytest.raises(ValueError, match=r"^indices_tuple: expected embeddings and labels as they were"):
        losses.MultiSimilarityLoss()(x, y, found)


def test_listed_triplets_are_explained():
    one = torch.tensor([0]), torch.tensor([1]), torch.tensor([5])
    said = fastdml.explain(losses.TripletMarginLoss(), e, y, one)
    assert said.rows == B and "triplets" in str(said)


# ---- objects and wrappers of pytorch-metric-learning


def test_distances_reducers_and_regularizers_of_the_peer():
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, reducers, regularizers
    from pytorch_metric_learning import losses as theirs

    by = {"distance": distances.CosineSimilarity()}
    pairs = (
        ("TripletMarginLoss", {"margin": 0.2, **by}),
        ("ContrastiveLoss", {"pos_margin": 1, "neg_margin": 0, **by}),
        ("NTXentLoss", {"distance": distances.CosineSimilarity()}),
        ("TripletMarginLoss", {"distance": distances.LpDistance(power=2)}),
        ("ContrastiveLoss", {"embedding_regularizer": regularizers.LpRegularizer()}),
        ("TripletMarginLoss", {"reducer": reducers.SumReducer()}),
    )
    for name, options in pairs:
        ours, other = (getattr(library, name)(**options) for library in (losses, theirs))
        same(value_and_gradient(ours, e, y), value_and_gradient(other, e, y), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"^reducer: expected an object of fastdml.reducers"):
        losses.TripletMarginLoss(reducer=3)
    with pytest.raises(ValueError, match=r"^distance: expected for SupConLoss a name of a similarity"):
        losses.SupConLoss(distance=torch.nn.Identity())
    assert miners.BatchHardMiner(distance=distances.LpDistance()).similarity == "distance"
    with pytest.raises(ValueError, match=r"^distance: AngularMiner compares by 'distance' alone"):
        miners.AngularMiner(distance=distances.CosineSimilarity())


def test_wrappers_of_the_peer_take_our_losses():
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    both = theirs.MultipleLosses([losses.NTXentLoss(), losses.TripletMarginLoss()])
    same([both(e, y)], [losses.NTXentLoss()(e, y) + losses.TripletMarginLoss()(e, y)])
    views = theirs.SelfSupervisedLoss(losses.NTXentLoss())(e[:12], e[12:])
    same([views], [theirs.SelfSupervisedLoss(theirs.NTXentLoss())(e[:12], e[12:])])


# ---- slips, each answered by the argument's name

m = losses
SLIPS = {
    "4-D": (lambda: m.SupConLoss()(e[:, :, None, None], y), "embeddings"),
    "swapped": (lambda: m.SupConLoss()(y, e), "embeddings"),
    "integers": (lambda: m.SupConLoss()(e.long(), y), "embeddings"),
    "nested": (
        lambda: m.SupConLoss()(torch.nested.nested_tensor([e[:3], e[:2]]), y[:2]), "embeddings"
    ),
    "labels on another device": (lambda: m.SupConLoss()(e, y.to("meta")), "labels"),
    "counts": (lambda: m.SupConLoss()(e, y[:6]), "labels"),
    "sparse labels": (lambda: m.SupConLoss()(e, y.to_sparse()), "labels"),
    "complex labels": (lambda: m.LogRatioLoss()(e, y.to(torch.complex64)), "labels"),
    "bool labels of distances": (lambda: m.DenseTripletLoss()(e, y > 2), "labels"),
    "no labels": (lambda: m.SupConLoss()(e), "labels"),
    "class 6 of 6": (lambda: m.ArcFaceLoss(6, 8)(e, y + 1), "labels"),
    "width": (lambda: m.ArcFaceLoss(6, 16)(e, y), "proxies"),
    "width of others": (lambda: m.SupConLoss()(e, y, None, e[:, :4], y), "ref_emb"),
    "others without labels": (lambda: m.SupConLoss()(e, y, ref_emb=e + 1), "ref_labels"),
    "index outside": (lambda: m.TripletMarginLoss()(e, None, (y, y, y + B)), "indices_tuple"),
    "bool indices": (lambda: m.SupConLoss()(e, y, (y > 1,) * 4), "indices_tuple"),
    "a function of nothing": (lambda: m.SupConLoss()(e, None, lambda i, j: None), "indices_tuple"),
    "a function of numbers": (lambda: m.SupConLoss()(e, None, lambda i, j: (1, 2)), "indices_tuple"),
    "a function of other shapes": (
        lambda: m.SupConLoss()(e, None, lambda i, j: (torch.ones(3, 3).bool(),) * 2), "indices_tuple"
    ),
    "a function of N-pairs": (
        lambda: m.NPairsLoss()(e, y, lambda i, j: (i[:, None] == j, i[:, None] != j)), "indices_tuple"
    ),
    "a function of swaps": (
        lambda: m.TripletMarginLoss(swap=True)(e, y, lambda i, j: (i[:, None] == j, i[:, None] != j)),
        "indices_tuple",
    ),
    "own of one set": (lambda: m.SupConLoss()(e, y, own=0), "own"),
    "counts of SOPRC": (lambda: m.SOPRCLoss(12, 8), "class_counts"),
    "a step of no stream": (lambda: fastdml.functional.margin(e, y, step=1 << 24), "step"),
    "rows of a mean": (lambda: m.BalancedContrastiveLoss(reduction="none"), "reduction"),
    "nonzero of a mean": (lambda: m.BalancedContrastiveLoss(reduction="nonzero"), "reduction"),
    "a learnt temperature": (
        lambda: m.SmoothAPLoss(torch.nn.Parameter(torch.tensor(0.1))), "temperature"
    ),
    "mixtures of a list": (lambda: fastdml.mixing.similarity_mixup(e, y, share=[0.5]), "share"),
    "workspace": (lambda: fastdml.set_workspace("1M"), "size"),
    "workspace nan": (lambda: fastdml.set_workspace(float("nan")), "size"),
    "explained rows": (lambda: fastdml.explain("smooth_ap", "a"), "M"),
    "explained numbers": (lambda: fastdml.explain("smooth_ap", e[0]), "M"),
    "explained device of a batch": (lambda: fastdml.explain("smooth_ap", e, y, device="foo"), "device"),
    "a miner for its result": (lambda: m.TripletMarginLoss()(e, y, miners.BatchHardMiner()), "indices_tuple"),
    "a loss for pairs": (lambda: m.FastAPLoss()(e, y, m.SupConLoss()), "indices_tuple"),
    "a loss for a miner": (
        lambda: fastdml.wrappers.CrossBatchMemory(m.SupConLoss(), 8, miner=m.SupConLoss()), "miner"
    ),
    "rows of a distance at a time": (
        lambda: fastdml.distances.BatchedDistance(fastdml.distances.LpDistance(), batch_size=0), "batch_size"
    ),
    "weights of classes for sets": (
        lambda: m.ContrastiveLoss(reducer=fastdml.reducers.ClassWeightedReducer(torch.ones(6)))(
            e, y[:, None] == torch.arange(6)
        ),
        "labels",
    ),
    "explained halves": (lambda: fastdml.explain("smooth_ap", 10.5), "M"),
    "explained device": (lambda: fastdml.explain("smooth_ap", 10, device="foo"), "device"),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_answered_by_the_argument_s_name(name):
    call, argument = SLIPS[name]
    with pytest.raises(ValueError, match=f"^{argument}: (.* )?expected"):
        call()


def test_class_counts_may_be_a_list():
    prior = losses.SOPRCLoss(4, class_counts=[3, 6, 3, 3]).prior
    assert torch.equal(prior, 0.1 * torch.tensor([3, 6, 3, 3], dtype=torch.float64) / 6)


@pytest.mark.parametrize("name", ["SphereFaceLoss", "LargeMarginSoftmaxLoss", "SOPRCLoss", "SupConLoss"])
def test_numbers_of_eight_bits(name):
    loss = getattr(losses, name)(*{"SOPRCLoss": (6,), "SupConLoss": ()}.get(name, (6, 8))).eval()
    x = (e / 4).to(torch.float8_e4m3fn)
    same([loss(x, y)], [loss(x.float(), y)], rtol=1e-4, atol=1e-5)


def test_the_notice_without_a_compiler_names_the_documented_command():
    from fastdml.engine import library

    library.notice.cache_clear()
    with pytest.warns(UserWarning, match="reinstall from the source folder") as found:
        library.notice()
    command = re.search(r"`(pip install [^`]*)`", str(found[0].message))[1]
    assert f"\n{command}\n" in (ROOT / "README.md").read_text()


# ---- what watches operators


def test_tensors_without_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    loss = losses.SupConLoss()
    in_torch = losses.ContrastiveLoss(distance=fastdml.distances.SNRDistance())
    for made, second in ((loss, y), (in_torch, y), (losses.SoftTripleLoss(6, 8), y)):
        value = made.to("meta")(e.to("meta").requires_grad_(), second.to("meta"))
        assert value.shape == ()
        value.backward()
    with FakeTensorMode():
        x = torch.randn(8, 4, requires_grad=True)
        loss(x, torch.arange(8) % 2).backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_traced_step_is_the_step(mode):
    loss = losses.SupConLoss()

    def step(x, labels):
        return torch.autograd.grad(loss(x, labels), x)[0]

    traced = make_fx(step, tracing_mode=mode)(torch.randn(B, 8, requires_grad=True), y.flip(0))
    x = e.clone().requires_grad_()
    torch.testing.assert_close(traced(x, y), step(x, y))


@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("loss", [losses.SupConLoss, losses.HistogramLoss, losses.AngularLoss])
def test_a_trace_of_torchscript_is_refused_in_our_words(loss, backend):
    with pytest.raises(RuntimeError, match=r"^fastdml losses are not traced by torch.jit.trace"):
        torch.jit.trace(loss(backend=backend), (e, y), check_trace=False)


# (One of one call, and one whose call comes after another.)
@pytest.mark.parametrize("loss", [losses.SupConLoss(), losses.HistogramLoss()], ids=["one", "two"])
@pytest.mark.parametrize(
    "transform",
    [torch.func.grad, lambda f: lambda x: torch.func.vmap(f)(x.expand(2, *x.shape))],
    ids=["grad", "vmap"],
)
def test_functional_transforms_are_refused_in_our_words(transform, loss):
    with pytest.raises(RuntimeError, match=r"^fastdml losses have gradients by torch.autograd only"):
        transform(lambda x: loss(x, y))(e)


@pytest.mark.parametrize(
    "value",
    [
        lambda x: losses.RKDAngleLoss()(x, e),
        lambda x: losses.MarginMSELoss()(x, x[:, None].expand(-1, 3, -1), e[:, :3]),
        lambda x: losses.LateInteractionLoss()(x[:, None], e[:, None]),
        lambda x: losses.TripletMarginLoss(swap=True)(x, y),
        lambda x: losses.TripletMarginLoss()(x, y, (y[:1], y[:1], y[:1])),
    ],
    ids=["angles", "own candidates", "tokens", "swapped", "listed"],
)
def test_transforms_are_refused_by_every_function(value):
    with pytest.raises(RuntimeError, match=r"^fastdml losses have gradients by torch.autograd only"):
        torch.func.grad(value)(e)
