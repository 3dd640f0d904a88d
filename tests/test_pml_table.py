"""pytorch-metric-learning's classes one by one: which are here, and whether theirs in ours, ours in theirs
and ours in ours are the same, in value and gradient, in float64.

Where its values are wrong (docs/compatibility.md) a case says what its definition is compared on instead.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import nn

pml = pytest.importorskip("pytorch_metric_learning")
if pml.__version__ != "2.9.0":
    pytest.skip("compared with 2.9.0", allow_module_level=True)
from pytorch_metric_learning import distances as their_distances  # noqa: E402
from pytorch_metric_learning import losses as their_losses  # noqa: E402
from pytorch_metric_learning import miners as their_miners  # noqa: E402
from pytorch_metric_learning import reducers as their_reducers  # noqa: E402
from pytorch_metric_learning import regularizers as their_regularizers  # noqa: E402
from pytorch_metric_learning import samplers as their_samplers  # noqa: E402

from fastdml import distances, losses, miners, reducers, regularizers, samplers  # noqa: E402

KINDS = {
    "losses": (losses, their_losses),
    "miners": (miners, their_miners),
    "distances": (distances, their_distances),
    "reducers": (reducers, their_reducers),
    "regularizers": (regularizers, their_regularizers),
    "samplers": (samplers, their_samplers),
}
DRAWS = 20
TOLERANCE = 1e-9


def classes_of(module: Any) -> list[str]:
    names = (n for n, x in vars(module).items() if inspect.isclass(x) and not n.startswith("_"))
    return sorted(n for n in names if getattr(module, n).__module__.startswith(module.__name__))


EVERY = [(kind, name) for kind, (_, theirs) in KINDS.items() for name in classes_of(theirs)]


def parameters_of(cls: type, bases: bool = False) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor; bases: and those it passes on to the constructors of its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__[: None if bases else 1]:
        made = vars(base).get("__init__")
        if base is nn.Module or (made is None and not bases):
            break
        if made is not None:
            for p in inspect.signature(made).parameters.values():
                found.setdefault(p.name, p)
    return found


@pytest.mark.parametrize("kind,name", EVERY)
def test_every_class_is_there(kind, name):
    """With their arguments, in their order and with their defaults; or a row of the table says why not."""
    ours, theirs = KINDS[kind]
    if not hasattr(ours, name):
        text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
        assert f"`{name}`" in text.split("has and this library has not")[1]
        return
    mine, asked = parameters_of(getattr(ours, name), True), parameters_of(getattr(theirs, name))
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [n for n, p in asked.items() if p.kind in plain]
    assert set(names) <= set(mine)
    for n in names:
        default = asked[n].default
        if n != "self" and default is not inspect.Parameter.empty and not callable(default):
            # None: by the form of the loss, as CircleLoss has it.
            assert mine[n].default in (default, None), n
    places = [n for n in parameters_of(getattr(ours, name), True) if n in names]
    assert places == names


@pytest.mark.parametrize("name", ["ContrastiveLoss", "VICRegLoss", "ArcFaceLoss", "CrossBatchMemory"])
def test_statistics_may_be_asked_for(name):
    """... and are not collected."""
    given = {"ArcFaceLoss": (3, 8), "CrossBatchMemory": (losses.ContrastiveLoss(), 8)}.get(name, ())
    plain, asked = (getattr(losses, name)(*given, collect_stats=s) for s in (None, True))
    assert asked.collect_stats is True and plain.collect_stats is False and repr(plain) == repr(asked)
    with pytest.raises(ValueError, match="collect_stats: expected True or False, got 'yes'"):
        getattr(losses, name)(*given, collect_stats="yes")


# ---- losses


@dataclasses.dataclass(frozen=True)
class Case:
    """kind: what it is called with. lists: whether a miner's list is taken; others: other candidates."""

    kind: str = "samples"
    arguments: tuple = ()
    keywords: dict = dataclasses.field(default_factory=dict)
    lists: bool = True
    others: bool = True
    labels: Callable | None = None
    normalized: bool = False  # theirs takes them as they come


