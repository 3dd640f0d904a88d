"""The symmetric schedule: one set, each pair visited once for both its ends."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from described import binomial_deviance, circle, contrastive, multi_similarity, sup_con
from test_row_loss import hinge

import fastdml
from fastdml.engine import library
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.language import (
    absolute,
    amax,
    amin,
    compile,
    count,
    exp,
    log_sum_exp,
    mean,
    relu,
    softplus,
    sqrt,
    square,
    sum,
    where,
)
from fastdml.language.described import Described, DescribedLoss, positive_fields
from fastdml.language.graph import S
from fastdml.language.printed import headers, streams
from fastdml.language.row import trace
from fastdml.language.stream import StreamForm, _interval
from fastdml.losses.one_set import of_defaults

pytestmark = [
    pytest.mark.skipif(library.load() is None, reason="no compiled library"),
    pytest.mark.usefixtures("compiled_quickly"),
]


@pytest.fixture
def workspace():
    yield fastdml.set_workspace
    fastdml.set_workspace(None)


def two_passes(p, scale):
    """The second reads statistics of the first, and positives only."""
    level = log_sum_exp(scale * p.s, where=p.negative)
    spread = amax(p.s, where=p.pair) - amin(p.s, where=p.pair)
    return sum(softplus(level - scale * p.s), where=p.positive) + where(
        count(where=p.pair) > 0, spread, 0.0
    )


def far_and_near(p, margin):
    """Of distances: hinges, with their hardest and a level."""
    level = log_sum_exp(-3 * p.s, where=p.negative, one=True)
    push = mean(relu(margin + amin(p.s, where=p.negative) - p.s), where=p.negative)
    pull = sum(square(relu(p.s - 0.2 * margin)), where=p.positive)
    return where(count(where=p.negative) > 0, pull + push + level, 0.0)


def taught(p, temperature):
    """Distils a teacher's distances, with weights that come from them."""
    theirs = p.teacher / temperature
    level = log_sum_exp(-theirs, where=p.pair)
    return sum(exp(-theirs - level) * square(p.s - p.teacher), where=p.pair) + mean(
        absolute(p.s - 0.3 * theirs), where=p.negative
    )


def kept(p, scale):
    """With the sample itself among its positives."""
    level = log_sum_exp(scale * p.s, where=p.pair)
    return level - mean(scale * p.s, where=p.positive)


def of_values(p, scale):
    """Values of rows and of candidates."""
    z = scale * p.s * p.row_value(0) + p.column(0)
    level = log_sum_exp(z, where=p.negative)
    others = sum(sqrt(1 + square(p.s - p.column(1))), where=p.positive)
    return others + where(count(where=p.negative) > 0, softplus(level), 0.0) * p.row_value(1)


MINED = {"alpha": 2.0, "beta": 30.0, "base": 0.5, "max_positive": 0.999, "epsilon": 0.1}
LEARNT = torch.nn.Parameter(torch.tensor(9.0))
MADE = {
    "multi_similarity": (multi_similarity, "cosine", MINED),
    "binomial_deviance": (
        binomial_deviance,
        "cosine",
        {"alpha": 2.0, "beta": 5.0, "base": 0.5, "max_positive": 9.0},
    ),
    "sup_con": (sup_con, "cosine", {"scale": LEARNT, "pull": 1.0, "push": 1.0}),
    "two_passes": (two_passes, "cosine", {"scale": 8.0}),
    "hinge": (hinge, "dot", {"margin": 1.1}),
    # Exponents too far apart for a bound, in double precision too: the row's largest is found first.
    "circle": (circle, "cosine", {"m": 0.4, "gamma": 200.0}),
    **{
        f"of_{kind}": (far_and_near, kind, {"margin": 1.3})
        for kind in (
            "distance", "squared_distance", "raw_distance", "raw_squared_distance", "ball_distance",
        )
    },
}


def made(name):
    function, similarity, parameters = MADE[name]
    return fastdml.row_loss(function, similarity, parameters=parameters).double()


