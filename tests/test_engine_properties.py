"""What must hold for any batch, over batches that hypothesis draws."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from conftest import BACKENDS, EXAMPLES, FIRST_EXAMPLES, Case, call, distance, inputs, of_batch
from test_own_copies import FORMS, build, step

from fastdml import functional as F

BACKEND = BACKENDS[-1]
# Forms that take no second set, or no function.
REFUSED = {
    "LiftedStructureLoss": ("indices_tuple: ",),
    "triplets, swapped": ("indices_tuple: ",),
    **dict.fromkeys(("NPairsLoss", "N-pairs, all"), ("ref_emb: ", "indices_tuple: ")),
}
# The fixture that poisons memory is the same for every example; time differs with the machine's load.
SETTINGS = hypothesis.settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
SAMPLES = [p for p in EXAMPLES if p.values[0].rows == p.values[0].columns == "samples"]


@st.composite
def batches(draw, least: int = 1) -> Case:
    """1 to 40 rows of dimension 2 to 9 in up to 8 classes, any of which may be single or all."""
    labels = draw(st.lists(st.integers(-4, 3), min_size=least, max_size=40))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(len(labels), draw(st.integers(2, 9)), generator=g, dtype=torch.float64)
    return Case(x, torch.tensor(labels))


def with_teacher_of(description) -> bool:
    return description.teacher_similarity is not None


@pytest.mark.parametrize("description", FIRST_EXAMPLES)
@SETTINGS
@hypothesis.given(case=batches())
def test_executors_agree(description, case):
    true = call(description, case, "dense")
    for backend in BACKENDS[1:]:
        for t, f in zip(true, call(description, case, backend)):
            assert distance(f, t, 1e-1) < 1e-11


@pytest.mark.parametrize("description", SAMPLES)
@SETTINGS
@hypothesis.given(case=batches(), seed=st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter(description, case, seed):
    """What comes with the samples moves along."""
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(seed))
    given = inputs(description, case)
    other = dataclasses.replace(
        given,
        anchors=given.anchors[order],
        anchor_labels=given.anchor_labels[order],
        row_values=None if given.row_values is None else given.row_values[order],
        col_values=None if given.col_values is None else given.col_values[:, order],
        teacher=[t[order] for t in given.teacher],
    )
    value, gradient, *_ = call(description, given, BACKEND)
    moved, moved_gradient, *_ = call(description, other, BACKEND)
    # Logits of up to 64 cancel in a softmax's loss: their rounding is 1e-14 of them, whatever is left.
    assert distance(moved, value, 1e-1) < 1e-12
    assert distance(moved_gradient, gradient[order], 1e-1) < 1e-11


@pytest.mark.parametrize("description", SAMPLES)
@SETTINGS
@hypothesis.given(case=batches(), names=st.permutations([-(2**63), 2**63 - 1, 0, 1, -1, 2**32, 77, 5]))
def test_names_of_classes_do_not_matter(description, case, names):
    renamed = Case(case.x, torch.tensor(names)[case.y + 4])
    for a, b in zip(call(description, case, BACKEND), call(description, renamed, BACKEND)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("description", EXAMPLES)
@SETTINGS
@hypothesis.given(case=batches(), seed=st.integers(0, 1000))
def test_lengths_do_not_matter_to_a_normalised_loss(description, case, seed):
    if description.similarity not in ("cosine", "distance", "squared_distance"):
        pytest.skip("not normalised")
    g = torch.Generator().manual_seed(seed)
    length = torch.rand(len(case.x), 1, generator=g, dtype=torch.float64) * 9 + 0.1
    longer = dataclasses.replace(case, x=case.x * length)
    value, *gradients = call(description, case, BACKEND)
    scaled, *scaled_gradients = call(description, longer, BACKEND)
    assert distance(scaled, value) < 1e-11
    where = 1 if description.rows == "proxies" else 0
    assert distance(scaled_gradients[where] * length, gradients[where], 1e-1) < 1e-9
    along = (gradients[where] * case.x).sum(1)
    assert along.abs().max() < 1e-9 * (1 + gradients[where].abs().max())


@pytest.mark.parametrize("description", SAMPLES)
@SETTINGS
@hypothesis.given(case=batches(), other=batches(), cut=st.integers(1, 39))
def test_rows_against_a_reference_are_independent(description, case, other, cut):
    """The sum over a batch is the sum over its parts; every pair counts."""
    if of_batch(description) or with_teacher_of(description):
        pytest.skip("not a sum over rows")
    d = min(case.x.shape[1], other.x.shape[1])
    ref = {"ref": other.x[:, :d], "ref_y": other.y}
    cut = min(cut, len(case.x))
    whole = Case(case.x[:, :d], case.y, **ref)
    parts = [Case(whole.x[part], whole.y[part], **ref) for part in (slice(cut), slice(cut, None))]
    if description.example_values(1, 1).keys() & {"row_values", "col_values"}:
        pytest.skip("the values would have to be cut too")
    value, d_x, d_ref, *_ = call(description, whole, BACKEND, "sum")
    found = [call(description, part, BACKEND, "sum") for part in parts if len(part.x)]
    assert distance(sum(f[0] for f in found), value) < 1e-11
    assert distance(torch.cat([f[1] for f in found]), d_x, 1e-1) < 1e-11
    assert distance(sum(f[2] for f in found), d_ref, 1e-1) < 1e-10


@pytest.mark.parametrize("form", [f for f in FORMS if "drawn" not in f])
@hypothesis.settings(SETTINGS, max_examples=4)
@hypothesis.given(case=batches(least=2), seed=st.integers(0, 1000))
def test_own_pairs_by_tensor_by_index_and_by_function(form, case, seed):
    """The same value and gradient, whether a function calls a sample its own positive or not."""
    loss = build(form, "chunked")
    loss.backend = "auto"
    x, y = case.x.clone().requires_grad_(), case.y + 4
    true = step(loss, [x], y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    moved, place = case.x[order].requires_grad_(), order.argsort()
    of_function = {"labels": y} if form == "SOPRCLoss" else {}

    def relation(with_own, columns):
        def masks(i, j):
            same = y[i][:, None] == y[columns[j]]
            return same if with_own else same & (i[:, None] != columns[j]), ~same

        return masks

    here = torch.arange(len(y))
    ways = {
        "tensor": lambda: step(loss, [x], y, None, x, y),
        "index": lambda: step(loss, [x, moved], y, None, moved, y[order], own=place),
        "function": lambda: step(loss, [x], indices_tuple=relation(seed % 2, here), **of_function),
        "function of two sets": lambda: step(
            loss, [x, moved], indices_tuple=relation(seed % 2, order), ref_emb=moved, own=place, **of_function
        ),
    }
    for way, found in ways.items():
        try:
            value, gradient, *others = found()
        except ValueError as error:
            assert str(error).startswith(REFUSED.get(form, ())), (way, error)
            continue
        gradient = gradient + sum(d[place] for d in others)
        assert distance(value, true[0], 1e-1) < 1e-10, way
        assert distance(gradient, true[1], 1e-1) < 1e-9, way


@SETTINGS
@hypothesis.given(case=batches(), temperature=st.sampled_from([0.003, 0.01, 0.1, 1.0]))
def test_smooth_ap_is_in_the_unit_interval(case, temperature):
    rows = F.smooth_ap(case.x, case.y, temperature=temperature, reduction="none", backend=BACKEND)
    assert (rows > -1e-12).all() and (rows < 1).all()


@SETTINGS
@hypothesis.given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_smooth_ap_of_perfect_clusters_is_zero(labels):
    y = torch.tensor(labels)
    x = torch.eye(6, dtype=torch.float64)[y]
    assert F.smooth_ap(x, y, backend=BACKEND) < 1e-12


@SETTINGS
@hypothesis.given(case=batches(), epsilon=st.sampled_from([None, -0.1, 0.0, 0.1, 3.0]))
def test_multi_similarity_is_not_negative_and_mining_only_lowers_it(case, epsilon):
    every = F.multi_similarity(case.x, case.y, reduction="none", backend=BACKEND)
    mined = F.multi_similarity(case.x, case.y, epsilon=epsilon, reduction="none", backend=BACKEND)
    assert (mined >= 0).all() and (mined <= every + 1e-12).all()


@SETTINGS
@hypothesis.given(case=batches(least=2))
def test_a_step_along_the_gradient_lowers_the_loss(case):
    for loss in (F.multi_similarity, F.smooth_ap):
        x = case.x.clone().requires_grad_()
        before = loss(x, case.y, backend=BACKEND)
        (g,) = torch.autograd.grad(before, x)
        step = 1e-7 / max(1.0, float(g.norm()))
        after = loss(case.x - step * g, case.y, backend=BACKEND)
        assert after <= before + 1e-14
