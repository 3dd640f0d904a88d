"""Objects of a loss, its distance and its reducer: they are what runs, before and after they are set."""

import copy
import gc
import inspect
import pickle

import pytest
import torch
from conftest import Stretched
from torch import Tensor, nn

import fastdml
from fastdml import distances as D
from fastdml import losses, miners, reducers

NEEDED = {
    "num_classes": 6,
    "embedding_size": 8,
    "descriptors_dim": 8,
    "l": 8,
    "margin": 0.4,
    "Tn": 4.0,
}
CLASSIFIERS = ("ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss")

Euclidean, Squared = {"p": 2, "power": 1}, {"p": 2, "power": 2}
TWICE = ("pos_loss", "neg_loss")
# What pytorch-metric-learning's losses have by default: distance, its arguments, reducer, of which parts.
DEFAULTS: dict[str, tuple[str, dict, str, tuple[str, ...]]] = {
    "AngularLoss": ("LpDistance", Euclidean, "MeanReducer", ()),
    "ArcFaceLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "CircleLoss": ("CosineSimilarity", {}, "AvgNonZeroReducer", ()),
    "ContrastiveLoss": ("LpDistance", Euclidean, "AvgNonZeroReducer", TWICE),
    "CosFaceLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "DynamicSoftMarginLoss": ("LpDistance", Euclidean, "MeanReducer", ()),
    "FastAPLoss": ("LpDistance", Squared, "MeanReducer", ()),
    "GeneralizedLiftedStructureLoss": ("LpDistance", Euclidean, "MeanReducer", ()),
    "HistogramLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "InstanceLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "IntraPairVarianceLoss": ("CosineSimilarity", {}, "MeanReducer", TWICE),
    "LargeMarginSoftmaxLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "LiftedStructureLoss": ("LpDistance", Euclidean, "MeanReducer", ()),
    "MarginLoss": ("LpDistance", Euclidean, "DivisorReducer", ("margin_loss", "beta_reg_loss")),
    "MultiSimilarityLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "NCALoss": ("LpDistance", Squared, "MeanReducer", ()),
    "NPairsLoss": ("DotProductSimilarity", {}, "MeanReducer", ()),
    "NTXentLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "NormalizedSoftmaxLoss": ("DotProductSimilarity", {}, "MeanReducer", ()),
    "PNPLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "ProxyAnchorLoss": ("CosineSimilarity", {}, "DivisorReducer", TWICE),
    "ProxyNCALoss": ("LpDistance", Squared, "MeanReducer", ()),
    "RankedListLoss": ("LpDistance", Euclidean, "MeanReducer", ()),
    "SignalToNoiseRatioContrastiveLoss": ("SNRDistance", {}, "AvgNonZeroReducer", TWICE),
    "SmoothAPLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "SoftTripleLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "SphereFaceLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "SubCenterArcFaceLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "SupConLoss": ("CosineSimilarity", {}, "AvgNonZeroReducer", ()),
    "ThresholdConsistentMarginLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
    "TripletMarginLoss": ("LpDistance", Euclidean, "AvgNonZeroReducer", ()),
    "TupletMarginLoss": ("CosineSimilarity", {}, "MeanReducer", ()),
}


def samples() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(24, 8, generator=g, dtype=torch.float64), torch.arange(24) // 4


def build(name: str, **options: object) -> losses.base.Loss:
    kind = getattr(losses, name)
    given = inspect.signature(kind).parameters
    needed = {
        k: v
        for k, v in NEEDED.items()
        if k in given and given[k].default is inspect.Parameter.empty
    }
    if name in CLASSIFIERS:
        needed = {k: NEEDED[k] for k in ("num_classes", "embedding_size")}
    torch.manual_seed(1)
    return kind(**needed, **options).double().eval()


def value(loss: losses.base.Loss) -> Tensor:
    torch.manual_seed(2)
    return loss(*samples()).detach()


