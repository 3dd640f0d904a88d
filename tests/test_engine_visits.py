"""Losses that visit the matrix twice share a block of it between the visits."""

import pytest
import torch
from conftest import BACKENDS

import fastdml
from fastdml import functional as F
from fastdml.engine import schedule

ROWS, COLUMNS, DIM = 301, 301, 5
BLOCKS = [b for b in BACKENDS if b != "dense"]


@pytest.fixture
def products(monkeypatch):
    """The row numbers of all blocks of similarities that were computed."""
    found = []
    multiply = schedule.multiply

    def counted(a, b, out):
        if b.shape == (DIM, COLUMNS):
            found.append(a.shape[0])
        return multiply(a, b, out)

    monkeypatch.setattr(schedule, "multiply", counted)
    return found


@pytest.mark.parametrize("backend", BLOCKS)
@pytest.mark.parametrize(
    ("loss", "visits"),
    [
        (F.multi_similarity, 1),
        (F.contrastive, 2),  # a mean over the pairs above their margins
        (F.lifted_structure, 2),  # the other sample's log of sum
    ],
)
def test_second_visit_begins_where_the_first_ends(products, loss, visits, backend):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, DIM, generator=g).requires_grad_()
    y = torch.arange(ROWS) // 3
    fastdml.set_workspace(64 << 10)
    loss(x, y, backend=backend).backward()
    assert len(products) > 2 * visits and min(products) < max(products)  # the last block is short
    assert sum(products) == visits * ROWS - (visits - 1) * min(products)
