"""Losses of queries and documents, against one dense statement in float64 and against the formulas of
sentence-transformers, open_clip, memeff and the papers."""

import dataclasses

import pytest
import torch
from conftest import BACKENDS, COMPILED, needs_compiled
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import fastdml
from fastdml import losses
from fastdml.distributed import wrap
from fastdml.engine import schedule
from fastdml.losses.twotower.contrast import Contrast, pieces

T = 0.1
AUTO = [b for b in BACKENDS if b != "dense"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=g, dtype=torch.float64)


@dataclasses.dataclass
class Batch:
    """What InfoNCE may be called with; `own` as indices."""

    q: Tensor
    d: Tensor
    hard: Tensor | None = None  # [B, K, D] or [K, D]
    own: Tensor | None = None
    weights: Tensor | None = None
    ids: Tensor | None = None
    hard_ids: Tensor | None = None
    guide: Tensor | None = None
    ref_guide: Tensor | None = None
    hard_guide: Tensor | None = None
    mask: Tensor | None = None

    def call(self, loss, **more):
        mask = self.mask
        return loss(
            self.q, self.d, self.hard, hard_weights=self.weights, ids=self.ids, hard_ids=self.hard_ids,
            guide=self.guide, ref_guide=self.ref_guide, hard_guide=self.hard_guide,
            mask=None if mask is None else lambda i, j: mask[i][:, j],
            **({} if self.own is None else {"own": self.own}), **more,
        )  # fmt: skip

    @property
    def leaves(self):
        return [x for x in (self.q, self.d, self.hard) if x is not None and x.requires_grad]


def cos(a, c):
    return normalize(a, dim=-1) @ normalize(c, dim=-1).transpose(-1, -2)


NO_ID = -77