def same(name: str, **options: object) -> None:
    torch.testing.assert_close(
        value(build(name, **options)), value(build(name)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_pytorch_metric_learning_are_taken_and_are_the_loss(name):
    distance, arguments, reducer, parts = DEFAULTS[name]
    true = getattr(D, distance)(**arguments)
    same(name, distance=true)
    one = getattr(reducers, reducer)()
    same(name, reducer=reducers.MultipleReducers(dict.fromkeys(parts, one)) if parts else one)
    # The loss's own distance is the same numbers, to whatever else compares by it.
    (x, y), own = samples(), build(name).distance
    torch.testing.assert_close(own(x, x.flip(0)), true(x, x.flip(0)), rtol=1e-9, atol=1e-12)
    mined = (miners.MultiSimilarityMiner(distance=d)(x, y) for d in (own, true))
    assert all(torch.equal(a, b) for a, b in zip(*mined, strict=True))


def over_labels(kind: type) -> bool:
    taken = inspect.signature(kind.forward).parameters
    needed = {n for n, p in taken.items() if p.default is p.empty} - {"self", "embeddings"}
    return "labels" in taken and needed <= {"labels"}


OVER_LABELS = [n for n, kind in losses.MODULES.items() if over_labels(kind)]


@pytest.mark.parametrize("name", OVER_LABELS)
@pytest.mark.parametrize("which", ["distance", "reducer"])
def test_its_own_objects_are_the_loss(name, which):
    try:
        value(build(name))
    except ValueError:
        pytest.skip("another batch")
    same(name, **{which: getattr(build(name), which)})


@pytest.mark.parametrize("normalizer", ["active", "triplets"])
def test_the_reducer_of_triplets_is_their_mean(normalizer):
    first = losses.TripletMarginLoss(normalizer=normalizer)
    again = losses.TripletMarginLoss(reducer=first.reducer)
    torch.testing.assert_close(value(again), value(first))


def test_their_objects_are_taken():
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    for name in DEFAULTS:
        kind, ours = getattr(theirs, name), build(name)
        needed = {k: v for k, v in NEEDED.items() if k in inspect.signature(kind).parameters}
        needed = {k: v for k, v in needed.items() if k != "margin" or name == "RankedListLoss"}
        if name in CLASSIFIERS:
            needed = {k: NEEDED[k] for k in ("num_classes", "embedding_size")}
        if name == "MarginLoss":
            needed = {}
        peer = kind(**needed)
        same(name, distance=peer.distance)
        same(name, reducer=peer.reducer)
        assert ours.distance.is_inverted == peer.distance.is_inverted


SET = (
    lambda: D.CosineSimilarity(),
    lambda: D.DotProductSimilarity(normalize_embeddings=False),
    lambda: D.LpDistance(),
    lambda: D.LpDistance(p=1, normalize_embeddings=False),
    lambda: D.SNRDistance(),
)


def outcome(make) -> Tensor | type:
    try:
        return value(make())
    except ValueError:
        return ValueError


def later(name: str, which: str, given: object) -> losses.base.Loss:
    loss = build(name)
    value(loss)
    setattr(loss, which, given)
    return loss


@pytest.mark.parametrize("name", OVER_LABELS)
def test_an_object_set_later_is_as_if_given(name):
    if outcome(lambda: build(name)) is ValueError:
        pytest.skip("another batch")
    for which, kinds in (
        ("distance", SET),
        ("reducer", (reducers.MeanReducer, reducers.SumReducer)),
    ):
        for kind in kinds:
            given, true = (
                outcome(lambda: later(name, which, kind())),  # noqa: B023
                outcome(lambda: build(name, **{which: kind()})),  # noqa: B023
            )
            assert (given is ValueError) == (true is ValueError), (which, kind())
            if true is not ValueError:
                torch.testing.assert_close(given, true, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("setting", [{"normalize_embeddings": False}, {"power": 2}, {"p": 1}])
def test_settings_of_a_distance_object_are_read_at_the_call(given, setting):
    """Its loss's, its miner's; also where nobody gave one."""
    x, y = samples()
    options = {"distance": D.LpDistance()} if given else {}
    loss, miner = losses.TripletMarginLoss(**options), miners.TripletMarginMiner(**options)
    before = value(loss), len(miner(x, y)[0])
    for owner in (loss, miner):
        for name, number in setting.items():
            setattr(owner.distance, name, number)
    true = D.LpDistance(**setting)
    torch.testing.assert_close(value(loss), value(losses.TripletMarginLoss(distance=true)))
    assert torch.equal(miner(x, y)[2], miners.TripletMarginMiner(distance=true)(x, y)[2])
    assert (value(loss), len(miner(x, y)[0])) != before
    loss.similarity = "cosine"
    assert type(loss.distance) is D.CosineSimilarity


def test_a_miners_distance_is_set():
    x, y = samples()
    miner = miners.TripletMarginMiner()
    for distance in (D.CosineSimilarity(), D.LpDistance(normalize_embeddings=False)):
        miner.distance = distance
        assert miner.distance is distance
        again = miners.TripletMarginMiner(distance=distance)
        assert all(torch.equal(a, b) for a, b in zip(miner(x, y), again(x, y), strict=True))
    with pytest.raises(ValueError, match=r"^distance: DistanceWeightedMiner"):
        miners.DistanceWeightedMiner().distance = D.CosineSimilarity()


def test_rules_of_the_constructor_hold_for_what_is_set():
    x, y = samples()
    with pytest.raises(
        ValueError, match=r"^similarity: expected 'raw_distance', by the other arguments"
    ):
        losses.LogRatioLoss().distance = D.CosineSimilarity()
    with pytest.raises(ValueError, match=r"^distance: expected one of normalised embeddings"):
        build("NormalizedSoftmaxLoss").distance = D.SNRDistance()
    drawn = losses.MarginLoss(triplets_per_anchor="distance_weighted")
    drawn.distance = D.LpDistance(normalize_embeddings=False)
    with pytest.raises(ValueError, match=r"^similarity: expected 'distance' with draws"):
        drawn(x, y)
    with pytest.raises(ValueError, match=r"^reducer: expected"):
        drawn.reducer = 3


@pytest.mark.parametrize("name", ["LiftedStructureLoss"])
def test_a_gradient_by_a_distance_set_later(name):
    (x, y), found = samples(), []
    for loss in (later(name, "distance", D.SNRDistance()), build(name, distance=D.SNRDistance())):
        leaf = x.clone().requires_grad_()
        found += torch.autograd.grad(loss(leaf, y), leaf)
    torch.testing.assert_close(*found)


def test_a_buffer_that_is_an_argument_is_set():
    x, y = samples()
    loss = losses.MarginLoss()
    loss.beta = torch.tensor([0.9])
    torch.testing.assert_close(loss(x, y), losses.MarginLoss(beta=0.9)(x, y), rtol=1e-6, atol=0)


def test_what_a_subclass_says_by_default_counts():
    """As with pytorch-metric-learning's classes; an argument counts more."""

    class Own(losses.BaseMetricLossFunction):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.margin = 0.2
            self.add_to_recordable_attributes(list_of_names=["margin", "seen"], is_stat=False)

        def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            found = self.distance(embeddings, ref_emb)[0]
            index = torch.arange(len(found))
            return {"loss": {"losses": found, "indices": index, "reduction_type": "element"}}

        def get_default_distance(self):
            return D.LpDistance(power=2, normalize_embeddings=False)

        def get_default_reducer(self):
            return reducers.SumReducer()

    class Triplets(losses.TripletMarginLoss):
        def get_default_reducer(self):
            return reducers.MeanReducer()

    class Less(losses.ContrastiveLoss):
        def get_default_distance(self):
            assert type(super().get_default_distance()) is D.LpDistance
            return D.CosineSimilarity()

    class Mined(miners.TripletMarginMiner):
        def get_default_distance(self):
            return D.CosineSimilarity()

    class Largest(reducers.PerAnchorReducer):
        def pos_pair_reduction(self, losses, loss_indices, embeddings, labels):
            return losses.max()

        neg_pair_reduction = pos_pair_reduction

    (x, y), own = samples(), Own()
    torch.testing.assert_close(own(x, y), (x - x[0]).square().sum())
    torch.testing.assert_close(
        Own(distance=D.LpDistance(power=2))(x, y), Own()(x / x.norm(dim=1, keepdim=True), y)
    )
    assert (own.margin, own.seen) == (0.2, 0) and type(own.reducer) is reducers.SumReducer
    mean = losses.TripletMarginLoss(reducer=reducers.MeanReducer())
    torch.testing.assert_close(value(Triplets()), value(mean))
    torch.testing.assert_close(
        value(Triplets(reduction="sum")), value(losses.TripletMarginLoss(reduction="sum"))
    )
    torch.testing.assert_close(
        value(Less()), value(losses.ContrastiveLoss(distance=D.CosineSimilarity()))
    )
    torch.testing.assert_close(value(Less(similarity="distance")), value(losses.ContrastiveLoss()))
    other = miners.TripletMarginMiner(distance=D.CosineSimilarity())
    assert all(torch.equal(a, b) for a, b in zip(Mined()(x, y), other(x, y), strict=True))
    d = D.LpDistance()(x, x)
    same = y[:, None] == y
    largest = (d * same).max() + (1 - d.masked_fill(same, 9)).max().relu()
    torch.testing.assert_close(losses.ContrastiveLoss(reducer=Largest())(x, y), largest)


@pytest.mark.parametrize(
    ("loss", "listed", "name"),
    [
        (losses.AngularLoss, False, "angular"),
        (losses.TripletMarginLoss, True, "triplet_margin"),
    ],
)
def test_what_runs_beside_calls_is_explained_with_a_reducer_too(loss, listed, name):
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) // 2
    batch = (x, y, tuple(torch.tensor([0, 2, 4]) + k for k in (0, 1, 2))) if listed else (x, y)
    found = fastdml.explain(loss(reducer=reducers.ThresholdReducer(low=0.1)), *batch)
    assert found.loss == name and found.executor == fastdml.explain(loss(), *batch).executor


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1, 2, 3.0, float("inf")])
def test_rows_of_any_length_are_normalised(p, dtype):
    """Rows of zeros have no direction, and no gradient; long ones have theirs."""
    long = torch.finfo(dtype).max
    x = torch.tensor(
        [[0.0, 0, 0], [long, long, -long / 2], [1, 2, -2]], dtype=dtype, requires_grad=True
    )
    found = D.LpDistance(p=p).normalize(x)
    true = torch.nn.functional.normalize(
        torch.tensor([[0, 0, 0], [2, 2, -1], [1, 2, -2]]).double(), p=p
    )
    torch.testing.assert_close(found.double(), true, rtol=0, atol=4 * torch.finfo(dtype).eps)
    (g,) = torch.autograd.grad(found[:, 0].sum(), x)
    assert g.isfinite().all() and not g[0].any() and (p == float("inf") or g[2].any())
    other = D.LpDistance(p=p).normalize(x.t(), dim=0)
    assert torch.equal(other.t(), found)


