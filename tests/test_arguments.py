"""Every argument of a module has its effect, is refused by its name where it is wrong, and is shown; a
functional form is its module's; both are explained."""

import inspect
import re

import pytest
import torch
from conftest import batch_of
from torch import Tensor, nn

import fastdml
from fastdml import functional as F
from fastdml import losses
from fastdml.engine.arguments import constructor
from fastdml.losses.teacher.labelled_distances import LabelledLoss

KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
CLASSES, DIM, SIZE = 6, 5, 24
# What a module needs to be built.
NEEDED = {"num_classes": CLASSES, "margin": 0.4, "Tn": 10.0}
NEEDED |= dict.fromkeys(("embedding_size", "l", "descriptors_dim"), DIM)
# What other tests are of: what is learned or kept, and what is done to the loss as a whole.
OWN = {
    "num_classes", "embedding_size", "weight_init_func", "weight_regularizer", "weight_reg_weight",
    "embedding_regularizer", "embedding_reg_weight", "learnable", "learn_beta", "weight", "simix",
    "momentum", "update", "table_size", "class_counts", "prior_mul", "semi_variance_weight",
    "distance", "reducer", "guide_margin", "l", "descriptors_dim",
}  # fmt: skip
# Several proxies per class are a form of their own; elsewhere there is one.
# Values beside the default, where a number cannot just be made larger.
OTHER: dict[str, object] = {
    "m": 0.3, "gamma": 3.0, "epsilon": 0.2, "delta": None, "n_bins": 7, "base_temperature": 0.3,
    "sort": True, "alpha": 1.3, "prior_mul": 0.2, "smoothing": 0.2, "momentum": 0.2,
    "positives": "hard", "negatives": "hard", "normalizer": "triplets", "kind": "sigmoid",
    "pos_aggregation": "rows", "neg_aggregation": "batch", "aggregation": "rows",
    "imbalance": 0.3, "entropy_weight": 0.3, "swap": True, "tau": 0.2, "reduction": "sum",
    "mining_margin": -0.5, "similarity": "dot", "backend": "dense", "validate": True, "bias": False,
    "seed": 5, "nonzero_loss_cutoff": 1.1, "max_scale": 3.0,
    "positive_weights": "rows", "false_negative_margin": -0.2, "compare": "angle", "teacher_temperature": 0.7,
}  # fmt: skip
FORMS = {
    "variant": {"PNPLoss": "Dq", "GeneralizedLiftedStructureLoss": "paper"},
    "form": {"CircleLoss": "global", "NPairsLoss": "ovo", "ContrastiveBayesianLoss": "sqrt"},
    "triplets_per_anchor": {"TripletMarginLoss": 2, "MarginLoss": "distance_weighted"},
    "k": {"TripletMarginLoss": 2, "RecallAtKLoss": (1, 3)},
    "l2_kind": {"NPairsLoss": "squared", "PairedNPairsLoss": "norm"},
}
TOWERS = ("InfoNCELoss", "CLIPLoss")
# Arguments that act only beside another one.
BESIDE: dict[tuple[str, str], dict[str, object]] = {
    ("TripletMarginLoss", "k"): {"negatives": "nearest"},
    ("TripletMarginLoss", "seed"): {"triplets_per_anchor": 2},
    ("NPairsLoss", "l2_kind"): {"l2_reg": 0.1},
    ("PairedNPairsLoss", "l2_kind"): {"l2_reg": 0.1},
    ("SmoothedCrossEntropyLoss", "similarity"): {"bias": False},
    ("PNPLoss", "b"): {"variant": "Ib"},
    ("PNPLoss", "alpha"): {"variant": "Dq"},
    ("MarginLoss", "nu"): {"learn_beta": True},
    ("LateInteractionLoss", "max_scale"): {"temperature": 0.1},
    **{(name, "relative"): {"false_negative_margin": -0.2} for name in TOWERS},
    **{
        ("MarginLoss", name): {"triplets_per_anchor": "distance_weighted"}
        for name in ("cutoff", "nonzero_loss_cutoff", "seed")
    },
}


