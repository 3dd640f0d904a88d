"""A word of the row language means the same on tensors and in every printed form."""

import numpy as np
import pytest
import torch
from conftest import needs_compiled

import fastdml
from fastdml.language import (
    absolute,
    affine,
    amax,
    amin,
    apart,
    cos,
    count,
    cpp,
    detach,
    equal,
    exp,
    graph,
    log,
    log_sum_exp,
    lowest,
    maximum,
    mean,
    minimum,
    relu,
    rounding,
    share,
    sigmoid,
    sin,
    softplus,
    sqrt,
    square,
    sum,
    where,
)
from fastdml.language.row import trace
from fastdml.language.stream import windows_of

pytestmark = [pytest.mark.usefixtures("compiled_quickly"), needs_compiled]
BACKENDS = ("dense", "chunked", "native", "symmetric")



def summed(p, *terms):
    """A number of the row in which every term of its pairs tells."""
    found = 0.0
    for k, term in enumerate(terms):
        found = found + (0.3 + 0.1 * k) * term
    return sum(found * p.s, where=p.pair)


def of_row(p, f, *masks):
    pairs = (p.pair, p.positive, p.pair & (p.s > 2))
    return summed(p, *(f(m, where=some) for m in masks for some in pairs))


# Functions of a row and two masks, or two that are 1 where those hold, else 0.
OF_MASKS = {
    "sums and products": lambda p, m, n: summed(
        p, m + n, m + m, 1 + m, m + 0.5, p.s + m, m - n, 1 - m, p.s - m, m - 0.5, -m, m * n, m * m, 0.1 * m,
        m * p.s, m**2, m / 3, 0.7 / (1 + m), m / (2 + n), m / (2 + p.s), square(m), (m + n) * (m + n) / 3,
    ),
    "comparisons": lambda p, m, n: summed(
        p, *(where(c, 0.1, 0.7) for c in (m < n, m > 0.5, m < 0.5, m <= p.s, m >= n, m == n, m == 1, m != n)),
        *(where(c, 0.1, 0.7) for c in (equal(m, n), equal(1.0, m), equal(p.s, m), n < 1 - p.s, m > -0.5)),
    ),
    "words": lambda p, m, n: summed(
        p, exp(m), log(1 + m), sqrt(m), absolute(m), softplus(m), sigmoid(m), relu(m), detach(m), apart(m),
        maximum(m, n), maximum(m, 0.5), maximum(0.5, m), minimum(m, n), minimum(m, p.s), minimum(m, 0.5),
        where(p.positive, m, 0.5), where(p.positive, 0.5, m), where(p.positive, m, n),
        where(p.s > 0.5, m, p.s), where(p.positive, m, True), share(m, n), share(p.s, m), rounding(m),
        where(p.s > lowest(m), 0.1, 0.2),
    ),
    "sums": lambda p, m, n: of_row(p, sum, m, n) + of_row(p, mean, m, m * n, m + n),
    "extremes": lambda p, m, n: summed(
        p, *(f(x, where=w) for f in (amax, amin) for x in (m, n + m) for w in (p.pair, p.positive)),
    ),
    "log-sum-exps": lambda p, m, n: summed(
        p, log_sum_exp(m, where=p.pair), log_sum_exp(m + n, where=p.pair),
        log_sum_exp(m, where=p.positive, one=True),
    ),
    "words of the row": lambda p, m, n: summed(
        p, *(f(x) for f in (cos, sin, exp, square) for x in (sum(m, where=p.pair) > 7, amax(n, where=p.pair)))
    ),
}  # fmt: skip

def written_into(p):
    """The row's own numbers and masks stay what they are."""
    z, near = p.s, p.positive
    z -= 0.3
    near &= p.s > 0.2
    return sum(z * p.s, where=near) + sum(p.s, where=p.positive)