def gradients(loss, backend, n, reduction="mean", dtype=torch.float64, together=False):
    """together: whether classes lie together, so that blocks reach no further than they do."""
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 9, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    y = torch.randint(0, max(1, n // 5), (n,), generator=g)
    y = y.sort().values if together else y
    if n > 4:
        y[0] = 10_000  # a row without positives
        with torch.no_grad():
            x[2] = 0.0  # no direction
            x[4] = x[3]
            x[5::3] *= 0.2  # within the unit ball
    loss.backend, loss.reduction = backend, reduction
    value = loss(x, y)
    weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
    leaves = [x, *loss.parameters()]
    return [value.detach(), *torch.autograd.grad((value * (weight + 3)).sum(), leaves)]


@pytest.mark.parametrize("name", MADE)
def test_equals_the_dense_specification(name, workspace):
    workspace(64 << 10)  # many trapezoids
    loss = made(name)
    for n in (1, 2, 5, 16, 67, 300):
        for reduction in ("mean", "none") if n in (5, 300) else ("sum",):
            for together in (False, True) if n == 300 else (False,):
                found, exact = (
                    gradients(loss, backend, n, reduction, together=together)
                    for backend in ("symmetric", "dense")
                )
                for a, b in zip(found, exact):
                    assert torch.isfinite(a).all()
                    size = max(1.0, float(b.abs().max()))
                    assert float((a - b).abs().max()) <= 2e-10 * size, f"{n} {reduction} {together}"


def test_in_single_precision_it_is_as_exact_as_rows():
    loss = fastdml.row_loss(multi_similarity, parameters=MINED)
    exact = gradients(loss, "dense", 700)
    rows = gradients(loss, "native", 700, dtype=torch.float32)
    found = gradients(loss, "symmetric", 700, dtype=torch.float32)
    for a, b, c in zip(found, rows, exact):
        assert (a - c).abs().max() <= 3 * (b - c).abs().max() + 1e-6 * c.abs().max()


def test_the_same_bits_at_every_run_and_thread():
    loss = fastdml.row_loss(multi_similarity, parameters=MINED)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            first, second = (
                gradients(loss, "symmetric", 333, dtype=torch.float32) for _ in range(2)
            )
            assert all(torch.equal(a, b) for a, b in zip(first, second))
            exact = gradients(loss, "dense", 333)
            assert (first[1] - exact[1]).abs().max() < 1e-5 * exact[1].abs().max()
    finally:
        torch.set_num_threads(before)


def test_chosen_by_size_and_explained():
    sums = fastdml.row_loss(sup_con, parameters={"scale": 10.0, "pull": 1.0, "push": 1.0})
    # Two sweeps for statistics, unless one is among positives that lie together; and where weights are
    # symmetric, rows need two products as well.
    mined = fastdml.row_loss(multi_similarity, parameters=MINED)
    hinges = fastdml.row_loss(hinge, parameters={"margin": 0.2})
    for loss, n, taken in (
        (sums, 1024, "symmetric"), (sums, 512, "native"), (mined, 2048, "symmetric"),
        (mined, -2048, "symmetric"), (mined, 1024, "native"), (hinges, 1024, "native"),
    ):  # fmt: skip
        # Below 0: labels that lie far apart.
        x, y = torch.randn(abs(n), 8), torch.arange(n) // 4 if n > 0 else torch.arange(-n) % 512
        assert re.search(rf"runs on\s+{taken}", str(fastdml.explain(loss, x, y)))
    mined.backend = "symmetric"
    text = str(fastdml.explain(mined, torch.randn(600, 8), torch.arange(600) // 4))
    assert "each pair once for both its ends: 1 sweep for statistics and 2 among positives, then" in text
    text = str(fastdml.explain(mined, torch.randn(600, 8), torch.arange(600) % 150))
    assert "and 2 among positives, put together first, then" in text


def test_losses_of_the_library():
    """Only once this machine has the form, which is asked for."""
    x, y = samples(1100)
    loss = fastdml.losses.MultiSimilarityLoss(alpha=2.125)
    assert re.search(r"runs on\s+native", str(fastdml.explain(loss, x, y)))
    compared(loss.calls(x, y)[0], x)
    assert re.search(r"runs on\s+symmetric", str(fastdml.explain(loss, x, y)))


@pytest.mark.parametrize("temperature", [0.05, 0.01])  # one window of exponents, and two
def test_a_loss_of_nothing_is_exactly_nothing(temperature):
    """... in one sweep: it decides over how many rows a mean goes."""
    g = torch.Generator().manual_seed(0)
    x = torch.eye(30).repeat_interleave(2, 0) + 0.07 * torch.randn(60, 30, generator=g)
    x[:40] += 1.0  # near to each other: some of these have a loss
    y = torch.arange(60) // 2
    y[59] = 99
    rows = [
        fastdml.losses.SupConLoss(temperature, reduction="none", backend=backend)(x, y)
        for backend in ("symmetric", "native")
    ]
    assert 0 < (rows[1] == 0).sum() < 58
    assert torch.equal(rows[0] == 0, rows[1] == 0)
    torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-6)
    text = str(fastdml.explain(fastdml.losses.SupConLoss(temperature, backend="symmetric"), x, y))
    assert "1 sweep for statistics" in text


@pytest.mark.parametrize("learnt", [False, True])
def test_exponents_lie_elsewhere_where_a_parameter_has_changed(learnt):
    """What is taken out of them is found once for steps that are alike; not for others."""
    x, y = samples()
    for temperature in (0.1, 1e-3, 0.1):  # exp(1000) is out of range
        t = torch.tensor(temperature, dtype=torch.float64, requires_grad=learnt)
        loss = fastdml.losses.SupConLoss(t if learnt else temperature)
        compared(loss.calls(x, y)[0], x, *[t] * learnt)


@pytest.mark.parametrize("scale", [60.0, 155.0, 260.0])  # of one window of exponents, and of more
def test_a_one_is_not_lost_among_what_is_too_small_for_the_type(scale):
    """Exponentials have a least value, of which there are many in a row."""

    def push(p, scale):
        return log_sum_exp(scale * (p.s - 0.5), where=p.negative, one=True)

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1100, 256, generator=g), torch.arange(1100)
    found = []
    for backend, kind in (("symmetric", torch.float32), ("dense", torch.float64)):
        loss = fastdml.row_loss(push, parameters={"scale": scale}, backend=backend)
        z = x.to(kind).requires_grad_()
        value = loss(z, y)
        found.append((value.detach().double(), torch.autograd.grad(value, z)[0].double()))
    for mine, true in zip(*found, strict=True):
        assert float((mine - true).abs().max()) <= 1e-7


RANGES = [lambda s: -3 * (s - 0.25), lambda s: (s - 2) * (s + 0.5), lambda s: 40 / (s - 1.5) - s]


@pytest.mark.parametrize("function", RANGES)
def test_ranges_hold_what_lies_in_them(function):
    """Whole, and piece by piece, which is nearer to the truth."""
    edges = np.linspace(-1, 1, 65)
    low, high = _interval(function(S), {"s": [(edges[:-1], edges[1:])]})
    within = function(np.linspace(edges[:-1], edges[1:], 9))
    assert (low <= within + 1e-12).all() and (within <= high + 1e-12).all()
    least, most = _interval(function(S), {"s": [(-1.0, 1.0)]})
    assert least <= low.min() + 1e-12 and high.max() <= most + 1e-12
    assert high.max() - low.min() <= 1.1 * np.ptp(within)


def compared(call, *leaves, backend="symmetric", tolerance=1e-10):
    """Value and gradients of a call by both executors."""
    found = []
    for name in (backend, "dense"):
        value = evaluate(call.replace(backend=name))
        weight = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view_as(value)
        found.append((value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)))
    for a, b in zip(*found):
        assert torch.isfinite(a).all()
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))


