"""Blocks of one set: those among positives, and several of one shape at once."""

import math

import pytest
import torch
from test_symmetric import gradients

import fastdml
from fastdml import language
from fastdml.engine import library
from fastdml.engine.executors import symmetric
from fastdml.engine.relation import LabelRelation
from fastdml.engine.trapezoids import all_pairs, among_positives, share_among_positives


def beyond_the_mean(p):
    """Whose second pass is among positives."""
    beyond = p.s - language.mean(p.s, where=p.negative)
    return language.sum(language.square(beyond), where=p.positive)


def nearest(p):
    """Whose only pass is among positives."""
    return language.amin(p.s, where=p.positive)


def visited(blocks, n):
    """[n, n] how often blocks visit each pair of the upper half."""
    number = torch.arange(n).reshape(n, 1)
    found = torch.zeros(n, n, dtype=torch.int64)
    for block in blocks:
        rows, columns = block.of(number)
        for r, c in zip(rows.reshape(block.times, -1), columns.reshape(block.times, -1)):
            found[r.reshape(-1, 1), c] += 1
    return found.triu()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "n, classes, size", [(1, 1, 4), (90, 20, 40), (130, 2, 32), (300, 75, 256), (64, 64, 7)]
)
def test_every_positive_is_in_one_block_and_no_block_is_too_large(n, classes, size, together):
    y = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(n))
    y = y.sort().values if together else y
    index = LabelRelation(y, y, 0).class_index
    blocks = among_positives(n, size, index)
    found = visited(blocks, n)
    assert found.max() <= 1
    assert (found == 1)[(y.reshape(n, 1) == y).triu()].all()
    assert all(math.prod(block.shape) <= size * n for block in blocks)
    if together:
        every = sum(math.prod(block.shape) for block in all_pairs(n, min(size, max(32, index.longest))))
        pairs = sum(math.prod(block.shape) for block in blocks)
        share = share_among_positives(n, size, index)
        assert 0.999 * share * every <= pairs <= 2 * share * every  # the latter, of one shape
        assert any(block.times > 1 for block in blocks) == (classes in (64, 75))


@pytest.mark.skipif(library.load() is None, reason="no compiled library")
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("similarity", ["cosine", "distance", "raw_squared_distance"])
@pytest.mark.parametrize("threads", [1, 3])
def test_several_at_once(similarity, threads, monkeypatch):
    seen = []
    visit = symmetric._Ends.visit
    monkeypatch.setattr(
        symmetric._Ends, "visit", lambda self, s, *rest: (seen.append(s.dim()), visit(self, s, *rest))
    )
    loss = fastdml.row_loss(beyond_the_mean, similarity).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = gradients(loss, "symmetric", 300, together=True)
    finally:
        torch.set_num_threads(before)
    assert 3 in seen
    for a, b in zip(found, gradients(loss, "dense", 300, together=True)):
        assert float((a - b).abs().max()) <= 2e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.skipif(library.load() is None, reason="no compiled library")
@pytest.mark.usefixtures("compiled_quickly")
def test_near_pairs_of_later_blocks_are_made_from_their_own_rows():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=g, dtype=torch.float64) + 100
    x[1::4] = x[::4] + 1e-9 * torch.randn(50, 6, generator=g, dtype=torch.float64)
    y = torch.arange(200) // 4
    of = {"reduction": "none"}
    losses = [fastdml.row_loss(nearest, "raw_distance", backend=b, **of) for b in ("symmetric", "dense")]
    found, true = (loss(x, y) for loss in losses)
    torch.testing.assert_close(found, true, rtol=1e-6, atol=0)
