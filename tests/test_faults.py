"""Kinds of faults that were found once, each with the right value or the refusal: hostile arguments, every
reduction of every loss, draws that repeat, strings of descriptions that nobody shares and nothing leaks
through, miners' results that are tuples."""

import gc
import inspect
import threading
import weakref

import pytest
import torch
from conftest import BACKENDS, batch_of
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import fastdml
from fastdml import distances, losses, methods, miners, regularizers
from fastdml.engine import registry
from fastdml.engine.arguments import constructor
from fastdml.engine.similarity import SIMILARITIES
from fastdml.language import mean
from fastdml.losses.base import SampleLoss
from fastdml.reducers import AvgNonZeroReducer

NEEDED = {"num_classes": 3, "embedding_size": 4, "margin": 0.4, "Tn": 10.0, "l": 4, "descriptors_dim": 4}
x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
y = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 0])


def build(name, **arguments):
    module = losses.MODULES[name]
    known = constructor(module)
    needed = {k: v for k, v in NEEDED.items() if k in known and known[k].default is inspect.Parameter.empty}
    torch.manual_seed(3)
    return module(**{**needed, **arguments})


def step(module, embeddings=x):
    """Value and gradient of a step."""
    leaf = embeddings.clone().requires_grad_()
    value = module(**batch_of(module, leaf, y))
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


# ---- arguments


HOSTILE = {
    "a list": [],
    "a dictionary": {},
    "a string": "a",
    "names": ["cosine"],
    "bytes": b"a",
    "nan": float("nan"),
    "inf": float("inf"),
    "-1": -1,
    "1e300": 1e300,
    "1e-320": 1e-320,
    "a huge integer": 10**400,
    "10^30": 10**30,
    "2^40": 1 << 40,
    "two numbers": torch.ones(2),
    "a parameter": nn.Parameter(torch.tensor(0.5)),
    "an object": object(),
}
MINERS = {name: m for name, m in vars(miners).items() if inspect.isclass(m) and issubclass(m, nn.Module)}
CONSTRUCTED = {**losses.MODULES, **MINERS}


def tried(name, argument, value):
    """None where the value is taken and runs; else what went wrong."""
    module = CONSTRUCTED[name]
    try:
        if name in losses.MODULES:
            step(build(name, **{argument: value}))
        else:
            tuple(module(**{argument: value})(x, y))
    except ValueError as error:
        return None if str(error).startswith(f"{argument}: ") else f"{error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("name", CONSTRUCTED)
def test_a_hostile_argument_is_refused_by_name_or_taken(name):
    wrong = {
        (argument, kind): found
        for argument in constructor(CONSTRUCTED[name])
        for kind, value in HOSTILE.items()
        if (found := tried(name, argument, value)) is not None
    }
    assert not wrong


@pytest.mark.parametrize("name", losses.MODULES)
def test_a_number_may_come_as_a_tensor(name):
    """Of one number, that wants no gradient; integers too, and numbers of numpy."""
    for argument, p in constructor(losses.MODULES[name]).items():
        default = NEEDED.get(argument) if p.default is inspect.Parameter.empty else p.default
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        if argument in ("seed", "triplets_per_anchor", "proxies_per_class"):
            continue
        if name == "ProxyNCAPlusPlusLoss" and argument == "softmax_scale":
            continue  # its temperature says it
        true = step(build(name, **{argument: default}))
        given = torch.tensor(default, dtype=torch.float64 if isinstance(default, float) else None)
        for a, b in zip(step(build(name, **{argument: given})), true):
            assert torch.equal(a, b), argument


@pytest.mark.parametrize("name", losses.MODULES)
def test_a_parameter_that_is_not_learnt_is_refused(name):
    """It would stand in `parameters()` and never get a gradient."""
    for argument, p in constructor(losses.MODULES[name]).items():
        learnt = losses.MODULES[name].learnt + losses.MODULES[name].open
        if not isinstance(p.default, float) or argument in learnt:
            continue
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            build(name, **{argument: nn.Parameter(torch.tensor(p.default))})


@pytest.mark.parametrize("name", ["SphereFaceLoss", "LargeMarginSoftmaxLoss"])
def test_a_multiple_of_the_angle_is_bounded(name):
    assert torch.isfinite(step(build(name, margin=64))[1]).all()
    for wrong in (65, 10**19, 1e19, 0, 2.5):
        with pytest.raises(ValueError, match=r"^margin: expected an integer from 1 to 64, got"):
            build(name, margin=wrong)


# ---- reductions

REDUCED = [(n, backend) for n in losses.MODULES for backend in BACKENDS]


