"""What the tests of the engine share: ragged problems, one call for every loss, poisoned memory."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor

import fastdml
from fastdml import losses
from fastdml.engine import library, similarity
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.engine.dispatch import EXECUTORS
from fastdml.engine.loss import RowLoss
from fastdml.engine.registry import LOSSES
from fastdml.language import compile

ROOT = Path(__file__).resolve().parent.parent
COMPILED = library.load() is not None
FUNCTORS = frozenset(library.functors()) if COMPILED else frozenset()
BACKENDS = [name for name in EXECUTORS if name in ("dense", "chunked") or (name == "native" and COMPILED)]
EXAMPLES = [
    pytest.param(description, id=f"{name}{k}")
    for name, loss in sorted(LOSSES.items())
    for k, description in enumerate(loss.examples())
]
# One a loss, for what is not about its parameters; and one of each kind, for what is not about losses:
# one set, several proxies a class as columns, proxies as rows, a teacher, a sweep of the columns first, and
# learnt scalars.
FIRST_EXAMPLES = list({p.values[0].name: p for p in reversed(EXAMPLES)}.values())[::-1]
KINDS = [
    next(p for p in EXAMPLES if p.values[0].name == name and (name != "info_nce" or p.values[0].presweep()))
    for name in (
        "multi_similarity", "soft_triple", "proxy_anchor", "listwise_distillation", "info_nce", "siglip",
    )
]
needs_compiled = pytest.mark.skipif(not COMPILED, reason="the compiled library is not installed")


def _isas() -> list[str]:
    """The compiled instruction sets that this processor has."""
    if not COMPILED:
        return []
    from fastdml import _C

    usable, active = [], _C.active_isa()
    for name in _C.isas():
        try:
            _C.force_isa(name)
        except ValueError:
            continue
        usable.append(name)
    _C.force_isa(active)
    return usable


ISAS = _isas()


@pytest.fixture(scope="session")
def compiled_quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache of printed functors for all tests that ask for it, which are compiled with less effort."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDML_CACHE", str(tmp_path_factory.mktemp("cache")))
        build = compile._build()
        patch.setattr(build, "ROWS", build.ROWS.replace("-O3", "-O1"))
        yield


@pytest.fixture
def isa(request):
    """Runs the compiled functors of the instruction set that is the parameter."""
    from fastdml import _C

    active = _C.active_isa()
    _C.force_isa(request.param)
    yield request.param
    _C.force_isa(active)


def pytest_configure(config):
    config.addinivalue_line("markers", "unpoisoned: leaves uninitialised memory as it is")


@pytest.fixture(autouse=True)
def clean_state(request):
    """Poisons uninitialised memory with NaN (what nobody wrote shows), and restores global settings.

    Tests that measure memory or time carry the mark `unpoisoned`.
    """
    threads = torch.get_num_threads()
    if "unpoisoned" not in request.keywords:
        torch.use_deterministic_algorithms(True)  # fill_uninitialized_memory is on by default
    fastdml.set_workspace(None)  # forgets kept buffers
    yield
    torch.use_deterministic_algorithms(False)
    fastdml.set_workspace(None)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Case:
    """Samples with labels, and other candidates (`ref`) or None."""

    x: Tensor  # [B, D]
    y: Tensor  # [B]
    ref: Tensor | None = None  # [N, D]
    ref_y: Tensor | None = None  # [N]

    def to(self, dtype: torch.dtype) -> Case:
        ref = None if self.ref is None else self.ref.to(dtype)
        return dataclasses.replace(self, x=self.x.to(dtype), ref=ref)


def _embeddings(count: int, dim: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    # Lengths from 0.2 to 5: nothing may rely on normalised rows.
    return torch.randn(count, dim, generator=g, dtype=torch.float64) * (
        torch.rand(count, 1, generator=g, dtype=torch.float64) * 4.8 + 0.2
    )


def _labels(sizes: list[int], seed: int, names: list[int] | None = None) -> Tensor:
    """Labels of classes of the given sizes, shuffled."""
    names = names or [7 * k - 5 for k in range(len(sizes))]
    y = torch.cat([torch.full((n,), name) for n, name in zip(sizes, names, strict=True)])
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]


def _ragged() -> Case:
    """37 rows: classes of 1, 2, 3, 6, 11 and 13, one singleton more; D = 19."""
    y = _labels([1, 2, 3, 6, 11, 13, 1], 1)
    return Case(_embeddings(37, 19, 2), y)


def _wide() -> Case:
    """Many small classes, more columns than lanes of several vectors; D = 5."""
    return Case(_embeddings(131, 5, 3), _labels([4] * 30 + [1] * 11, 4))


def _big_labels() -> Case:
    big = 2**62
    names = [-big, big - 1, -1, 0, 2**32, 2**32 + 1]  # the last differ from 0, 1 beyond 32 bits only
    return Case(_embeddings(21, 8, 5), _labels([3, 4, 2, 5, 4, 3], 6, names))


def _duplicates() -> Case:
    """Equal rows within a class and across classes."""
    x = _embeddings(23, 7, 7)
    x[5] = x[4]
    x[9] = 3 * x[4]
    x[20:22] = x[1:3]
    return Case(x, _labels([6, 6, 6, 5], 8))


def _zeros() -> Case:
    """Embeddings of length 0, one of each kind of row."""
    x = _embeddings(18, 6, 9)
    y = _labels([5, 5, 7, 1], 10)
    x[3], x[11] = 0, 0
    x[int((y == y[(y[:, None] == y).sum(1) == 1]).nonzero()[0])] = 0
    return Case(x, y)


def _one_class() -> Case:
    """No negatives at all."""
    return Case(_embeddings(13, 9, 11), torch.full((13,), 4))


def _all_singletons() -> Case:
    """No positives at all."""
    return Case(_embeddings(17, 3, 12), torch.arange(17) * 3 - 20)


def _single() -> Case:
    return Case(_embeddings(1, 4, 13), torch.tensor([9]))


def _one_dimension() -> Case:
    return Case(_embeddings(11, 1, 14), _labels([4, 4, 3], 15))


def _reference() -> Case:
    """Other candidates: some rows without positives there, one class only there, a shared row."""
    x, ref = _embeddings(15, 11, 16), _embeddings(29, 11, 17)
    ref[4] = x[2]
    return Case(x, _labels([5, 5, 4, 1], 18, [3, -8, 40, 99]), ref, _labels([9, 12, 8], 19, [3, -8, 11]))


def _reference_of_one() -> Case:
    return Case(_embeddings(6, 5, 20), _labels([3, 3], 21), _embeddings(1, 5, 22), torch.tensor([-5]))


def _long() -> Case:
    """More rows than the smallest workspace holds at once."""
    return Case(_embeddings(301, 13, 23), _labels([4] * 60 + [1] * 21 + [40], 24))


def long_rows(columns: int, rows: int) -> Case:
    """Rows of many candidates, six a class, all with positives. On CUDA four warps share a row from 1,025
    columns on, and eight from 4,097."""
    g = torch.Generator().manual_seed(columns)
    x, ref = (torch.randn(n, 24, generator=g, dtype=torch.float64) for n in (rows, columns))
    of_columns = torch.randint(0, columns // 6, (columns,), generator=g)
    return Case(x, of_columns[torch.randint(0, columns, (rows,), generator=g)], ref, of_columns)


CASES = {
    f.__name__.strip("_"): f
    for f in (
        _ragged, _wide, _big_labels, _duplicates, _zeros, _one_class, _all_singletons, _single,
        _one_dimension, _reference, _reference_of_one, _long,
    )
}


# Those that are small enough to be tried with everything.
@pytest.fixture(params=[name for name in CASES if name != "long"])
def case(request) -> Case:
    return CASES[request.param]()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the engine is called with; the first five may want a gradient."""

    anchors: Tensor
    candidates: Tensor | None
    scalars: Tensor | None
    row_values: Tensor | None
    col_values: Tensor | None
    anchor_labels: Tensor
    candidate_labels: Tensor | None
    teacher: list[Tensor]
    biased: bool  # col_values hold a bias, the only value of columns with a gradient

    def leaves(self) -> dict[str, Tensor]:
        """Copies of the inputs that may want a gradient, by name."""
        names = ["anchors", "candidates", "scalars", "row_values"] + ["col_values"] * self.biased
        found = {name: getattr(self, name) for name in names}
        return {name: x.clone().requires_grad_() for name, x in found.items() if x is not None}

    def loss(self, description: RowLoss, backend: str, reduction: str = "mean", **leaves: Tensor) -> Tensor:
        """The loss, with `leaves` in place of the inputs of those names.

        Without a compiled functor "native" is what runs instead.
        """
        if backend == "native" and not compiled(description):
            backend = "chunked"
        return evaluate(self.call(description, backend, reduction, **leaves))

    def call(self, description: RowLoss, backend: str, reduction: str = "mean", **fields: object) -> Call:
        """The call of the engine, with `fields` in place of the inputs of those names."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | fields
        given.pop("biased")
        return Call(description, backend=backend, reduction=reduction, **given)


def inputs(description: RowLoss, case: Case) -> Inputs:
    """A case as a loss takes it.

    For a loss over proxies they are drawn: as many for each class as the loss takes, and for three
    classes that no sample has. The samples are their candidates, or their anchors. A teacher is drawn
    where the loss has one.
    """
    anchors, candidates, rows, columns = case.x, case.ref, case.y, case.ref_y
    if "proxies" in (description.rows, description.columns):
        _, dense = case.y.unique(return_inverse=True)
        classes = int(dense.max()) + 4
        order = torch.randperm(classes, generator=torch.Generator().manual_seed(classes))
        owner = torch.arange(classes).repeat_interleave(description.columns_per_class)
        proxies = _embeddings(len(owner), case.x.shape[1], 1000 + classes).to(case.x.dtype)
        anchors, candidates, rows, columns = proxies, case.x, owner, order[dense]
        if description.columns == "proxies":
            anchors, candidates, rows, columns = candidates, anchors, columns, rows
    m, n = len(anchors), len(anchors if candidates is None else candidates)
    values = {k: v.double() for k, v in description.example_values(m, n).items()}
    teacher = []
    if description.teacher_similarity is not None:
        sizes = [m] if candidates is None else [m, n]
        teacher = [_embeddings(size, 8, 52 + k) for k, size in enumerate(sizes)]
    return Inputs(
        anchors, candidates,
        *(values.get(name) for name in ("scalars", "row_values", "col_values")),
        rows, columns, [t.to(anchors.dtype) for t in teacher], description.column_bias,
    )


def on_device(given: Inputs, device: str) -> Inputs:
    """The inputs of a call on another device, drawn on the CPU so that they are the same ones."""

    def move(x: object) -> object:
        if isinstance(x, list):
            return [move(t) for t in x]
        return x.to(device) if isinstance(x, Tensor) else x

    names = [f.name for f in dataclasses.fields(given)]
    return dataclasses.replace(given, **{name: move(getattr(given, name)) for name in names})


def of_rows(description: RowLoss) -> bool:
    """Whether the loss is a sum over rows that may be weighted one by one. (Rows whose columns were
    swept before share their derivatives.)"""
    return (description.outputs == 1 or description.counted) and description.presweep() is None


def of_batch(description: RowLoss) -> bool:
    """Whether a row's loss depends on other rows of the batch, be it through a count."""
    counts = type(description).count_scalars is not RowLoss.count_scalars
    return counts or not of_rows(description)


