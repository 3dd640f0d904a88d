"""Losses, memories and draws that the table of pytorch-metric-learning's classes leaves out: what they are,
written out in float64, and what theirs are where these are right."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from conftest import Stretched
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastdml import losses, miners, reducers
from fastdml.distances import LpDistance

theirs = pytest.importorskip("pytorch_metric_learning.losses")


@pytest.fixture(autouse=True)
def default_type():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def draw(seed, rows=24, dim=6, classes=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=g), torch.randint(0, classes, (rows,), generator=g)


def value_and_gradient(function, *leaves):
    inputs = [t.clone().requires_grad_() for t in leaves]
    value = function(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def agree(found, true, tolerance=1e-9):
    for a, b in zip(found, true, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


# ---- losses


@pytest.mark.parametrize("seed", range(5))
def test_angular_normalises_its_negatives(seed):
    """The definition, of embeddings of any lengths; with its sum and with a list."""
    x, y = draw(seed)
    k = torch.tan(torch.tensor(0.5)) ** 2
    own = torch.eye(len(y), dtype=torch.bool)

    def dense(z, pairs=None):
        z = nn.functional.normalize(z)
        a, p = ((y[:, None] == y) & ~own).nonzero(as_tuple=True) if pairs is None else pairs
        exponent = 4 * k * (z[a] + z[p]) @ z.T - 2 * (1 + k) * (z[a] * z[p]).sum(1, keepdim=True)
        exponent = exponent.masked_fill(y[a][:, None] == y, -torch.inf)
        return torch.cat([exponent, exponent.new_zeros(len(a), 1)], 1).logsumexp(1)

    loss = losses.AngularLoss(alpha=float(torch.rad2deg(torch.tensor(0.5))))
    agree(value_and_gradient(lambda z: loss(z, y), x), value_and_gradient(lambda z: dense(z).mean(), x))
    summed = losses.AngularLoss(loss.alpha, reduction="sum")
    agree(value_and_gradient(lambda z: summed(z, y), x), value_and_gradient(lambda z: dense(z).sum(), x))
    pairs = torch.tensor([0, 3, 3]), torch.tensor([5, 7, 9])
    listed = (*pairs, torch.tensor([0]), torch.tensor([1]))
    found = value_and_gradient(lambda z: loss(z, y, listed), x)
    agree(found, value_and_gradient(lambda z: dense(z, pairs).mean(), x))


@pytest.mark.parametrize("rows", [4, 24])
def test_vicreg(rows):
    """Fewer samples than dimensions and more; with reducers of its parts."""
    x, _ = draw(1, rows)
    y, _ = draw(2, rows)
    for mine, other in ((None, None), (reducers.SumReducer(), theirs.VICRegLoss().reducer)):
        ours, peer = losses.VICRegLoss(reducer=mine), theirs.VICRegLoss()
        if mine is not None:
            from pytorch_metric_learning.reducers import SumReducer

            peer = theirs.VICRegLoss(reducer=SumReducer())
            assert other is not None
        found = value_and_gradient(lambda a, b: ours(a, ref_emb=b), x, y)  # noqa: B023
        agree(found, value_and_gradient(lambda a, b: peer(a, ref_emb=b), x, y))  # noqa: B023


def test_manifold():
    """Theirs inverts in float32."""
    x, _ = draw(3)
    own = torch.arange(24) % 5
    for weight in (0.0, 0.7):
        ours, other = losses.ManifoldLoss(6, 5, lambdaC=weight), theirs.ManifoldLoss(6, 5, lambdaC=weight)
        ours.load_state_dict(other.state_dict())
        found = value_and_gradient(lambda z: ours(z, indices_tuple=own), x)  # noqa: B023
        agree(found, value_and_gradient(lambda z: other(z, indices_tuple=own), x), 1e-5)  # noqa: B023
    context = losses.ManifoldLoss(6, 5, lambdaC=float("inf"))
    context.load_state_dict(ours.state_dict())
    both = [losses.ManifoldLoss(6, 5, lambdaC=w) for w in (0.0, 2.0)]
    for loss in both:
        loss.load_state_dict(ours.state_dict())
    values = [loss(x, indices_tuple=own) for loss in both]
    torch.testing.assert_close(context(x, indices_tuple=own), (values[1] - values[0]) / 2)


def test_dynamic_soft_margin():
    """Values of several batches, with labels, lists and pairs; the weights are constants, in the state."""
    ours, other = losses.DynamicSoftMarginLoss(), theirs.DynamicSoftMarginLoss()
    for seed in range(4):
        x, y = draw(seed)
        pairs = miners.TripletMarginMiner(0.4)(x, y)
        with torch.no_grad():
            for batch in ((x, y), (x, y, tuple(pairs)), (x, None, None, draw(seed + 9, 20)[0])):
                kept = copy.deepcopy(ours)
                torch.testing.assert_close(ours(*batch), other(*batch), rtol=1e-9, atol=1e-12)
                assert not torch.equal(kept.hist_, ours.hist_)
    x, y = draw(7)
    after = copy.deepcopy(ours)
    before = after.hist_.clone()
    found = value_and_gradient(lambda z: ours(z, y), x)
    again = value_and_gradient(lambda z: after.eval()(z, y), x)  # moves nothing, and is the same
    agree(found, again, 0.0)
    assert torch.equal(after.hist_, before) and not torch.equal(after.hist_, ours.hist_)

    def dense(z):
        d = torch.cdist(nn.functional.normalize(z), nn.functional.normalize(z))
        own = torch.eye(len(y), dtype=torch.bool)
        triple = ((y[:, None] == y) & ~own)[:, :, None] & (y[:, None] != y)[:, None, :]
        t = (d[:, :, None] - d[:, None, :])[triple]
        weight = ours.hist_.cumsum(0)[((t.detach() + 2) / 0.4).long().clamp(max=9)]
        return (weight * t).mean()

    agree(found, value_and_gradient(dense, x))


def test_dynamic_soft_margin_lists_no_triplets():
    """Those of a block that do not count are passed over in place: picking the others costs more."""

    class Watch(TorchDispatchMode):
        picked = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.index.Tensor:
                self.picked += any(i is not None and i.dtype == torch.bool for i in args[1])
            return func(*args, **(kwargs or {}))

    x, y = draw(0)
    with Watch() as watch:
        losses.DynamicSoftMarginLoss()(x.requires_grad_(), y).backward()
    assert not watch.picked


def test_a_loss_of_a_users_form():
    """Derived as in that library, from a matrix and from pairs."""

    def form(base):
        class OfMatrix(base):
            def _compute_loss(self, mat, pos_mask, neg_mask):
                losses = ((mat * pos_mask).sum(1) - (mat * neg_mask).sum(1)).exp()
                index = torch.arange(len(losses))
                return {"loss": {"losses": losses, "indices": index, "reduction_type": "element"}}

        class OfPairs(base):
            def _compute_loss(self, pos_pairs, neg_pairs, indices_tuple):
                near, far = indices_tuple[:2], indices_tuple[2:]
                return {
                    "pos": {"losses": pos_pairs**2, "indices": near, "reduction_type": "pos_pair"},
                    "neg": {"losses": -neg_pairs, "indices": far, "reduction_type": "neg_pair"},
                }

            def _sub_loss_names(self):
                return ["pos", "neg"]

        return OfMatrix, OfPairs

    x, y = draw(4)
    ref, ref_y = draw(5, 17)
    for ours, other, matrix in zip(form(losses.GenericPairLoss), form(theirs.GenericPairLoss), (True, False)):
        mine, peer = ours(mat_based_loss=matrix), other(mat_based_loss=matrix)
        for batch in ((y,), (y, None, ref, ref_y)):
            found = value_and_gradient(lambda z: mine(z, *batch), x)  # noqa: B023
            agree(found, value_and_gradient(lambda z: peer(z, *batch), x))  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [{"p": 1}, {"p": 3, "power": 2}, {"power": 0.5}])
def test_distances_of_half_precision(given, dtype):
    """Computed in float32, and of the embeddings' type."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    distance = LpDistance(**given)
    found = distance(x, x[:3])
    assert found.dtype == dtype
    torch.testing.assert_close(found, distance(x.float(), x[:3].float()).to(dtype))


