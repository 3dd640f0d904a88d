"""Modules and functions take the same arguments to the same effect, refuse what is wrong by its name, and
show and explain what they were given."""

import inspect
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastdml
from fastdml import functional as F
from fastdml import losses

KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
CLASSES, DIM, SIZE = 6, 5, 24
# What a module needs to be built.
NEEDED = {"num_classes": CLASSES, "embedding_size": DIM, "margin": 0.4, "Tn": 10.0}
# Options of every loss, which go to the function as they are.
COMMON = ("reduction", "similarity", "backend", "validate")
# Arguments of modules that no function has: what is learned or kept, and what is done to the loss.
OWN = {
    "num_classes", "embedding_size", "weight_init_func", "weight_regularizer", "weight_reg_weight",
    "embedding_regularizer", "embedding_reg_weight", "learnable", "learn_beta", "weight", "simix",
    "momentum", "update", "table_size", "class_counts", "prior_mul", "semi_variance_weight",
}  # fmt: skip
# Several proxies per class are a form of their own; elsewhere there is one.
ONE_PROXY = {
    "CosFaceLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss", "ProxyNCALoss", "ProxyNCAPlusPlusLoss",
    "SmoothedCrossEntropyLoss", "SphereFaceLoss", "LargeMarginSoftmaxLoss",
}  # fmt: skip
NAMES = {
    "SubCenterArcFaceLoss": "arc_face",
    "CLIPLoss": "info_nce",
    "SignalToNoiseRatioContrastiveLoss": "signal_to_noise_contrastive",
}
# Values beside the default, where a number cannot just be made larger.
OTHER: dict[str, object] = {
    "m": 0.3, "gamma": 3.0, "epsilon": 0.2, "delta": None, "n_bins": 7, "base_temperature": 0.3,
    "sort": True, "k": (1, 3), "alpha": 1.3, "prior_mul": 0.2, "smoothing": 0.2, "momentum": 0.2,
    "positives": "hard", "negatives": "hard", "normalizer": "triplets", "kind": "sigmoid",
    "pos_aggregation": "rows", "neg_aggregation": "batch", "aggregation": "rows", "l2_kind": "squared",
    "imbalance": 0.3, "entropy_weight": 0.3, "swap": True, "tau": 0.2, "reduction": "sum",
    "mining_margin": -0.5, "similarity": "dot", "backend": "dense", "validate": True, "bias": False,
    "triplets_per_anchor": "distance_weighted", "seed": 5, "nonzero_loss_cutoff": 1.1,
}  # fmt: skip
FORMS = {
    "variant": {"PNPLoss": "Dq", "GeneralizedLiftedStructureLoss": "paper"},
    "form": {"CircleLoss": "global", "NPairsLoss": "ovo", "ContrastiveBayesianLoss": "sqrt"},
}
# Arguments that act only beside another one.
BESIDE: dict[tuple[str, str], dict[str, object]] = {
    ("TripletMarginLoss", "k"): {"negatives": "nearest"},
    ("TripletMarginLoss", "seed"): {"triplets_per_anchor": 2},
    ("NPairsLoss", "l2_kind"): {"l2_reg": 0.1},
    ("PNPLoss", "b"): {"variant": "Ib"},
    ("PNPLoss", "alpha"): {"variant": "Dq"},
    ("MarginLoss", "nu"): {"learn_beta": True},
    **{
        ("MarginLoss", name): {"triplets_per_anchor": "distance_weighted"}
        for name in ("cutoff", "nonzero_loss_cutoff", "seed")
    },
}
# Losses of one similarity.
ONE_SIMILARITY = {
    "ArcFaceLoss", "SubCenterArcFaceLoss", "HistogramLoss", "SphereFaceLoss", "LargeMarginSoftmaxLoss",
}  # fmt: skip


