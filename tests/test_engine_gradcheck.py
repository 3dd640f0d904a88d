"""Gradients against finite differences, in float64, of every executor: the dense form included."""

import pytest
import torch
from conftest import (
    BACKENDS,
    CASES,
    EXAMPLE_REDUCTIONS,
    EXAMPLES,
    ROW_EXAMPLES,
    Case,
    call,
    inputs,
)


def small(name: str) -> Case:
    """A corner of a case without equal rows: finite differences take a pass per number."""
    case = CASES[name]()
    x, y = case.x[:12, :6], case.y[:12]
    return Case(x, y) if case.ref is None else Case(x, y, case.ref[5:16, :6], case.ref_y[5:16])


def function(description, given, backend, reduction, weight=None):
    """The loss as a function of its leaves, and the leaves."""
    if isinstance(given, Case):
        given = inputs(description, given)
    leaves = given.leaves()

    def value(*tensors):
        found = given.loss(description, backend, reduction, **dict(zip(leaves, tensors)))
        return found if weight is None else (found * weight).sum()

    return value, list(leaves.values())


def leaves_derivatives_out(description):
    if description.detaches:
        pytest.skip("its gradient is not that of finite differences, by definition")


@pytest.mark.parametrize("name", ["ragged", "reference"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description,reduction", EXAMPLE_REDUCTIONS)
def test_gradcheck(description, reduction, backend, name):
    """The whole Jacobian with reduction "none"."""
    leaves_derivatives_out(description)
    value, leaves = function(description, small(name), backend, reduction)
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", ROW_EXAMPLES)
def test_weights_of_rows(description, backend):
    """Zero and negative ones too."""
    leaves_derivatives_out(description)
    given = inputs(description, small("ragged"))
    weight = torch.linspace(-1, 2, len(given.anchors), dtype=torch.float64)
    weight[1] = 0
    value, leaves = function(description, given, backend, "none", weight)
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_factor_on_a_scalar(description, backend):
    value, leaves = function(description, small("ragged"), backend, "mean")
    once = torch.autograd.grad(value(*leaves), leaves)
    scaled = torch.autograd.grad(-3 * value(*leaves), leaves)
    for a, b in zip(once, scaled):
        torch.testing.assert_close(b, -3 * a, rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "description,reduction", [p for p in EXAMPLE_REDUCTIONS if p.values[1] in ("mean", "none")]
)
def test_a_kept_graph_gives_the_same_again(description, reduction, backend):
    """Whatever the caller does to a gradient he was given (x.grad accumulates in place)."""
    value, leaves = function(description, small("ragged"), backend, reduction)
    true = torch.autograd.grad(value(*leaves).sum(), leaves)
    kept = value(*leaves)
    upstream = torch.ones_like(kept)
    for turn in (1, 2, 3):
        kept.backward(upstream, retain_graph=True)
        for leaf, t in zip(leaves, true):
            torch.testing.assert_close(leaf.grad, turn * t, rtol=1e-14, atol=0)
    for leaf in leaves:
        leaf.grad.zero_()
    kept.backward(upstream)
    for leaf, t in zip(leaves, true):
        torch.testing.assert_close(leaf.grad, t, rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "description", [p for p in EXAMPLES if p.values[0].rows == p.values[0].columns == "samples"]
)
def test_one_tensor_as_embeddings_and_reference(description, backend):
    """Both gradients arrive in it, and then a row's pair with itself counts."""
    case = small("ragged")
    given = inputs(description, Case(case.x, case.y, case.x.clone(), case.y))
    _, d_x, d_ref, *_ = call(description, given, backend)
    x = case.x.clone().requires_grad_()
    given.loss(description, backend, anchors=x, candidates=x).backward()
    torch.testing.assert_close(x.grad, d_x + d_ref, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_gradient_flows_into_what_made_the_embeddings(description, backend):
    leaves_derivatives_out(description)
    given = inputs(description, small("ragged"))

    def value(weight):
        return given.loss(description, backend, anchors=given.anchors @ weight @ weight.t())

    g = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 4, dtype=torch.float64, generator=g).requires_grad_()
    assert torch.autograd.gradcheck(value, [weight], eps=1e-6, atol=2e-5, rtol=1e-4)