class Halved(nn.Module):
    """A similarity of a user's."""

    is_inverted = True

    def forward(self, a, b=None):
        return a @ (a if b is None else b).T / 2


@pytest.mark.parametrize(
    "name",
    [
        "ArcFaceLoss", "SubCenterArcFaceLoss", "CosFaceLoss", "SphereFaceLoss", "LargeMarginSoftmaxLoss",
        "NormalizedSoftmaxLoss", "ProxyAnchorLoss", "CircleLoss", "HistogramLoss", "PNPLoss",
        "RankedListLoss", "SmoothAPLoss", "ThresholdConsistentMarginLoss", "TupletMarginLoss",
    ],
)  # fmt: skip
def test_losses_that_are_defined_on_similarities_of_theirs_alone(name):
    """... of which the document has a row."""
    module = getattr(losses, name)
    given = {"num_classes": 3, "embedding_size": 8, "margin": 0.4, "Tn": 4}
    with pytest.raises(ValueError, match="expected"):
        module(**{k: v for k, v in given.items() if k in module.required}, distance=Halved())


def test_a_distance_with_parameters_learns():
    x, y = draw(6)
    distance = Stretched(p=1.0)
    loss = losses.TripletMarginLoss(distance=distance, margin=3.0)
    assert dict(loss.named_parameters()).keys() == {"_distance.scale"}
    loss(x, y).backward()
    plain = losses.TripletMarginLoss(distance=LpDistance(p=1, normalize_embeddings=False), margin=2.0)
    assert distance.scale.grad is not None and distance.scale.grad != 0
    torch.testing.assert_close(loss(x, y), 1.5 * plain(x, y))


