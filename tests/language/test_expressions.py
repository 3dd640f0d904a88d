"""Random functions of the language on every executor: value and all derivatives against the words' own.

Functors of many functions are compiled as one, without optimisation and in float64 only.
"""

import os
import re

import pytest
import torch
from expressions import run, tree

from fastdml.engine import library
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.language import compile, cpp
from fastdml.language.described import DescribedLoss
from fastdml.language.program import program
from fastdml.language.row import trace
from fastdml.language.stream import NoStream, StreamForm, windows_of

pytestmark = [
    pytest.mark.skipif(library.load() is None, reason="no compiled library"),
    pytest.mark.usefixtures("compiled_quickly"),
]

# How many: of streamed forms, which take long to compile; of row functors, 120 at least.
COUNT = int(os.environ.get("FASTDML_EXPRESSIONS", "30"))
TOGETHER = 30
ALPHA = 0.9
# Row functors without their float32.
_ONLY_DOUBLE = """#undef FASTDML_ROW_LOSS
#define FASTDML_ROW_LOSS(name, Loss) \\
  namespace fastdml { \\
  extern const Kernel FASTDML_JOIN(kernel, name, FASTDML_ISA); \\
  const Kernel FASTDML_JOIN(kernel, name, FASTDML_ISA) = { \\
      nullptr, run<double, Loss>, sizeof(Loss<double>) / sizeof(double), Outputs<double, Loss>::count, \\
      Outputs<double, Loss>::weights}; \\
  }
"""


def function(seed):
    made = tree(seed)
    return lambda p, alpha: run(made, p, alpha)


@pytest.fixture(scope="module")
def quickly():
    build = compile._build()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "ROWS", re.sub("-O[0-3]", "-O0", build.ROWS))
        yield


class Given(DescribedLoss):
    """A function whose compiled forms are found elsewhere."""

    learnable = (1.0, 1.0)

    def functor(self):
        return self.__dict__["compiled"]

    def streamed(self, ranges, size):
        return self.__dict__["stream"]


def given(seed, **forms):
    loss = Given(function(seed), {"alpha": ALPHA})
    loss.__dict__.update(forms)
    return loss


def call(loss, n=37, backend="dense"):
    """One set, or two where n is none; with every kind of further input."""
    g = torch.Generator().manual_seed(7)

    def values(*shape):
        return (torch.rand(*shape, generator=g, dtype=torch.float64) * 2 - 1).requires_grad_()

    x, teacher = values(n, 5), values(n, 3).detach()
    y = torch.randint(0, 6, (n,), generator=g) ** 2 // 3
    return Call(
        loss, x, anchor_labels=y, teacher=(teacher,), scalars=values(2) + 1.5, row_values=values(n, 1),
        col_values=values(2, n), reduction="none", backend=backend,
    )  # fmt: skip


def gradients(call):
    value = evaluate(call)
    weight = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype)
    leaves = (call.anchors, call.scalars, call.row_values, call.col_values)
    if not value.requires_grad:
        return [value.detach()]
    found = torch.autograd.grad((value * weight).sum(), leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(x) if d is None else d for d, x in zip(found, leaves))]


def agree(loss, backend, what):
    found, expected = (gradients(call(loss, backend=b)) for b in (backend, "dense"))
    if not all(torch.isfinite(b).all() for b in expected):
        return  # a function that has no derivative here
    for a, b, name in zip(found, expected, ("value", "embeddings", "scalars", "row", "columns")):
        assert torch.isfinite(a).all(), f"{what}: {name} is not finite"
        bound = 1e-9 * max(1.0, float(b.abs().max()))
        assert float((a - b).abs().max()) <= bound, f"{what}: {name}"


@pytest.mark.parametrize("first", range(0, max(120, COUNT), TOGETHER))
def test_row_functors(first, quickly):
    """And the chunked executor beside them."""
    seeds = range(first, first + TOGETHER)
    made = {f"random_{s}": program(trace(function(s), ("alpha",), positive=("alpha",))) for s in seeds}
    texts = [_ONLY_DOUBLE, *(cpp.functor(p, name) for name, p in made.items())]
    ids = compile.load(tuple(texts), tuple(made))
    for seed, number in zip(seeds, ids):
        loss = given(seed, compiled=number)
        agree(loss, "native", f"tree({seed})")
        if seed % 4 == 0:
            agree(loss, "chunked", f"tree({seed})")


@pytest.mark.parametrize("first", range(0, COUNT, TOGETHER))
def test_streamed_forms(first, quickly):
    ranges = {
        "s": [(-1.0, 1.0)], "teacher": [(-1.0, 1.0)], "scalar": [(0.5, 2.5)] * 2,
        "row_value": [(-1.0, 1.0)], "column": [(-1.0, 1.0)] * 2, "parameter alpha": [(ALPHA, ALPHA)],
    }  # fmt: skip
    forms = {}
    for seed in range(first, first + TOGETHER):
        made = trace(function(seed), ("alpha",), positive=("alpha",))
        try:
            forms[seed] = StreamForm(made, f"stream_{seed}", windows_of(made, ranges, 8), 8)
        except NoStream as error:
            assert "passes" in str(error)
    assert len(forms) >= 0.8 * TOGETHER
    texts = tuple(f.text for f in forms.values())
    ids = compile.load(texts, tuple(f.name for f in forms.values()), stream=True)
    for (seed, form), number in zip(forms.items(), ids):
        form._loaded = number
        loss = given(seed, stream=(form, form.members(ranges)))
        agree(loss, "symmetric", f"tree({seed})")
