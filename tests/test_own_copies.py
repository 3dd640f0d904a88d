"""A sample's own copy among the candidates: the same loss however the call says where it stands."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from conftest import COMPILED, PARAMETERS, compiled, fill, of_batch
from torch import Tensor

import fastdml
from fastdml import losses, miners
from fastdml.losses.base import SampleLoss

SIZES = [1, 1, 2, 3, 5, 8, 13, 21, 30, 36]
B, D = sum(SIZES), 7
# Backend and workspace: the smallest makes several blocks of rows, the last of them short.
WAYS = {
    "dense": ("dense", None),
    "chunked": ("chunked", 64 << 10),
    "native": ("native", None),
    "native, in blocks": ("native", 64 << 10),
}
MODULES = {
    name: module for name, module in losses.MODULES.items() if issubclass(module, SampleLoss)
}
# Forms that go other ways than a loss by its defaults.
FORMS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in MODULES},
    "multi-similarity, mined": ("MultiSimilarityLoss", {"epsilon": 0.1}),
    "multi-similarity, nonzero": ("MultiSimilarityLoss", {"reduction": "nonzero"}),
    "Smooth-AP, sorted": ("SmoothAPLoss", {"sort": True}),
    "triplets, hardest": ("TripletMarginLoss", {"positives": "hard", "negatives": "hard"}),
    "triplets, semi-hard": ("TripletMarginLoss", {"positives": "easy", "negatives": "semihard"}),
    "triplets, drawn": ("TripletMarginLoss", {"triplets_per_anchor": 3}),
    "triplets, swapped": ("TripletMarginLoss", {"swap": True}),
    "margin, drawn": ("MarginLoss", {"triplets_per_anchor": "distance_weighted"}),
    "N-pairs, all": ("NPairsLoss", {"form": "all"}),
}


def samples() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    y = torch.repeat_interleave(torch.arange(len(SIZES)) * 3, torch.tensor(SIZES))
    return torch.randn(B, D, generator=g, dtype=torch.float64), y[torch.randperm(B, generator=g)]


def build(form: str, way: str, **options: object) -> SampleLoss:
    name, given = FORMS[form]
    backend, workspace = WAYS[way]
    module = MODULES[name]
    loss = module(
        **fill(module.__init__, num_classes=100, embedding_size=D, **PARAMETERS),
        **{"backend": backend, **given, **options},
    )
    if backend == "native" and not (COMPILED and compiled(loss.description())):
        pytest.skip("no compiled functor")
    fastdml.set_workspace(workspace)
    return loss.double().eval()  # scores that move, and steps of draws, stay


def step(loss: SampleLoss, leaves: list[Tensor], *batch: object, **own: object) -> list[Tensor]:
    """[loss, gradients] of leaves, the first of them the embeddings."""
    torch.manual_seed(0)
    value = loss(leaves[0], *batch, **own)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves, allow_unused=True)]


@functools.cache
def one_set(form: str, way: str, **options: object) -> list[Tensor]:
    x, y = samples()
    return step(build(form, way, **options), [x.requires_grad_()], y)


def agree(found: list[Tensor], true: list[Tensor]) -> None:
    for f, t in zip(found, true, strict=True):
        torch.testing.assert_close(f, t, rtol=1e-10, atol=1e-12)


@pytest.fixture(params=WAYS)
def way(request) -> str:
    return request.param


@pytest.fixture(params=FORMS)
def form(request) -> str:
    return request.param


def refused(loss: SampleLoss, *batch: object, **own: object) -> None:
    """Skips what a backend or a loss refuses by name."""
    x, _ = samples()
    try:
        loss(x, *batch, **own)
    except ValueError as error:
        pytest.skip(str(error))


def test_the_same_tensor_is_one_set(form, way):
    loss = build(form, way)
    x, y = samples()
    refused(loss, y, None, x, y)
    x.requires_grad_()
    agree(step(loss, [x], y, None, x, y), one_set(form, way))
    agree(step(loss, [x], y, None, x, y.clone()), one_set(form, way))


def test_a_copy_in_its_place(form, way):
    loss = build(form, way)
    x, y = samples()
    refused(loss, y, None, x, y)
    leaves = [x.requires_grad_(), x.detach().clone().requires_grad_()]
    value, d_x, d_ref = step(loss, leaves, y, None, leaves[1], y, own=0)
    agree([value, d_x + d_ref], one_set(form, way))


def test_copies_anywhere(form, way):
    """By index, among candidates in another order."""
    if "drawn" in form:
        pytest.skip("draws are of candidates by their places")
    loss = build(form, way)
    x, y = samples()
    refused(loss, y, None, x, y)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(9))
    own = order.argsort()
    leaves = [x.requires_grad_(), x.detach()[order].requires_grad_()]
    value, d_x, d_ref = step(loss, leaves, y, None, leaves[1], y[order], own=own)
    agree([value, d_x + d_ref[own]], one_set(form, way))


PART = slice(23, 61)
# A row's loss is not its own there, but has to do with how many rows of the batch there are.
BATCHES = (
    losses.BalancedContrastiveLoss, losses.LiftedStructureLoss, losses.GeneralizedLiftedStructureLoss,
    losses.NPairsLoss, losses.HistogramLoss, losses.ROADMAPLoss,
)  # fmt: skip


def test_a_gathered_batch(form, way):
    """The rows of one process among those of all: by offset as by index, and the row losses of all."""
    if "drawn" in form:
        pytest.skip("draws are of rows and candidates by their places")
    loss, options = build(form, way), {}
    if not of_batch(loss.description()) and not isinstance(loss, BATCHES):
        with contextlib.suppress(ValueError):  # it has no row losses
            loss, options = build(form, way, reduction="none"), {"reduction": "none"}
    x, y = samples()
    refused(loss, y, None, x, y)
    found = []
    for own in (PART.start, torch.arange(PART.start, PART.stop)):
        leaves = [x[PART].requires_grad_(), x.clone().requires_grad_()]
        found.append(step(loss, leaves, y[PART], None, leaves[1], y, own=own))
    agree(found[0], found[1])
    if options:
        true = one_set(form, way, **options)[0][PART]
        torch.testing.assert_close(found[0][0], true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["function", "list"])
def test_pairs_that_leave_it_out(form, way, kind):
    """Whether the own pair is in the loss is the loss's affair alone."""
    if "drawn" in form:
        pytest.skip("draws are of candidates by their places")
    loss = build(form, way)
    x, y = samples()
    same, other = y[:, None] == y, ~torch.eye(B, dtype=torch.bool)

    def masks(anchors: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        return (same & other)[anchors][:, candidates], ~same[anchors][:, candidates]

    listed = (*(same & other).nonzero().unbind(1), *(~same).nonzero().unbind(1))
    pairs = masks if kind == "function" else listed
    if kind == "list" and loss.description().tuples == "weights":
        pytest.skip("a list is weights of samples")
    refused(loss, y, pairs)
    agree(step(loss, [x.requires_grad_()], y, pairs), one_set(form, way))


@pytest.mark.parametrize("way", WAYS)
def test_the_very_tensor_by_projections(way):
    """An anchor is taken as it is and a candidate at length 1, also where both are of one tensor."""
    x, y = samples()
    loss = build("SupConLoss", way, temperature=0.5, similarity="projection", reduction="mean")
    leaf, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = loss(leaf, y, None, leaf, y)
    z = plain @ torch.nn.functional.normalize(plain, dim=1).t() / 0.5
    others = ~torch.eye(B, dtype=torch.bool)
    positive = (y[:, None] == y) & others
    level = z.masked_fill(~others, -torch.inf).logsumexp(1)
    mean = (z * positive).sum(1) / positive.sum(1).clamp(min=1)
    true = torch.where(positive.any(1), level - mean, 0).mean()
    torch.testing.assert_close(found, true, rtol=1e-12, atol=0)
    for g, t in zip(torch.autograd.grad(found, leaf), torch.autograd.grad(true, plain)):
        torch.testing.assert_close(g, t, rtol=1e-10, atol=1e-12)


class MeanOfPositives(losses.GenericPairLoss):
    def __init__(self) -> None:
        super().__init__(mat_based_loss=False)

    def _compute_loss(self, near, far, indices):
        return {"loss": {"losses": near.mean(), "indices": None, "reduction_type": "already_reduced"}}


class AllPairs(miners.BaseMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        same = labels[:, None] == ref_labels
        return *same.nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True)


class AllTriplets(miners.BaseMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        same = labels[:, None] == ref_labels
        return (same[:, :, None] & ~same[:, None]).nonzero(as_tuple=True)


class Deaf(torch.nn.Module):
    """A miner that takes `own` and does not heed it."""

    def forward(self, *batch, own=None):
        return AllPairs()(*batch)


def test_what_users_derive_compares_no_sample_with_its_copy():
    """A loss and miners that know of no copies: with `own` of each kind, labels of sets, in a memory."""
    x, y = samples()
    loss = MeanOfPositives()
    true = loss(x, y)
    more, none = torch.randn(5, D, dtype=x.dtype), y.new_full((5,), -1)
    for own, ref, ref_y in (
        (0, x.clone(), y),
        (5, torch.cat([more, x]), torch.cat([none, y])),
        (torch.arange(B).flip(0), x.flip(0), y.flip(0)),
    ):
        torch.testing.assert_close(loss(x, y, None, ref, ref_y, own=own), true)
        for miner, tensors in ((AllPairs(), 4), (AllTriplets(), 3)):
            pairs = miner(x, y, ref, ref_y, own=own)
            places = torch.arange(B) + own if isinstance(own, int) else own
            assert len(pairs) == tensors and not (places[pairs[0]] == pairs[1]).any()
            assert miner.num_pos_pairs + miner.num_triplets == len(pairs[0])
    sets = torch.nn.functional.one_hot(y).bool()
    torch.testing.assert_close(loss(x, sets, None, x.clone(), sets, own=0), true)
    unseen = loss(x, y, None, x.clone(), y, own=torch.full_like(y, -1))
    torch.testing.assert_close(unseen, loss(x, y, None, x.clone(), y))
    for miner in (None, AllPairs(), Deaf()):
        torch.testing.assert_close(losses.CrossBatchMemory(loss, D, 2 * B, miner)(x, y), true)