def reductions(description: RowLoss) -> tuple[str, ...]:
    """Row losses exist only where the loss is a sum over rows."""
    return ("mean", "sum", "nonzero", "none") if of_rows(description) else ("mean", "sum")


ROW_EXAMPLES = [p for p in EXAMPLES if of_rows(p.values[0])]


def call(
    description: RowLoss,
    given: Case | Inputs,
    backend: str,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> list[Tensor]:
    """[loss, gradients of the inputs that may have one] through autograd."""
    if isinstance(given, Case):
        given = inputs(description, given)
    leaves = given.leaves()
    value = given.loss(description, backend, reduction, **leaves)
    upstream = None if reduction != "none" else torch.ones_like(value) if weight is None else weight
    return [value.detach(), *torch.autograd.grad(value, list(leaves.values()), upstream)]


class Stretched(torch.nn.Module):
    """A user's distance that is learnt."""

    is_inverted = False

    def __init__(self, p: float = 2.0) -> None:
        super().__init__()
        self.p = p
        self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.scale * torch.cdist(a, b, p=self.p)


def distance(found: Tensor, true: Tensor, scale: float = 1e-3) -> float:
    """Largest error relative to the largest true value, or to `scale` where that is larger.

    A gradient may be a sum of terms that cancel exactly (the smooth AP of a batch of one class is 1;
    the cosine of two single numbers is +-1), and then its rounding error is relative to the terms.
    """
    found, true = found.double(), true.double()
    # A NaN is larger than no bound: a reference that holds one would agree with anything.
    assert torch.isfinite(true).all(), "the reference is not finite"
    assert torch.isfinite(found).all(), "not finite"
    return float((found - true).abs().max() / true.abs().max().clamp(min=scale))


@contextlib.contextmanager
def rounded_products(dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """The dense form with every product that becomes a distance off by up to D units in the last place.

    That is the bound on the rounding of such a product. Where products become a distance near 0, whose
    root or logarithm is taken, it moves results far.
    """
    plain = similarity.products
    g = torch.Generator().manual_seed(seed)

    def off(a: Tensor, c: Tensor) -> Tensor:
        noise = torch.rand(len(a), len(c), generator=g, dtype=torch.float64) * 2 - 1
        return plain(a, c) * (1 + a.shape[1] * torch.finfo(dtype).eps * noise)

    similarity.products = off
    try:
        yield
    finally:
        similarity.products = plain


def assert_agree(
    description: RowLoss,
    given: Case | Inputs,
    found: list[Tensor],
    true: list[Tensor],
    bound: float = 1e-11,
    reduction: str = "mean",
    weight: Tensor | None = None,
    scales: list[float] | None = None,
) -> None:
    """Results of `call` in float64 agree to `bound`, or to what rounding of the products explains."""
    sizes = scales or [1e-3] * len(true)
    apart = [k for k, (f, t) in enumerate(zip(found, true, strict=True)) if distance(f, t, sizes[k]) >= bound]
    if not apart:
        return
    exact = call(description, given, "dense", reduction, weight)
    for k in apart:
        moved = 0.0
        for seed in range(3):
            with rounded_products(torch.float64, seed):
                other = call(description, given, "dense", reduction, weight)[k]
            moved = max(moved, float((other - exact[k]).abs().max()))
        assert float((found[k] - true[k]).abs().max()) <= 2 * moved, f"result {k}"


def scales(description: RowLoss, case: Case, reduction: str = "mean") -> list[float]:
    """Natural sizes of what `call` returns, for `distance`: those of the terms, where they cancel.

    For normalised embeddings a gradient's terms are those of the same loss without normalisation, at
    the normalised embeddings, over their length; normalisation then cancels what lies along an
    embedding, which may be all of it. And where classes leave nothing to optimise, the weights of
    pairs cancel: so the gradient for other classes counts too.
    """
    given = inputs(description, case)
    found = [1e-3] * (1 + len(given.leaves()))
    raw = {"cosine": "dot", "distance": "raw_distance", "squared_distance": "raw_squared_distance"}
    if description.similarity not in raw:
        return found
    plain = dataclasses.replace(description, similarity=raw[description.similarity])

    def halved(y: Tensor | None) -> Tensor | None:
        return None if y is None else y.div(2, rounding_mode="floor") * 2 + torch.arange(len(y)) % 2

    for variant in (case, dataclasses.replace(case, y=halved(case.y), ref_y=halved(case.ref_y))):
        given = inputs(description, variant)
        names = [name for name in ("anchors", "candidates") if getattr(given, name) is not None]
        norms = {name: getattr(given, name).double().norm(dim=1, keepdim=True) for name in names}
        unit = {name: getattr(given, name).double() / n.where(n > 0, 1) for name, n in norms.items()}
        given = dataclasses.replace(given, **unit, teacher=[t.double() for t in given.teacher])
        terms = call(plain, given, "dense", reduction)[1:]
        for k, name in enumerate(names):
            shortest = norms[name][norms[name] > 0].min()
            found[k + 1] = max(found[k + 1], float(terms[k].abs().max() / shortest))
    return found


NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# Parameters of losses that have no default.
PARAMETERS = {"margin": 0.4, "Tn": 10.0}


def fill(function: Callable[..., object], **known: object) -> dict[str, object]:
    """The arguments without defaults of a function, from those we know."""
    required = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind in NAMED and p.name != "self"
    ]
    unknown = [name for name in required if name not in known]
    assert not unknown, f"{function.__qualname__}: give conftest.calls() a value for {unknown}"
    return {name: known[name] for name in required}


# How many proxies a class has; the last is an argument of all losses over proxies.
SEVERAL = ("centers_per_class", "sub_centers", "proxies_per_class")


def calls(case: Case) -> dict[str, tuple[Callable[..., Tensor], dict[str, object]]]:
    """Every module and every functional form, as (callable, arguments), by name."""
    _, dense = case.y.unique(return_inverse=True)
    classes, (_, dim) = int(dense.max()) + 1, case.x.shape
    g = torch.Generator().manual_seed(0)
    values = {
        **PARAMETERS,
        **sets(case.x, dense),
        "proxies": torch.randn(classes, dim, generator=g).to(case.x.dtype),
    }
    found: dict[str, tuple[Callable[..., Tensor], dict[str, object]]] = {}
    for name, module in losses.MODULES.items():
        torch.manual_seed(0)
        sizes = {"num_classes": classes, **dict.fromkeys(("embedding_size", "descriptors_dim", "l"), dim)}
        built = module(**fill(module.__init__, **sizes, **PARAMETERS))
        arguments = fill(module.forward, **values)
        # labels have a default only because index tuples may replace them
        if set(arguments) <= {"embeddings", *PARAMETERS}:
            arguments["labels"] = dense
        arguments = further(name, arguments, values)
        # A table of scores moves with every call in training mode: two calls would differ.
        moves = name in ("SOPRCLoss", "DynamicSoftMarginLoss")
        found[name] = (built.to(case.x.dtype).train(not moves), arguments)
    for name, function in losses.FUNCTIONS.items():
        arguments = fill(function, **values)
        several = inspect.signature(function).parameters
        several = next((p for n in SEVERAL if (p := several.get(n)) is not None), None)
        if several is not None:
            arguments["proxies"] = torch.randn(classes * several.default, dim, generator=g).to(case.x.dtype)
        if set(arguments) <= {"embeddings", *PARAMETERS}:
            arguments["labels"] = dense
        found[name] = (function, further(name, arguments, values))
    return found


def sets(x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What losses are called with, by name, for embeddings x [B, D] in classes."""
    g = torch.Generator().manual_seed(1)
    rows, dim = x.shape

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(x)

    return {
        "embeddings": x,
        "labels": labels,
        "ref_emb": drawn(rows, dim),
        "teacher": drawn(rows, 8),
        "probabilities": drawn(rows, 5).softmax(1),
        "candidates": drawn(rows, 4, dim),
        "teacher_scores": drawn(rows, 4),
        "scores": drawn(rows),
        "queries": tokens(x),
        "documents": drawn(rows, 3, dim),
    }


def tokens(x: Tensor) -> Tensor:
    """Two of each row."""
    return torch.stack((x, x.flip(1)), 1)


def replaced(arguments: dict[str, object], x: Tensor) -> dict[str, object]:
    """The arguments of `calls` with other embeddings."""
    if "queries" in arguments:
        return {**arguments, "queries": tokens(x)}
    return {**arguments, "embeddings": x}


def batch_of(module: torch.nn.Module | type, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What a loss is called with, its embeddings, which are those of x or made of them, first."""
    values = sets(x, labels)
    taken = inspect.signature(module.forward).parameters
    name = (module if isinstance(module, type) else type(module)).__name__
    if name in ("VICRegLoss", "ManifoldLoss"):
        return further(name, {"embeddings": x}, values)
    if "indices_tuple" in taken:
        taken = ("embeddings", "labels")
    return {k: values[k] for k in taken if k in values}


def further(name: str, arguments: dict[str, object], values: dict[str, object]) -> dict[str, object]:
    """The arguments of losses that take no labels."""
    if name in ("VICRegLoss", "vicreg"):
        return {k: values[k] for k in ("embeddings", "ref_emb")}
    if name in ("ManifoldLoss", "manifold"):
        arguments = {k: v for k, v in arguments.items() if k != "labels"}
        return {**arguments, "indices_tuple": values["labels"]}
    return arguments


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(description: RowLoss) -> bool:
    return description.functor_name in FUNCTORS


def not_compiled(given) -> bool:
    """Whether the parameters of a test ask for a functor that there is none of."""
    parameters = {} if given is None else given.params
    described = [v for v in parameters.values() if isinstance(v, RowLoss)]
    return parameters.get("backend") == "native" and not all(map(compiled, described))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Losses without a compiled functor are tried on the other executors only."""
    missing = [item for item in items if not_compiled(getattr(item, "callspec", None))]
    if missing:
        config.hook.pytest_deselected(items=missing)
        items[:] = [item for item in items if item not in set(missing)]


# The same examples in every run: a red run can be repeated.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
