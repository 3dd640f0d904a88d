"""Every registered loss with a tile functor, through the engine: against the dense executor.

A loss without one, or a form of it that the functor does not know, is refused and not tried here.
"""

from __future__ import annotations

import pytest
import torch
import triton_mode  # noqa: F401  (before triton is imported)
from conftest import CASES, EXAMPLES, Case, call, distance, inputs, reductions, scales

from fastdml.engine.executors.triton import Triton
from fastdml.engine.problem import Problem

TRITON = Triton()
# Every loss with each of these (and with "ragged" below); further examples of it with the last, two sets.
SIZES = ["wide", "duplicates", "one_class", "reference"]


def single(name: str) -> Case:
    return CASES[name]().to(torch.float32)


def refusal(description) -> str | None:
    given = inputs(description, single("ragged"))
    return TRITON.refuses(Problem.of(given.call(description, "triton")))


TILED = [p for p in EXAMPLES if refusal(p.values[0]) is None]
FIRST = list({p.values[0].name: p for p in reversed(TILED)}.values())
TRIED = [
    pytest.param(*p.values, name, id=f"{p.id}-{name}")
    for p in TILED
    for name in (SIZES if p in FIRST else SIZES[-1:])
]


def test_the_losses_that_have_tiles():
    names = {p.values[0].name for p in TILED}
    assert names >= {
        "arc_face", "binomial_deviance", "circle", "contrastive", "contrastive_bayesian", "info_nce",
        "listwise_distillation", "multi_similarity", "n_pair", "nt_xent", "proxy_anchor",
        "recall_at_k", "relaxed_contrastive", "siglip", "smooth_ap", "soft_triple",
        "softmax_cross_entropy", "sup_ap", "sup_con", "triplet_margin", "weighted_proxy_anchor",
    }  # fmt: skip
    # The form that first sweeps the columns, as CLIP has it.
    assert "info_nce0" in {p.id for p in TILED}


@pytest.mark.parametrize(("description", "name"), TRIED)
def test_equals_dense(description, name):
    case = single(name)
    true = call(description, CASES[name](), "dense")
    found = call(description, case, "triton")
    plain = call(description, case, "dense")
    for k, (t, f, p, scale) in enumerate(zip(true, found, plain, scales(description, CASES[name]()))):
        allowed = 2 * distance(p, t, scale) + 1e-5
        assert distance(f, t, scale) <= allowed, f"result {k}"


@pytest.mark.parametrize("description", FIRST)
def test_rows_equal_dense(description):
    if "none" not in reductions(description):
        pytest.skip("has no row losses")
    weight = torch.linspace(-1, 2, len(inputs(description, single("ragged")).anchors))
    true = call(description, CASES["ragged"](), "dense", "none", weight.double())
    found = call(description, single("ragged"), "triton", "none", weight)
    plain = call(description, single("ragged"), "dense", "none", weight)
    for k, (t, f, p) in enumerate(zip(true, found, plain)):
        assert distance(f, t) <= 2 * distance(p, t) + 1e-5, f"result {k}"
