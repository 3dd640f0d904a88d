"""Gradients against finite differences, in float64, of every executor: the dense form included."""

import pytest
import torch
from conftest import BACKENDS, CASES, EXAMPLES, Case, call, engine_arguments

from fastdml.engine import autograd
from fastdml.engine.registry import handle


def small(name: str) -> Case:
    """A corner of a case: finite differences take a pass per number."""
    case = CASES[name]()
    ref = None if case.ref is None else case.ref[:11, :6]
    return Case(case.x[:12, :6], case.y[:12], ref, None if ref is None else case.ref_y[:11])


def function(description, case, backend, reduction, weight=None):
    anchors, candidates, rows, columns = engine_arguments(description, case)

    def value(*leaves):
        found = autograd.row_loss(
            leaves[0], leaves[1] if len(leaves) > 1 else None, rows, columns,
            loss=handle(description), backend=backend, reduction=reduction,
        )
        return found if weight is None else (found * weight).sum()

    return value, [x.requires_grad_() for x in (anchors, candidates) if x is not None]


@pytest.mark.parametrize("reduction", ["mean", "sum", "nonzero", "none"])
@pytest.mark.parametrize("name", ["ragged", "reference"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_gradcheck(description, backend, name, reduction):
    value, leaves = function(description, small(name), backend, reduction)
    # The whole Jacobian with reduction "none"; upstream gradients that gradcheck draws otherwise.
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=2e-5, rtol=1e-4, fast_mode=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_upstream_gradient(description, backend):
    """Weights of rows, zero and negative ones too, and a factor on a scalar."""
    case = small("ragged")
    rows = engine_arguments(description, case)[0].shape[0]
    weight = torch.linspace(-1, 2, rows, dtype=torch.float64)
    weight[1] = 0
    value, leaves = function(description, case, backend, "none", weight)
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=2e-5, rtol=1e-4)
    value, leaves = function(description, case, backend, "mean")
    once = torch.autograd.grad(value(*leaves), leaves)
    scaled = torch.autograd.grad(-3 * value(*leaves), leaves)
    for a, b in zip(once, scaled):
        torch.testing.assert_close(b, -3 * a, rtol=1e-14, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_a_kept_graph_gives_the_same_again(description, backend, reduction):
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
def test_one_tensor_as_embeddings_and_reference(backend):
    """Both gradients arrive in it, and then a row's pair with itself counts."""
    description, case = EXAMPLES[0].values[0], small("ragged")
    twice = Case(case.x, case.y, case.x.clone(), case.y)
    _, d_x, d_ref = call(description, twice, backend)
    x = case.x.clone().requires_grad_()
    autograd.row_loss(x, x, case.y, case.y, loss=handle(description), backend=backend).backward()
    torch.testing.assert_close(x.grad, d_x + d_ref, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_flows_into_what_made_the_embeddings(backend):
    description, case = EXAMPLES[0].values[0], small("ragged")
    layer = torch.nn.Linear(6, 5).double()

    def value(weight):
        z = torch.nn.functional.linear(case.x, weight, layer.bias)
        return autograd.row_loss(z, None, case.y, None, loss=handle(description), backend=backend)

    assert torch.autograd.gradcheck(value, [layer.weight], eps=1e-6, atol=2e-5, rtol=1e-4)