def test_a_user_s_distance_of_rows_in_half_precision():
    class Own(D.BaseDistance):
        def compute_mat(self, query_emb, ref_emb):
            return torch.cdist(query_emb.float(), ref_emb.float())

    x, y = samples()
    narrow = (1e4 * x).half()
    narrow[0] = 0
    narrow.requires_grad_()
    value = losses.TripletMarginLoss(distance=Own())(narrow, y)
    value.backward()
    torch.testing.assert_close(
        value,
        losses.TripletMarginLoss(distance=Own())(narrow.detach().float(), y),
        rtol=0,
        atol=2e-3,
    )
    assert narrow.grad.isfinite().all() and not narrow.grad[0].any() and narrow.grad[1:].any()


def test_elements_of_two_balanced_terms_weigh_as_their_means_do():
    x, y = samples()
    d, same = D.LpDistance()(x, x), (y[:, None] == y).fill_diagonal_(False)
    pull, push = d[same] ** 2, (1 - d[y[:, None] != y]).relu() ** 2
    for reducer, of_pull, of_push in (
        (reducers.AvgNonZeroReducer(), pull.mean(), push[push > 0].mean()),
        (reducers.MultipleReducers({"pos_loss": reducers.SumReducer()}), pull.sum(), push.mean()),
    ):
        found = losses.BalancedContrastiveLoss(entropy_weight=0.3, reducer=reducer)(x, y)
        torch.testing.assert_close(found, 0.7 * of_pull + 0.3 * of_push)


