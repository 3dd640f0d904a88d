"""Losses of candidate lists, of scored pairs and of tokens, against dense statements in float64."""

import re

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, mse_loss, normalize, softplus

import fastdml
from fastdml import distances, losses, reducers
from fastdml.engine import late


def drawn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def same(value, true, leaves, **bounds):
    bounds = bounds or {"rtol": 1e-10, "atol": 1e-11}
    torch.testing.assert_close(value, true, **bounds)
    slopes = torch.autograd.grad(true, leaves, retain_graph=True)
    for found, wanted in zip(torch.autograd.grad(value, leaves), slopes, strict=True):
        torch.testing.assert_close(found, wanted, **bounds)


# ---- SigLIP


@pytest.mark.parametrize("weights", ["each", "rows", "both"])
def test_siglip_of_labels_weighs_its_positives(weights):
    x, y = drawn(9, 5).requires_grad_(), drawn(12, 5, seed=1).requires_grad_()
    mine, theirs = torch.arange(9) % 4, torch.arange(12) % 5  # one label has no row
    loss = losses.SigLIPLoss(positive_weights=weights, backend="chunked").double()
    u = loss.log_scale.detach().exp() * (normalize(x) @ normalize(y).T) - 10
    positive = mine[:, None] == theirs
    rows, columns = (positive.sum(k, keepdim=True).clamp(min=1).double() for k in (1, 0))
    weight = {"each": torch.ones_like(u), "rows": 1 / rows + 0 * u, "both": (1 / rows + 1 / columns) / 2}
    terms = torch.where(positive, weight[weights] * softplus(-u, threshold=1e9), softplus(u, threshold=1e9))
    same(loss(x, y, mine, ref_labels=theirs), terms.sum() / 9, (x, y))


def test_siglip_of_unique_labels_is_that_of_pairs():
    x, y = drawn(7, 5), drawn(10, 5, seed=1)
    plain = losses.SigLIPLoss().double()(x, y)
    for weights in ("rows", "both"):
        plus = losses.SigLIPLoss(positive_weights=weights, backend="chunked").double()
        assert plus(x, y).item() == pytest.approx(plain.item(), rel=1e-12)
    labels = torch.arange(10)
    found = losses.SigLIPLoss().double()(x, y, labels[:7], ref_labels=labels)
    assert found.item() == pytest.approx(plain.item(), rel=1e-12)
    moved = losses.SigLIPLoss().double()(x, y.roll(2, 0), own=2)
    assert moved.item() == pytest.approx(plain.item(), rel=1e-12)


# ---- a teacher's scores


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_distilled_scores(reduction):
    x, c, t = drawn(6, 5).requires_grad_(), drawn(6, 4, 5, seed=1).requires_grad_(), drawn(6, 4, seed=2)
    s = torch.einsum("bd,bkd->bk", x, c)
    upstream = torch.ones(6, dtype=torch.float64) if reduction == "none" else None

    def reduced(rows):
        return rows.mean() if reduction == "mean" else rows.sum() if reduction == "sum" else (rows @ upstream)

    value = losses.MarginMSELoss(reduction=reduction)(x, c, t)
    rows = mse_loss(s[:, :1] - s[:, 1:], t[:, :1] - t[:, 1:], reduction="none").mean(1)
    same(value if upstream is None else value @ upstream, reduced(rows), (x, c))
    value = losses.CandidateKLLoss(2.0, teacher_temperature=0.5, reduction=reduction)(x, c, t)
    rows = kl_div((s / 2).log_softmax(1), (t / 0.5).softmax(1), reduction="none").sum(1) * 4
    same(value if upstream is None else value @ upstream, reduced(rows), (x, c))


def test_distilled_cosines():
    x, c, t = drawn(6, 5), drawn(6, 1, 5, seed=1), drawn(6, 1, seed=2)
    assert losses.CandidateKLLoss(similarity="cosine")(x, c, t).item() == 0  # one candidate
    with pytest.raises(ValueError, match=r"^candidates: expected shape \[6, K, 5\] of K >= 2"):
        losses.MarginMSELoss()(x, c, t)
    with pytest.raises(ValueError, match=r"^teacher_scores: expected shape"):
        losses.CandidateKLLoss()(x, c, t[:, 0])
    assert fastdml.functional.margin_mse(x, drawn(6, 3, 5), drawn(6, 3), similarity="cosine").item() > 0


# ---- sentence pairs


