"""N-pair's pairs on a GPU, padded so that nobody asks how many there are: the same loss."""

import pytest
import torch
from conftest import CASES

import fastdml.functional as F
from fastdml.losses import NPairsLoss

MODULE = __import__(NPairsLoss.__module__, fromlist=["_padded"])


@pytest.mark.parametrize("options", [{}, {"l2_reg": 0.3}, {"l2_reg": 0.3, "l2_kind": "squared"}], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", ["mc", "ovo"])
@pytest.mark.parametrize("name", ["ragged", "wide", "one_class", "all_singletons"])
def test_the_same_loss(name, form, reduction, options, monkeypatch):
    case, found = CASES[name](), []
    alone = (case.y[:, None] == case.y).sum(1) == 1
    for padded in (False, True):
        monkeypatch.setattr(MODULE, "_padded", lambda *given, padded=padded: padded)
        x = case.x.masked_fill(alone[:, None], 1e300).requires_grad_()  # enters no pair
        value = F.n_pairs(x, case.y, form=form, reduction=reduction, **options)
        found.append((value.detach(), *torch.autograd.grad(value, x)))
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-10, atol=1e-12)