def dense(
    b: Batch, *, symmetric=False, negatives=("qd",), false_negative_margin=None, guide_margin=0.0,
    relative=False, hardness=0.0, prior=0.0, decoupled=False, label_smoothing=0.0, scale=1 / T, like=cos,
):  # fmt: skip
    """[B] row losses: all negatives of a row side by side, their similarities, weights and which count."""
    rows = len(b.q)
    own = torch.arange(rows) if b.own is None else b.own
    d, ids, guide = b.d, b.ids, b.ref_guide
    mask = torch.zeros(rows, len(d), dtype=torch.bool) if b.mask is None else b.mask
    weight = torch.ones(len(d), dtype=b.q.dtype)
    private = b.hard is not None and b.hard.dim() == 3
    if b.hard is not None and not private:
        d = torch.cat([d, b.hard])
        more = len(b.hard)
        weight = torch.cat([weight, torch.ones(more) if b.weights is None else b.weights])
        mask = torch.cat([mask, torch.zeros(rows, more, dtype=torch.bool)], 1)
        if ids is not None:
            ids = torch.cat([ids, -1 - torch.arange(more) if b.hard_ids is None else b.hard_ids])
        if guide is not None:
            guide = torch.cat([guide, b.hard_guide])

    def pushed(positive):
        return lambda m: positive + (positive.abs() * m if relative else m)

    def side(q, d, own, ids, guides, mask, weight, extra):
        """[B] losses of rows q against columns d."""
        count = len(q)
        has = own >= 0
        at = own.clamp(min=0)
        s = like(q, d)
        positive = s[torch.arange(count), at]
        limit = None if false_negative_margin is None else pushed(positive)(false_negative_margin)
        g_limit = None
        if guides is not None:
            g = cos(*guides)
            g_limit = pushed(g[torch.arange(count), at])(guide_margin)
        mine = None if ids is None else ids[0][at]

        def counts(s, g, theirs):
            keep = torch.ones_like(s, dtype=torch.bool)
            if limit is not None:
                keep &= s <= limit[:, None]
            if g_limit is not None:
                keep &= g <= g_limit[:, None]
            if ids is not None:
                keep &= theirs != mine[:, None]
            return keep

        keep = counts(s, None if guides is None else g, None if ids is None else ids[1][None]) & ~mask
        keep[torch.arange(count)[has], at[has]] = False
        all_s, all_w, all_keep = [s], [weight.expand(s.shape)], [keep]
        if extra and private:
            s_h = torch.cat([like(q[i : i + 1], b.hard[i]) for i in range(count)])
            g_h = None
            if guides is not None:
                g_h = torch.einsum("bd,bkd->bk", normalize(guides[0]), normalize(b.hard_guide, dim=-1))
            all_s.append(s_h)
            all_w.append(torch.ones_like(s_h) if b.weights is None else b.weights)
            theirs = b.hard_ids
            if ids is not None and theirs is None:
                theirs = torch.full(s_h.shape, NO_ID)
            all_keep.append(counts(s_h, g_h, theirs))
        eye = torch.eye(count, dtype=torch.bool)
        docs = d[at]
        # Rows without a document have no id, and no column in "dd".
        theirs = None if ids is None else torch.where(has, mine, NO_ID)
        doc_guide = None if guides is None else guides[1][at]
        for name, x, c, gx, gc in (
            ("qq", q, q, *((None,) * 2 if guides is None else (guides[0], guides[0]))),
            ("dd", docs, docs, doc_guide, doc_guide),
            ("dq", docs, q, doc_guide, None if guides is None else guides[0]),
        ):
            if extra and name in negatives:
                s_x = like(x, c)
                g_x = None if guides is None else cos(gx, gc)
                all_s.append(s_x)
                all_w.append(torch.ones_like(s_x))
                keep = counts(s_x, g_x, None if ids is None else theirs[None]) & ~eye
                all_keep.append(keep & has if name == "dd" else keep)
        s, w, keep = (torch.cat(x, 1) for x in (all_s, all_w, all_keep))
        z, z_own, n = scale * s, scale * positive, keep.sum(1).double()
        e = torch.where(keep, w * z.exp(), 0.0)
        total = e.sum(1)
        if hardness:
            importance = torch.where(keep, w * (hardness * z).exp(), 0.0)
            total = (importance * z.exp()).sum(1) / importance.sum(1).clamp(min=1e-300) * n
        if prior:
            total = (total - prior * n * z_own.exp()) / (1 - prior)
            total = torch.maximum(total, n * torch.exp(-torch.as_tensor(scale)))
        level = (total if decoupled else total + z_own.exp()).clamp(min=1e-300).log()
        mean = (z_own + torch.where(keep, z, 0.0).sum(1)) / (n + 1)
        loss = level - (1 - label_smoothing) * z_own - label_smoothing * mean
        return torch.where(has & (n > 0), loss, 0.0)

    both = None if b.guide is None else (b.guide, guide)
    loss = side(b.q, d, own, None if ids is None else (ids, ids), both, mask, weight, True)
    if not symmetric:
        return loss
    at = own.clamp(min=0)
    turned = None if b.guide is None else (b.guide.new_tensor(b.ref_guide[at].tolist()), b.guide)
    back_own = torch.where(own >= 0, torch.arange(rows), -1)
    mine = None if ids is None else torch.where(own >= 0, ids[at], NO_ID)
    back_ids = None if ids is None else (mine, mine)
    back = side(
        d[at], b.q, back_own, back_ids, turned, mask[:, at].T, torch.ones(rows, dtype=b.q.dtype), False
    )
    return (loss + back) / 2


def assert_same(loss, batch: Batch, bound=1e-10, **options):
    for x in batch.leaves:
        x.grad = None
    value = batch.call(loss)
    true = dense(batch, **options)
    true = {"mean": true.mean(), "sum": true.sum(), "none": true}[loss.reduction]
    upstream = None
    if loss.reduction == "none":
        upstream = torch.linspace(0.5, 1.5, len(batch.q), dtype=torch.float64)
    found = torch.autograd.grad(value, batch.leaves, upstream)
    wanted = torch.autograd.grad(true, batch.leaves, upstream)
    for f, w in zip((value, *found), (true, *wanted), strict=True):
        assert torch.isfinite(f).all()
        size = max([1.0, *w.detach().abs().flatten().tolist()])
        assert float((f - w).detach().abs().sum()) <= bound * size


def pair(rows=9, columns=None, dim=6, seed=0, **more) -> Batch:
    q = drawn(rows, dim, seed=seed).requires_grad_()
    d = drawn(columns or rows, dim, seed=seed + 50).requires_grad_()
    return Batch(q, d, **more)


