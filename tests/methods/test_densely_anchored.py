"""DAS against the algorithm written out sample by sample."""

import pytest
import torch
from method_tools import batches, randn, same_state, saved

from fastdml import losses
from fastdml.methods import DASLoss, DenselyAnchoredSampling, NormConstraint

C, D, Z, K = 5, 7, 3, 2


class Restated:
    """Python dictionaries and lists, as in the paper's algorithm."""

    def __init__(self):
        self.frequency = [[0] * D for _ in range(C)]
        self.queue = {c: [] for c in range(C)}

    def remember(self, x, y):
        for v, c in zip(x, y.tolist()):
            for d in v.topk(K).indices.tolist():
                self.frequency[c][d] += 1
        for c in sorted(set(y.tolist())):
            rows = [v for v, label in zip(x, y.tolist()) if label == c]
            found = [a - b for a in rows for b in rows if not torch.equal(a, b)]
            self.queue[c] = (self.queue[c] + found)[-Z:]


def new(**kwargs):
    return DenselyAnchoredSampling(C, D, 4, K, Z, (0.5, 2.0), 0.1, **kwargs).double()


def test_the_memory_holds_what_the_algorithm_says():
    das, plain = new(), Restated()
    for x, y in batches(6, 17, D, C):
        das.remember(x, y)
        plain.remember(x, y)
        assert das.frequency.tolist() == plain.frequency
        for c in range(C):
            queue = plain.queue[c]
            assert int(das.stored[c]) == len(queue)
            # FIFO: the oldest is where the next one goes, once the buffer is full.
            oldest = int(das.next[c]) if len(queue) == Z else 0
            mine = [das.differences[c, (oldest + k) % Z] for k in range(len(queue))]
            assert all(torch.equal(a, b) for a, b in zip(mine, queue))


def test_a_class_of_one_point_stores_nothing_and_a_large_class_its_last_differences():
    das, plain = new(), Restated()
    x = randn(60, D)
    x[20:40] = x[19]
    y = torch.tensor([0] * 20 + [1] * 20 + [0] * 20)
    das.remember(x, y)
    plain.remember(x, y)
    assert das.stored.tolist() == [Z, 0, 0, 0, 0]
    in_order = das.differences[0].roll(-int(das.next[0]), 0)
    assert torch.equal(in_order, torch.stack(plain.queue[0]))


@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_produced(normalize):
    """Every produced row is the source rescaled in the class's frequent channels plus a stored difference."""
    das = new(normalize=normalize)
    for x, y in batches(3, 17, D, C):
        das.remember(x, y)
    x, y = batches(1, 17, D, C, seed=1)[0]
    made = das.produce(x, y).view(4, 17, D)
    scales = []
    for i, c in enumerate(y.tolist()):
        order = sorted(range(D), key=lambda d: (-int(das.frequency[c, d]), d))
        frequent, rest = order[:K], order[K:]
        stored = das.differences[c, : max(1, int(das.stored[c]))]
        for v in made[:, i]:
            fits = []
            for t in stored:
                moved = x[i] + 0.1 * t
                length = (v[rest] @ moved[rest]) / (moved[rest] @ moved[rest]) if normalize else 1.0
                gamma = (v[frequent] / length - 0.1 * t[frequent]) / x[i, frequent]
                if torch.allclose(v[rest], length * moved[rest], atol=1e-12):
                    fits.append(gamma)
            assert any(((g >= 0.5) & (g < 2.0)).all() for g in fits)
            scales += [float(g.mean()) for g in fits[:1]]
        if normalize:
            assert torch.allclose(made[:, i].norm(dim=1), x.new_ones(4))
    assert len(set(scales)) == len(scales)  # every sample and copy has draws of its own


def test_gradient_flows_through_the_production_or_not():
    x, y = batches(1, 9, D, C)[0]
    for detach in (False, True):
        das = new(detach=detach)
        das.remember(x, y)
        das.draws.step = 5

        def produced(v, das=das):
            das.draws.step = 5
            return das.produce(v, y)

        leaf = x.clone().requires_grad_()
        if detach:
            assert not produced(leaf).requires_grad
        else:
            assert torch.autograd.gradcheck(produced, leaf)


def test_resumes_bit_for_bit_and_evaluation_leaves_the_memory():
    run = batches(6, 17, D, C)
    one = new(seed=3)
    for x, y in run[:3]:
        one(x, y)
    two = new()
    two.load_state_dict(saved(one))
    torch.rand(7)  # the global stream does not matter
    for x, y in run[3:]:
        assert all(torch.equal(a, b) for a, b in zip(one(x, y), two(x, y)))
    assert same_state(one, two)
    one.eval()
    before = one.frequency.clone()
    one(*run[0])
    assert torch.equal(before, one.frequency)


