"""Index tuples that are weights: FastAP, Smooth-AP and NCA, as pytorch-metric-learning has them."""

import pytest
import torch
from conftest import BACKENDS

import fastdml
from fastdml import functional as F
from fastdml import losses

WEIGHTED = ["FastAPLoss", "SmoothAPLoss", "NCALoss"]
FORMS = {"FastAPLoss": F.fast_ap, "SmoothAPLoss": F.smooth_ap, "NCALoss": F.nca}
every = pytest.mark.parametrize("name", WEIGHTED)


def draw(seed, dtype=torch.float64, rows=36, dim=17):
    """As many classes as members of each, in order: where the other Smooth-AP is right too."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.arange(rows) // 6


def weights(tuples, size, anchors_only=False):
    count = torch.zeros(size, dtype=torch.float64)
    for k, part in enumerate(tuples):
        if not anchors_only or k in ((0,) if len(tuples) == 3 else (0, 2)):
            for i in part.tolist():
                count[i] += 1
    return count / count.max()


TUPLES = {
    "pairs": tuple(map(torch.tensor, ([0, 0, 7], [1, 2, 8], [0, 30], [9, 9]))),
    "triplets": tuple(map(torch.tensor, ([0, 0, 7], [1, 2, 8], [9, 9, 35]))),
}


@every
@pytest.mark.parametrize("form", TUPLES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tuple_weighs_samples_and_leaves_pairs_alone(name, form, backend):
    x, y = draw(0)
    w = weights(TUPLES[form], len(x))
    rows = FORMS[name](x, y, reduction="none", backend=backend)
    found = FORMS[name](x, y, TUPLES[form], reduction="none", backend=backend)
    torch.testing.assert_close(found, w * rows, rtol=1e-12, atol=1e-14)
    z = x.clone().requires_grad_()
    value = FORMS[name](z, y, TUPLES[form], backend=backend)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.item() == pytest.approx((w * rows).mean().item(), rel=1e-12)
    leaf = x.clone().requires_grad_()
    (true,) = torch.autograd.grad((w * FORMS[name](leaf, y, reduction="none")).mean(), leaf)
    torch.testing.assert_close(gradient, true, rtol=1e-9, atol=1e-13)


@every
def test_queries_left_out_keep_out_of_the_mean(name):
    """A weight is of a row's loss; what the mean divides by does not change with it."""
    x, _ = draw(1)
    y = torch.tensor([0] * 20 + [1] * 12 + [2, 3, 4, 5])
    kept = y < 2 if name != "SmoothAPLoss" else y < 9
    tuples = TUPLES["pairs"]
    rows = losses.MODULES[name](reduction="none")(x, y)
    scale = kept.sum().item() / 36 if name == "NCALoss" else 1.0  # whose rows have the mean for a mean
    expected = (weights(tuples, 36) * rows * scale)[kept].mean()
    assert losses.MODULES[name]()(x, y, tuples).item() == pytest.approx(expected.item(), rel=1e-12)


@every
def test_other_candidates(name):
    """Positives and negatives are then rows of the other set: only anchors are samples."""
    x, y = draw(2)
    ref, ref_y = draw(3, rows=48)
    tuples = tuple(map(torch.tensor, ([0, 0, 7], [1, 2, 47], [0, 30], [9, 40])))
    rows = FORMS[name](x, y, ref_emb=ref, ref_labels=ref_y, reduction="none")
    found = FORMS[name](x, y, tuples, ref, ref_y, reduction="none")
    torch.testing.assert_close(found, weights(tuples, 36, anchors_only=True) * rows)


@every
def test_an_empty_tuple_is_none(name):
    x, y = draw(4)
    empty = torch.zeros(0, dtype=torch.long)
    assert FORMS[name](x, y, (empty,) * 4) == FORMS[name](x, y)


@every
def test_labels_are_needed(name):
    with pytest.raises(ValueError, match=r"^labels: expected one label per row of embeddings"):
        FORMS[name](draw(0)[0], None, TUPLES["pairs"])
    with pytest.raises(ValueError, match=r"^indices_tuple: expected p in \[0, 36\)"):
        FORMS[name](*draw(0), (torch.tensor([0]), torch.tensor([36]), torch.tensor([0])))


@every
def test_our_miner_is_unpacked(name):
    x, y = draw(5)
    lazy = fastdml.miners.MultiSimilarityMiner()(x, y)
    assert FORMS[name](x, y, lazy) == FORMS[name](x, y, tuple(lazy)) != FORMS[name](x, y)


@every
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_parity(name, dtype, tolerance):
    """20 draws with a miner of theirs, of pairs and of triplets; value and gradient.

    Theirs works in float64 on the same numbers: in float32 its own rounding is up to 8e-6.
    """
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of tensors that theirs fills
    # The sharp sigmoid amplifies the rounding of a similarity by 1 / (4 temperature) = 25.
    tolerance *= 25 if name == "SmoothAPLoss" and dtype == torch.float32 else 1
    try:
        for seed in range(20):
            x, y = draw(seed, dtype)
            miner = miners.MultiSimilarityMiner() if seed % 2 else miners.TripletMarginMiner(0.2)
            mined = miner(x, y)
            found = []
            for module, kind in ((losses, dtype), (theirs, torch.float64)):
                loss = getattr(module, name)()
                z = x.to(kind).clone().requires_grad_()
                value = loss(z, y, mined)
                found.append((value.detach(), *torch.autograd.grad(value, z)))
            for a, b in zip(*found, strict=True):
                assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)
    finally:
        torch.set_default_dtype(before)