@pytest.mark.parametrize("name, backend", REDUCED)
def test_reductions_are_those_of_the_rows(name, backend):
    """Each that is accepted runs forward and backward: "sum" and "nonzero" are those of the rows that
    "none" returns, and "mean" is a positive multiple of the sum. Others are refused by name."""
    found = {}
    for kind in ("mean", "sum", "nonzero", "none"):
        try:
            module = build(name, reduction=kind, backend=backend).eval()
        except ValueError as error:
            assert str(error).startswith("reduction: expected"), error
            assert kind not in losses.MODULES[name].reductions
            continue
        try:
            found[kind] = step(module)
        except ValueError as error:
            if not str(error).startswith("backend:"):
                raise
            return
    close = {"rtol": 2e-5, "atol": 2e-6}
    if "sum" in found and "mean" in found and not (module.in_torch or module.description().combined):
        (mean, d_mean), (total, d_total) = found["mean"], found["sum"]
        assert mean * total >= 0
        if mean != 0:
            torch.testing.assert_close(d_mean * (total / mean), d_total, **close)
    if "none" not in found:
        return
    rows, d_rows = found["none"]
    assert rows.dim() == 1
    torch.testing.assert_close(rows.sum(), found["sum"][0], **close)
    torch.testing.assert_close(d_rows, found["sum"][1], **close)
    if "nonzero" in found:
        share = 1 / (rows > 0).sum().clamp(min=1)
        torch.testing.assert_close(found["nonzero"][0], rows.sum() * share, **close)
        torch.testing.assert_close(found["nonzero"][1], d_rows * share, **close)


@pytest.mark.parametrize("spread", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("name", [n for n, m in losses.MODULES.items() if "nonzero" in m.reductions])
def test_a_mean_over_rows_above_0_leaves_none_below(name, spread):
    """Where rows may be below 0 the reduction is refused; a reducer object takes those above alone."""
    if "none" in losses.MODULES[name].reductions:
        near = torch.eye(3, 4)[y] + spread * x
        for scale in (0.1, 1.0, 10.0):
            assert (step(build(name, reduction="none"), scale * near)[0] >= -1e-6).all()


@pytest.mark.parametrize("made", [losses.SPCELoss, losses.BalancedNTXentLoss, "described", "torch"])
def test_rows_below_0_are_not_active(made):
    def described(p):
        return mean(p.s, where=p.negative)

    if made == "described":
        given = [fastdml.row_loss(described, reduction=kind) for kind in ("none", "nonzero")]
    elif made == "torch":
        fn = lambda s, positive, negative: (s * negative).sum(1)  # noqa: E731
        given = [fastdml.row_loss(fn, reduction=kind) for kind in ("none", "nonzero")]
    else:
        options = {} if made is losses.SPCELoss else {"log_mean": True, "temperature": 0.5}
        with pytest.raises(ValueError, match=r"^reduction: expected 'mean' or 'sum' or 'none', got"):
            made(reduction="nonzero", **options)
        given = [made(reduction="none", **options), made(reducer=AvgNonZeroReducer(), **options)]
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(24) // 4
    shift = 5 if made is losses.SPCELoss else 1
    near, other = (torch.eye(6, 8)[labels] + 0.3 * torch.randn(24, 8, generator=g) for _ in range(2))
    found = []
    for loss in given:
        leaf = near.clone().requires_grad_()
        value = loss(leaf, labels, ref_emb=other - shift, ref_labels=labels.roll(2))
        if value.dim():
            assert (value < 0).any() and (value > 0).any()
            value = value[value > 0].mean()
        value.backward()
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*found)


# ---- draws under activation checkpointing

DRAWING = {
    "margin, 2 of each": lambda: losses.MarginLoss(triplets_per_anchor=2),
    "margin, by distance": lambda: losses.MarginLoss(triplets_per_anchor="distance_weighted"),
    "triplets, 2 of each": lambda: losses.TripletMarginLoss(triplets_per_anchor=2),
    "SOPRC": lambda: losses.SOPRCLoss(3, momentum=0.5),
    "mixtures": lambda: losses.RecallAtKLoss(simix=True),
    "miner": lambda: Mined(),
    "memory": lambda: fastdml.wrappers.CrossBatchMemory(losses.ContrastiveLoss(), 4, 32),
    "memory, less than a batch": lambda: fastdml.wrappers.CrossBatchMemory(losses.TripletMarginLoss(), 4, 7),
    "dynamic soft margin": lambda: losses.DynamicSoftMarginLoss(momentum=0.5),
    "ensemble": lambda: methods.LossEnsemble([losses.SupConLoss(), losses.ContrastiveLoss()]),
    "running mean of norms": lambda: Constrained(),
    "alternating projections": lambda: methods.AlternatingProjections(
        nn.Linear(2, 2), losses.ContrastiveLoss(), 3, 2
    ),
}


