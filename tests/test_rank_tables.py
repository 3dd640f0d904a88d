"""SOPRC with its table, semi-variance, histogram loss: state, sizes of classes, limits, other libraries."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS
from torch.utils._python_dispatch import TorchDispatchMode

from fastdml import functional as F
from fastdml import losses
from fastdml.engine.loss import Rows
from fastdml.losses.rank import triangles
from fastdml.losses.rank.fast_ap import FastAP, ReleasedSoftBinAP, SoftBinAP
from fastdml.losses.rank.histogram import Histogram


def problem(sizes, dim=8, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=g)]
    return torch.randn(len(y), dim, generator=g, dtype=torch.float64).to(dtype), y


def with_gradient(loss, x, *args, **kwargs):
    z = x.clone().requires_grad_()
    value = loss(z, *args, **kwargs)
    return value.detach(), *torch.autograd.grad(value, z)


# ---- SOPRC


def moved(row, scores, places, momentum):
    """SPEC 2.17, number by number."""
    s = sorted(scores)
    p = len(s)
    before = max(2 * s[0] - s[1], -1) if p > 1 else s[0]
    after = min(2 * s[-1] - s[-2], 1) if p > 1 else s[-1]
    e = [before, *s, after]
    step = -(-places // p)
    left, right = [], []
    for r in range(p):
        for i in range(step):
            left.append(e[r] + i / step * (e[r + 1] - e[r]))
            right.append(e[r + 1] + i / step * (e[r + 2] - e[r + 1]))
    towards = (np.array(left[:places]) + np.array(right[:places])) / 2
    return (1 - momentum) * row + momentum * towards


@pytest.mark.parametrize("update", ["last", "mean"])
def test_tables_follow_the_scores(update):
    """Classes of any size, one of them single and one not in the batch."""
    x, y = problem([4, 1, 7, 2])
    loss = losses.SOPRCLoss(5, table_size=11, momentum=0.3, update=update).double()
    before = loss.table.clone()
    loss(x, y)
    u = torch.nn.functional.normalize(x, dim=1)
    s = (u @ u.t()).numpy()
    for c in range(5):
        members = (y == c).nonzero()[:, 0].tolist()
        expected = before[c].numpy()
        if len(members) > 1:
            queries = members[-1:] if update == "last" else members
            rows = [moved(expected, [s[q, j] for j in members if j != q], 11, 0.3) for q in queries]
            expected = np.mean(rows, axis=0)
        np.testing.assert_allclose(loss.table[c].numpy(), expected, rtol=1e-12)


def test_evaluation_leaves_the_tables_alone_and_a_checkpoint_restores_them():
    x, y = problem([4, 4, 4])
    loss = losses.SOPRCLoss(3).double()
    loss(x, y)
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    loss.eval()
    first = loss(x, y)
    assert torch.equal(loss.table, state["table"])
    other = losses.SOPRCLoss(3).double().eval()
    assert other(x, y) != first
    other.load_state_dict(state)
    assert other(x, y) == first


@pytest.mark.parametrize("backend", BACKENDS)
def test_soprc_rows_without_positives_or_negatives(backend):
    x, y = problem([3, 1, 1])
    rows = F.soprc(x, y, reduction="none", backend=backend)
    single = torch.bincount(y)[y] == 1
    assert (rows[single] == 0).all() and (rows[~single] > 0).all()
    value = F.soprc(x, y, backend=backend)
    assert value.item() == pytest.approx(rows[~single].mean().item(), rel=1e-12)
    for labels in (torch.zeros(5, dtype=torch.long), torch.arange(5)):
        value, gradient = with_gradient(F.soprc, x, labels, backend=backend)
        assert value == 0 and not gradient.any()


def test_priors_follow_the_sizes_of_classes():
    x, y = problem([4, 4])
    counts = torch.tensor([10.0, 40.0])
    loss = losses.SOPRCLoss(2, counts, prior_mul=0.2).double().eval()
    assert loss.prior.tolist() == pytest.approx([0.05, 0.2])
    rows = F.soprc(x, y, prior=0.05, reduction="none")
    given = F.soprc(x, y, prior=torch.tensor([0.05, 0.2], dtype=torch.float64), reduction="none")
    torch.testing.assert_close(given[y == 0], rows[y == 0])
    assert (given[y == 1] < rows[y == 1]).all()  # more of a class: smaller odds


def test_soprc_adds_its_regulariser():
    x, y = problem([4, 4, 4])
    plain, both = (losses.SOPRCLoss(3, semi_variance_weight=w).double().eval() for w in (0, 5))
    assert both(x, y).item() == pytest.approx((plain(x, y) + 5 * F.semi_variance(x, y)).item(), rel=1e-12)


@pytest.mark.parametrize("shift", [-1, 1])
def test_soprc_of_labels_without_a_table(shift):
    x, y = problem([4, 4, 4])
    loss = losses.SOPRCLoss(3).double()
    before = loss.table.clone()
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 3\)"):
        loss(x, y + shift)
    assert torch.equal(loss.table, before)


def test_soprc_keeps_a_table_that_would_not_be_finite():
    x, y = problem([4, 4, 4])
    loss = losses.SOPRCLoss(3).double()
    before = loss.table.clone()
    x[(y == 1).nonzero()[0], 0] = float("nan")
    assert loss(x, y).isnan()
    assert torch.equal(loss.table[1], before[1])
    assert not torch.equal(loss.table[0], before[0])


@pytest.mark.unpoisoned
def test_tables_move_inside_a_compiled_graph():
    torch._dynamo.reset()
    x, y = problem([4, 4, 4], dtype=torch.float32)
    plain, other = losses.SOPRCLoss(3), losses.SOPRCLoss(3)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(x, y), plain(x, y))
    torch.testing.assert_close(other.table, plain.table)


# ---- semi-variance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [[3, 5, 2], [6], [1, 1, 1]])
def test_semi_variance_by_hand(sizes, backend):
    x, y = problem(sizes)

    def by_hand(z):
        u = torch.nn.functional.normalize(z, dim=1)
        s, own = u @ u.t(), torch.eye(len(y), dtype=torch.bool)
        pos, neg = s[(y[:, None] == y) & ~own], s[y[:, None] != y]
        total = z.sum() * 0
        for part, weight in ((pos.mean() - pos, 1), (neg - neg.mean(), 5)):
            if len(part):
                total = total + weight * part[part > 0].square().sum() / (part > 0).sum().clamp(min=1)
        return total

    for a, b in zip(with_gradient(F.semi_variance, x, y, backend=backend), with_gradient(by_hand, x)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# ---- histogram loss


@pytest.fixture
def double_by_default():
    """Theirs makes bin numbers times a width tensors of torch's default type, float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_histogram_of_pytorch_metric_learning(double_by_default):
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    for bins, seed, sizes in ((None, 0, [3, 5, 4, 6]), (10, 1, [3, 2, 4, 1]), (33, 2, [2, 7])):
        x, y = problem(sizes, seed=seed)
        found = with_gradient(losses.HistogramLoss(bins), x, y)
        for a, b in zip(found, with_gradient(theirs.HistogramLoss(bins), x, y)):
            assert (a - b).abs().max() < 1e-9 * b.abs().max()