# A function, and one that says the same in other words.
ALIKE = {
    "no positive": (lambda p: sum(p.s, where=~p.positive), lambda p: sum(p.s, where=p.negative)),
    "near": (lambda p: sum(p.s, where=p.s > 0.1), lambda p: sum(p.s, where=p.pair & (p.s > 0.1))),
    "a condition of the row": (
        lambda p: sum(p.s, where=amax(p.s, where=p.pair) > 0.7),
        lambda p: where(amax(p.s, where=p.pair) > 0.7, sum(p.s, where=p.pair), 0.0),
    ),
    "all": (lambda p: sum(p.s, where=True), lambda p: sum(p.s, where=p.pair)),
    "all counted": (
        lambda p: (count(where=True) + mean(2.0, where=True)) * sum(p.s, where=p.pair),
        lambda p: (count(where=p.pair) + 2.0) * sum(p.s, where=p.pair),
    ),
    "a flag first": (
        lambda p: sum(p.s, where=True & (p.s > 0.1)) + sum(p.s, where=False | p.positive),
        lambda p: sum(p.s, where=(p.s > 0.1) & True) + sum(p.s, where=p.positive),
    ),
    "numbers of numpy": (
        lambda p: sum(p.s * np.float32(0.5) - np.int64(2), where=p.negative),
        lambda p: sum(p.s * 0.5 - 2, where=p.negative),
    ),
    "roots of what is below 0": (
        lambda p: sum(sqrt(p.s - 0.3), where=p.pair) + sqrt(amax(p.s, where=p.pair) - 0.9),
        lambda p: sum(sqrt(relu(p.s - 0.3)), where=p.pair) + sqrt(relu(amax(p.s, where=p.pair) - 0.9)),
    ),
    "what is written into": (
        written_into,
        lambda p: sum((p.s - 0.3) * p.s, where=p.positive & (p.s > 0.2)) + sum(p.s, where=p.positive),
    ),
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
    **{
        f"{name} of masks": (
            lambda p, f=f: f(p, p.s > 0.1, p.s > 0.3),
            lambda p, f=f: f(p, where(p.s > 0.1, 1.0, 0.0), where(p.s > 0.3, 1.0, 0.0)),
        )
        for name, f in OF_MASKS.items()
    },
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


@pytest.mark.parametrize("name", ["sums and products", "comparisons"])
def test_masks_are_numbers_of_a_function_in_other_words_too(name):
    """Which torch runs, to which a sum of masks were "or"."""
    f, other = OF_MASKS[name], ALIKE[f"{name} of masks"][1]
    found = stepped(lambda p: f(p, p.s > 0.1, p.s > 0.3) + 0 * torch.cumsum(p.s, 1)[:, :1], "chunked")
    torch.testing.assert_close(found, stepped(other, "dense"), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [
        lambda p: sum(log_sum_exp(p.s, where=p.pair) - p.s - log(count(where=p.positive)), where=p.positive),
        lambda p: amax(p.s, where=p.positive),
        lambda p: amin(p.s, where=p.positive) + 0.1,
        lambda p: log_sum_exp(p.s, where=p.positive),
    ],
)
def test_rows_without_positives(function, dtype, backend):
    """A number that is infinite there counts for no pair, and the number of no pair is the type's."""
    x, y = drawn(dtype)
    y[:3] = torch.arange(100, 103)
    found, expected = (
        fastdml.row_loss(function, backend=b, reduction="none")(x, y) for b in (backend, "dense")
    )
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found, expected)
    d, exact = (torch.autograd.grad(value[3:].sum(), x, retain_graph=True)[0] for value in (found, expected))
    torch.testing.assert_close(d, exact)


@pytest.mark.parametrize("backend", ("dense", "chunked", "symmetric"))
def test_columns_are_all_candidates_whatever_a_list_leaves_out(backend):
    y = drawn()[1]
    listed = (y[:, None] == y[None]).triu(1).nonzero().unbind(1) + (y[:, None] < y[None]).nonzero().unbind(1)
    found = stepped(lambda p: sum(p.s, where=p.pair) / p.columns, backend, pairs=listed)
    torch.testing.assert_close(found, stepped(lambda p: sum(p.s, where=p.pair) / 40, "dense", pairs=listed))


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
def test_arguments_that_are_no_ascii(backend):
    def fn(p, α, β):
        return sum(α * p.s - β, where=p.negative)

    options = {"parameters": {"α": 0.7, "β": 0.2}}
    torch.testing.assert_close(stepped(fn, backend, **options), stepped(fn, "dense", **options))


def test_a_pass_over_other_blocks_knows_its_extreme_pair_again():
    """... though products of another shape are rounded otherwise."""

    def fn(p):
        hardest = amin(p.s, where=p.positive)
        return where(count(where=p.positive) > 0, sum(relu(p.s - hardest + 0.1), where=p.negative), 0.0)

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1100, 128, generator=g), torch.randint(0, 300, (1100,), generator=g)
    found = []
    for backend, dtype in (("symmetric", torch.float32), ("dense", torch.float64)):
        z = x.to(dtype).requires_grad_()
        found.append(torch.autograd.grad(fastdml.row_loss(fn, backend=backend)(z, y), z)[0].double())
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()


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
