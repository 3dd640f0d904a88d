"""Pairs from a user's function of indices, in the place of labels."""

import contextlib
import gc
import weakref

import pytest
import torch
from conftest import CASES
from torch.utils.flop_counter import FlopCounterMode

import fastdml
from fastdml import functional as F
from fastdml.engine import registry

LOSSES = [F.multi_similarity, F.nt_xent, F.circle, F.sup_con, F.smooth_ap, F.fast_ap]


def by_labels(rows, columns):
    """The relation of labels as a function: of every block, and nothing more."""

    def masks(anchors, candidates):
        same = rows[anchors][:, None] == columns[candidates]
        return same, ~same

    return masks


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ["auto", "dense"])
@pytest.mark.parametrize("case", ["ragged", "reference"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_labels(loss, case, backend, reduction):
    given = CASES[case]()
    columns = given.y if given.ref is None else given.ref_y
    found = []
    for y, function, ref_y in (
        (given.y, None, given.ref_y),
        (None, by_labels(given.y, columns), None),
    ):
        x = given.x.clone().requires_grad_()
        value = loss(x, y, function, given.ref, ref_y, reduction=reduction, backend=backend)
        value.sum().backward()
        found.append((value.detach(), x.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_every_block_asks_for_its_own_rows():
    x, y = torch.randn(301, 5, generator=torch.Generator().manual_seed(0)).double(), torch.arange(301) // 3
    fastdml.set_workspace(64 << 10)
    found = F.multi_similarity(x, None, by_labels(y, y), reduction="none", backend="chunked")
    torch.testing.assert_close(found, F.multi_similarity(x, y, reduction="none", backend="dense"))


def test_masks_are_checked():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"indices_tuple: .* a bool positive mask of shape"):
        F.multi_similarity(x, None, lambda a, c: (torch.ones(2, 2), torch.ones(2, 2)))


def test_own_loss_takes_one():
    x, y = torch.randn(9, 3), torch.arange(9) // 3
    loss = fastdml.row_loss(lambda s, positive, negative: (s * negative - s * positive).sum(1))
    torch.testing.assert_close(loss(x, None, by_labels(y, y)), loss(x, y))


@pytest.mark.parametrize("watched", [False, True])
def test_functions_are_not_kept(watched):
    """Longer than for the backward, which asks again; by a string where a mode watches operators."""
    x, y = torch.randn(6, 3).requires_grad_(), torch.arange(6) // 2
    function = by_labels(y, y)
    kept = weakref.ref(function)
    with FlopCounterMode(display=False) if watched else contextlib.nullcontext():
        value = F.multi_similarity(x, None, function, reduction="none")
        del function
        gc.collect()
        assert kept() is not None and len(registry._objects) == watched
        value.sum().backward()
    del value
    gc.collect()
    assert kept() is None and not registry._objects