def parameters(module: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Arguments of a module's constructor, inherited ones last."""
    return constructor(module)


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


def batch(name: str) -> dict[str, Tensor]:
    """Arguments of a module's call."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(SIZE, DIM, generator=g, dtype=torch.float64)
    x[1] = 2 * x[0]  # of one class
    labels = torch.tensor([0] * 8 + [1] * 5 + [2] * 4 + [3] * 3 + [4] * 3 + [5])
    given = batch_of(losses.MODULES[name], x, labels)
    if "ref_emb" in given:  # near their partners
        given["ref_emb"] = x + 0.5 * torch.randn(SIZE, DIM, generator=g, dtype=torch.float64)
    return given


def result(module: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    first = next(iter(given))
    x = given[first].clone().requires_grad_()
    value = module(**{**given, first: x})
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def other(name: str, argument: str, default: object) -> object:
    if name == "ManifoldLoss" and argument == "alpha":
        return 0.6
    if argument in FORMS:
        return FORMS[argument].get(name, "released")
    if isinstance(default, bool):
        return not default
    if argument == "similarity" and (kept := build(name).similarity) != "cosine":
        return "raw_squared_distance" if "distance" in kept else "cosine"
    if argument == "negatives" and name in TOWERS:
        return ("qd", "qq")
    if argument in OTHER:
        return OTHER[argument]
    assert isinstance(default, (int, float)), f"give OTHER a value for {argument}"
    return default + 1 if isinstance(default, int) and default >= 2 else default * 1.3 + 0.01


def same(found: tuple[Tensor, ...], true: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, true, strict=True))


# One similarity; one number, whatever it is called.
ONLY = {("VICRegLoss", "similarity"), ("CoSENTLoss", "reduction"), ("AnglELoss", "reduction")}
ARGUMENTS = [
    (name, argument)
    for name, module in losses.MODULES.items()
    for argument in parameters(module)
    if argument not in OWN | {"backend", "validate", "sort"}  # the same by other ways
    if (name, argument) not in ONLY
]


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_every_argument_has_an_effect(name, argument):
    default = parameters(losses.MODULES[name])[argument].default
    given = other(name, argument, NEEDED.get(argument) if default is inspect.Parameter.empty else default)
    if given is None:
        return
    beside, x = BESIDE.get((name, argument), {}), batch(name)
    if argument == "variant" and issubclass(losses.MODULES[name], LabelledLoss):
        x["label_distance"] = x.pop("labels")[1:].double()  # acts where distances are given
    try:
        found = result(build(name, **{argument: given}, **beside), x)
    except ValueError as error:
        # Only a reduction or a similarity that the loss does not have.
        assert argument in ("reduction", "similarity") and str(error).startswith(f"{argument}: expected")
        return
    assert not same(found, result(build(name, **beside), x))


# ---- functional forms

# The module's state as the inputs of its functional form.
STATE = {
    "proxies": lambda m: m.proxies if isinstance(m, losses.ManifoldLoss) else m.all_proxies,
    "scale": lambda m: m.log_scale.exp(),
    "bias": lambda m: m.bias,
    "prior": lambda m: m.prior,
    "table": lambda m: m.table,
}
FORMS_OF = [name for name, module in losses.MODULES.items() if module.function is not None]


@pytest.mark.parametrize("name", FORMS_OF)
def test_a_functional_form_is_its_module(name):
    """The same value and gradient of the module's state; the same options with the same defaults."""
    module = losses.MODULES[name]
    function = losses.FUNCTIONS[module.function]
    assert function is getattr(F, module.function) and module.__name__ in function.__doc__
    told = inspect.signature(function).parameters
    built = build(name)
    given = {k: v for k, v in needed(module).items() if k in told}
    given |= {k: STATE[k](built) for k in module.inputs if k in told and k in STATE}
    x = batch(name)
    found = result(lambda **arguments: function(**arguments), {**x, **given})
    assert found[1].any() and same(result(built, x), found)
    replaced = {argument for names in module.inputs.values() for argument in names}
    for argument, p in constructor(module).items():
        if argument in module.inputs:
            continue
        assert (argument in told) != (argument in replaced), argument
        assert argument not in told or told[argument].default == p.default, argument


def test_functional_forms_name_what_is_wrong_with_their_arguments():
    x, y = torch.randn(4, 3), torch.arange(4) // 2
    for wrong, message in (
        (lambda: F.multi_similarity(x, y, labels=y), r"multi_similarity\(\) got 'labels' twice"),
        (lambda: F.proxy_anchor(x, y), r"proxy_anchor\(\) needs the argument 'proxies'"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()


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
        with pytest.raises(ValueError, match=r"^prior: expected a number"):
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


# Compare a batch with itself, or its rows with as many.
ONE_SET = {"n_pairs", "n_pairs_mc", "dark_rank", "rkd_distance", "rkd_angle", "pkt"}
ONE_SET |= {"listwise_self_distillation", "log_ratio", "dense_triplet", "relaxed_contrastive"}


@pytest.mark.parametrize("name", losses.FUNCTIONS)
def test_every_function_is_explained(name):
    """By its name; a name may be a description's too, which has any number of candidates."""
    columns = 64 if name in ONE_SET else 32
    said = fastdml.explain(name, 64, columns, 16)
    rows, columns = {
        "sub_center_arc_face": (64, 33),  # whole classes of three
        "n_pairs": (16, 16),  # a pair of each class
    }.get(name, (64, columns))
    assert (said.rows, said.columns, said.dimension) == (rows, columns, 16) and said.executor


@pytest.mark.parametrize("name", ["PKTLoss", "RKDAngleLoss", "LogRatioLoss", "NPairsLoss"])
def test_other_candidates_than_a_loss_takes_are_no_silence(name):
    with pytest.raises(ValueError, match=r"^(N|ref_emb): "):
        fastdml.explain(build(name), 64, 32)


def test_explaining_moves_no_state():
    """No table, no number drawn."""
    drawing = losses.TripletMarginLoss(triplets_per_anchor=2), losses.RecallAtKLoss(simix=True)
    for loss in (losses.SOPRCLoss(3), losses.NPairsLoss("all"), *drawing):
        before = {name: t.clone() for name, t in loss.state_dict().items()}
        batch = torch.randn(6, 4), torch.arange(6) // 2
        drawn = torch.get_rng_state()
        fastdml.explain(loss, 64)
        fastdml.explain(loss, *batch)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert all(torch.equal(t, before[name]) for name, t in loss.state_dict().items())
        assert loss.training


def test_mixtures_are_explained():
    """In training, where there are some: of three pairs in each of two classes of three."""
    loss, batch = losses.RecallAtKLoss(simix=True), (torch.randn(6, 4), torch.arange(6) // 3)
    assert fastdml.explain(loss, *batch).rows == 6 + 2 * 3
    assert fastdml.explain(loss, 64, per_class=4).rows == 64 + 16 * 6
    assert fastdml.explain(loss.eval(), *batch).rows == 6


def test_what_a_loss_takes_by_name_is_explained():
    x, y = torch.randn(8, 4), torch.arange(8) // 2
    said = fastdml.explain(losses.SupConLoss(), x, y, None, x.clone(), y, own=0)
    assert (said.rows, said.columns) == (8, 8)
    with pytest.raises(ValueError, match=r"^own: expected with the tensors of a batch only"):
        fastdml.explain(losses.SupConLoss(), 8, own=0)


@pytest.mark.parametrize("name", losses.MODULES)
def test_every_module_is_explained(name):
    module = build(name)
    said = fastdml.explain(module, 64)
    own = (module.function, name) if module.in_torch else (module.description().name,)
    assert said.loss in own and said.executor


def test_the_explained_function_has_its_defaults():
    """Proxies are not made for it: these would take 2 TB."""
    assert fastdml.explain("cos_face", 8, 10**6, 1 << 19).loss == "softmax_cross_entropy"
    assert fastdml.explain("n_pairs_mc", 8).loss == "n_pair"


# ---- arguments of single losses


def test_a_size_beside_a_table():
    x, y = torch.randn(6, 4), torch.arange(6) // 2
    table = torch.rand(3, 7)
    assert F.soprc(x, y, table=table) == F.soprc(x, y, table=table, table_size=7)
    with pytest.raises(ValueError, match=r"^table_size: expected 7, the scores of table, or none, got 50"):
        F.soprc(x, y, table=table, table_size=50)


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


@pytest.mark.parametrize("name", ["InfoNCELoss", "CLIPLoss", "LateInteractionLoss", "ProxyNCAPlusPlusLoss"])
def test_a_temperature_that_is_set_later(name):
    """It is what the loss is made with, though the loss keeps its inverse."""
    sizes = (3, 4) if name == "ProxyNCAPlusPlusLoss" else ()
    torch.manual_seed(0)
    loss = getattr(losses, name)(*sizes, temperature=0.5)
    torch.manual_seed(0)
    other = getattr(losses, name)(*sizes, temperature=0.25)
    loss.temperature = 0.25
    assert "temperature=0.25" in repr(loss) and loss.temperature == 0.25
    shape = (6, 2, 4) if name == "LateInteractionLoss" else (6, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    second = torch.arange(6) % 3 if sizes else x.flip(0)
    torch.testing.assert_close(loss(x, second), other(x, second))
    with pytest.raises(ValueError, match=r"^temperature: expected"):
        loss.temperature = 0
