"""A word of the row language means the same on tensors and in every printed form."""

import pytest
import torch
from conftest import needs_compiled

import fastdml
from fastdml.language import (
    affine,
    amax,
    amin,
    cpp,
    equal,
    exp,
    graph,
    log,
    log_sum_exp,
    maximum,
    mean,
    sigmoid,
    square,
    sum,
    where,
)
from fastdml.language.row import trace
from fastdml.language.stream import windows_of

pytestmark = [pytest.mark.usefixtures("compiled_quickly"), needs_compiled]
BACKENDS = ("dense", "chunked", "native", "symmetric")

# A function, and one that says the same in other words.
ALIKE = {
    "no positive": (lambda p: sum(p.s, where=~p.positive), lambda p: sum(p.s, where=p.negative)),
    "near": (lambda p: sum(p.s, where=p.s > 0.1), lambda p: sum(p.s, where=p.pair & (p.s > 0.1))),
    "a condition of the row": (
        lambda p: sum(p.s, where=amax(p.s, where=p.pair) > 0.7),
        lambda p: where(amax(p.s, where=p.pair) > 0.7, sum(p.s, where=p.pair), 0.0),
    ),
    "all": (lambda p: sum(p.s, where=True), lambda p: sum(p.s, where=p.pair)),
    "==": (
        lambda p: sum(p.s * 2, where=p.negative & (p.s == amax(p.s, where=p.negative))),
        lambda p: sum(p.s * 2, where=p.negative & (p.s >= amax(p.s, where=p.negative))),
    ),
    "!=": (
        lambda p: sum(p.s, where=p.negative & (p.s != amax(p.s, where=p.negative))),
        lambda p: sum(p.s, where=p.negative & ~equal(p.s, amax(p.s, where=p.negative))),
    ),
    "a mask of two": (
        lambda p: sum(p.s, where=where(p.s > 0, p.positive, p.negative)),
        lambda p: sum(p.s, where=((p.s > 0) & p.positive) | (~(p.s > 0) & p.negative)),
    ),
    "a mask as a number": (
        lambda p: mean(p.s > 0, where=p.pair) + sum(p.s * p.positive, where=p.pair),
        lambda p: mean(where(p.s > 0, 1.0, 0.0), where=p.pair) + sum(p.s, where=p.positive),
    ),
    "the larger of a mask": (
        lambda p: sum(maximum(p.positive, p.s), where=p.pair),
        lambda p: sum(maximum(where(p.positive, 1.0, 0.0), p.s), where=p.pair),
    ),
}  # fmt: skip


def drawn(dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=g, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), torch.randint(0, 6, (40,), generator=g)


def stepped(function, backend, dtype=torch.float64, pairs=None, **options):
    x, y = drawn(dtype)
    value = fastdml.row_loss(function, backend=backend, **options)(x, y, pairs)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALIKE)
def test_the_same_in_other_words(name, backend):
    one, other = (stepped(f, b) for f, b in zip(ALIKE[name], (backend, "dense"), strict=True))
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", ("dense", "chunked", "symmetric"))
def test_no_mask_holds_what_a_list_leaves_out(backend):
    y = drawn()[1]
    listed = (y[:, None] == y[None]).triu(1).nonzero().unbind(1) + (y[:, None] < y[None]).nonzero().unbind(1)
    value, d = stepped(lambda p: sum(p.s, where=p.s > 0.1), backend, pairs=listed)
    truth, expected = stepped(lambda p: sum(p.s, where=p.pair & (p.s > 0.1)), "dense", pairs=listed)
    torch.testing.assert_close((value, d), (truth, expected), rtol=1e-11, atol=1e-13)
    assert value.abs() > 0.01


def test_numbers_are_no_masks():
    with pytest.raises(ValueError, match=r"^where: expected a mask of pairs, got torch.float64"):
        stepped(lambda p: sum(p.s, where=p.s), "dense")


@pytest.mark.parametrize("backend", ("native", "symmetric"))
@pytest.mark.parametrize("name", ["x0", "x1", "m1", "T", "double", "weight", "row", "v0", "sum0", "bound_0"])
def test_an_argument_may_have_any_name(name, backend):
    world = {}
    exec(
        "from fastdml.language import *\n"
        f"def fn(q, {name}):\n"
        f"    e = exp(q.s)\n"
        f"    level = log_sum_exp({name} * q.s, where=q.pair)\n"
        f"    return level + sum(e * e / (e + {name}), where=q.pair & (q.s > 0))",
        world,
    )
    found = stepped(world["fn"], backend, parameters={name: 0.7})
    torch.testing.assert_close(found, stepped(world["fn"], "dense", parameters={name: 0.7}))


@pytest.mark.parametrize("backend", ("native", "symmetric"))
@pytest.mark.parametrize(
    "function",
    [
        lambda p: log(amax(exp(20 * (p.s - 1)), where=p.negative) + 1e-30),
        lambda p: amin(square(p.s), where=p.pair) * 1e3,
        lambda p: amin(1e-7 * p.s + 0.0, where=p.pair) * 1e7,
    ],
)
def test_only_the_extreme_pair_has_its_derivative(function, backend):
    _, found = stepped(function, backend, torch.float32)
    _, expected = stepped(function, "dense")
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_a_function_may_be_long():
    """What is printed takes a time in proportion, whatever expressions have in common."""
    asked = []
    known = affine._affine
    for terms in (10, 20):
        def long(p, terms=terms):
            z = p.s
            for k in range(terms):
                z = z + 0.001 * sigmoid((k + 1) * 0.1 * p.s)
            return log_sum_exp(z, where=p.negative)

        count = 0

        def counted(*args):
            nonlocal count
            count += 1
            return known(*args)

        affine._affine = counted
        try:
            cpp.functor(fastdml.row_loss(long).description().forms.program, "long")
        finally:
            affine._affine = known
        asked.append(count)
    assert asked[1] < 3 * asked[0]

    def shared(p):
        z = p.s
        for _ in range(12):
            z = z * z / 2 + z / 10
        return log_sum_exp(z, where=p.pair)

    made = trace(shared)
    (window,) = windows_of(made, {"s": [(-1.0, 1.0)]}, 4)
    assert len(graph._shown((window, 0, False))) < 100