PROXIES = Case("proxies", (7, 9), lists=False, others=False)
CASES: dict[str, Case] = {
    "AngularLoss": Case(normalized=True),
    "ArcFaceLoss": PROXIES,
    "CircleLoss": Case(keywords={"gamma": 4}),  # theirs leaves out exp(-20): torch's softplus
    "ContrastiveLoss": Case(),
    "CosFaceLoss": PROXIES,
    "FastAPLoss": Case(lists=False, others=False),
    "GeneralizedLiftedStructureLoss": Case(),
    "IntraPairVarianceLoss": Case(),
    "LargeMarginSoftmaxLoss": PROXIES,
    "LiftedStructureLoss": Case(others=False),
    "MarginLoss": Case(),
    "MultiSimilarityLoss": Case(),
    "NCALoss": Case(lists=False),
    "NPairsLoss": Case(lists=False, others=False),
    "NTXentLoss": Case(),
    "NormalizedSoftmaxLoss": PROXIES,
    "P2SGradLoss": dataclasses.replace(PROXIES, arguments=(9, 7)),
    "PNPLoss": Case(lists=False, others=False),
    "ProxyAnchorLoss": PROXIES,
    "ProxyNCALoss": PROXIES,
    "RankedListLoss": Case(arguments=(0.4, 4), keywords={"Tp": -2}, lists=False, others=False),
    "SignalToNoiseRatioContrastiveLoss": Case(),
    "SmoothAPLoss": Case(lists=False, others=False, labels=lambda y: torch.arange(36) // 6),
    "SoftTripleLoss": PROXIES,
    "SphereFaceLoss": PROXIES,
    "SubCenterArcFaceLoss": dataclasses.replace(
        PROXIES, arguments=(), keywords={"num_classes": 7, "embedding_size": 9}
    ),
    "SupConLoss": Case(),
    "ThresholdConsistentMarginLoss": Case(keywords={"margin_plus": 0.4, "margin_minus": 0.1}, others=False),
    "TripletMarginLoss": Case(),
    "TupletMarginLoss": Case(keywords={"scale": 8}),
}
# Compared elsewhere, or on what is not a fault of theirs.
ELSEWHERE = {
    "BaseMetricLossFunction", "CrossBatchMemory", "DynamicSoftMarginLoss", "GenericPairLoss", "HistogramLoss",
    "InstanceLoss", "ManifoldLoss", "MultipleLosses", "SelfSupervisedLoss", "VICRegLoss",
}  # fmt: skip
# Their columns have a length of 1 - 1e-7.
LESS = {"P2SGradLoss": 1e-6}


@pytest.fixture(autouse=True)
def default_type():
    """Theirs fills tensors of torch's default type, float32, whatever the type of the embeddings."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def made(name: str, **further: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and theirs, with the same state."""
    case = CASES[name]
    mine = dict(further)
    both = []
    for module, keywords in ((losses, mine.pop("ours", mine)), (their_losses, mine.pop("theirs", mine))):
        torch.manual_seed(1)
        both.append(getattr(module, name)(*case.arguments, **case.keywords, **keywords))
    ours, theirs = both
    if list(theirs.parameters()):
        ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def draw(seed: int, case: Case) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    x, ref = torch.randn(36, 9, generator=g), torch.randn(29, 9, generator=g)
    y, ref_y = (torch.randint(0, 7, (n,), generator=g) for n in (36, 29))
    return x, y if case.labels is None else case.labels(y), ref, ref_y


def agree(ours: Any, theirs: Any, leaves: list[torch.Tensor], tolerance: float = TOLERANCE) -> None:
    """Of two functions of the leaves: the values, and the gradients by leaves and parameters."""
    found = []
    for function, module in (ours, theirs):
        inputs = [t.clone().requires_grad_() for t in leaves]
        value = function(*inputs)
        inputs += [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        found.append([value.detach(), *(torch.zeros(()) if g is None else g for g in gradients)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


def compared(name: str, ours: nn.Module, theirs: nn.Module, draws: int = DRAWS) -> None:
    """On one set, on two, and with a list."""
    case = CASES[name]
    tolerance = LESS.get(name, TOLERANCE)
    come = nn.functional.normalize if case.normalized else torch.clone
    both = (ours, theirs)
    for seed in range(draws):
        x, y, ref, ref_y = draw(seed, case)

        def one_set(m: nn.Module) -> Any:
            return lambda z: m(come(z), y)  # noqa: B023

        def two_sets(m: nn.Module) -> Any:
            return lambda z, r: m(come(z), y, ref_emb=come(r), ref_labels=ref_y)  # noqa: B023

        def of_list(m: nn.Module) -> Any:
            pairs = their_miners.PairMarginMiner(0.9, 1.1)(x, y)  # noqa: B023
            return lambda z: m(come(z), y, pairs)  # noqa: B023

        agree(*((one_set(m), m) for m in both), [x], tolerance)
        if case.others:
            agree(*((two_sets(m), m) for m in both), [x, ref], tolerance)
        if case.lists and seed % 5 == 0:
            agree(*((of_list(m), m) for m in both), [x], tolerance)


def test_every_loss_is_compared():
    mine = {n for n in classes_of(their_losses) if hasattr(losses, n)}
    assert mine <= set(CASES) | ELSEWHERE


@pytest.mark.parametrize("name", CASES)
def test_the_same_by_default(name):
    compared(name, *made(name))


# ---- distances

PLAIN = [
    ("LpDistance", {}),
    ("LpDistance", {"power": 2}),
    ("LpDistance", {"normalize_embeddings": False}),
    ("LpDistance", {"p": 1}),
    ("LpDistance", {"p": 3, "power": 2, "normalize_embeddings": False}),
    ("CosineSimilarity", {}),
    ("DotProductSimilarity", {"normalize_embeddings": False}),
    ("SNRDistance", {}),
]
ON_ANY = [
    "ContrastiveLoss", "GeneralizedLiftedStructureLoss", "IntraPairVarianceLoss", "LiftedStructureLoss",
    "MarginLoss", "MultiSimilarityLoss", "NCALoss", "NPairsLoss", "NTXentLoss", "SupConLoss",
    "TripletMarginLoss",
]  # fmt: skip


@pytest.mark.parametrize("kind,keywords", PLAIN)
def test_a_distance_is_the_same(kind, keywords):
    mine, other = getattr(distances, kind)(**keywords), getattr(their_distances, kind)(**keywords)
    for seed in range(DRAWS):
        x, _, ref, _ = draw(seed, Case())
        weight = torch.randn(36, 29)
        functions = ((lambda a, b, d=d, w=weight: (d(a, b) * w).sum()) for d in (mine, other))
        agree(*zip(functions, (mine, other), strict=True), [x, ref])
        n = 29
        assert (mine.pairwise_distance(x[:n], ref) - other.pairwise_distance(x[:n], ref)).abs().max() < 1e-5
    assert (mine.is_inverted, mine.p, mine.power) == (other.is_inverted, other.p, other.power)
    for function in ("smallest_dist", "largest_dist", "margin"):
        a, b = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])
        assert torch.equal(getattr(mine, function)(a, b), getattr(other, function)(a, b))


@pytest.mark.parametrize("name", ON_ANY)
@pytest.mark.parametrize("kind,keywords", PLAIN)
def test_a_loss_on_any_distance(kind, keywords, name):
    """With ours, with theirs, and ours in theirs."""
    mine, other = getattr(distances, kind)(**keywords), getattr(their_distances, kind)(**keywords)
    ours, theirs = made(name, ours={"distance": mine}, theirs={"distance": other})
    compared(name, ours, theirs, 3)
    compared(name, made(name, distance=other)[0], made(name, distance=mine)[1], 1)


# ---- reducers


def flat(kind: type) -> type:
    """Of losses that theirs hands in as a column, which its reducer would broadcast against the weights."""

    class Flat(kind):
        def unpack_loss_info(self, info):
            losses, *rest = super().unpack_loss_info(info)
            return (losses.flatten() if isinstance(losses, torch.Tensor) else losses, *rest)

    return Flat


def their(reducer: Any) -> Any:
    """A reducer of theirs like one of ours."""
    kind, arguments = type(reducer).__name__, {}
    if kind == "ThresholdReducer":
        arguments = {"low": reducer.low, "high": reducer.high}
    elif kind == "ClassWeightedReducer":
        arguments = {"weights": reducer.weights}
    elif kind == "PerAnchorReducer":
        arguments = {"reducer": their(reducer.reducer)}
    elif kind == "MultipleReducers":
        inner = {k: their(v) for k, v in reducer.reducers.items()}
        arguments = {"reducers": inner, "default_reducer": their(reducer.default_reducer)}
    found = getattr(their_reducers, kind)
    flattens = kind in ("ClassWeightedReducer", "PerAnchorReducer")
    return (flat(found) if flattens else found)(**arguments)


CLASSES = torch.linspace(0.5, 2, 7, dtype=torch.float64)
REDUCERS: dict[str, Callable[[], nn.Module]] = {
    "mean": reducers.MeanReducer,
    "sum": reducers.SumReducer,
    "nonzero": reducers.AvgNonZeroReducer,
    "threshold": lambda: reducers.ThresholdReducer(0.2, 0.9),
    "classes": lambda: reducers.ClassWeightedReducer(CLASSES),
    "anchors": reducers.PerAnchorReducer,
    "nonzero of anchors": lambda: reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()),
    "several": lambda: reducers.MultipleReducers(
        {"pos_loss": reducers.ThresholdReducer(high=0.7), "loss": reducers.SumReducer()}
    ),
}
OF_TRIPLETS = {"TripletMarginLoss", "MarginLoss"}
REDUCED = [n for n in CASES if n not in ("SmoothAPLoss", "ThresholdConsistentMarginLoss", "ProxyAnchorLoss")]


@pytest.mark.parametrize("name", [*REDUCED, "ProxyAnchorLoss"])
@pytest.mark.parametrize("kind", REDUCERS)
def test_a_loss_with_any_reducer(kind, name):
    """With ours, with theirs, and ours in theirs."""
    of_anchors = "anchors" in kind and CASES[name].others
    if "anchors" in kind and name in OF_TRIPLETS:
        with pytest.raises(NotImplementedError):
            x, y, _, _ = draw(0, CASES[name])
            made(name, reducer=REDUCERS[kind]())[0](x, y)
        return
    if name == "ProxyAnchorLoss" and kind == "classes":
        pytest.skip("theirs takes the label of sample k for proxy k")
    mine = REDUCERS[kind]()
    ours, theirs = made(name, ours={"reducer": mine}, theirs={"reducer": their(mine)})
    if of_anchors:  # theirs takes one set
        case = dataclasses.replace(CASES[name], others=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(CASES, name, case)
            compared(name, ours, theirs, 2)
    else:
        compared(name, ours, theirs, 2)
    x, y, _, _ = draw(3, CASES[name])
    x = nn.functional.normalize(x) if CASES[name].normalized else x
    mixed = made(name, reducer=their(mine))[0](x, y), made(name, reducer=mine)[1](x, y)
    assert all((value - theirs(x, y)).abs() <= 1e-6 for value in mixed)


@pytest.mark.parametrize("name", [n for n in REDUCED if CASES[n].kind == "samples"])
def test_nothing_is_reduced(name):
    """The dict of all elements, in their order."""
    mine, other = reducers.DoNothingReducer(), their_reducers.DoNothingReducer()
    ours, theirs = made(name, ours={"reducer": mine}, theirs={"reducer": other})
    x, y, _, _ = draw(5, CASES[name])
    if CASES[name].normalized:
        x = nn.functional.normalize(x)
    mine, other = ours(x, y), theirs(x, y)
    if name == "AngularLoss":  # in another order
        total = [sum(v["losses"].sum() for v in found.values()) for found in (mine, other)]
        assert (total[0] - total[1]).abs() < 1e-9 * total[1]
        return
    parts = {k: v for k, v in other.items() if isinstance(v["losses"], torch.Tensor)}
    assert set(parts) <= set(mine)
    for k, v in parts.items():
        found = mine[k]
        if name == "PNPLoss":  # theirs has one number
            continue
        assert found["reduction_type"] == v["reduction_type"]
        assert found["losses"].shape == v["losses"].flatten().shape  # theirs has columns
        assert (found["losses"] - v["losses"].flatten()).abs().max() < 1e-9
        index = [i if isinstance(i, tuple) else (i,) for i in (found["indices"], v["indices"])]
        assert all(torch.equal(a, b) for a, b in zip(*index, strict=True))


class LastOfAnchor(reducers.BaseReducer):
    """A user's: the largest of all, of pairs those of anchor 0 alone."""

    def element_reduction(self, losses, loss_indices, embeddings, labels):
        return losses.max()

    def pos_pair_reduction(self, losses, loss_indices, embeddings, labels):
        return losses[loss_indices[0] == 0].sum()

    neg_pair_reduction = pos_pair_reduction
    triplet_reduction = pos_pair_reduction


@pytest.mark.parametrize(
    "name", ["MultiSimilarityLoss", "ContrastiveLoss", "TripletMarginLoss", "NTXentLoss"]
)
def test_a_reducer_of_a_users(name):
    x, y, _, _ = draw(2, CASES[name])

    class Theirs(LastOfAnchor, their_reducers.BaseReducer):
        forward = their_reducers.BaseReducer.forward

    ours, theirs = made(name, ours={"reducer": LastOfAnchor()}, theirs={"reducer": Theirs()})
    agree(*(((lambda z, m=m: m(z, y)), m) for m in (ours, theirs)), [x])


# ---- regularizers

PENALTIES = [
    ("LpRegularizer", {}),
    ("LpRegularizer", {"p": 1, "power": 2}),
    ("ZeroMeanRegularizer", {}),
    ("CenterInvariantRegularizer", {}),
    ("RegularFaceRegularizer", {}),
    (
        "RegularFaceRegularizer",
        {"distance": their_distances.DotProductSimilarity(normalize_embeddings=False)},
    ),
    ("SparseCentersRegularizer", {"num_classes": 7, "centers_per_class": 3}),
]


@pytest.mark.parametrize("kind,keywords", PENALTIES)
def test_a_regularizer_is_the_same(kind, keywords):
    mine, other = getattr(regularizers, kind)(**keywords), getattr(their_regularizers, kind)(**keywords)
    for seed in range(DRAWS):
        x = torch.randn(21, 9, generator=torch.Generator().manual_seed(seed))
        agree(*(((lambda z, r=r: r(z)), r) for r in (mine, other)), [x])


def test_a_row_alone_is_near_no_other():
    penalty = regularizers.RegularFaceRegularizer()
    for kind in (torch.float32, torch.float64):
        x = torch.randn(1, 9, dtype=kind).requires_grad_()
        value = penalty(x)
        assert value == 0 and not torch.autograd.grad(value, x)[0].any()


def test_penalties_on_other_distances_are_refused():
    euclidean, cosine = distances.LpDistance(), distances.CosineSimilarity()
    for wrong in (euclidean, "distance"):
        with pytest.raises(ValueError, match="distance: expected a similarity"):
            regularizers.RegularFaceRegularizer(distance=wrong)
    x = torch.randn(4, 3)
    own = (regularizers.RegularFaceRegularizer(distance=d)(x) for d in ("cosine", None))
    torch.testing.assert_close(*own)
    for distance in (euclidean, cosine):
        with pytest.raises(ValueError, match=r"distance: expected LpDistance\(normalize_embeddings=False\)"):
            regularizers.CenterInvariantRegularizer(distance=distance)
    with pytest.raises(ValueError, match="distance: expected CosineSimilarity"):
        regularizers.SparseCentersRegularizer(2, 2, distance=euclidean)
    for rows in (3, 5):
        with pytest.raises(ValueError, match="x: expected 4 rows, centres of 2 classes"):
            regularizers.SparseCentersRegularizer(2, 2)(torch.randn(rows, 3))


@pytest.mark.parametrize("name", CASES)
def test_a_loss_with_regularizers(name):
    """Ours, theirs in ours and ours in theirs, on embeddings and proxies, with a reducer object too."""
    proxies = CASES[name].kind == "proxies"
    forms = [(regularizers, None), (their_regularizers, None), (regularizers, "threshold")]
    if name == "SmoothAPLoss":  # whose reducer theirs loses there, as it looks for a part of another name
        forms.pop()
    for module, reducer in forms:
        keywords: dict[str, Any] = {"embedding_regularizer": module.LpRegularizer()}
        others: dict[str, Any] = {"embedding_regularizer": regularizers.LpRegularizer()}
        for given, its in ((keywords, module), (others, regularizers)):
            given["embedding_reg_weight"] = 0.3
            if proxies and name != "P2SGradLoss":
                given |= {"weight_regularizer": its.RegularFaceRegularizer(), "weight_reg_weight": 0.7}
            if reducer:
                given["reducer"] = REDUCERS[reducer]()
        compared(name, *made(name, ours=keywords, theirs=others), 1)


# ---- miners

MINERS: dict[str, tuple[str, dict]] = {
    "multi-similarity": ("MultiSimilarityMiner", {}),
    "multi-similarity, wide": ("MultiSimilarityMiner", {"epsilon": 0.4}),
    "pair margin": ("PairMarginMiner", {"pos_margin": 0.9, "neg_margin": 1.1}),
    "batch hard": ("BatchHardMiner", {}),
    **{
        f"easy-hard, {p} {n}": ("BatchEasyHardMiner", {"pos_strategy": p, "neg_strategy": n})
        for p in ("easy", "hard", "semihard", "all")
        for n in ("easy", "hard", "semihard", "all")
        if (p, n) not in (("semihard", "semihard"), ("all", "semihard"), ("semihard", "all"))
    },
    "easy-hard, ranges": (
        "BatchEasyHardMiner",
        {"allowed_pos_range": (0.6, 1.2), "allowed_neg_range": (0.7, 1.4)},
    ),
    **{
        f"triplet margin, {kind}": ("TripletMarginMiner", {"margin": 0.15, "type_of_triplets": kind})
        for kind in ("all", "hard", "semihard", "easy")
    },
    "triplet margin, nearer still": ("TripletMarginMiner", {"margin": -0.1, "type_of_triplets": "hard"}),
    "angular": ("AngularMiner", {"angle": 30}),
    "angular, by default": ("AngularMiner", {}),
    "HDC": ("HDCMiner", {"filter_percentage": 0.3}),
}  # fmt: skip
ANY_DISTANCE = [n for n in MINERS if not n.startswith(("angular", "HDC"))]


def rows_of(found: Any) -> list[list[tuple[int, ...]]]:
    """Pairs, or triplets, as sorted lists."""
    tensors = [t.tolist() for t in found]
    groups = [tensors] if len(tensors) == 3 else [tensors[:2], tensors[2:]]
    return [sorted(zip(*g, strict=True)) for g in groups]


def numbers_of(found: Any, x: torch.Tensor) -> list[list[float]]:
    """The distances of pairs, in order."""
    d = torch.cdist(nn.functional.normalize(x), nn.functional.normalize(x))
    a1, p, a2, n = found
    return [sorted(round(v, 9) for v in d[i, j].tolist()) for i, j in ((a1, p), (a2, n))]


@pytest.mark.parametrize("name", MINERS)
def test_a_miner_finds_the_same(name):
    kind, keywords = MINERS[name]
    mine, other = getattr(miners, kind)(**keywords), getattr(their_miners, kind)(**keywords)
    for seed in range(DRAWS):
        x, y, ref, ref_y = draw(seed, Case())
        found, wanted = mine(x, y), other(x, y)
        if kind == "HDCMiner":  # of (i, j) and (j, i), which are as far, either may be the last
            assert numbers_of(found, x) == numbers_of(wanted, x)
        else:
            assert rows_of(found) == rows_of(wanted)
        found = mine(x, y, ref, ref_y)
        assert rows_of(found) == rows_of(other(x, y, ref, ref_y))
    for count in ("num_pos_pairs", "num_neg_pairs", "num_triplets"):
        assert getattr(mine, count) == getattr(other, count, 0)


@pytest.mark.parametrize("name", ANY_DISTANCE)
@pytest.mark.parametrize("kind,keywords", [PLAIN[1], PLAIN[3], PLAIN[5], PLAIN[7]])
def test_a_miner_on_any_distance(kind, keywords, name):
    """Ours and theirs of either."""
    miner, arguments = MINERS[name]
    mine, other = getattr(distances, kind)(**keywords), getattr(their_distances, kind)(**keywords)
    for seed in range(2):
        x, y, _, _ = draw(seed, Case())
        kinds = [getattr(m, miner) for m in (miners, their_miners)]
        found = [kind(**arguments, distance=d)(x, y) for kind in kinds for d in (mine, other)]
        assert all(rows_of(f) == rows_of(found[3]) for f in found)


@pytest.mark.parametrize("name", MINERS)
@pytest.mark.parametrize("loss", [n for n in CASES if CASES[n].lists])
def test_fused_and_listed_are_the_same(loss, name):
    """Our miner in our loss, its list in our loss, and it in theirs."""
    kind, keywords = MINERS[name]
    ours, theirs = made(loss)
    case = CASES[loss]
    come = nn.functional.normalize if case.normalized else torch.clone
    for seed in range(2):
        x, y, ref, ref_y = draw(seed, case)
        miner = getattr(miners, kind)(**keywords)

        def fused(z):
            z = come(z)
            return ours(z, y, miner(z, y))  # noqa: B023

        def listed(z):
            z = come(z)
            return ours(z, y, tuple(miner(z, y)))  # noqa: B023

        def in_theirs(z):
            z = come(z)
            return theirs(z, y, miner(z, y))  # noqa: B023

        agree((fused, ours), (listed, ours), [x])
        if len(tuple(miner(x, y))) != 3 or loss in ("TripletMarginLoss", "MarginLoss"):
            # A list of theirs counts a pair as often as it is in a triplet.
            agree((fused, ours), (in_theirs, theirs), [x])
        if case.others:
            z, r = come(x), come(ref)
            values = [ours(z, y, f(miner(z, y, r, ref_y)), r, ref_y) for f in (lambda t: t, tuple)]
            assert (values[0] - values[1]).abs() < 1e-9


# ---- wrappers and trainers


def test_theirs_take_ours_for_their_own():
    """As their distributed wrappers ask; and it stays what it is, copied and pickled too."""
    import copy
    import pickle

    kinds = (
        (losses.NTXentLoss(), their_losses.BaseMetricLossFunction),
        (losses.ProxyAnchorLoss(3, 4), their_losses.BaseMetricLossFunction),
        (losses.CrossBatchMemory(losses.NTXentLoss(), 4), their_losses.CrossBatchMemory),
        (miners.HDCMiner(), their_miners.BaseMiner),
    )
    for module, theirs in kinds:
        assert isinstance(module, theirs) and type(module).__module__.startswith("fastdml")
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert type(other) is type(module)
            state = other.state_dict()
            assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())


def _distributed(rank: int, file: str, found: Any) -> None:
    """The losses of two ranks by their wrappers, ours and theirs in turn."""
    from pytorch_metric_learning.utils.distributed import (
        DistributedLossWrapper,
        DistributedMinerWrapper,
    )

    torch.set_default_dtype(torch.float64)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    g = torch.Generator().manual_seed(rank)
    x, y = torch.randn(12, 9, generator=g), torch.randint(0, 4, (12,), generator=g)
    values = []
    for loss, miner, memory in (
        (losses.ContrastiveLoss(), miners.PairMarginMiner(), losses.CrossBatchMemory),
        (their_losses.ContrastiveLoss(), their_miners.PairMarginMiner(), their_losses.CrossBatchMemory),
    ):
        for efficient in (False, True):
            z = x.clone().requires_grad_()
            pairs = DistributedMinerWrapper(miner, efficient)(z, y)
            value = DistributedLossWrapper(loss, efficient)(z, y, tuple(pairs))
            values += [value.detach(), torch.autograd.grad(value, z)[0].norm()]
        kept = memory(loss, 9, 64).double()
        values.append(DistributedLossWrapper(kept)(x, y).detach())
    found[rank] = torch.stack(values)
    torch.distributed.destroy_process_group()


def test_their_distributed_wrappers_take_ours(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        found = manager.dict()
        torch.multiprocessing.spawn(_distributed, (str(tmp_path / "store"), found), nprocs=2)
        for rank in range(2):
            ours, theirs = found[rank].chunk(2)
            assert (ours - theirs).abs().max() < 1e-9


def test_their_trainer_takes_ours(tmp_path):
    """A few steps of their trainer with our loss, miner and sampler: what theirs trains to."""
    from pytorch_metric_learning import trainers
    from pytorch_metric_learning.utils.common_functions import EmbeddingDataset

    g = torch.Generator().manual_seed(0)
    data = EmbeddingDataset(torch.randn(60, 6, generator=g), torch.randint(0, 5, (60,), generator=g))
    trained = []
    for their_losses_, their_miners_ in ((losses, miners), (their_losses, their_miners)):
        torch.manual_seed(0)
        trunk, embedder = nn.Linear(6, 8), nn.Linear(8, 4)
        trainers.MetricLossOnly(
            {"trunk": trunk, "embedder": embedder},
            {"trunk_optimizer": torch.optim.SGD(trunk.parameters(), 0.1)},
            20,
            {"metric_loss": their_losses_.TripletMarginLoss()},
            data,
            mining_funcs={"tuple_miner": their_miners_.BatchHardMiner()},
            dataloader_num_workers=0,
            iterations_per_epoch=3,
        ).train(num_epochs=1)
        trained.append(trunk.weight.detach())
    assert (trained[0] - trained[1]).abs().max() < 1e-9
