"""Losses of queries and documents, of lists, tokens and widths, over ranks, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from checks_losses import close, own, shards
from torch import Tensor

import fastdml
from fastdml import losses
from fastdml.distributed import RankError, wrap
from fastdml.distributed.ranks import Ranks
from fastdml.losses import MatryoshkaLoss

ROWS, MORE, DIM, WIDTHS = 23, 31, 7, (2, 5, 7)
# What a gradient is asked of.
LEAVES = ("embeddings", "ref_emb", "hard_negatives", "candidates", "queries", "documents")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def batches() -> dict[str, dict[str, Tensor]]:
    q, d = drawn(ROWS, DIM), drawn(ROWS, DIM, seed=1)
    pairs = {"embeddings": q, "ref_emb": d}
    hard = {**pairs, "hard_negatives": drawn(ROWS, 3, DIM), "hard_weights": drawn(ROWS, 3).exp()}
    ids = {"ids": torch.arange(ROWS) % 9, "hard_ids": torch.arange(3 * ROWS).view(ROWS, 3) % 9}
    guide = {k: drawn(ROWS, 4, seed=k == "guide") for k in ("guide", "ref_guide")}
    tokens = {"queries": drawn(ROWS, 3, DIM), "documents": drawn(ROWS, 5, DIM)}
    masks = {"query_mask": drawn(ROWS, 3) > -1, "document_mask": drawn(ROWS, 5) > -0.5}
    lists = {"embeddings": q, "candidates": drawn(ROWS, 4, DIM), "teacher_scores": drawn(ROWS, 4)}
    return {
        "pairs": pairs,
        "more": {**pairs, "ref_emb": drawn(MORE, DIM)},
        "hard": hard,
        "of all": {**pairs, "hard_negatives": drawn(MORE, DIM)},
        "ids": {**hard, **ids},
        "some": {**pairs, "own": torch.where(torch.arange(ROWS) % 4 == 1, -1, torch.arange(ROWS))},
        "guide": {**hard, **guide, "hard_guide": drawn(ROWS, 3, 4)},
        "scores": {**pairs, "scores": drawn(ROWS).round(decimals=0)},
        "lists": lists,
        "tokens": {**tokens, **masks},
        "more tokens": {**tokens, "documents": drawn(MORE, 5, DIM)},
        "labels": {"embeddings": q, "labels": torch.arange(ROWS) % 6},
        "views": pairs,
    }


def whole(batch: dict[str, Tensor], counts: dict[str, list[int]]) -> dict[str, Tensor]:
    """The batch of all ranks, whose rows' documents stand among those of their own rank."""
    rows, columns = (next((counts[n] for n in names if n in counts), None) for names in (
        ("embeddings", "queries"), ("ref_emb", "documents")
    ))  # fmt: skip
    if columns is None or rows is None or rows == columns:
        return batch
    place = [torch.arange(r) + sum(columns[:k]) for k, r in enumerate(rows)]
    return {**batch, "own": torch.cat(place)}


def compare(build: Callable[[], torch.nn.Module], kind: str, schedule: str = "gather") -> None:
    """Value, and gradients of the rows and of what is learnt."""
    size, batch = dist.get_world_size(), batches()[kind]
    counts = {k: shards(len(x), size, False) for k, x in batch.items()}
    alone, shared = build().double(), build().double()
    leaves = {k: x.clone().requires_grad_() for k, x in batch.items() if k in LEAVES}
    value = alone(**{**whole(batch, counts), **leaves})
    weight = torch.arange(1.0, 1 + value.numel(), dtype=torch.float64).view(value.shape)
    (value * weight).sum().backward()
    mine = {k: own(x, counts[k]) for k, x in batch.items()}
    if "own" in mine:  # among the rank's own documents
        before = sum(counts["own"][: dist.get_rank()])
        mine["own"] = torch.where(mine["own"] < 0, -1, mine["own"] - before)
    local = {k: mine[k].clone().requires_grad_() for k in leaves}
    result = wrap(shared, schedule=schedule, gradient="sum")(**{**mine, **local})
    of_rows = value.dim() > 0
    mine_of_rows = shards(ROWS, size, False)
    (result * (own(weight, mine_of_rows) if of_rows else weight)).sum().backward()
    close(result, own(value, mine_of_rows) if of_rows else value, "value")
    for key, leaf in leaves.items():
        close(local[key].grad, own(leaf.grad, counts[key]), key)
    for (key, p), q in zip(alone.named_parameters(), shared.parameters(), strict=True):
        close(None if q.grad is None else Ranks().total(q.grad), p.grad, key)


def ring(build: Callable[[], torch.nn.Module], kind: str, travels: bool) -> None:
    """The same by blocks that travel, or an error that says why not."""
    if travels:
        return compare(build, kind, "ring")
    try:
        compare(build, kind, "ring")
    except ValueError as error:
        assert str(error).startswith("schedule: ") and "expected 'gather'" in str(error), error
    else:
        raise AssertionError("no error")


def _contrast(**options: object) -> Callable[[], torch.nn.Module]:
    # (In torch: options would be compiled first.)
    return functools.partial(losses.InfoNCELoss, 0.2, learnable=True, backend="chunked", **options)


def _cut(loss: Callable[[], torch.nn.Module]) -> Callable[[], torch.nn.Module]:
    def made() -> torch.nn.Module:
        torch.manual_seed(2)
        return MatryoshkaLoss(loss(), WIDTHS, (1.0, -0.5, 2.0))

    return made