LIST = tuple(torch.tensor(t) for t in ([0, 4, 9], [1, 5, 10], [6, 12, 3]))


@pytest.mark.parametrize("listed", [None, LIST], ids=["all", "list"])
def test_one_beta_is_added_once_beside_elements(listed):
    x, y = samples()
    for reducer in (
        reducers.MeanReducer(),
        reducers.ThresholdReducer(low=0.1),
        reducers.DivisorReducer(),
    ):
        found = losses.MarginLoss(nu=0.1, learn_beta=True, reducer=reducer)(x, y, listed)
        plain = losses.MarginLoss(reducer=reducer)(x, y, listed)
        torch.testing.assert_close(found, plain + 0.1 * 1.2, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"reducer": reducers.SumReducer()},
        {"reducer": reducers.ThresholdReducer(low=0.1)},
        {"distance": D.LpDistance(p=1)},
    ],
)
def test_the_gradient_of_lifted_structure_one_by_one_between_two_sets(options):
    x, y = samples()
    loss, leaves = (
        losses.LiftedStructureLoss(**options),
        [t.clone().requires_grad_() for t in (x, x[::2] + 1)],
    )
    function = lambda a, b: loss(a, y, None, b, y[::2])  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)


def test_anchors_of_n_pair_without_a_positive_are_no_elements():
    """Each class of two has one choice."""
    x, y = samples()[0][:8], torch.tensor([0, 0, 1, 1, 2, 3, 4, 5])
    mean = losses.NPairsLoss("all")(x, y)
    every = reducers.ThresholdReducer(low=-1)
    torch.testing.assert_close(losses.NPairsLoss("all", reduction="nonzero")(x, y), mean)
    for form in ("mc", "ovo", "all"):
        found = losses.NPairsLoss(form, l2_reg=0.1, reducer=every)(x, y)
        torch.testing.assert_close(found, losses.NPairsLoss(form, l2_reg=0.1)(x, y))


