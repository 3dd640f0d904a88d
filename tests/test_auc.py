"""AUC losses against a plain double loop over the pairs of every row."""

import math

import pytest
import torch
from conftest import BACKENDS

from fastdml import functional as F


def cost(gap, kind):
    """Of a positive that leads a negative by gap, in units of the temperature."""
    if kind == "logistic":
        return (1 + (-gap).exp()).log() / math.log(2)
    if kind == "sigmoid":
        return 1 / (1 + gap.exp())
    if gap >= 1:
        return gap * 0
    return (gap - 1) ** 2 if gap >= 0 else 1 - 2 * gap


def pair_costs(x, y, kind, temperature):
    """A list for every row that has a negative; a query is its own positive."""
    unit = x / x.norm(dim=1, keepdim=True)
    s = unit @ unit.t()
    rows = []
    for i in range(len(y)):
        positives, negatives = (y == y[i]).nonzero()[:, 0], (y != y[i]).nonzero()[:, 0]
        row = [cost((s[i, p] - s[i, n]) / temperature, kind) for p in positives for n in negatives]
        if row:
            rows.append(torch.stack(row))
    return rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("kind,temperature", [("huber", 1.5), ("logistic", 0.3), ("sigmoid", 0.2)])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 3, 6, 1), (1, 1, 1, 1, 1)], ids=str)
def test_auc_is_that_of_a_double_loop(sizes, kind, temperature, sort, backend):
    """The mean of row means: with classes of unequal sizes not the mean over all triples.
    The one positive of a singleton is the query itself."""
    g = torch.Generator().manual_seed(3)
    y = torch.repeat_interleave(torch.arange(len(sizes)) * 7 - 3, torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=g)]
    x = torch.randn(len(y), 4, generator=g, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    rows = pair_costs(a, y, kind, temperature)
    true = torch.stack([row.mean() for row in rows]).mean()
    triples = torch.cat(rows).mean().item()
    assert (true.item() == pytest.approx(triples, rel=1e-9)) == (len(set(sizes)) == 1)
    value = F.auc(b, y, kind=kind, temperature=temperature, sort=sort, backend=backend)
    assert value.item() == pytest.approx(true.item(), rel=1e-11) and value > 0.01
    (expected,), (gradient,) = torch.autograd.grad(true, a), torch.autograd.grad(value, b)
    assert (gradient - expected).abs().max() < 1e-10 * expected.abs().max()