@pytest.mark.parametrize("scores", [drawn(11).round(decimals=0), torch.arange(11.0), torch.zeros(11)])
def test_co_sent_and_angles(scores):
    """Against all pairs of pairs; sentence-transformers' pairwise_angle_sim for an odd dimension."""
    a, c = drawn(11, 5).requires_grad_(), drawn(11, 5, seed=1).requires_grad_()
    x, y = normalize(a), normalize(c)
    cosine = (x * y).sum(1)
    x, y = (torch.cat([v, torch.zeros(11, 1, dtype=v.dtype)], 1) for v in (x, y))
    sine = (x[:, 3:] * y[:, :3] - x[:, :3] * y[:, 3:]).sum(1)
    larger = scores[:, None] > scores
    for kind, s in ((losses.CoSENTLoss, cosine), (losses.AnglELoss, (cosine + sine).abs())):
        z = 20 * (s - s[:, None])
        true = torch.cat([z.new_zeros(1), z[larger]]).logsumexp(0)
        same(kind()(a, c, scores), true, (a, c))
    with pytest.raises(ValueError, match=r"^scores: expected shape"):
        losses.CoSENTLoss()(a, c, scores[:5])
    found = fastdml.functional.co_sent(a, c, scores, compare="angle")
    assert found.item() == losses.AnglELoss()(a, c, scores).item()


# ---- late interaction


def max_sim(q, d, q_mask, d_mask):
    s = torch.einsum("ild,jmd->iljm", q, d).masked_fill(~d_mask[None, None], -torch.inf).amax(3)
    s = s.masked_fill(~d_mask.any(1), 0.0)
    return (s * q_mask[:, :, None]).sum(1)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("backend", ["auto", "chunked"])
@pytest.mark.parametrize("small", [False, True])
def test_late_interaction(similarity, symmetric, backend, small):
    if small:
        fastdml.set_workspace(1 << 16)
    b, n = (40, 45) if small else (7, 9)
    q, d = drawn(b, 5, 6).requires_grad_(), drawn(n, 8, 6, seed=1).requires_grad_()
    q_mask, d_mask = drawn(b, 5, seed=2) > -0.8, drawn(n, 8, seed=3) > -0.3
    d_mask[4] = False
    loss = losses.LateInteractionLoss(
        2.0, symmetric=symmetric, learnable=True, similarity=similarity, backend=backend
    ).double()
    x, y = (normalize(v, dim=2) if similarity == "cosine" else v for v in (q, d))
    s = max_sim(x, y, q_mask, d_mask) * loss.log_scale.exp()
    true = cross_entropy(s, torch.arange(b))
    if symmetric:
        true = (true + cross_entropy(s.T[:b], torch.arange(b))) / 2
    value = loss(q, d, query_mask=q_mask, document_mask=d_mask)
    same(value, true, (q, d, loss.log_scale))
    if small:
        assert late.block_rows(late.Tokens(q), late.Tokens(d)) < b


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_what_is_no_token_is_in_no_gradient(similarity):
    """As an encoder leaves behind what it masks: NaN."""
    q_mask, d_mask = torch.ones(4, 3).bool(), torch.ones(4, 6).bool()
    q_mask[:, 2], d_mask[:, 4:], d_mask[3] = False, False, False
    found = []
    for fill in (0.0, torch.nan):
        q = drawn(4, 3, 5).masked_fill(~q_mask[:, :, None], fill).requires_grad_()
        d = drawn(4, 6, 5).masked_fill(~d_mask[:, :, None], fill).requires_grad_()
        loss = losses.LateInteractionLoss(similarity=similarity, symmetric=True)
        value = loss(q, d, query_mask=q_mask, document_mask=d_mask)
        found.append((value, *torch.autograd.grad(value, (q, d))))
    assert all(torch.equal(a, b) for a, b in zip(*found)) and found[0][0].isfinite()


def test_late_interaction_of_locked_tokens_and_wrong_ones():
    q, d = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 6, 5)
    losses.LateInteractionLoss()(q, d).backward()
    assert q.grad is not None
    value = fastdml.functional.late_interaction(q.detach(), d.bfloat16().float(), 0.5, symmetric=True)
    assert not value.requires_grad
    with pytest.raises(ValueError, match=r"^documents: expected tokens of dimension 5"):
        losses.LateInteractionLoss()(q, d[..., :4])
    with pytest.raises(ValueError, match=r"^queries: expected floats"):
        losses.LateInteractionLoss()(q[0], d)
    with pytest.raises(ValueError, match=r"^document_mask: expected bool"):
        losses.LateInteractionLoss()(q, d, document_mask=torch.ones(4, 6))
    with pytest.raises(ValueError, match=r"^documents: expected"):
        losses.LateInteractionLoss()(q, d[:3])


# ---- the document


def test_the_snippets_of_the_document_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "two-towers.md").read_text(), re.DOTALL)
    assert len(blocks) > 5
    known: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/two-towers.md", "exec"), known)