# ---- memories, draws


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_memory_resumes_bit_for_bit(kind):
    """Partly filled and full, in the type of its batches; one of pytorch-metric-learning loads too."""
    batches = [draw(k, 10) for k in range(6)]

    def run(memory, some):
        return [memory(x.to(kind), y) for x, y in some]

    whole = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, 32)
    true = run(whole, batches)
    for stop in (1, 2, 5):
        first = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, 32)
        run(first, batches[:stop])
        saved = io.BytesIO()
        torch.save(first.state_dict(), saved)
        saved.seek(0)
        second = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, 32)
        second.load_state_dict(torch.load(saved))
        assert all(torch.equal(a, b) for a, b in zip(run(second, batches[stop:]), true[stop:], strict=True))
    other = theirs.CrossBatchMemory(theirs.ContrastiveLoss(), 6, 32)
    run(other, batches[:2])
    mine = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, 32)
    mine.load_state_dict(other.state_dict())
    assert int(mine.filled) == 20


def test_a_memory_is_the_same_as_theirs():
    """With masks, miners of either library, and losses of either; several calls before one backward."""
    from pytorch_metric_learning import miners as their_miners

    for miner, peer in ((None, None), (miners.PairMarginMiner(), their_miners.PairMarginMiner())):
        ours = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, 32, miner)
        mixed = losses.CrossBatchMemory(theirs.ContrastiveLoss(), 6, 32, peer)
        other = theirs.CrossBatchMemory(theirs.ContrastiveLoss(), 6, 32, peer).double()
        for seed in range(6):
            x, y = draw(seed, 10)
            mask = torch.arange(10) % 3 == 0 if seed in (2, 4) else None
            found = [
                value_and_gradient(lambda z, m=m, b=(y, None, mask): m(z, *b), x)
                for m in (ours, mixed, other)
            ]
            agree(found[0], found[2])
            agree(found[1], found[2])


def test_a_miner_of_a_users_in_a_memory_is_the_same_as_theirs():
    """Theirs takes own copies out of what a miner lists, which `mine` cannot know of."""
    from pytorch_metric_learning import miners as their_miners
    from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices

    def form(base):
        class Every(base):
            def mine(self, embeddings, labels, ref_emb, ref_labels):
                return get_all_pairs_indices(labels, ref_labels)

        return Every()

    other = theirs.CrossBatchMemory(theirs.NTXentLoss(), 6, 32, form(their_miners.BaseMiner)).double()
    mixed = losses.CrossBatchMemory(theirs.NTXentLoss(), 6, 32, form(miners.BaseMiner))
    for seed in range(5):
        x, y = draw(seed, 10)
        agree([mixed(x, y)], [other(x, y)])