@pytest.mark.parametrize("smooth", [False, True])
def test_swapped_triplets_by_a_users_distance(smooth):
    x, y = samples()
    distance = Stretched(p=1.0)
    loss = losses.TripletMarginLoss(0.5, swap=True, smooth_loss=smooth, distance=distance)
    with torch.no_grad():
        d = distance(x, x)
    same = (y[:, None] == y).fill_diagonal_(False)
    a, p, n = (same[:, :, None] & (y[:, None] != y)[:, None, :]).nonzero(as_tuple=True)
    excess = d[a, p] - torch.minimum(d[a, n], d[p, n]) + 0.5
    true = torch.nn.functional.softplus(excess).mean() if smooth else excess[excess > 0].mean()
    value = loss(x, y)
    torch.testing.assert_close(value, true)
    assert torch.autograd.grad(value, distance.scale)[0] != 0


def test_one_positive_by_another_distance():
    """Of N-pair, which compares it by itself."""
    x, y = samples()[0][:8], torch.arange(8) // 2
    for distance in (D.LpDistance(p=1), Stretched(p=1.0)):
        gap = distance(x, x)
        gap = (gap.gather(1, (torch.arange(8) ^ 1)[:, None]) - gap).masked_fill(
            y[:, None] == y, -torch.inf
        )
        true = torch.nn.functional.pad(gap, (1, 0)).logsumexp(1).mean()
        torch.testing.assert_close(losses.NPairsLoss("all", distance=distance)(x, y), true)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_compares_by_its_own_copy_of_a_users_distance(copied):
    x, y = samples()
    loss = losses.TripletMarginLoss(2.0, distance=Stretched())
    miner = miners.BatchHardMiner(distance=Stretched())
    true, hard = loss(x, y).detach(), tuple(miner(x, y))
    other, of_miner = copied(loss), copied(miner)
    loss.distance.scale.data.fill_(9.0)
    other(x, y).backward()
    torch.testing.assert_close(other(x, y), true)
    assert other.distance.scale.grad is not None and loss.distance.scale.grad is None
    del loss, miner
    gc.collect()
    torch.testing.assert_close(other(x, y), true)
    assert all(torch.equal(a, b) for a, b in zip(of_miner(x, y), hard, strict=True))