# ---- reducer objects, padding, other numbers


def test_reducer_objects_take_the_rows_of_candidates():
    x, c, t = drawn(6, 5).requires_grad_(), drawn(6, 4, 5, seed=1), drawn(6, 4, seed=2)
    rows = losses.MarginMSELoss(reduction="none")(x, c, t)
    middle = float(rows.detach().median()) + 1e-9
    for reducer, kept in (
        (reducers.AvgNonZeroReducer(), rows > 0),
        (reducers.ThresholdReducer(low=middle), rows > middle),
        (reducers.PerAnchorReducer(), rows > 0),
    ):
        same(losses.MarginMSELoss(reducer=reducer)(x, c, t), rows[kept].mean(), [x])
    found = losses.CandidateKLLoss(reducer=reducers.DoNothingReducer())(x, c, t)
    torch.testing.assert_close(
        found["loss"]["losses"], losses.CandidateKLLoss(reduction="none")(x, c, t)
    )


def test_weights_of_classes_need_labels():
    """A second argument that is no label is none."""
    x, y, weighted = (
        drawn(6, 5),
        drawn(6, 5, seed=1),
        reducers.ClassWeightedReducer(torch.arange(4.0)),
    )
    for call in (
        lambda: losses.InfoNCELoss(reducer=weighted)(x, y),
        lambda: losses.MarginMSELoss(reducer=weighted)(x, drawn(6, 4, 5), drawn(6, 4)),
    ):
        with pytest.raises(ValueError, match=r"^labels: expected one label a row with weights of classes"):
            call()
    labels = torch.arange(6) % 4
    rows = losses.SigLIPLoss(reduction="none").double()(x, y, labels)
    found = losses.SigLIPLoss(reducer=weighted).double()(x, y, labels)
    torch.testing.assert_close(found, (rows * labels).mean())


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_what_padding_holds_does_not_matter(similarity):
    q, d = drawn(5, 3, 6), drawn(5, 4, 6, seed=1)
    masks = {"query_mask": drawn(5, 3, seed=2) > -0.5, "document_mask": drawn(5, 4, seed=3) > -0.5}
    masks["document_mask"][2] = False
    loss, found = losses.LateInteractionLoss(similarity=similarity, validate=True), []
    for padding in (0.0, torch.nan):
        leaves = [
            x.masked_fill(~kept[:, :, None], padding).requires_grad_()
            for x, kept in zip((q, d), masks.values(), strict=True)
        ]
        value = loss(*leaves, **masks)
        found.append((value.detach(), *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_scores_of_any_type():
    x, y, scores = drawn(6, 5), drawn(6, 5, seed=1), torch.tensor([1, 0, 1, 0, 0, 1])
    true = losses.CoSENTLoss()(x, y, scores.double())
    for kind in (torch.bool, torch.uint8, torch.int64, torch.bfloat16):
        assert losses.CoSENTLoss(validate=True)(x, y, scores.to(kind)) == true
    with pytest.raises(ValueError, match=r"^scores: expected finite values"):
        losses.CoSENTLoss(validate=True)(x, y, scores / 0)


class Bent(distances.BaseDistance):
    """A similarity that no product is."""

    def __init__(self) -> None:
        super().__init__(is_inverted=True)

    def compute_mat(self, query_emb, ref_emb):
        return (query_emb @ ref_emb.T).tanh()

    def pairwise_distance(self, query_emb, ref_emb):
        return (query_emb * ref_emb).sum(1).tanh()


def test_distances_that_are_no_products():
    x, y = drawn(6, 5).requires_grad_(), drawn(6, 5, seed=1)
    c, t = drawn(6, 3, 5, seed=2), drawn(6, 3, seed=3)
    bent = torch.einsum("bd,bkd->bk", normalize(x), normalize(c, dim=-1)).tanh()
    own = (normalize(x) @ normalize(y).T).tanh()
    true = cross_entropy(torch.cat([own, bent], 1) / 0.5, torch.arange(6))
    same(losses.InfoNCELoss(0.5, distance=Bent())(x, y, c), true, [x])
    true = mse_loss(bent[:, :1] - bent[:, 1:], t[:, :1] - t[:, 1:])
    same(losses.MarginMSELoss(distance=Bent())(x, c, t), true, [x])
    far = losses.CoSENTLoss(distance=distances.LpDistance(p=1, normalize_embeddings=False))(
        x, y, t[:, 0]
    )
    s = -(x - y).abs().sum(1)
    z = (20 * (s - s[:, None]))[t[:, :1] > t[:, 0]]
    same(far, torch.cat([z.new_zeros(1), z]).logsumexp(0), [x])