class Mined(nn.Module):
    """A miner that draws, and its loss."""

    def __init__(self):
        super().__init__()
        self.miner, self.loss = miners.DistanceWeightedMiner(), losses.MarginLoss()

    def forward(self, embeddings, labels):
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


class Constrained(nn.Module):
    """A term that knows no labels."""

    def __init__(self):
        super().__init__()
        self.term = methods.NormConstraint(momentum=0.5)

    def forward(self, embeddings, labels):
        return self.term(embeddings)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", DRAWING)
def test_a_step_is_the_same_under_activation_checkpointing(name, reentrant):
    found = []
    for checkpointed in (False, True):
        module = DRAWING[name]().train()
        steps = []
        for k in range(2):  # the second with what the first has left
            torch.manual_seed(k)
            leaf = (x + k).requires_grad_()
            if checkpointed:
                value = checkpoint(lambda e, m=module: m(e * 1, y), leaf, use_reentrant=reentrant)
            else:
                value = module(leaf * 1, y)
            value.backward()
            steps += [value.detach(), leaf.grad]
        found.append([*steps, *module.state_dict().values()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    "make, message",
    [
        (DRAWING["memory"], "not the memory's latest"),
        (lambda: methods.DASLoss(losses.SupConLoss(), methods.DenselyAnchoredSampling(3, 4)), "draws of"),
    ],
)
def test_a_state_that_has_moved_on_is_said_to_have(make, message):
    module = make()
    values = [checkpoint(module, (x + k).requires_grad_(), y, use_reentrant=False) for k in range(2)]
    state = {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
    with pytest.raises(RuntimeError, match=message):
        sum(values).backward()
    for name, value in state.items():
        assert torch.equal(module.state_dict()[name], value)


CALLS_AGAIN = {
    "int32 labels": lambda make: [(make, y.int(), x)],
    "labels made inside": lambda make: [(make, None, x)],
    "two calls of the same labels": lambda make: [(make, y, x), (make, y, x * 1.3 + 0.1)],
}


@pytest.mark.parametrize("kind", CALLS_AGAIN)
@pytest.mark.parametrize("name", ["margin, 2 of each", "triplets, 2 of each", "miner"])
def test_draws_belong_to_a_call_not_to_its_labels(name, kind):
    """Checkpointed calls, computed again in the backward pass in another order than they came."""
    found = []
    for checkpointed in (False, True):
        module = DRAWING[name]().train()
        leaves, total = [], 0.0
        for _, labels, embeddings in CALLS_AGAIN[kind](module):
            leaf = embeddings.clone().requires_grad_()

            def step(e, labels=labels, module=module):
                return module(e * 1, y + 0 if labels is None else labels)

            total = total + (checkpoint(step, leaf, use_reentrant=False) if checkpointed else step(leaf))
            leaves.append(leaf)
        total.backward()
        found.append([total.detach(), *(leaf.grad for leaf in leaves)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_draws_that_cannot_be_found_again_are_no_other_draws():
    loss = losses.TripletMarginLoss(triplets_per_anchor=2)
    leaf = x.clone().requires_grad_()
    value = checkpoint(lambda e: loss(e, y), leaf, use_reentrant=False, preserve_rng_state=False)
    torch.rand(1)
    with pytest.raises(RuntimeError, match="preserve_rng_state=True"):
        value.backward()


# ---- which pairs there are


def named(labels):
    """The pairs of labels by a function and as a list."""
    same = labels[:, None] == labels
    others = ~torch.eye(len(labels), dtype=torch.bool)
    listed = (*(same & others).nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))
    one_side = (*(same & others).triu().nonzero(as_tuple=True), *(~same).triu().nonzero(as_tuple=True))
    return {
        "function": lambda i, j: (same[i][:, j], ~same[i][:, j]),
        "function of one side": lambda i, j: (
            same[i][:, j] & (i[:, None] > j), ~same[i][:, j] & (i[:, None] < j)
        ),
        "list": listed,
        "list of one side": one_side,
    }  # fmt: skip


@pytest.mark.parametrize("form", list(named(y)))
def test_the_global_circle_counts_a_pair_once(form):
    loss = losses.CircleLoss(form="global", gamma=4.0)
    true = step(loss)
    leaf = x.clone().requires_grad_()
    value = loss(leaf, None, named(y)[form])
    torch.testing.assert_close(value.detach(), true[0])
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], true[1])


RANKING = {
    "AUCLoss": {}, "FastAPLoss": {}, "PNPLoss": {}, "RecallAtKLoss": {}, "SmoothAPLoss": {},
    "SoftBinAPLoss": {}, "SupAPLoss": {}, "RecallAtKLoss, without the query": {"exclude_self": True},
}  # fmt: skip


@pytest.mark.parametrize("name", RANKING)
def test_pairs_that_are_named_neither_way_are_in_no_ranking(name):
    """The loss is that of the candidates which are named."""
    loss = getattr(losses, name.split(",")[0])(**RANKING[name])
    kept = torch.tensor([0, 1, 2, 5, 6, 7, 9, 10])
    named = torch.zeros(12, dtype=torch.bool)
    named[kept] = True

    def relation(i, j):
        same = y[i][:, None] == y[j]
        both = named[i][:, None] & named[j]
        return same & both, ~same & both

    leaf, few = (t.double().requires_grad_() for t in (x, x[kept]))
    loss.reduction = "none"
    rows, true = loss(leaf, y, relation), loss(few, y[kept])
    torch.testing.assert_close(rows[kept], true)
    rows[kept].sum().backward()
    true.sum().backward()
    torch.testing.assert_close(leaf.grad[kept], few.grad)
    others = torch.ones(12, dtype=torch.bool)
    others[kept] = False
    assert not leaf.grad[others].any()


@pytest.mark.parametrize("make", [losses.LiftedStructureLoss])
def test_a_candidate_that_is_the_copy_of_several_rows(make):
    """An image drawn twice: refused where candidates have to name their rows."""
    others, own = torch.cat([x + 1, x[1:2]]), torch.full((12,), -1)
    own[[1, 5]] = 12
    labels = torch.cat([y, y[1:2]])
    with pytest.raises(ValueError, match=r"^own: expected each row of ref_emb as the own copy of one row"):
        make()(x.clone().requires_grad_(), y, None, others, labels, own=own)
    losses.SupConLoss()(x, y, None, others, labels, own=own)
    own[5] = -1
    make()(x.clone().requires_grad_(), y, None, others, labels, own=own).backward()


def test_a_view_of_rows_of_one_number_is_them():
    for base in (torch.randn(2, 1).t(), torch.randn(12, 1)):
        labels = y[: len(base)]
        view = base.as_strided(base.shape, (base.shape[1], 1)) if len(base) > 1 else base.view_as(base)
        found = losses.XBMPairLoss(similarity="dot")(base, labels, None, view, labels)
        assert found == losses.XBMPairLoss(similarity="dot")(base, labels)


VALUES = dict.fromkeys(("ArcFaceLoss", "ProxyAnchorLoss", "SoftTripleLoss", "CosFaceLoss"), (3, 4))
VALUES |= {"SOPRCLoss": (3,), "NPairsLoss": ()}


def test_values_are_not_looked_at_where_there_are_none():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for name, sizes in VALUES.items():
            leaf = torch.randn(8, 4, requires_grad=True)
            getattr(losses, name)(*sizes)(leaf, torch.arange(8) % 3).backward()
            assert leaf.grad.shape == leaf.shape


DIVERGED = {
    "manifold": (lambda: losses.ManifoldLoss(l=4, K=3), ()),
    "dynamic soft margin": (losses.DynamicSoftMarginLoss, (y,)),
    "dynamic soft margin of a list": (losses.DynamicSoftMarginLoss, (y, miners.TripletMarginMiner()(x, y))),
    "dynamic soft margin of two sets": (losses.DynamicSoftMarginLoss, (None, None, x.flip(0))),
}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", DIVERGED)
def test_a_batch_that_is_not_finite_shows_and_stays_in_no_state(name, bad):
    make, others = DIVERGED[name]
    loss = make()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    leaf = x.clone()
    leaf[0, 0] = bad
    assert loss(leaf.requires_grad_(), *others).isnan()
    for key, value in loss.state_dict().items():
        assert torch.equal(value, before[key]), key


IN_TORCH = [
    lambda: losses.TripletMarginLoss(0.3, swap=True),
    lambda: build("SoftTripleLoss", tau=0.2, embedding_size=4),
]


@pytest.mark.parametrize("make", IN_TORCH)
def test_torch_parts_do_not_multiply_in_autocast_s_type(make):
    true = step(make())
    with torch.autocast("cpu", torch.bfloat16):
        found = step(make())
    for a, b in zip(found, true, strict=True):
        assert torch.equal(a, b)


def test_what_is_found_without_a_gradient_is_not_rounded_to_autocast_s_type_either():
    found = []
    for enabled in (False, True):
        table, centres = losses.SOPRCLoss(3, momentum=1.0), build("SubCenterArcFaceLoss", embedding_size=4)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            table(x, y)
            outliers = [centres.get_outliers(x, y, degrees, False) for degrees in range(30, 90)]
        found.append([table.table, *outliers])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_a_constant():
    """Of no similarity: a value, and a gradient of zeros."""
    for backend in BACKENDS:
        loss = fastdml.row_loss(lambda p: 2.0 * fastdml.language.count(where=p.positive), backend=backend)
        leaf = x.clone().requires_grad_()
        value = loss(leaf, y)
        value.backward()
        assert value > 0 and not leaf.grad.any()


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_numbers_come_as_arrays_too(kind):
    import numpy as np

    make = np.array if kind == "array" else torch.tensor
    true = step(losses.MultiSimilarityLoss(alpha=0.5))
    assert torch.equal(step(losses.MultiSimilarityLoss(alpha=make(0.5)))[0], true[0])
    found = fastdml.functional.multi_similarity(x, y, alpha=make(0.5))
    assert torch.equal(found, true[0])
    assert losses.HistogramLoss(delta=make(0.1)).n_bins == 20
    assert losses.SOPRCLoss(make(4.0)).table.shape == (4, 100)


# ---- options


def test_a_tensor_that_changes_is_read_again_by_a_function():
    alpha = torch.tensor(2.0)
    fastdml.functional.multi_similarity(x, y, alpha=alpha)
    alpha.fill_(20.0)
    found = fastdml.functional.multi_similarity(x, y, alpha=alpha)
    assert found == fastdml.functional.multi_similarity(x, y, alpha=20.0)


def test_a_function_among_the_options_is_not_kept_alive():
    class Penalty:
        def __call__(self, embeddings):
            return embeddings.sum() * 0

    penalty = Penalty()
    fastdml.functional.multi_similarity(x, y, embedding_regularizer=penalty)
    reference = weakref.ref(penalty)
    del penalty
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("name", losses.MODULES)
def test_what_is_set_later_is_checked(name):
    module = build(name)
    for argument, value in (("reduction", "men"), ("similarity", "cosin"), ("backend", "nativ")):
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            setattr(module, argument, value)
    if "none" not in module.reductions:
        with pytest.raises(ValueError, match=r"^reduction: expected"):
            module.reduction = "none"


# ---- miners' results


MINED = {
    "swap": (lambda: losses.TripletMarginLoss(swap=True), miners.BatchHardMiner),
    "drawn": (lambda: losses.TripletMarginLoss(triplets_per_anchor=5), miners.BatchHardMiner),
    "swap, easy": (lambda: losses.TripletMarginLoss(swap=True), miners.BatchEasyHardMiner),
    "epsilon": (lambda: losses.MultiSimilarityLoss(epsilon=0.05), miners.MultiSimilarityMiner),
    "k": (lambda: losses.TripletMarginLoss(negatives="nearest", k=2), miners.NearestNegativeMiner),
    "easy": (lambda: losses.TripletMarginLoss(positives="easy"), miners.BatchEasyHardMiner),
    "own draws": (lambda: losses.MarginLoss(triplets_per_anchor="distance_weighted", cutoff=0.3),
                  miners.DistanceWeightedMiner),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:indices_tuple")
@pytest.mark.parametrize("name", MINED)
def test_a_miner_s_result_means_the_same_unpacked(name):
    """A loss that has a rule of its own, or takes triplets one by one, does not lose it."""
    make, miner = MINED[name]
    found = []
    for unpack in (lambda mined: mined, tuple):
        leaf = x.clone().requires_grad_()
        value = make()(leaf, y, unpack(miner()(leaf, y)))
        found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_rule_that_cannot_be_joined_with_hard_ones_is_refused_either_way():
    loss = losses.TripletMarginLoss(positives="easy")
    for mined in (miners.BatchHardMiner()(x, y), tuple(miners.BatchHardMiner()(x, y))):
        with pytest.raises(ValueError, match=r"^positives: expected 'all'"):
            loss(x, y, mined)


# ---- memories


@pytest.mark.parametrize(
    "make",
    [
        lambda: losses.TripletMarginLoss(swap=True),
        lambda: losses.SupConLoss(reduction="none"),
        lambda: losses.MultiSimilarityLoss(),
        lambda: losses.IntraPairVarianceLoss(),
        lambda: losses.SignalToNoiseRatioContrastiveLoss(),
        lambda: losses.LiftedStructureLoss(),
        lambda: losses.IntraPairVarianceLoss(similarity="raw_distance"),
        lambda: losses.DynamicSoftMarginLoss(),
        lambda: losses.ContrastiveLoss(reducer=AvgNonZeroReducer(), distance=distances.LpDistance(p=1)),
    ],
)
@pytest.mark.parametrize("miner", [None, miners.TripletMarginMiner()])
def test_a_memory_between_two_calls_and_their_backward(make, miner):
    other = x * 1.3 + 0.1
    found = []
    for together in (True, False):
        memory = fastdml.wrappers.CrossBatchMemory(make(), 4, 64, miner)
        leaves = [t.clone().requires_grad_() for t in (x, other)]
        values = [memory(leaf, y).sum() for leaf in leaves] if together else []
        if together:
            sum(values).backward()
        else:
            for leaf in leaves:
                memory(leaf, y).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_batched_upstream_gradients_are_refused_in_our_words():
    leaf, rows = x.clone().requires_grad_(), losses.SupConLoss(reduction="none")
    with pytest.raises(RuntimeError, match="one upstream gradient at a time"):
        torch.autograd.functional.jacobian(lambda e: rows(e, y), leaf, vectorize=True)
    value = losses.SupConLoss()(leaf, y)
    with pytest.raises(RuntimeError, match="one upstream gradient at a time"):
        torch.autograd.grad(value, leaf, torch.ones(3), is_grads_batched=True)


OTHER_CALLS = {
    "listed scores": (
        lambda **given: losses.MarginMSELoss()(
            **{"embeddings": x, "candidates": x[:, None].repeat(1, 2, 1), "teacher_scores": x[:, :2], **given}
        ),
        ("embeddings", "candidates", "teacher_scores"),
    ),
    "tokens": (
        lambda **given: losses.LateInteractionLoss()(
            **{"queries": x[:, None], "documents": x[:, None], **given}
        ),
        ("queries", "documents", "query_mask", "document_mask"),
    ),
    "a memory": (
        lambda **given: fastdml.wrappers.CrossBatchMemory(losses.SupConLoss(), 4, 64)(x, y, **given),
        ("indices_tuple", "enqueue_mask"),
    ),
    "widths": (
        lambda **given: fastdml.wrappers.MatryoshkaLoss(losses.SupConLoss(), **{"dims": (2, 4), **given}),
        ("dims", "weights"),
    ),
    "several": (lambda **given: fastdml.wrappers.MultipleLosses(**given), ("losses",)),
    "reducers": (lambda **given: fastdml.reducers.MultipleReducers(**given), ("reducers",)),
    "thresholds": (lambda **given: fastdml.reducers.ThresholdReducer(**given), ("low", "high")),
    "anchors": (lambda **given: fastdml.reducers.PerAnchorReducer(**given), ("reducer", "aggregation_func")),
}


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_what_is_nothing_of_the_kind_is_refused_by_name(name):
    call, arguments = OTHER_CALLS[name]
    for argument in arguments:
        for wrong in (["a", None], {"a": 1}, "a", float("nan"), torch.ones(2, 3, 4, 5), object()):
            with pytest.raises(ValueError, match=rf"^{argument}: "):
                call(**{argument: wrong})


FUNCTIONS = {
    "aggregation_func": lambda f: losses.ContrastiveLoss(
        reducer=fastdml.reducers.PerAnchorReducer(aggregation_func=f)
    ),
    "fn": lambda f: fastdml.row_loss(lambda p: f()),
    "fn of masks": lambda f: fastdml.row_loss(lambda s, positive, negative: f()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_returns_is_looked_at(name):
    for wrong in (None, "a", torch.zeros(3), torch.zeros(2, 2, 2), [1.0]):
        with pytest.raises(ValueError, match=rf"^{name.partition(' ')[0]}: expected "):
            FUNCTIONS[name](lambda *given, result=wrong: result)(x, y)


# ---- swapped triplets


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("similarity", ["distance", "cosine", "raw_squared_distance"])
@pytest.mark.parametrize("rectangular", [False, True])
def test_swapped_triplets_are_those_listed(rectangular, similarity, smooth, monkeypatch):
    """Every triplet (a, p, n) one by one, with the nearer of both distances; blocks of every size."""
    g = torch.Generator().manual_seed(4)
    e = torch.randn(14, 5, generator=g, dtype=torch.float64)
    e[8] = e[2]  # of two classes: of one, rounding would say which of two equal ones is the nearer
    labels = torch.tensor([4, 4, 4, 4, 4, 4, 1, 1, 1, 7, 7, 7, 9, 4])
    ref, ref_labels, own = None, None, None
    columns, copies = labels, torch.arange(14)
    if rectangular:
        ref = torch.cat([torch.randn(6, 5, generator=g, dtype=torch.float64), e])
        ref_labels = columns = torch.cat([torch.tensor([4, 1, 7, 7, 3, 3]), labels])
        own, copies = 6, copies + 6
    loss = losses.TripletMarginLoss(0.3, swap=True, smooth_loss=smooth, similarity=similarity)
    i, j = torch.arange(14)[:, None], torch.arange(len(columns))
    a, p = ((labels[:, None] == columns) & (copies[i] != j)).nonzero(as_tuple=True)
    t, n = (labels[a, None] != columns).nonzero(as_tuple=True)
    listed = (a[t], p[t], n)

    def step(*batch, **more):
        leaf = e.clone().requires_grad_()
        value = loss(leaf, *batch, **more)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    for size in (1, 60, 1 << 20):
        monkeypatch.setattr("fastdml.losses.triplet.swapped._AT_ONCE", size)
        for reduction in ("mean", "sum", "nonzero"):
            loss.reduction = reduction
            if reduction != "mean" and size > 1:
                continue
            true = step(labels, listed, ref, ref_labels, own=own)
            for f, r in zip(step(labels, None, ref, ref_labels, own=own), true):
                torch.testing.assert_close(f, r, rtol=1e-10, atol=1e-12)
        loss.reduction = "mean"


# ---- whole graphs

GRAPHS = {
    "swapped triplets": (lambda: losses.TripletMarginLoss(swap=True), True),
    "mixtures": (lambda: losses.RecallAtKLoss(simix=True), True),
    "first pairs": (lambda: losses.NPairsLoss(), True),
    "validation": (lambda: losses.SupConLoss(validate=True), None),
    "margin": (lambda: losses.MarginLoss(), True),
    "rows": (lambda: losses.SmoothAPLoss(reduction="none"), True),
    "miner that draws": (lambda: Mined(), None),
}


@pytest.mark.unpoisoned
@pytest.mark.parametrize("name", GRAPHS)
def test_one_graph_of_any_number_of_rows(name):
    make, dynamic = GRAPHS[name]
    torch._dynamo.reset()
    eager, module = make(), make()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for k, rows in enumerate((12, 10, 11)):
        found = []
        for function in (eager, compiled):
            torch.manual_seed(k)
            leaf = x[:rows].clone().requires_grad_()
            value = function(leaf, y[:rows])
            value.sum().backward()
            found.append((value.detach(), leaf.grad))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)


@pytest.mark.unpoisoned
def test_draws_do_not_compile_again():
    """Numbers of calls are no constants of a graph."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(Mined(), fullgraph=True, backend=counter)
    eager = Mined()
    for _ in range(10):
        torch.testing.assert_close(compiled(x, y), eager(x, y))
    assert counter.frame_count == 1


@pytest.mark.unpoisoned
def test_a_graph_without_pairs_and_one_of_wrong_numbers():
    torch._dynamo.reset()
    compiled = torch.compile(losses.NPairsLoss(), fullgraph=True, backend="aot_eager", dynamic=True)
    compiled(x, y)
    leaf = x.clone().requires_grad_()
    compiled(leaf, torch.arange(12)).backward()
    assert not leaf.grad.any()
    compiled = torch.compile(losses.SupConLoss(validate=True), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="embeddings: expected finite values"):
        compiled(x * float("nan"), y)


# ---- descriptions and their strings


def test_a_loss_s_closure_is_freed_with_it():
    class Held:
        pass

    def used(kind):
        held = Held()
        if kind == "predicate":
            relation = lambda i, j, held=held: (  # noqa: E731
                y[i][:, None] == y[j], y[i][:, None] != y[j]
            )  # fmt: skip
            losses.MultiSimilarityLoss()(x, None, relation)
        else:
            fastdml.row_loss(lambda s, positive, negative, held=held: (s * positive).sum(1))(x, y)
        return weakref.ref(held)

    kinds = ("predicate", "tensors")
    found = [used(kind) for kind in kinds]
    gc.collect()
    assert all(reference() is None for reference in found)


def test_an_annealed_parameter_leaves_nothing_behind():
    before = len(registry._users), len(registry._objects)
    for k in range(50):
        losses.MultiSimilarityLoss(alpha=2 + k / 100)(x, y)
        losses.SupConLoss()(x, None, lambda i, j: (y[i][:, None] == y[j], y[i][:, None] != y[j]))
    gc.collect()
    assert (len(registry._users), len(registry._objects)) == before


def test_threads_do_not_share_strings():
    count, found = 200, []
    descriptions = [
        [fastdml.row_loss(lambda s, p, n: s.sum(1)).description() for _ in range(count)] for _ in range(4)
    ]
    barrier = threading.Barrier(4)

    def name(mine):
        barrier.wait()
        found.extend(registry.remember(d) for d in mine)

    threads = [threading.Thread(target=name, args=(mine,)) for mine in descriptions]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(found)) == len(found) == 4 * count


OF_SAMPLES = [n for n, m in losses.MODULES.items() if issubclass(m, SampleLoss)]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_what_is_near_is_right(name, similarity):
    """On whatever kind of number a loss takes, embeddings of two tight classes are no worse than ones where
    every sample is nearest to another class; what would turn it around is refused."""
    module = losses.MODULES[name]
    if module.similarities and similarity not in module.similarities:
        with pytest.raises(ValueError, match="similarity: expected"):
            build(name, similarity=similarity)
        return
    near = torch.tensor([[1, 0.0], [1, 0.1], [0, 1.0], [0.1, 1]], dtype=torch.float64)
    near, classes = nn.functional.normalize(near), torch.tensor([0, 0, 1, 1])
    try:
        loss = build(name, similarity=similarity).double()
        right, wrong = loss(near, classes), loss(near[[0, 2, 1, 3]], classes)
    except ValueError as error:  # of this kind of number, or of a second set
        assert "similarity" in str(error) or "ref_emb" in str(error)
        return
    # (Contrastive losses' default margins, of distances, ask nothing of cosines.)
    assert right < wrong or right == wrong == 0


@pytest.mark.parametrize("name", ["ProxyAnchorLoss", "MultiProxyAnchorLoss", "CosFaceLoss"])
def test_proxies_refuse_what_would_turn_them_around(name):
    for similarity in SIMILARITIES:
        if "distance" in similarity:
            with pytest.raises(ValueError, match="similarity: expected 'cosine'"):
                build(name, similarity=similarity)


def test_fast_ap_of_the_squared_distance():
    """The only kind pytorch-metric-learning takes, spelt out; cosines say the same."""
    loss = losses.FastAPLoss(distance=distances.LpDistance(p=2, power=2))
    assert torch.equal(loss(x, y), losses.FastAPLoss()(x, y))


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_a_pair_listed_as_both_is_the_same_everywhere(name):
    classes = torch.arange(6) // 2
    pairs = ([0, 0, 1, 4], [1, 3, 0, 5], [0, 0, 1, 4], [1, 2, 5, 0])
    pairs = tuple(map(torch.tensor, pairs))
    found = []
    for backend in BACKENDS:
        loss = build(name, backend=backend).double()
        leaf = x[:6].double().requires_grad_()
        torch.manual_seed(0)
        try:
            value = loss(leaf, classes, pairs)
        except (ValueError, NotImplementedError):  # by this backend, or at all
            continue
        if value.requires_grad:
            found.append((value, *torch.autograd.grad(value, leaf)))
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-7, atol=1e-10)


def test_distances_and_miners_do_not_multiply_in_autocast_s_type():
    x = torch.nn.functional.normalize(torch.randn(60, 24, generator=torch.Generator().manual_seed(0)) + 1)
    y = torch.arange(60) // 6
    calls = [
        lambda: distances.CosineSimilarity()(x),
        lambda: distances.DotProductSimilarity(power=2)(x),
        lambda: torch.stack(tuple(miners.AngularMiner(30)(x, y))),
    ]
    for call in calls:
        true = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(call(), true, rtol=0, atol=0)


@pytest.mark.parametrize(
    "make",
    [lambda: regularizers.LpRegularizer(p=3), lambda: regularizers.LpRegularizer(p=1, power=2),
     regularizers.ZeroMeanRegularizer],
)  # fmt: skip
def test_regularizers_of_half_precision_are_computed_in_float32(make):
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 100
    half, wide = x.half().requires_grad_(), x.half().float().requires_grad_()
    for z in (half, wide):
        make()(z).backward()
    torch.testing.assert_close(make()(half), make()(wide))
    torch.testing.assert_close(half.grad.float(), wide.grad, rtol=1e-3, atol=1e-6)
    assert wide.grad.any()