def samples(n=70, d=9, dtype=torch.float64):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), torch.randint(0, n // 5, (n,), generator=g)


@pytest.mark.parametrize("similarity", ["cosine", "distance", "raw_squared_distance"])
@pytest.mark.parametrize("teacher", ["distance", "raw_distance", "label_distance"])
def test_a_teacher_of_one_set(similarity, teacher, workspace):
    workspace(64 << 10)
    x, y = samples(150)
    theirs = torch.linspace(0, 5, 300, dtype=torch.float64).sin().view(150, 2)
    loss = DescribedLoss(taught, {"temperature": 0.4}, teacher, similarity=similarity)
    compared(Call(loss, x, anchor_labels=y, teacher=(theirs,), reduction="none"), x)


@pytest.mark.parametrize("similarity", ["cosine", "distance"])
def test_samples_among_their_own_positives(similarity, workspace):
    workspace(64 << 10)

    class Kept(DescribedLoss):
        self_pair = "keep"

    x, y = samples(150)
    loss = Kept(kept, {"scale": 5.0}, similarity=similarity)
    compared(Call(loss, x, anchor_labels=y, reduction="none"), x)


def of_values_of_positives(p, scale):
    """... of which a pass among positives reads some."""
    level = log_sum_exp(scale * p.s + p.column(0), where=p.negative)
    pulls = sum(p.column(1) * softplus(level - scale * p.s * p.row_value(0)), where=p.positive)
    return p.row_value(1) * where(count(where=p.negative) > 0, pulls, 0.0)


@pytest.mark.parametrize("function", [of_values, of_values_of_positives])
@pytest.mark.parametrize("backend", ["symmetric", "native", "chunked"])
def test_derivatives_by_values_of_rows_and_candidates(backend, function, workspace):
    workspace(64 << 10)
    x, y = samples(150)
    g = torch.Generator().manual_seed(1)
    rows, columns = (torch.rand(*s, generator=g, dtype=torch.float64) for s in ((150, 2), (3, 150)))
    rows, columns = rows.requires_grad_(), columns.requires_grad_()
    weight = torch.linspace(0, 3, 150, dtype=torch.float64)
    loss = DescribedLoss(function, {"scale": 5.0})
    for reduction in ("none", "mean"):
        call = Call(
            loss, x, anchor_labels=y, reduction=reduction, row_values=rows, col_values=columns,
            row_weight=weight,
        )  # fmt: skip
        compared(call, x, rows, columns, backend=backend)


def pairs(n, share, symmetric=False):
    """(a1, p, a2, n) of a random share of all pairs of two, of which none has both kinds."""
    kind = torch.rand(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    kind = torch.minimum(kind, kind.t()) if symmetric else kind
    kind.fill_diagonal_(1.0)
    positives = kind < share / 3
    negatives = (kind < share) & ~positives
    return *positives.nonzero(as_tuple=True), *negatives.nonzero(as_tuple=True)


@pytest.mark.parametrize("name", ["multi_similarity", "two_passes", "of_distance"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_index_tuples(name, symmetric, workspace):
    workspace(64 << 10)
    x, _ = samples(150)
    call = Call(made(name).description(), x, pairs=pairs(150, 0.3, symmetric), reduction="none")
    compared(call, x)


def test_pairs_of_two_kinds_are_left_to_torch():
    x, _ = samples(20)
    i = torch.arange(5)
    loss = made("multi_similarity")
    loss.backend = "symmetric"
    with pytest.raises(ValueError, match="as positive and as negative"):
        loss(x, None, (i, i + 5, i, i + 5))
    loss.backend = "auto"
    assert torch.isfinite(loss(x, None, (i, i + 5, i, i + 5)))


def test_near_pairs_and_rows_out_of_range():
    """Distances of near pairs from differences; rows brought into range, or their mean taken out."""
    x, y = samples(90, dtype=torch.float32)
    with torch.no_grad():
        x[1] = x[0] + 1e-5
        x[2] = x[0]
        offset = x + 300
    far = x.detach() * 1e25
    for similarity, embeddings in (("distance", x), ("raw_distance", offset), ("cosine", far)):
        loss = DescribedLoss(far_and_near, {"margin": 1.1}, similarity=similarity)
        values = []
        for backend in ("symmetric", "native"):
            z = embeddings.detach().clone().requires_grad_()
            call = Call(loss, z, anchor_labels=y, reduction="none", backend=backend)
            value = evaluate(call)
            (d,) = torch.autograd.grad(value.sum(), z)
            values.append((value.detach(), d))
        # Derivatives of near pairs keep the rounding of products.
        for (a, b), some in zip(zip(*values), (slice(None), slice(3, None))):
            assert torch.isfinite(b).all() and b[some].abs().max() > 0
            bound = float(3e-5 * b[some].abs().max())
            torch.testing.assert_close(a[some], b[some], rtol=3e-5, atol=bound)


def test_statistics_are_found_once_for_several_outputs(monkeypatch):
    """A loss of several outputs visits for them and for the weights: two sweeps, not three."""

    class Ratio(DescribedLoss):
        outputs = 2

        def combine(self, outputs, reduction):
            return outputs[:, 0].sum() / outputs[:, 1].sum().clamp(min=1)

        def spec(self, rows):
            return Described.spec(self, rows)

    from fastdml.engine.executors.symmetric import _Ends

    def hinges(p, margin):
        return sum(relu(p.s - margin), where=p.negative), count(where=p.negative & (p.s > margin))

    visits, visit = [], _Ends.visit
    monkeypatch.setattr(_Ends, "visit", lambda self, *a: visits.append(a[3]) or visit(self, *a))
    x, y = samples()
    compared(Call(Ratio(hinges, {"margin": 0.1}), x, anchor_labels=y), x)
    assert visits == [0, 1]


def test_says_why_not():
    x, y = samples(20)
    taken = DescribedLoss(taught, {"temperature": 0.4}, "cosine")
    call = Call(taken, x, anchor_labels=y, teacher=(x, x.clone()), backend="symmetric")
    with pytest.raises(ValueError, match="the teacher's anchors and candidates are two sets"):
        evaluate(call)
    with pytest.raises(ValueError, match="has no streamed form"):
        fastdml.losses.FastAPLoss(backend="symmetric")(x, y)
    with pytest.raises(ValueError, match="may draw"):
        evaluate(
            Call(
                made("hinge").description(), x, predicate=lambda i, j: (i[:, None] < j,) * 2,
                backend="symmetric",
            )
        )  # fmt: skip


def test_not_of_two_sets():
    loss = fastdml.row_loss(hinge, parameters={"margin": 0.1}, backend="symmetric")
    x, y = torch.randn(20, 6), torch.arange(20) // 4
    with pytest.raises(ValueError, match="two sets"):
        loss(x, y, None, torch.randn(9, 6), torch.arange(9))


@pytest.mark.skipif(library.load().active_isa() == "baseline", reason="rows serve this processor")
def test_steps_at_the_defaults_were_compiled_with_the_library(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))  # nothing was compiled on this machine
    made = {n.partition("_stream32")[0]: key for n, (key, _) in streams(of_defaults()).items()}
    assert {"sup_con", "nt_xent", "multi_similarity", "circle"} <= {*made}
    assert "lifted_structure" not in made  # a presweep, which costs more than rows
    assert "multi_similarity_epsilon" in made
    assert {key for name, key in made.items() if name in library.functors()} == {*library.streams()}
    loss = fastdml.losses.MultiSimilarityLoss()
    x, y = torch.randn(1024, 16, requires_grad=True), torch.arange(1024) // 4
    assert "symmetric" in str(fastdml.explain(loss, x, y))
    found = torch.autograd.grad(loss(x, y), x)[0]
    loss.backend = "native"
    torch.testing.assert_close(found, torch.autograd.grad(loss(x, y), x)[0])
    assert not list(tmp_path.iterdir())


def test_they_compile_without_a_warning(tmp_path):
    """The library is built where a user looks on."""
    lines = ['#include "cpu/stream_instantiate.h"']
    for name, (_, text) in streams(of_defaults()).items():
        (tmp_path / f"{name}.h").write_text(text)
        lines.append(f'#include "{name}.h"')
    (tmp_path / "all.cpp").write_text("\n".join(lines))
    flags = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
    flags += ["-DFASTDML_ISA=plain", "-DFASTDML_VECTOR_BYTES=16", f"-I{compile.sources()}"]
    command = [*compile.compiler(), *flags, "all.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]


def test_contrastive_of_several_outputs_is_combined():
    """Weights of several outputs come through the rows' numbers: the engine's own combined loss."""
    made = trace(contrastive, ("pos_margin", "neg_margin", "sign"))
    text = StreamForm(made, "contrastive", {}, 4).text
    assert "row.weight(0, 4)" in text and "reads(Pass<1>) { return 2; }" in text


def test_what_is_printed_does_not_depend_on_what_was_traced_before():
    """The build and whoever looks for what was built are two processes."""
    asked = (
        "import json; from fastdml.language.printed import streams; "
        "from fastdml.losses.one_set import of_defaults; print(json.dumps(streams(of_defaults())))"
    )
    made = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    headers()  # traces every form
    assert json.loads(made.stdout) == {k: list(v) for k, v in streams(of_defaults()).items()}


@pytest.mark.parametrize("loss", [fastdml.losses.InstanceLoss, fastdml.losses.BalancedNTXentLoss])
def test_a_scale_above_0_is_known_to_be_where_a_loss_has_another_default(loss):
    assert "temperature" in positive_fields(type(loss().description()))


def test_a_loss_of_nothing_is_nothing_whatever_its_scale():
    """Rows that are alone in their class: exactly 0, in one precision as in the other."""
    x, y = samples(1024, 64, torch.float32)
    y = torch.arange(1024)
    y[:100] //= 2
    rows = fastdml.losses.InstanceLoss(reduction="none", backend="symmetric")(x, y)
    assert int((rows > 0).sum()) == 100 and int((rows < 0).sum()) == 0


@pytest.mark.parametrize("together", [False, True])
def test_a_loss_that_is_weighed_after_its_first_visit(together):
    """In float32 its exponents take a pass among positives, for which classes are put together first."""
    loss = fastdml.losses.CircleLoss(form="global")
    found, exact = (
        gradients(loss, backend, 300, dtype=torch.float32, together=together)
        for backend in ("symmetric", "chunked")
    )
    for a, b in zip(found, exact):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