def test_fault_histogram_leaves_out_pairs_of_singletons(double_by_default):
    """Theirs takes pairs from triplets, so negative pairs of two samples without a positive are missing."""
    theirs = pytest.importorskip("pytorch_metric_learning.losses").HistogramLoss(7)
    x, y = problem([2, 1, 1], dim=2)
    s = torch.nn.functional.normalize(x, dim=1)
    s = s @ s.t()
    member = (1 - (s[:, :, None] - torch.linspace(-1, 1, 8)).abs() * 3.5).relu()
    same = y[:, None] == y
    paired = (same.sum(1) > 1)[:, None] | (same.sum(1) > 1)
    mine = member[same & ~torch.eye(4, dtype=torch.bool)].mean(0).cumsum(0)
    for loss, negatives in ((losses.HistogramLoss(7), ~same), (theirs, ~same & paired)):
        expected = (member[negatives].mean(0) * mine).sum().item()
        assert loss(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_fault_histogram_in_double_precision(double_by_default):
    """Theirs rounds bin edges to torch's default type: in float64, values are right to 1e-7 only."""
    theirs = pytest.importorskip("pytorch_metric_learning.losses").HistogramLoss()
    x, y = problem([3, 5, 4, 6])
    exact = theirs(x, y).item()
    torch.set_default_dtype(torch.float32)
    assert losses.HistogramLoss()(x, y).item() == pytest.approx(exact, rel=1e-9)
    assert abs(theirs(x, y).item() - exact) > 1e-9 * exact


@pytest.mark.parametrize("backend", BACKENDS)
def test_histogram_gradient_is_that_of_differences(backend):
    x, y = problem([3, 4, 2])
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: F.histogram(z, y, n_bins=7, backend=backend), [x], eps=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_fault_histogram_at_similarity_one(backend):
    """Copies, and opposite samples: theirs raises."""
    x = torch.tensor([[1.0, 0], [2, 0], [-1, 0], [-3, 0]])
    value, gradient = with_gradient(F.histogram, x, torch.tensor([0, 0, 1, 1]), backend=backend)
    assert value == 0 and gradient.isfinite().all()
    value = F.histogram(x, torch.tensor([0, 1, 0, 1]), backend=backend)
    assert value.item() == pytest.approx(1.0)  # every positive is farther than most negatives
    theirs = pytest.importorskip("pytorch_metric_learning.losses").HistogramLoss()
    with pytest.raises(RuntimeError, match="out of bounds"):
        theirs(x, torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("labels", [[0] * 5, list(range(5))])
def test_histogram_without_pairs_of_a_kind(labels, backend):
    x, _ = problem([5])
    value, gradient = with_gradient(F.histogram, x, torch.tensor(labels), backend=backend)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_shows(backend):
    x, y = problem([4, 4, 4], dtype=torch.float32)
    x[5, 2] = torch.nan
    for loss in (F.histogram, F.soprc, F.semi_variance):
        assert loss(x, y, backend=backend).isnan(), loss.__name__


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: losses.SOPRCLoss(0), "num_classes"),
        (lambda: losses.SOPRCLoss(3, torch.ones(2)), "class_counts"),
        (lambda: losses.SOPRCLoss(3, prior_mul=0), "prior_mul"),
        (lambda: losses.SOPRCLoss(3, momentum=2), "momentum"),
        (lambda: losses.SOPRCLoss(3, update="first"), "update"),
        (lambda: losses.SOPRCLoss(3, table_size=300), "table_size"),
        (lambda: losses.SOPRCLoss(3)(torch.eye(3)), "labels"),
        (lambda: F.soprc(torch.eye(3), torch.arange(3), prior=0), "prior"),
        (lambda: losses.HistogramLoss(0), "n_bins"),
        (lambda: losses.HistogramLoss(10, 0.3), "delta"),
        (lambda: losses.HistogramLoss(reduction="none"), "reduction"),
        (lambda: losses.HistogramLoss(similarity="dot"), "similarity"),
        (lambda: losses.SemiVarianceLoss(reduction="none"), "reduction"),
    ],
)
def test_bad_arguments_are_named(make, argument):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        make()