def test_loss_with_an_auxiliary_term():
    host = losses.MultiSimilarityLoss()
    x, y = batches(1, 17, D, C)[0]
    for auxiliary in (None, 0.5):
        das = new()
        found = DASLoss(host, das, auxiliary)(x, y)
        das.draws.step, expected = 0, 0.0
        v = torch.cat([x, das.produce(x, y)])
        expected = host(v, y.repeat(5)) * (1 if auxiliary is None else auxiliary)
        expected = expected + (0 if auxiliary is None else host(x, y))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_rows_are_forgotten(bad):
    x, y = randn(12, 6), torch.arange(12) % 3
    spoilt = x.clone()
    spoilt[4, 2] = bad
    left = torch.arange(12) != 4
    one, other = (DenselyAnchoredSampling(3, 6).double() for _ in range(2))
    one(spoilt, y)
    other(x[left], y[left])
    assert same_state(one, other)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, None])
def test_norm_constraint_forgets_bad_batches(bad):
    x, term = randn(5, 4), NormConstraint(momentum=0.9).double()
    spoilt = x[:0] if bad is None else x.clone().fill_(bad)
    value = term(spoilt.requires_grad_())
    assert term.mean.isnan()  # still none
    if bad is None:
        value.backward()
        assert value == 0 and spoilt.grad is not None
    term(x)
    term(spoilt)
    assert torch.allclose(term.mean, x.norm(dim=1).mean())
    term(2 * x)
    assert torch.allclose(term.mean, 1.1 * x.norm(dim=1).mean())


def test_norm_constraint():
    term = NormConstraint(0.5, 0.9).double()
    mean = None
    for x, _ in batches(3, 6, D, C):
        lengths = x.norm(dim=1)
        mean = lengths.mean() if mean is None else 0.9 * mean + 0.1 * lengths.mean()
        assert torch.allclose(term(x), 0.5 * ((lengths - mean) ** 2).mean())
    resumed = NormConstraint(0.5, 0.9).double()
    resumed.load_state_dict(saved(term))
    assert torch.equal(resumed(x), term(x))


def test_half_precision():
    """Rows of zeros, and long rows, whose lengths and differences float16 does not hold."""
    x, y = randn(8, D).half(), torch.arange(8) // 4
    x[1], x[2], x[3] = 0, 6e4, -6e4
    found = []
    for kind in (torch.float16, torch.float64):
        das = DenselyAnchoredSampling(2, D, 4, K, Z, (0.5, 1.0), 0.1)
        leaf = x.to(kind).requires_grad_()
        made = das(leaf, y)[0]
        assert made.dtype == kind
        found.append((made, *torch.autograd.grad(made[8:].sum(), leaf)))
    for mine, theirs in zip(*found):
        assert torch.allclose(mine.double(), theirs, rtol=4e-3, atol=1e-3)


def test_norm_constraint_in_half_precision():
    """The square of a length of 600 is more than float16 holds."""
    x = randn(5, 4).half() * 300
    x[1] = 0
    leaf = x.clone().requires_grad_()
    value = NormConstraint()(leaf)
    value.backward()
    assert value.dtype == torch.float32 and torch.allclose(value, NormConstraint()(x.float()))
    assert not leaf.grad[1].any() and leaf.grad[0].any() and leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"channels": D + 1}, "channels: expected an integer from 1 to 7, got 8"),
        ({"scale": (1.0, 0.5)}, "scale: expected"),
        ({"scale": 0.01}, r"scale: expected \(low, high\), got 0.01"),
        ({"scale": (1.0,)}, r"scale: expected \(low, high\)"),
        ({"produced": 0}, "produced: expected"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenselyAnchoredSampling(C, D, **arguments)


def test_refuses_labels_and_dimensions():
    with pytest.raises(ValueError, match="labels: expected values in"):
        new()(torch.randn(2, D), torch.tensor([0, C]))
    with pytest.raises(ValueError, match="embeddings: expected 7 dimensions, got 6"):
        new()(torch.randn(2, D - 1), torch.tensor([0, 1]))


def test_evaluation_moves_no_draws():
    one, two = new(), new()
    for k, (x, y) in enumerate(batches(4, 17, D, C)):
        if k % 2:
            assert torch.equal(one.eval()(x, y)[0], one(x, y)[0])
        else:
            assert torch.equal(one.train()(x, y)[0], two(x, y)[0])
    assert same_state(one, two)


def test_norm_constraint_in_evaluation_mode():
    """Before any step a batch's own mean counts; the state stays."""
    x = randn(5, 4)
    term = NormConstraint(1.0).double().eval()
    lengths = x.norm(dim=1)
    assert torch.allclose(term(x), (lengths - lengths.mean()).square().mean()) and term.mean.isnan()
    first = term.train()(x)
    assert torch.allclose(first, term.eval()(x)) and torch.allclose(term.mean, lengths.mean())
