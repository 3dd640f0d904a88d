"""fastdml.row_loss: a user's function as a loss."""

import pytest
import torch
from conftest import CASES

import fastdml
from fastdml import distances, language


def lifted(s, positive, negative):
    """The example of the documentation."""
    return (
        s.masked_fill(~negative, -9).logsumexp(1) - s.masked_fill(~positive, -9).logsumexp(1)
    ).relu()


def by_hand(fn, x, y, ref=None, ref_y=None, similarity="cosine"):
    """The same in plain torch: row losses."""
    unit = (lambda t: t) if similarity == "dot" else (lambda t: torch.nn.functional.normalize(t, dim=1))
    s = unit(x) @ unit(x if ref is None else ref).t()
    positive = y[:, None] == (y if ref_y is None else ref_y)
    negative = ~positive
    if ref is None:
        positive = positive & ~torch.eye(len(x), dtype=torch.bool)
    return fn(s, positive, negative)


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("workspace", [None, 64 << 10])
def test_equals_plain_torch(backend, reduction, similarity, workspace):
    fastdml.set_workspace(workspace)
    case = CASES["long"]()
    loss = fastdml.row_loss(lifted, similarity, reduction=reduction, backend=backend)
    x, z = case.x.clone().requires_grad_(), case.x.clone().requires_grad_()
    rows = by_hand(lifted, z, case.y, similarity=similarity)
    value = loss(x, case.y)
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-13)
    weight = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
    (value * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-9, atol=1e-12)


def test_reference():
    case = CASES["reference"]()
    leaves = [t.clone().requires_grad_() for t in (case.x, case.ref)]
    fastdml.row_loss(lifted)(leaves[0], case.y, ref_emb=leaves[1], ref_labels=case.ref_y).backward()
    plain = [t.clone().requires_grad_() for t in (case.x, case.ref)]
    by_hand(lifted, plain[0], case.y, plain[1], case.ref_y).mean().backward()
    for a, b in zip(leaves, plain):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_index_tuples():
    """The pairs of a tuple are the masks; repeats count once; a 3-tuple shares its anchors."""
    x = torch.randn(6, 4, dtype=torch.float64)

    def count(s, positive, negative):
        return (10 * positive.sum(1) + negative.sum(1)).to(s.dtype) + 0 * s.sum(1)

    loss = fastdml.row_loss(count, reduction="none")
    a, p, n = torch.tensor([0, 0, 0, 5]), torch.tensor([1, 1, 2, 4]), torch.tensor([3, 4, 4, 0])
    assert loss(x, indices_tuple=(a, p, n)).tolist() == [22, 0, 0, 0, 0, 11]
    assert loss(x, indices_tuple=(a, p, a[3:], n[3:])).tolist() == [20, 0, 0, 0, 0, 11]


def test_a_name_of_a_compiled_loss_means_nothing():
    """The user's function runs, not the functor of that name."""

    def multi_similarity(s, positive, negative):
        return (s * positive).sum(1)

    case = CASES["ragged"]()
    loss = fastdml.row_loss(multi_similarity)
    expected = by_hand(multi_similarity, case.x, case.y).mean()
    torch.testing.assert_close(loss(case.x, case.y), expected, rtol=1e-12, atol=0)
    assert "native" in fastdml.explain(loss, 8).refused


def test_two_functions_of_one_name_are_two_losses():
    case = CASES["ragged"]()
    one, two = (fastdml.row_loss(lambda s, p, n, k=k: (k * s * p).sum(1)) for k in (1, 2))
    torch.testing.assert_close(2 * one(case.x, case.y), two(case.x, case.y))


def test_a_callable_need_not_be_hashable():
    class Margin:
        __hash__ = None

        def __call__(self, s, positive, negative):
            return (s * negative).sum(1)

    case = CASES["ragged"]()
    assert torch.isfinite(fastdml.row_loss(Margin())(case.x, case.y))


def test_a_constant_loss_has_a_zero_gradient():
    x = CASES["ragged"]().x.requires_grad_()
    loss = fastdml.row_loss(lambda s, p, n: s.new_ones(len(s)))(x, CASES["ragged"]().y)
    loss.backward()
    assert loss == 1 and (x.grad == 0).all()


def test_a_function_that_returns_another_shape():
    case = CASES["ragged"]()
    for fn, got in ((lambda s, p, n: s, r"\(37, 37\)"), (lambda s, p, n: s.sum(), r"\(\)"),
                    (lambda s, p, n: None, "NoneType")):  # fmt: skip
        with pytest.raises(ValueError, match=f"fn: expected one loss per row, shape .*got {got}"):
            fastdml.row_loss(fn)(case.x, case.y)


def test_not_a_function():
    with pytest.raises(ValueError, match="fn: expected a function"):
        fastdml.row_loss("contrastive")


def test_native_cannot_be_forced():
    case = CASES["ragged"]()
    with pytest.raises(ValueError, match="backend: 'native' cannot run 'lifted'"):
        fastdml.row_loss(lifted, backend="native")(case.x, case.y)


def test_is_a_module():
    loss = fastdml.row_loss(lifted)
    assert isinstance(loss, torch.nn.Module)
    assert "reduction='mean'" in repr(loss) and not list(loss.parameters())


@pytest.mark.parametrize("backend", ["chunked", "dense"])
def test_a_parameter_of_the_function_is_refused(backend):
    """It would get no gradient, silently."""
    case = CASES["ragged"]()
    margin = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    x = case.x.clone().requires_grad_()

    def hinge(s, positive, negative):
        return ((s - margin).relu() * negative).sum(1)

    loss = fastdml.row_loss(hinge, backend=backend)
    with pytest.raises(ValueError, match="fn: 'hinge' reads a tensor that requires a gradient"):
        loss(x, case.y)
    margin.requires_grad_(False)
    loss(x, case.y).backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", ["chunked", "dense"])
def test_a_function_that_writes_into_what_it_is_given(backend):
    def writes(s, positive, negative):
        s[~negative] = -9
        negative &= s > -0.5
        return s.mul_(2).logsumexp(1) + negative.sum(1)

    def makes(s, positive, negative):
        s = s.masked_fill(~negative, -9)
        return (2 * s).logsumexp(1) + (negative & (s > -0.5)).sum(1)

    x, y = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 5
    found, true = (fastdml.row_loss(f, backend=backend) for f in (writes, makes))
    with torch.no_grad():
        assert found(x, y) == true(x, y)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for loss, leaf in zip((found, true), leaves):
        loss(leaf, y).backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_a_distance_and_a_similarity_that_is_set():
    x, y = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 5

    def fn(s, positive, negative):
        return (s * positive).sum(1) - (s * negative).sum(1)

    def described(p):
        return language.sum(p.s, where=p.positive) - language.sum(p.s, where=p.negative)

    for function in (fn, described):
        loss = fastdml.row_loss(function, distance=distances.LpDistance(), backend="chunked")
        true = fastdml.row_loss(function, "distance", backend="chunked")(x, y)
        assert loss(x, y) == true
        loss.similarity = "dot"
        assert loss(x, y) == fastdml.row_loss(function, "dot", backend="chunked")(x, y) != true


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p, power", [(2, 1), (1, 1), (3, 1), (2, 3)])
def test_distances_of_half_precision(p, power, kind):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(kind)
    distance = distances.LpDistance(p=p, power=power, normalize_embeddings=False)
    found, wide = distance(x), distance(x.float())
    assert found.dtype == kind and torch.allclose(found.float(), wide, rtol=0.02, atol=0.05)