def full(rows=9, k=3, shared=False) -> Batch:
    """Everything at once: duplicates by id, a guide, hard negatives with weights and ids."""
    shape = (k,) if shared else (rows, k)
    return pair(
        rows, rows + 4,
        hard=drawn(*shape, 6, seed=9).requires_grad_(),
        weights=drawn(*shape, seed=3).exp(),
        ids=torch.arange(rows + 4) % 7 + 2**44 * (torch.arange(rows + 4) % 2),
        hard_ids=torch.arange(torch.Size(shape).numel()).view(shape) % 11,
        guide=drawn(rows, 4, seed=5), ref_guide=drawn(rows + 4, 4, seed=6),
        hard_guide=drawn(*shape, 4, seed=7),
    )  # fmt: skip


OPTIONS = {
    "plain": {},
    "margin": {"false_negative_margin": 0.1},
    "relative": {"false_negative_margin": -0.2, "guide_margin": 0.1, "relative": True},
    "hardness": {"hardness": 0.7},
    "debiased": {"prior": 0.1},
    "both": {"hardness": 1.5, "prior": 0.05, "false_negative_margin": 0.3},
    "decoupled": {"decoupled": True},
    "smoothed": {"label_smoothing": 0.2},
    "smoothed and debiased": {"label_smoothing": 0.1, "prior": 0.2, "decoupled": True},
    "Qwen3": {"negatives": ("qd", "qq", "dd"), "false_negative_margin": 0.1},
    "GTE": {"negatives": ("qd", "qq", "dd", "dq")},
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_against_the_dense_statement(options, symmetric):
    given = OPTIONS[options]
    # Where a debiased sum is nearly its least, digits are lost: the warmer, the fewer.
    t = 0.5 if "prior" in given else T
    loss = losses.InfoNCELoss(t, symmetric=symmetric, backend="chunked", **given)
    for batch in (pair(), pair(5, hard=drawn(5, 3, 6).requires_grad_()), full(), full(shared=True)):
        assert_same(loss, batch, symmetric=symmetric, scale=1 / t, **given)


@pytest.mark.parametrize("options", [name for name, given in OPTIONS.items() if "prior" not in given])
def test_every_option_on_distances(options):
    """Of which all signs turn."""
    given = OPTIONS[options]
    loss = losses.InfoNCELoss(T, similarity="raw_distance", **given)
    for batch in (pair(), full(), full(shared=True)):
        assert_same(loss, batch, like=lambda q, d: -torch.cdist(q, d), **given)


# Every structure is compiled, which takes a second each: these have every word of the row between them.
@pytest.mark.skipif(not COMPILED, reason="the compiled library is not installed")
@pytest.mark.parametrize(
    ("options", "shared"),
    [("plain", False), ("relative", True), ("smoothed and debiased", False), ("Qwen3", False)],
)
def test_compiled_options(options, shared):
    given, t = OPTIONS[options], 0.5
    loss = losses.InfoNCELoss(t, symmetric=options == "plain", backend="native", **given)
    assert_same(loss, full(shared=shared), symmetric=options == "plain", scale=1 / t, **given)


@pytest.mark.parametrize("example", Contrast.examples())
def test_the_printed_row_is_the_specification(example):
    rows, columns = 21, 33
    call = fastdml.engine.call.Call(
        example, drawn(rows, 5), drawn(columns, 5),
        torch.arange(rows), torch.arange(columns),
        teacher=(drawn(rows, 4), drawn(columns, 4)) * example.guided,
        **{k: v.double() for k, v in example.example_values(rows, columns).items()},
    )  # fmt: skip
    found = {}
    for backend in BACKENDS:
        leaves = [x.clone().requires_grad_() for x in (call.anchors, call.candidates, call.scalars)]
        given = dict(zip(("anchors", "candidates", "scalars"), leaves))
        if call.row_values is not None:
            given["row_values"] = call.row_values.clone().requires_grad_()
        value = fastdml.engine.autograd.evaluate(call.replace(backend=backend, **given))
        found[backend] = [value.detach(), *torch.autograd.grad(value, list(given.values()))]
    for backend in AUTO:
        for f, w in zip(found[backend], found["dense"], strict=True):
            torch.testing.assert_close(f, w, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("options", ["plain", "both", "Qwen3"])
def test_reductions(reduction, options):
    loss = losses.InfoNCELoss(
        T, symmetric=True, reduction=reduction, backend="chunked", **OPTIONS[options]
    )
    assert_same(loss, full(), symmetric=True, **OPTIONS[options])


@pytest.mark.parametrize("k", [0, 1, 2, 17, 64])
@pytest.mark.parametrize("shared", [False, True])
def test_any_number_of_hard_negatives(k, shared):
    batch = pair(6, hard=drawn(*((k, 6) if shared else (6, k, 6))).requires_grad_())
    for symmetric in (False, True):
        assert_same(losses.InfoNCELoss(T, symmetric=symmetric), batch, symmetric=symmetric)
    given = OPTIONS["both"] | {"decoupled": True}
    assert_same(losses.InfoNCELoss(0.5, backend="chunked", **given), batch, scale=2.0, **given)


@pytest.mark.parametrize("backend", AUTO)
def test_a_function_says_what_is_no_negative(backend):
    backend = "auto" if backend == "native" else backend
    batch = pair(8, 11, mask=drawn(8, 11, seed=4) > 0.6, hard=drawn(8, 2, 6).requires_grad_())
    for given in ({}, {"false_negative_margin": 0.2, "label_smoothing": 0.1}):
        for symmetric in (False, True):
            loss = losses.InfoNCELoss(T, symmetric=symmetric, backend=backend, **given)
            assert_same(loss, batch, symmetric=symmetric, **given)
    shared = dataclasses.replace(batch, hard=drawn(3, 6).requires_grad_())
    assert_same(losses.InfoNCELoss(T, backend=backend), shared)


@pytest.mark.parametrize("options", ["plain", "both", "Qwen3"])
def test_partners_stand_anywhere(options):
    given = OPTIONS[options]
    for own in (torch.tensor([4, 0, -1, 4, 6, 2]), torch.arange(3, 9)):
        batch = pair(6, 9, own=own, hard=drawn(6, 2, 6).requires_grad_(), ids=torch.arange(9))
        for symmetric in (False, True):
            loss = losses.InfoNCELoss(0.5, symmetric=symmetric, backend="chunked", **given)
            assert_same(loss, batch, symmetric=symmetric, scale=2.0, **given)
    assert losses.InfoNCELoss(T)(batch.q, batch.d, own=3).item() == pytest.approx(
        cross_entropy(cos(batch.q, batch.d) / T, torch.arange(3, 9)).item(), rel=1e-12
    )


# ---- what others compute


def test_multiple_negatives_ranking_of_sentence_transformers():
    """Its joint partition: hard negatives are candidates of all rows."""
    q, d, h = drawn(7, 5), drawn(7, 5, seed=1), drawn(14, 5, seed=2)
    s = {"qd": cos(q, torch.cat([d, h])), "qq": cos(q, q), "dq": cos(d, q), "dd": cos(d, d)}
    eye = torch.eye(7, dtype=torch.bool)
    for name in ("qq", "dq", "dd"):
        s[name] = s[name].masked_fill(eye, -torch.inf) if name != "dq" else s[name]
    positive = 20 * s["qd"].diagonal()

    def joint(*names):
        return (torch.cat([20 * s[n] for n in names], 1).logsumexp(1) - positive).mean()

    assert losses.InfoNCELoss(1 / 20)(q, d, h).item() == pytest.approx(joint("qd").item(), rel=1e-12)
    two = losses.InfoNCELoss(1 / 20, negatives=("qd", "qq"), backend="chunked")(q, d, h)
    assert two.item() == pytest.approx(joint("qd", "qq").item(), rel=1e-12)
    # "dq" there holds the row's own pair once more: documented as a difference.
    s["dq"] = s["dq"].masked_fill(eye, -torch.inf)
    four = losses.InfoNCELoss(1 / 20, negatives=("qd", "qq", "dd", "dq"), backend="chunked")(q, d)
    s["qd"] = cos(q, d)
    assert four.item() == pytest.approx(joint("qd", "qq", "dd", "dq").item(), rel=1e-12)


@pytest.mark.parametrize(("relative", "margin"), [(False, 0.0), (False, 0.2), (True, 0.1)])
def test_gist_of_sentence_transformers(relative, margin):
    """Two columns and contrast_anchors, contrast_positives: their margin is below the positive."""
    q, d, gq, gd = drawn(8, 5), drawn(8, 5, seed=1), drawn(8, 3, seed=2), drawn(8, 3, seed=3)
    gd = gq + 0.6 * gd
    own = cos(gq, gd).diagonal()[:, None]
    limit = own - own.abs() * margin if relative else own - margin
    eye = torch.eye(8, dtype=torch.bool)
    parts = []
    for (x, y), (gx, gy) in (((q, d), (gq, gd)), ((q, q), (gq, gq)), ((d, d), (gd, gd))):
        off = cos(gx, gy) > limit
        parts.append(cos(x, y).masked_fill(off & ~eye if x is q and y is d else off | eye, -torch.inf))
    true = cross_entropy(torch.cat(parts, 1) / 0.01, torch.arange(8))
    loss = losses.InfoNCELoss(
        0.01, negatives=("qd", "qq", "dd"), guide_margin=-margin, relative=relative, backend="chunked"
    )
    assert loss(q, d, guide=gq, ref_guide=gd).item() == pytest.approx(true.item(), rel=1e-11)


def test_open_clip():
    """Its ClipLoss: logit_scale times products of normalised features; local rows against all."""
    a, b = drawn(6, 4), drawn(6, 4, seed=1)
    s = 100 * cos(a, b)
    true = (cross_entropy(s, torch.arange(6)) + cross_entropy(s.T, torch.arange(6))) / 2
    assert losses.CLIPLoss(0.01).double()(a, b).item() == pytest.approx(true.item(), rel=1e-6)
    # A rank's rows, with local_loss, against the features of all ranks.
    mine = losses.InfoNCELoss(0.01)(a[2:4], b, own=2)
    assert mine.item() == pytest.approx(cross_entropy(s[2:4], torch.arange(2, 4)).item(), rel=1e-12)


def test_the_papers_of_debiased_and_hard_negatives():
    """Chuang et al., equation 8 with M = 1 (N g), and Robinson et al. in the form of their code."""
    q, d, t, tau, beta = drawn(9, 5), drawn(9, 5, seed=1), 0.5, 0.1, 1.5
    e = (cos(q, d) / t).exp()
    positive, negative = e.diagonal(), e[~torch.eye(9, dtype=torch.bool)].view(9, 8)
    least = torch.tensor(-1 / t).exp()
    g = torch.maximum((negative.mean(1) - tau * positive) / (1 - tau), least)
    true = -(positive / (positive + 8 * g)).log().mean()
    assert losses.InfoNCELoss(t, prior=tau)(q, d).item() == pytest.approx(true.item(), rel=1e-12)
    importance = (beta * negative.log()).exp()
    hard = (importance * negative).sum(1) / importance.mean(1)
    total = torch.clamp((-tau * 8 * positive + hard) / (1 - tau), min=float(8 * least))
    true = -(positive / (positive + total)).log().mean()
    found = losses.InfoNCELoss(t, prior=tau, hardness=beta, backend="chunked")(q, d)
    assert found.item() == pytest.approx(true.item(), rel=1e-7)
    true = (negative.sum(1).log() - positive.log()).mean()
    found = losses.InfoNCELoss(t, decoupled=True, backend="chunked")(q, d)
    assert found.item() == pytest.approx(true.item(), rel=1e-12)


# ---- cost


def products(monkeypatch, *steps) -> int:
    """How many products of matrices the engine makes."""
    made = []
    for name in ("multiply", "accumulate_"):
        plain = getattr(schedule, name)
        monkeypatch.setattr(schedule, name, lambda *a, _f=plain: (made.append(1), _f(*a))[1])
    for step in steps:
        step()
    monkeypatch.undo()
    return len(made)


@pytest.mark.parametrize("locked", ["none", "queries", "documents", "both"])
def test_a_locked_tower_costs_no_product(monkeypatch, locked):
    x, y = (torch.randn(600, 8, requires_grad=True) for _ in range(2))
    x.requires_grad_(locked not in ("queries", "both"))
    y.requires_grad_(locked not in ("documents", "both"))
    loss = losses.InfoNCELoss(T, learnable=True, backend="chunked")
    hard = torch.randn(600, 2, 8, requires_grad=True)
    chunked = fastdml.engine.dispatch.EXECUTORS["chunked"]
    blocks = -(-600 // schedule.block_rows(_problem(loss, x, y), chunked))
    found = products(monkeypatch, lambda: loss(x, y).backward())
    assert found == blocks * (1 + x.requires_grad + y.requires_grad)
    # Hard negatives bring their own products, of each row, and no other.
    assert products(monkeypatch, lambda: loss(x, y, hard).backward()) == found
    assert (x.grad is None) == (locked in ("queries", "both"))
    assert (y.grad is None) == (locked in ("documents", "both"))


def _problem(loss, *batch):
    from fastdml.engine.problem import Problem

    (call,) = loss.calls(*batch)
    return Problem.of(call)


# ---- how it is called


def test_the_learnt_scale_has_its_gradient_through_every_part():
    batch = full()
    given = OPTIONS["Qwen3"]
    loss = losses.InfoNCELoss(T, learnable=True, backend="chunked", **given).double()
    batch.call(loss).backward()
    scale = torch.tensor(1 / T, dtype=torch.float64, requires_grad=True)
    dense(batch, scale=scale, **given).mean().backward()
    torch.testing.assert_close(loss.log_scale.grad, scale.grad / T, rtol=1e-6, atol=1e-8)


def test_the_scale_is_clamped_and_comes_back():
    x, y = drawn(8, 4), drawn(8, 4, seed=1)
    loss = losses.CLIPLoss(1 / 300, max_scale=100).double()
    assert loss.eval()(x, y).item() == pytest.approx(losses.CLIPLoss(0.01).double()(x, y).item(), rel=1e-6)
    assert loss.log_scale.exp().item() == pytest.approx(300, rel=1e-6)  # evaluation changes nothing
    value = loss.train()(x, y)
    value.backward()
    assert loss.log_scale.exp().item() == pytest.approx(100, rel=1e-6)
    assert loss.log_scale.grad.item() != 0


def test_masks_where_several_queries_share_a_document():
    """In both directions, and beside negatives of all rows, of which a mask says nothing."""
    own = torch.tensor([1, 1, 0, 1, 0, 0, 1])
    mask = torch.rand(7, 2, generator=torch.Generator().manual_seed(1)) < 0.3
    leaves = [drawn(n, 5, seed=n).requires_grad_() for n in (7, 2, 3)]
    for hard in (None, leaves[2]):
        batch = Batch(*leaves[:2], hard, own=own, mask=mask)
        for symmetric in (False, True):
            assert_same(losses.InfoNCELoss(T, symmetric=symmetric).double(), batch, symmetric=symmetric)


WRONG = {
    "hard_negatives: expected floats": dict(hard_negatives=torch.zeros(4, 2, 3, 5)),
    "hard_negatives: expected shape [6, K, 4]": dict(hard_negatives=torch.zeros(5, 2, 4)),
    "hard_negatives: expected shape [K, 4]": dict(hard_negatives=torch.zeros(5, 3)),
    "hard_weights: expected None": dict(hard_weights=torch.ones(6)),
    "hard_weights: expected positive": dict(hard_negatives=torch.zeros(3, 4), hard_weights=torch.zeros(3)),
    "hard_weights: expected shape [3]": dict(hard_negatives=torch.zeros(3, 4), hard_weights=torch.ones(2)),
    "ids: expected shape [6]": dict(ids=torch.arange(5)),
    "ids: expected integer": dict(ids=torch.zeros(6)),
    "hard_ids: expected None without ids": dict(hard_negatives=torch.zeros(3, 4), hard_ids=torch.arange(3)),
    "hard_ids: expected shape [3]": dict(
        hard_negatives=torch.zeros(3, 4), ids=torch.arange(6), hard_ids=torch.arange(4)
    ),
    "ref_guide: expected": dict(guide=torch.ones(6, 2)),
    "guide: expected 6 rows": dict(guide=torch.ones(5, 2), ref_guide=torch.ones(6, 2)),
    "hard_guide: expected shape": dict(
        hard_negatives=torch.zeros(3, 4), guide=torch.ones(6, 2), ref_guide=torch.ones(6, 2)
    ),
    "hard_guide: expected None": dict(hard_negatives=torch.zeros(3, 4), hard_guide=torch.ones(3, 2)),
    "mask: expected a function": dict(mask=torch.ones(6, 6)),
    "mask: expected the function": dict(mask=lambda i, j: torch.ones(2, 2)),
    "hard_ids: expected shape [1], got list": dict(
        hard_negatives=torch.zeros(1, 4), ids=torch.arange(6), hard_ids=[1]
    ),
    "hard_guide: expected shape [1, 2], got list": dict(
        hard_negatives=torch.zeros(1, 4), guide=torch.ones(6, 2), ref_guide=torch.ones(6, 2),
        hard_guide=[[1.0, 1.0]],
    ),
    "own: expected": dict(own=-1),
    "ref_emb: expected 8 rows, one per row of embeddings from row 2 on": dict(own=2),
}


@pytest.mark.parametrize("answer", [None, torch.ones(6, 6), torch.ones(6, dtype=torch.bool)], ids=str)
@pytest.mark.parametrize("hard", [None, torch.zeros(3, 4)], ids=["", "hard"])
def test_a_mask_that_is_none_is_refused_from_both_sides(answer, hard):
    with pytest.raises(ValueError, match=r"^mask: expected the function to return a bool mask"):
        losses.CLIPLoss(T)(torch.randn(6, 4), torch.randn(6, 4), hard, mask=lambda i, j: answer)


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_batch_says_what_is_wrong(message):
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    with pytest.raises(ValueError) as found:
        losses.InfoNCELoss(T)(x, y, **WRONG[message])
    assert str(found.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(negatives=("qq",)), "negatives: expected a list"),
        (dict(negatives="qd"), "negatives: expected a list"),
        (dict(negatives=("qd", "xx")), "negatives: expected one of"),
        (dict(prior=1.0), "prior: expected a number in [0, 1)"),
        (dict(label_smoothing=-0.1), "label_smoothing: expected a number in [0, 1)"),
        (dict(hardness=-1), "hardness: expected"),
        (dict(prior=0.1, similarity="dot"), "prior: expected 0 on similarity"),
        (dict(hardness=0.1, negatives=("qd", "qq")), "hardness: expected 0 with negatives"),
        (dict(max_scale=0), "max_scale: expected a positive number"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError) as found:
        losses.InfoNCELoss(**arguments)
    assert str(found.value).startswith(message)


def test_one_tensor_as_both_towers_is_two_sets():
    batch = pair(8)
    for options in ("plain", "margin", "Qwen3"):
        same = dataclasses.replace(batch, d=batch.q)
        twice = dataclasses.replace(batch, d=batch.q.clone())
        loss = losses.InfoNCELoss(T, backend="chunked", **OPTIONS[options])
        assert same.call(loss).item() == pytest.approx(twice.call(loss).item(), rel=1e-12)


def test_one_pair_has_nothing_to_be_told_from():
    x, y = drawn(1, 4).requires_grad_(), drawn(1, 4, seed=1).requires_grad_()
    for options in OPTIONS.values():
        value = losses.InfoNCELoss(T, backend="chunked", **options)(x, y)
        assert value.item() == 0
        assert all(g.abs().max() == 0 for g in torch.autograd.grad(value, (x, y)))


def test_ids_of_all_64_bits():
    ids = torch.tensor([0, 1, -1, 2**22, 2**44, 2**62, -(2**62), 2**63 - 1, 5 + 2**30, 5 + 2**31])
    same = (pieces(ids)[:, :, None] == pieces(ids)[:, None]).all(0)
    assert torch.equal(same, torch.eye(len(ids), dtype=torch.bool))


def test_duplicates_and_embeddings_without_direction():
    batch = full()
    with torch.no_grad():
        batch.q[3], batch.d[5], batch.hard[2, 1] = 0, 0, 0
        batch.d[7] = batch.d[1]
        batch.hard[1] = batch.d[1]
    for options in ("plain", "hardness", "Qwen3"):
        value = batch.call(losses.InfoNCELoss(0.5, backend="chunked", **OPTIONS[options]))
        found = torch.autograd.grad(value, batch.leaves)
        assert all(torch.isfinite(f).all() for f in found)
        assert not any(g.any() for g in (found[0][3], found[1][5], found[2][2, 1]))


def test_half_precision_and_autocast():
    batch = full()
    true = dense(batch, **OPTIONS["Qwen3"]).mean().item()
    loss = losses.InfoNCELoss(T, backend="chunked", **OPTIONS["Qwen3"])
    half = {f.name: v for f in dataclasses.fields(batch) if (v := getattr(batch, f.name)) is not None}
    half = Batch(**{k: v.detach().bfloat16() if v.is_floating_point() else v for k, v in half.items()})
    for x in (half.q, half.d, half.hard):
        x.requires_grad_()
    value = half.call(loss)
    value.backward()
    assert value.dtype == torch.float32 and half.hard.grad.dtype == torch.bfloat16
    assert value.item() == pytest.approx(true, rel=0.03)
    single = dataclasses.replace(batch, q=batch.q.detach().float(), d=batch.d.detach().float())
    single = dataclasses.replace(single, hard=batch.hard.detach().float())
    with torch.autocast("cpu", torch.bfloat16):
        assert single.call(loss).item() == pytest.approx(true, rel=1e-5)


def test_gradient_caching_of_three_towers():
    torch.manual_seed(0)
    tower = torch.nn.Linear(5, 4).double()
    loss = losses.InfoNCELoss(T, false_negative_margin=0.2, backend="chunked")
    q, d, h = drawn(12, 5), drawn(12, 5, seed=1), drawn(12, 3, 5, seed=2)
    loss(tower(q), tower(d), tower(h)).backward()
    true = [p.grad.clone() for p in tower.parameters()]
    tower.zero_grad()
    with fastdml.large_batch.GradientCache(chunk=5) as cache:
        loss(*(cache.embed(tower, x) for x in (q, d, h))).backward()
    for p, t in zip(tower.parameters(), true, strict=True):
        torch.testing.assert_close(p.grad, t, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", ["plain", "Qwen3"])
def test_one_graph(options):
    x, y, h = torch.randn(8, 4), torch.randn(8, 4), torch.randn(8, 2, 4)
    loss = losses.InfoNCELoss(T, symmetric=True, backend="chunked", **OPTIONS[options])

    def step(x, y, h):
        return loss(x, y, h, ids=torch.arange(8) % 6)

    found = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y, h)
    torch.testing.assert_close(found, step(x, y, h))
    with pytest.raises(ValueError, match="hard_negatives"):
        fastdml.functional.info_nce(x, y, 10.0, hard_negatives=h[:, :, :3])
    value = fastdml.functional.info_nce(x, y, 1 / T, hard_negatives=h, symmetric=True, backend="chunked")
    torch.testing.assert_close(value, losses.InfoNCELoss(T, symmetric=True)(x, y, h))


@needs_compiled
def test_a_forced_backend_on_ranks():
    """What comes before CLIP's columns needs no functor of its own."""
    x, y = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1)).unbind(0)
    loss = losses.CLIPLoss(backend="native")
    torch.testing.assert_close(wrap(loss)(x, y), loss(x, y))


def test_samples_among_themselves_where_only_candidates_are_normalised():
    """One tensor, but each row is another vector as a candidate."""

    def like(a, b):
        return a @ normalize(b).T

    batch = pair(7, own=torch.tensor([3, 1, -1, 0, 6, 5, 4]))
    options = {"negatives": ("qd", "qq", "dd", "dq")}
    loss = losses.InfoNCELoss(T, similarity="projection", backend="chunked", **options)
    assert_same(loss, batch, like=like, **options)


def test_weights_of_another_type_than_negatives_that_are_all_masked():
    x, y, hard = (drawn(*n, 4).float().requires_grad_() for n in ((1,), (1,), (1, 2)))
    more = {"ids": torch.zeros(1).long(), "hard_ids": torch.zeros(1, 2).long()}
    loss = losses.InfoNCELoss(T, hardness=1.0, backend="chunked")
    value = loss(x, y, hard, hard_weights=drawn(1, 2).exp(), **more)
    assert value == 0 and not any(t.any() for t in torch.autograd.grad(value, (x, y, hard)))


def test_no_pair_beside_negatives_of_all_rows():
    x, y, hard = (drawn(n, 4).requires_grad_() for n in (0, 0, 3))
    value = losses.InfoNCELoss(T)(x, y, hard, ids=torch.arange(0))
    assert value.item() == 0
    assert not torch.autograd.grad(value, hard)[0].any()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "none"}])
def test_columns_of_a_similarity_that_treats_the_towers_differently(options):
    with pytest.raises(ValueError, match=r"^similarity: 'projection' treats queries and documents"):
        losses.InfoNCELoss(T, symmetric=True, similarity="projection", **options)(
            drawn(4, 3), drawn(4, 3)
        )