# What builds a loss, the batch it is called with, and whether its columns may travel.
ALL = {
    "qq": (_contrast(negatives=("qd", "qq")), "pairs", True),
    "every negative": (_contrast(negatives=("qd", "qq", "dd", "dq"), symmetric=True), "pairs", True),
    "qq of rows": (_contrast(negatives=("qd", "qq"), reduction="none"), "pairs", True),
    "Qwen3": (_contrast(negatives=("qd", "qq", "dd"), false_negative_margin=0.1), "ids", True),
    "rows without a document": (_contrast(negatives=("qd", "dd", "dq")), "some", False),
    "a largest scale": (lambda: losses.CLIPLoss(0.1, max_scale=8.0), "pairs", True),
    "more documents": (_contrast(negatives=("qd", "dd")), "more", False),
    "hard negatives": (_contrast(symmetric=True, label_smoothing=0.1), "hard", True),
    "hard negatives of all": (_contrast(hardness=0.4), "of all", False),
    "a guide": (_contrast(decoupled=True, hardness=0.3, prior=0.1), "guide", True),
    "ids": (_contrast(symmetric=True, reduction="none"), "ids", True),
    "CoSENT": (losses.CoSENTLoss, "scores", False),
    "AnglE": (losses.AnglELoss, "scores", False),
    "margins": (losses.MarginMSELoss, "lists", True),
    "margins of rows": (lambda: losses.MarginMSELoss(reduction="none"), "lists", True),
    "softmax of a list": (lambda: losses.CandidateKLLoss(2.0, reduction="sum"), "lists", True),
    "rows beside a number": (lambda: losses.PairedNPairsLoss(l2_reg=0.1, reduction="none"), "pairs", False),
    "tokens": (lambda: losses.LateInteractionLoss(2.0, learnable=True), "tokens", False),
    "tokens of both": (lambda: losses.LateInteractionLoss(2.0, symmetric=True), "tokens", False),
    "tokens of more": (losses.LateInteractionLoss, "more tokens", False),
    "widths of samples": (_cut(losses.SupConLoss), "labels", True),
    "widths of one number": (_cut(lambda: losses.CircleLoss(form="global")), "labels", True),
    "widths of ranks": (_cut(losses.SmoothAPLoss), "labels", False),
    "widths of proxies": (_cut(lambda: losses.ProxyAnchorLoss(6, DIM)), "labels", True),
    "widths of rows": (_cut(lambda: losses.ArcFaceLoss(6, DIM, reduction="none")), "labels", True),
    "widths of triplets": (_cut(lambda: losses.TripletMarginLoss(swap=True)), "labels", False),
    "widths of pairs": (_cut(_contrast(symmetric=True)), "pairs", True),
    "widths of negatives": (_cut(_contrast(negatives=("qd", "qq"))), "hard", True),
    "widths of SigLIP": (_cut(losses.SigLIPLoss), "more", True),
}  # fmt: skip


def as_one_is_called() -> None:
    """What a rank is called with otherwise is told, of wrappers that pass their batch on as well."""
    x, y = drawn(6, DIM).requires_grad_(), torch.arange(6)
    loss, bad = wrap(MatryoshkaLoss(losses.SupConLoss(), WIDTHS)), dist.get_rank() == 1
    for words, batch in (
        ("expected 6 rows", (x, y[:3] if bad else y)),
        ("float32", (x.detach().float() if bad else x.detach(), y)),
    ):
        try:
            loss(*batch)
        except RankError as error:
            assert error.rank == 1 and words in str(error), error
        else:
            raise AssertionError(words)


def what_belongs_together_is_said() -> None:
    """By labels or a function: no row has a partner by its place, whatever a rank has or lacks."""
    loss = losses.SigLIPLoss().double()
    x, z, y = drawn(6, DIM), drawn(9, DIM), torch.arange(9) % 3
    for rows, columns in (((6, 0), (6, 0)), ((4, 2), (3, 6))):
        count = sum(columns)
        true = loss(x, z[:count], y[:6], ref_labels=y[:count])
        given = (own(x, rows), own(z[:count], columns), own(y[:6], rows))
        close(wrap(loss)(*given, ref_labels=own(y[:count], columns), own=0), true, "labels")
        masks = functools.partial(_alike, y)
        close(wrap(loss)(*given[:2], positives=masks), loss(x, z[:count], positives=masks), "a function")
        mine = given[0]
        close(wrap(loss)(mine, mine[:], given[2]), loss(x, x[:], y[:6]), "one storage")


def _alike(y: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    same = y[i][:, None] == y[j]
    return same, ~same


def views() -> None:
    """Of more than two views, all of which are of the rank's own samples."""
    size = dist.get_world_size()
    given = [drawn(ROWS, DIM, seed=k) for k in range(3)]
    counts = shards(ROWS, size, False)
    for symmetric in (True, False):
        loss = fastdml.wrappers.SelfSupervisedLoss(losses.NTXentLoss(), symmetric=symmetric)
        leaves = [x.clone().requires_grad_() for x in given]
        local = [own(x, counts).clone().requires_grad_() for x in given]
        value, result = loss(*leaves), wrap(loss, gradient="sum")(*local)
        close(result, value, "value")
        true, found = (torch.autograd.grad(v, x) for v, x in ((value, leaves), (result, local)))
        for d, t in zip(found, true, strict=True):
            close(d, own(t, counts), "gradient")


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    for name, (build, kind, travels) in ALL.items():
        found[name] = functools.partial(compare, build, kind)
        found[f"ring {name}"] = functools.partial(ring, build, kind, travels)
    found["as one is called"] = as_one_is_called
    found["what belongs together is said"] = what_belongs_together_is_said
    found["views"] = views
    return found