def parameters(module: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Arguments of a module's constructor, inherited ones last."""
    found: dict[str, inspect.Parameter] = {}
    for cls in module.__mro__:
        if cls is nn.Module:
            break
        if "__init__" in vars(cls):
            for p in inspect.signature(cls.__init__).parameters.values():
                if p.name != "self" and p.kind in KINDS:
                    found.setdefault(p.name, p)
    if "sub_centers" in found or "centers_per_class" in found or module.__name__ in ONE_PROXY:
        found.pop("proxies_per_class", None)
    if module.__name__ == "ProxyNCAPlusPlusLoss":  # its temperature is the scale
        found.pop("softmax_scale")
    if module.__name__ == "ArcFaceLoss":
        found.pop("proxies_per_class")
    if module.__name__ == "CLIPLoss":
        found.pop("symmetric")
    return found


def needed(module: type[nn.Module]) -> dict[str, object]:
    wanted = parameters(module)
    return {k: v for k, v in NEEDED.items() if k in wanted and wanted[k].default is inspect.Parameter.empty}


def build(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(3)
    module = losses.MODULES[name]
    built = module(**{**needed(module), **arguments}).double().eval()
    if isinstance(built, losses.SmoothedCrossEntropyLoss):  # starts at 0
        nn.init.normal_(built.weight)
        if built.bias is not None:
            nn.init.normal_(built.bias)
    return built


def function_of(name: str) -> str:
    joined = name.removesuffix("Loss").lower()
    return NAMES.get(name) or next(f for f in losses.FUNCTIONS if f.replace("_", "") == joined)


def batch(name: str) -> dict[str, Tensor]:
    """Arguments of a module's call."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(SIZE, DIM, generator=g, dtype=torch.float64)
    x[1] = 2 * x[0]  # of one class
    values = {
        "embeddings": x,
        "labels": torch.tensor([0] * 8 + [1] * 5 + [2] * 4 + [3] * 3 + [4] * 3 + [5]),
        "ref_emb": x + 0.5 * torch.randn(SIZE, DIM, generator=g, dtype=torch.float64),
        "teacher": torch.randn(SIZE, 7, generator=g, dtype=torch.float64),
        "probabilities": torch.rand(SIZE, 4, generator=g, dtype=torch.float64).softmax(1),
    }
    taken = inspect.signature(losses.MODULES[name].forward).parameters
    if "indices_tuple" in taken:
        return {k: values[k] for k in ("embeddings", "labels")}
    return {k: v for k, v in values.items() if k in taken}


def as_function(name: str, module: nn.Module, arguments: dict[str, object]) -> dict[str, object]:
    """A module's arguments as its function takes them, with its learned values."""
    given = {k: v for k, v in arguments.items() if k not in OWN}
    function = losses.FUNCTIONS[function_of(name)]
    if isinstance(module, losses.InfoNCELoss):
        scale = 1 / float(given.pop("temperature", 0.07))  # type: ignore[arg-type]
        given["scale"] = module.log_scale.exp()  # of float32
        assert given["scale"].item() == pytest.approx(scale, rel=1e-6)
        given.setdefault("symmetric", name == "CLIPLoss")
    if isinstance(module, losses.SigLIPLoss):
        scale = given.pop("init_scale", 10.0)
        given["scale"] = module.log_scale.exp()
        assert given["scale"].item() == pytest.approx(scale, rel=1e-6)
        given["bias"] = module.bias
        assert module.bias.item() == pytest.approx(given.pop("init_bias", -10.0), rel=1e-6)
    if "proxies" in inspect.signature(function).parameters:
        given["proxies"] = module.all_proxies
    if isinstance(module, losses.SmoothedCrossEntropyLoss):
        given["bias"] = module.bias
    if isinstance(module, losses.SOPRCLoss):
        given |= {"prior": module.prior, "table": module.table}
    if isinstance(module, losses.MarginLoss):
        given["beta"] = module.beta
        assert module.beta.item() == pytest.approx(arguments.get("beta", 1.2), rel=1e-6)
    if name == "SubCenterArcFaceLoss":
        given.setdefault("sub_centers", 3)
    for argument, value in needed(losses.MODULES[name]).items():
        if argument not in OWN:
            given.setdefault(argument, value)
    return given


def result(call: Callable[..., Tensor], arguments: dict[str, object]) -> tuple[Tensor, Tensor] | str:
    """Value and gradient; or the argument that is refused."""
    x = arguments["embeddings"].clone().requires_grad_()  # type: ignore[attr-defined]
    try:
        value = call(**{**arguments, "embeddings": x})
    except ValueError as error:
        return str(error).split(":")[0]
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def both(name: str, **arguments: object) -> tuple[object, object]:
    """What module and function make of the same arguments."""
    given = batch(name)
    try:
        module = build(name, **arguments)
    except ValueError as error:
        refused, module = str(error).split(":")[0], build(name)
    else:
        refused = None
    function = as_function(name, module, arguments)
    return refused or result(module, given), result(F.__dict__[function_of(name)], given | function)


def other(name: str, argument: str, default: object) -> object:
    if argument in FORMS:
        return FORMS[argument].get(name, "released")
    if isinstance(default, bool):
        return not default
    if argument == "similarity" and (kept := build(name).similarity) != "cosine":
        return "raw_squared_distance" if "distance" in kept else "cosine"
    if argument in OTHER:
        return OTHER[argument]
    assert isinstance(default, (int, float)), f"give OTHER a value for {argument}"
    return default + 1 if isinstance(default, int) and default >= 2 else default * 1.3 + 0.01


def same(found: object, true: object) -> bool:
    if isinstance(found, str) or isinstance(true, str):
        return found == true
    return all(torch.equal(a, b) for a, b in zip(found, true, strict=True))  # type: ignore[call-overload]


@pytest.mark.parametrize("name", losses.MODULES)
def test_a_module_is_its_function_with_defaults(name):
    found, true = both(name)
    assert not isinstance(found, str) and found[1].any()
    assert same(found, true)
    function = inspect.signature(losses.FUNCTIONS[function_of(name)]).parameters
    for argument, p in parameters(losses.MODULES[name]).items():
        told = function.get(argument)
        if told is None or argument in OWN | {"similarity", "bias"} or name == "SubCenterArcFaceLoss":
            continue
        assert told.default == p.default, argument


ARGUMENTS = [
    (name, argument)
    for name, module in losses.MODULES.items()
    for argument in parameters(module)
    if argument not in OWN
]


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_a_module_is_its_function_with_other_arguments(name, argument):
    """Each argument arrives, and has an effect."""
    default = parameters(losses.MODULES[name])[argument].default
    given = other(name, argument, NEEDED.get(argument) if default is inspect.Parameter.empty else default)
    if given is None:
        return
    if argument == "similarity" and name in ONE_SIMILARITY:
        with pytest.raises(ValueError, match=r"^similarity: expected"):
            build(name, similarity=given)(**batch(name))
        return
    beside = BESIDE.get((name, argument), {})
    found, true = both(name, **{argument: given}, **beside)
    assert same(found, true)
    if argument not in ("backend", "validate", "sort"):
        assert not same(found, both(name, **beside)[0])


NUMBERS = [
    (name, argument)
    for name, module in losses.MODULES.items()
    for argument, p in parameters(module).items()
    if (isinstance(p.default, (int, float)) and not isinstance(p.default, bool))
    or p.default is inspect.Parameter.empty
]


@pytest.mark.parametrize("wrong", ["two", None, [3.5]], ids=str)
@pytest.mark.parametrize("name, argument", NUMBERS)
def test_what_is_not_a_number_is_refused_by_name(name, argument, wrong):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        build(name, **{argument: wrong})


def test_wrong_numbers_of_functions():
    x, y = torch.randn(6, 4), torch.arange(6) // 2
    for wrong in ("2", None, [1.0]):
        with pytest.raises(ValueError, match=r"^alpha: expected a positive number, got"):
            F.multi_similarity(x, y, alpha=wrong)
        with pytest.raises(ValueError, match=r"^prior: expected a number in"):
            F.soprc(x, y, prior=wrong)


@pytest.mark.parametrize("name", losses.MODULES)
def test_a_module_shows_its_arguments(name):
    """Also those that are strings; what is learned instead is a parameter."""
    shown = repr(build(name))
    for argument, p in parameters(losses.MODULES[name]).items():
        if p.default is None or callable(p.default) or argument in ("class_counts", "num_classes"):
            continue
        if argument in ("beta", "bias", "temperature", "init_scale", "init_bias") and not hasattr(
            build(name), argument
        ):
            continue
        if argument in ("prior_mul", "beta", "bias"):  # kept in a buffer or parameter
            continue
        value = NEEDED[argument] if p.default is inspect.Parameter.empty else p.default
        match = re.search(rf"\b{argument}=('[^']*'|\([^)]*\)|[^,)]*)", shown)
        assert match, argument
        told = match[1].strip("'")
        assert told == str(value) or float(told) == value, argument


def test_the_shown_value_is_the_given_one():
    shown = repr(losses.TripletMarginLoss(negatives="hard", similarity="raw_distance"))
    assert "negatives='hard'" in shown and "similarity='raw_distance'" in shown
    assert "margin=0.7, scale=8" in repr(losses.CosFaceLoss(3, 4, margin=0.7, scale=8))


# ---- explain


@pytest.mark.parametrize("name", losses.FUNCTIONS)
def test_every_function_is_explained(name):
    said = fastdml.explain(name, 64, 32, 16)
    assert (said.rows, said.columns, said.dimension) == (64, 32, 16) and said.executor


@pytest.mark.parametrize("name", losses.MODULES)
def test_every_module_is_explained(name):
    module = build(name)
    said = fastdml.explain(module, 64)
    assert said.loss == module.description().name and said.executor


def test_the_explained_function_has_its_defaults():
    """Proxies are not made for it: these would take 2 TB."""
    assert fastdml.explain("cos_face", 8, 10**6, 1 << 19).loss == "softmax_cross_entropy"
    assert fastdml.explain("n_pairs_mc", 8).loss == "n_pair"


# ---- arguments of single losses


def test_calibration_takes_a_similarity():
    g = batch("CalibrationLoss")
    x, y = g["embeddings"], g["labels"]
    found = F.calibration(x, y, similarity="dot")
    assert found == F.contrastive(x, y, pos_margin=0.9, neg_margin=0.6, similarity="dot")
    assert found != F.calibration(x, y)


def test_roadmap_sorts_and_has_one_reduction():
    g = batch("ROADMAPLoss")
    assert losses.ROADMAPLoss(sort=True).description().sort is True
    torch.testing.assert_close(losses.ROADMAPLoss(sort=True)(**g), losses.ROADMAPLoss(sort=False)(**g))
    with pytest.raises(ValueError, match=r"^reduction: expected 'mean'"):
        F.roadmap(**g, reduction="none")


def test_one_k_is_several():
    g = batch("RecallAtKLoss")
    assert losses.RecallAtKLoss(k=2)(**g) == losses.RecallAtKLoss(k=(2,))(**g) == F.recall_at_k(**g, k=2)
    for wrong in (0, None, "two", 1.5, (1.5,)):
        with pytest.raises(ValueError, match=r"^k: expected"):
            F.recall_at_k(**g, k=wrong)