# ---- soft histograms in torch


def rows_of(s, bins):
    kinds = torch.arange(s.numel()).view_as(s) % 3
    return Rows(s, kinds == 0, kinds == 1, scalars=draw(2 * (bins + 1)).to(s.dtype))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("loss", [Histogram, FastAP, SoftBinAP, ReleasedSoftBinAP])
def test_no_tensor_of_pairs_and_bins(loss):
    s = draw(8, 256).clamp(-1, 1).requires_grad_()
    rows = rows_of(s, 100)
    with Largest() as largest:
        loss(100).spec(rows).sum().backward()
    assert largest.numbers == s.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [1, 2, 5, 10, 19, 100, 255])
@pytest.mark.parametrize("loss", [Histogram, FastAP])
def test_soft_histograms_at_their_centres(loss, bins, dtype, monkeypatch):
    """The same sums and derivatives as of all centres: at a centre, next to one, between and at the ends."""
    width, k = 2 / bins, torch.arange(bins + 1, dtype=dtype)
    centres = k * width - 1 if loss is Histogram else 1 - width * k
    around = [centres, *(centres + e for e in (1e-6, -1e-6, width / 2, width / 3, -width / 2))]
    next_to = [torch.nextafter(centres, centres + e) for e in (1, -1)]
    s = torch.cat([*around, *next_to]).clamp(-1, 1)
    s = torch.stack([s, s.flip(0), -s]).requires_grad_()
    given = rows_of(s, bins)
    top = 1.0 if loss is Histogram else 1 - 8 * torch.finfo(dtype).eps  # beyond it is 1
    kept = torch.where(s > top, torch.ones_like(s), s)
    member = (1 - (kept[:, :, None] - centres).abs() / width).relu()
    sums = [(member * mask[:, :, None]).sum(1) for mask in (given.positive, given.negative)]
    true = torch.cat(sums, 1)

    seen = []
    histogram = triangles.histogram
    monkeypatch.setattr(triangles, "histogram", lambda *a: seen.append(histogram(*a)) or seen[-1])
    loss(bins).spec(given)
    found = torch.cat(seen, 1)
    eps = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, true, rtol=eps, atol=eps * bins)

    # Derivatives are those of one side, of a centre that of the side above it.
    by = draw(*true.shape).to(dtype)
    slopes = torch.autograd.grad((found * by).sum(), s)[0]
    order = centres.sort()
    height = torch.where(given.positive[:, :, None], by[:, None, : bins + 1], by[:, None, bins + 1 :])
    height = height[:, :, order.indices]

    def of_side(shift):
        below = (torch.bucketize(s.detach() + shift, order.values, right=True) - 1).clamp(0, bins - 1)
        low, high = (height.gather(2, k[:, :, None])[:, :, 0] for k in (below, below + 1))
        counts = (given.positive | given.negative) & (s <= top)
        return torch.where(counts, (high - low) / width, 0)

    sides = torch.stack([of_side(shift) for shift in (-eps, 0, eps)])
    assert ((slopes - sides).abs().amin(0) <= eps * bins * (1 + slopes.abs())).all()
    if bins <= 2:  # whose places have no rounding
        assert torch.allclose(slopes[0, : bins + 1], of_side(0)[0, : bins + 1], rtol=eps)
