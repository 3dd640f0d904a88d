"""Losses that visit the matrix twice share a block of it between the visits, and statistics of columns
are gathered from blocks of rows."""

import pytest
import torch
from conftest import BACKENDS, ISAS, needs_compiled

import fastdml
from fastdml import functional as F
from fastdml.engine import library, schedule
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.losses.presweeps import LogSumExp
from fastdml.losses.proxy.expected_softmax import ExpectedSoftmax

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


@pytest.mark.filterwarnings("error:An output with one or more elements was resized")
def test_visits_in_blocks_of_different_sizes_share_none(products, monkeypatch):
    monkeypatch.setattr(LogSumExp, "spec_bytes", 480)  # whose blocks are smaller than the loss's
    x = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    y = torch.arange(ROWS) // 3
    fastdml.set_workspace(1 << 20)
    found = {}
    for backend in ("dense", "chunked"):
        value = F.lifted_structure(x, y, backend=backend)
        found[backend] = value, *torch.autograd.grad(value, x)
    assert products[0] < max(products) < ROWS and sum(products) == 2 * ROWS
    for mine, theirs in zip(found["chunked"], found["dense"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", BLOCKS)
@pytest.mark.parametrize("draws", [1, 7, 43])
def test_groups_are_visited_twice_in_their_block(products, draws, backend):
    """Products are made once, no group of rows is cut in two, and nothing else changes."""
    g = torch.Generator().manual_seed(draws)
    x, c = (torch.randn(301, DIM, generator=g).double().requires_grad_() for _ in range(2))
    bias = torch.randn(1, COLUMNS, generator=g).double().requires_grad_()
    y = torch.arange(301) // draws % COLUMNS
    fastdml.set_workspace(64 << 10)
    found = {}
    for name in ("dense", backend):
        call = Call(
            ExpectedSoftmax(draws), x, c, y, torch.arange(COLUMNS), col_values=bias, backend=name, weight=0.5
        )
        value = evaluate(call)
        found[name] = value, *torch.autograd.grad(value, (x, c, bias))
    for mine, theirs in zip(found[backend], found["dense"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)
    assert len(products) > 2 and sum(products) == 301
    assert all(n % draws == 0 for n in products)


@pytest.mark.parametrize("backend", BLOCKS)
@pytest.mark.parametrize("similarity", ["cosine", "dot", "distance"])
def test_two_sets_share_a_block_where_columns_are_gathered(products, similarity, backend):
    g = torch.Generator().manual_seed(0)
    x, ref = (torch.randn(ROWS, DIM, generator=g).requires_grad_() for _ in range(2))
    fastdml.set_workspace(64 << 10)
    F.info_nce(x, ref, symmetric=True, similarity=similarity, backend=backend).backward()
    gathered = backend == "native" and similarity != "distance"
    assert len(products) > 4 and min(products) < max(products)
    assert sum(products) == 2 * ROWS - (min(products) if gathered else 0)


@pytest.mark.parametrize("backend", BLOCKS)
def test_lifted_structure_of_two_sets_gathers_too(products, backend):
    """Similarities, of whose negatives only the sums are wanted; and the two halves of its derivative."""
    g = torch.Generator().manual_seed(0)
    x, ref = (torch.randn(ROWS, DIM, generator=g).requires_grad_() for _ in range(2))
    y = torch.arange(ROWS) // 3
    fastdml.set_workspace(64 << 10)
    loss = F.lifted_structure(x, y, None, ref, y, similarity="cosine", backend=backend)
    loss.backward()
    assert sum(products) == 4 * ROWS - (2 * min(products) if backend == "native" else 0)


@needs_compiled
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("negatives_only", [False, True])
@pytest.mark.parametrize("columns", [1, 7, 16, 133])
def test_gathered_columns_are_log_sums_over_rows(columns, negatives_only, dtype, isa):
    g = torch.Generator().manual_seed(columns)
    blocks = [5, 8, 1, 29, 500]  # rows that fill the kernel's groups, and that do not
    s = torch.randn(sum(blocks), columns, generator=g).to(dtype)
    row_scale, col_scale = (torch.rand(k, generator=g).to(dtype) + 0.5 for k in s.shape)
    row_class = torch.arange(s.shape[0], dtype=torch.int32) % 9 - 1
    col_class = torch.arange(columns, dtype=torch.int32) % 5  # row class -1 is of no column
    if negatives_only:
        col_class[0], row_class[:] = 3, torch.where(row_class < 0, 3, row_class)
    loss = LogSumExp(2.0, 0.25, negatives_only, learnable_scale=True)
    found = gathered(loss, s, blocks, row_scale, col_scale, row_class, col_class, scalar=30.0)
    z = 60 * s.double() * row_scale.double()[:, None] * col_scale.double() + 0.25
    positive = row_class[:, None] == col_class
    kept = z.masked_fill(positive, -torch.inf) if negatives_only else z
    rounding = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[0].double(), kept.logsumexp(0), rtol=rounding, atol=rounding)
    torch.testing.assert_close(found[1], positive.sum(0).to(dtype), rtol=0, atol=0)


def gathered(loss, s, blocks, row_scale, col_scale, row_class, col_class, scalar):
    functor, _, outputs, values = library.functors()[loss.name]
    state, found = s.new_empty(values, s.shape[1]), s.new_empty(outputs, s.shape[1])
    start = 0
    for count in blocks:
        rows = slice(start, start + count)
        block = s[rows].clone()
        torch.ops.fastdml_native.columns_(
            block, functor, loss.members, row_scale[rows], col_scale, row_class[rows], col_class,
            s.new_tensor([scalar]), state, found, start == 0,
        )
        assert torch.equal(block, s[rows])  # the products stay
        start += count
    return found


@needs_compiled
def test_gathered_columns_of_many_rows_round_no_more_than_torch():
    g = torch.Generator().manual_seed(0)
    s = torch.rand(200_000, 33, generator=g)  # sums of 200,000 terms of one size
    ones, classes = torch.ones(200_000), torch.zeros(200_000, dtype=torch.int32)
    blocks = [10_000] * 20
    found = gathered(
        LogSumExp(learnable_scale=True), s, blocks, ones, ones[:33], classes, classes[:33], 1.0
    )
    true = s.double().logsumexp(0)
    assert (found[0] - true).abs().max() <= 2 * (s.logsumexp(0) - true).abs().max()


@needs_compiled
def test_columns_without_members_have_the_lowest_sum():
    s, ones = torch.randn(20, 3), torch.ones(20)
    classes = torch.zeros(20, dtype=torch.int32)
    loss = LogSumExp(negatives_only=True)
    found = gathered(loss, s, [20], ones, ones[:3], classes, classes[:3], 1.0)
    assert (found[0] == torch.finfo(torch.float32).min).all() and (found[1] == 20).all()
