"""Derivatives: of the dense form against finite differences, and what autograd makes of them.

Other executors equal the dense form to 1e-11 (test_engine_executors.py), so they have its derivatives.
"""

import pytest
import torch
from conftest import BACKENDS, CASES, EXAMPLES, Case, call, inputs, of_rows

# What is not about a loss: one set, and two.
SOME = [
    next(p for p in EXAMPLES if p.values[0].name == name) for name in ("multi_similarity", "proxy_anchor")
]


def small(name: str) -> Case:
    """A corner of a case without equal rows: finite differences take a pass per number."""
    case = CASES[name]()
    x, y = case.x[:12, :6], case.y[:12]
    return Case(x, y) if case.ref is None else Case(x, y, case.ref[5:16, :6], case.ref_y[5:16])


def function(description, given, backend, reduction):
    """The loss as a function of its leaves, and the leaves."""
    if isinstance(given, Case):
        given = inputs(description, given)
    leaves = given.leaves()

    def value(*tensors):
        return given.loss(description, backend, reduction, **dict(zip(leaves, tensors)))

    return value, list(leaves.values())


@pytest.mark.parametrize("name", ["ragged", "reference"])
@pytest.mark.parametrize("description", EXAMPLES)
def test_gradcheck(description, name):
    """The mean over two sets; of one set the whole Jacobian, where there are row losses."""
    if description.detaches:
        pytest.skip("its gradient is not that of finite differences, by definition")
    of_one_set = "none" if of_rows(description) else "sum"
    reduction = of_one_set if name == "ragged" else "mean"
    value, leaves = function(description, small(name), "dense", reduction)
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", SOME)
def test_factor_on_a_scalar(description, backend):
    value, leaves = function(description, small("ragged"), backend, "mean")
    once = torch.autograd.grad(value(*leaves), leaves)
    scaled = torch.autograd.grad(-3 * value(*leaves), leaves)
    for a, b in zip(once, scaled):
        torch.testing.assert_close(b, -3 * a, rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("description", SOME)
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
def test_one_tensor_as_anchors_and_candidates(backend):
    """Both gradients arrive in it; that no row is its own copy then is what the call says."""
    description, case = SOME[0].values[0], small("ragged")
    given = inputs(description, Case(case.x, case.y, case.x.clone(), case.y))
    _, d_x, d_ref, *_ = call(description, given, backend)
    x = case.x.clone().requires_grad_()
    given.loss(description, backend, anchors=x, candidates=x).backward()
    torch.testing.assert_close(x.grad, d_x + d_ref, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_flows_into_what_made_the_embeddings(backend):
    description = SOME[0].values[0]
    given = inputs(description, small("ragged"))

    def value(weight):
        return given.loss(description, backend, anchors=given.anchors @ weight @ weight.t())

    g = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 4, dtype=torch.float64, generator=g).requires_grad_()
    assert torch.autograd.gradcheck(value, [weight], eps=1e-6, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_upstream_factor_comes_before_the_rounding(backend, reduction, dtype):
    """A scaled loss in half precision: of long embeddings the gradient alone is subnormal there."""
    description, case = SOME[0].values[0], CASES["ragged"]()
    narrow = Case((1000 * case.x).to(dtype), case.y)
    x = narrow.x.float().requires_grad_()
    wide = inputs(description, narrow).loss(description, backend, reduction, anchors=x)
    true = 2**16 * torch.autograd.grad(wide.sum(), x)[0]
    x = narrow.x.requires_grad_()
    value = inputs(description, narrow).loss(description, backend, reduction, anchors=x)
    (found,) = torch.autograd.grad(2**16 * value.sum(), x)
    assert found.dtype == dtype and true.abs().median() < 1
    torch.testing.assert_close(found.float(), true, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