def test_views_are_the_same_as_theirs_and_of_any_number():
    x = torch.stack([draw(k, 12)[0] for k in range(3)], 1)
    for symmetric in (True, False):
        loss = losses.SelfSupervisedLoss(losses.NTXentLoss(), symmetric)
        other = theirs.SelfSupervisedLoss(theirs.NTXentLoss(), symmetric)
        agree([loss(x[:, 0], x[:, 1])], [other(x[:, 0], x[:, 1])])
        mixed = losses.SelfSupervisedLoss(theirs.NTXentLoss(), symmetric)
        agree([mixed(x[:, :2])], [other(x[:, 0], x[:, 1])])
        agree([loss(x)], [loss(*x.unbind(1))])


def test_the_uniform_histogram_draws_alike():
    """Every bin that has any, and of it every pair alike: chi-square; a function of seed and call, which the
    state resumes."""
    x, y = draw(8)
    miner = miners.UniformHistogramMiner(num_bins=3, pos_per_bin=2000, neg_per_bin=5, seed=4)
    a, p, n1, n2 = miner(x, y)
    assert len(n1) == len(n2) == 15
    d = torch.cdist(nn.functional.normalize(x), nn.functional.normalize(x))
    own = (y[:, None] == y) & ~torch.eye(24, dtype=torch.bool)
    edges = torch.linspace(float(d[own].min()), float(d[own].max()), 4)
    counts = torch.zeros(24, 24).index_put((a, p), torch.ones(len(a)), accumulate=True)
    for low, high in itertools.pairwise(edges):
        inside = own & (d >= low - 1e-12) & (d < high + (1e-12 if high == edges[-1] else 0))
        drawn, size = counts[inside], int(inside.sum())
        expected = 2000 / size
        square = ((drawn - expected) ** 2 / expected).sum()
        assert drawn.sum() == 2000 and square < size - 1 + 5 * (2 * size) ** 0.5
    state = miner.state_dict()
    again = miners.UniformHistogramMiner(num_bins=3, pos_per_bin=2000, neg_per_bin=5, seed=4)
    assert torch.equal(again(x, y)[0], a) and not torch.equal(again(x, y)[0], a)
    resumed = miners.UniformHistogramMiner(num_bins=3, pos_per_bin=2000, neg_per_bin=5, seed=4)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(x, y)[0], miner(x, y)[0])
    # Of three and one in a class as many pairs are of either kind: other draws of each.
    a, p, n1, n2 = miners.UniformHistogramMiner(num_bins=1, pos_per_bin=50, neg_per_bin=50)(
        x[:4], torch.tensor([0, 0, 0, 1])
    )
    listed = [[(i, j) for i in range(4) for j in range(4) if i != j and (3 in (i, j)) == k] for k in (0, 1)]
    drawn = [
        [every.index(pair) for pair in zip(i.tolist(), j.tolist())]
        for every, (i, j) in zip(listed, ((a, p), (n1, n2)))
    ]
    assert drawn[0] != drawn[1] and [len(set(places)) for places in drawn] == [6, 6]


def test_a_distance_on_an_edge_is_in_the_bin_above():
    """But the largest, which is in the last: as theirs."""
    from pytorch_metric_learning import distances as their_distances
    from pytorch_metric_learning import miners as their_miners

    x, y = torch.tensor([[0.0], [1.0], [2.0], [4.0]]), torch.zeros(4, dtype=torch.int64)
    sizes = {"num_bins": 3, "pos_per_bin": 60, "neg_per_bin": 1}
    ours = miners.UniformHistogramMiner(**sizes, distance=LpDistance(normalize_embeddings=False))
    other = their_miners.UniformHistogramMiner(
        **sizes, distance=their_distances.LpDistance(normalize_embeddings=False)
    )
    for miner in (ours, other):
        a, p, _, _ = miner(x, y)
        found = (x[a] - x[p]).abs()[:, 0].reshape(3, 60)
        assert [set(part.tolist()) for part in found] == [{1.0}, {2.0}, {3.0, 4.0}]