def test_a_reduction_set_later_is_the_loss():
    x, y = samples()
    for reducer in (reducers.MeanReducer(), reducers.ThresholdReducer(high=2.0)):
        loss = losses.SupConLoss(reducer=reducer)
        loss.reduction = "sum"
        torch.testing.assert_close(loss(x, y), losses.SupConLoss(reduction="sum")(x, y))
        assert type(loss.reducer) is reducers.SumReducer


def test_a_distance_that_a_loss_is_not_defined_on_is_refused_as_such():
    with pytest.raises(ValueError, match=r"^distance: expected 'cosine'"):
        losses.CircleLoss(distance=D.LpDistance())
    loss = losses.CircleLoss()
    with pytest.raises(ValueError, match=r"^distance: expected 'cosine'"):
        loss.distance = D.LpDistance()


class Scored(nn.Module):
    """A similarity of a user's that is no product of its own."""

    is_inverted = True

    def forward(self, a, b):
        return 3 * (a @ b.T)


def test_a_users_similarity_is_that_of_rows_own_candidates_too():
    g = torch.Generator().manual_seed(0)
    q, d, hard = (torch.randn(*shape, generator=g) for shape in ((5, 4), (5, 4), (5, 3, 4)))
    s = 3 * torch.cat([q @ d.T, torch.einsum("id,ikd->ik", q, hard)], 1)
    value = losses.InfoNCELoss(temperature=1.0, distance=Scored())(q, d, hard)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(s, torch.arange(5)))
    scores = torch.randn(5, 3, generator=g)
    for kind, batch in ((losses.MarginMSELoss, (q, hard, scores)), (losses.CoSENTLoss, (q, d, scores[:, 0]))):
        true = kind(distance=D.DotProductSimilarity(normalize_embeddings=False))
        tripled = (batch[0] * 3, *batch[1:])
        torch.testing.assert_close(kind(distance=Scored())(*batch), true(*tripled))
        for distance in (D.LpDistance(p=1), D.SNRDistance()):
            assert kind(distance=distance)(*batch).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distance", [D.LpDistance(), D.LpDistance(power=2), D.SNRDistance()])
def test_small_distances_of_half_precision(distance, dtype):
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(1, 64, generator=g) + 0.1 * torch.randn(40, 64, generator=g)).to(dtype)
    others, near = x[1:], distance(x[:1], x[1:])
    true = distance(x[:1].double(), others.double())
    assert near.dtype == dtype
    torch.testing.assert_close(near.double(), true, rtol=torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(distance(x[:1], others.float()).double(), true, rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", [1, 3, 8, float("inf")])
def test_lengths_of_rows_do_not_matter_in_any_norm(p):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for scale in (1e-30, 1e-14, 1e14, 1e30):
        torch.testing.assert_close(D.LpDistance(p=p)(scale * x), D.LpDistance(p=p)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", [D.CosineSimilarity(), D.CosineSimilarity(power=2), D.LpDistance()])
def test_a_distance_of_two_types_is_of_the_wider(distance):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    wide = distance(x.double())
    for found in (distance(x, x.double()), distance(x.double(), x)):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, wide)


@pytest.mark.parametrize("make", [D.LpDistance, D.SNRDistance])
def test_a_distance_is_no_similarity(make):
    with pytest.raises(ValueError, match=r"^is_inverted: expected False"):
        make(is_inverted=True)
    assert not make(is_inverted=False).is_inverted


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16])
def test_weights_of_classes_by_labels_of_any_type(kind):
    x, y = samples()
    for make in (losses.ContrastiveLoss, losses.SupConLoss):
        loss = make(reducer=reducers.ClassWeightedReducer(torch.arange(1.0, 9.0)))
        assert torch.equal(loss(x, y.to(kind)), loss(x, y))