def test_a_cascade_of_hard_pairs():
    """Given pairs are chosen from, call after call, until they are forgotten: as theirs does."""
    from pytorch_metric_learning import miners as their_miners

    x, y = draw(9)
    ours, other = miners.HDCMiner(0.5), their_miners.HDCMiner(0.5)
    pairs = tuple(t[::3] for t in their_miners.PairMarginMiner(0.1, 1.9)(x, y))
    for miner in (ours, other):
        miner.set_idx_externally(pairs, y)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(ours(x, y), other(x, y), strict=True))
    for miner in (ours, other):
        miner.reset_idx()
    assert [len(t) for t in ours(x, y)] == [len(t) for t in other(x, y)]
    ref, ref_y = draw(10)
    for miner in (ours, other):
        miner.set_idx_externally(pairs, y)
    given = (x, y, ref, ref_y)
    assert all(torch.equal(a, b) for a, b in zip(ours(*given), other(*given), strict=True))


def test_a_miner_of_a_users():
    class Neighbours(miners.BaseMiner):
        def mine(self, embeddings, labels, ref_emb, ref_labels):
            index = torch.arange(len(labels))
            return index[:-1], index[1:], index[1:], index[:-1]

    x, y = draw(10)
    miner = Neighbours()
    assert losses.ContrastiveLoss()(x, y, miner(x, y)) > 0
    assert (miner.num_pos_pairs, miner.num_neg_pairs, miner.num_triplets) == (23, 23, 0)
    packed = miners.EmbeddingsAlreadyPackagedAsTriplets()
    found = packed(x[:6], y[:6])
    assert [t.tolist() for t in found] == [[0, 3], [1, 4], [2, 5]] and packed.num_triplets == 2
    with pytest.raises(ValueError, match=r"^embeddings: expected a multiple of 3"):
        tuple(packed(x[:5], y[:5]))


def test_weights_of_listed_triplets_go_to_reducers():
    """Triplets of a list, and drawn ones, one by one to a reducer: a list of theirs."""
    x, y = draw(11)
    triplets = tuple(miners.TripletMarginMiner(0.3)(x, y))
    from pytorch_metric_learning import reducers as their_reducers

    for name in ("TripletMarginLoss", "MarginLoss"):
        ours = getattr(losses, name)(reducer=reducers.ThresholdReducer(0.1, 0.3))
        other = getattr(theirs, name)(reducer=their_reducers.ThresholdReducer(0.1, 0.3))
        found = value_and_gradient(lambda z: ours(z, y, triplets), x)  # noqa: B023
        agree(found, value_and_gradient(lambda z: other(z, y, triplets), x), 1e-7)  # noqa: B023


def test_what_has_no_elements_is_added_to_what_a_reducer_makes():
    """ROADMAP's ranking, SOPRC's semi-variance, and the regularizer of a loss that is one number."""
    x, y = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).double(), torch.arange(12) % 4
    few = reducers.ThresholdReducer(low=0.1)
    calibration = losses.CalibrationLoss(reducer=few)(x, y)
    both = losses.ROADMAPLoss(reducer=few)(x, y)
    torch.testing.assert_close(both, losses.SupAPLoss()(x, y) + calibration)
    twice = losses.ROADMAPLoss(ap_weight=0, calibration_weight=2, reducer=reducers.MultipleReducers({}))
    single = losses.ROADMAPLoss(ap_weight=0, reducer=reducers.MultipleReducers({}))
    torch.testing.assert_close(twice(x, y), 2 * single(x, y))
    rows = losses.SOPRCLoss(4, reduction="none").eval()(x, y)
    some = losses.SOPRCLoss(4, semi_variance_weight=1, reducer=reducers.ThresholdReducer(low=0.9)).eval()
    true = rows[rows > 0.9].mean() + losses.SemiVarianceLoss()(x, y)
    torch.testing.assert_close(some(x, y), true)
    listed = losses.PNPLoss(reducer=reducers.DoNothingReducer(), embedding_regularizer=torch.sum)(x, y)
    assert set(listed) == {"loss", "embedding_reg_loss"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_walk_between_long_embeddings(dtype):
    """Exponentials of their products are beyond the type; what is walked is not."""
    torch.manual_seed(0)
    loss = losses.ManifoldLoss(6, K=4, similarity="dot").to(dtype)
    leaf = (100 * torch.randn(12, 6, dtype=dtype)).requires_grad_()
    value = loss(leaf, indices_tuple=torch.arange(12) % 4)
    assert value.isfinite() and torch.autograd.grad(value, leaf)[0].isfinite().all()
