"""Labels as people have them: sets of labels, graded positives, labels to ignore, weights of samples. Each
beside its formula in float64 on the whole matrix."""

import contextlib

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize, softplus

import fastdml
from fastdml import losses, miners
from fastdml.distributed import wrap
from fastdml.labels import LabelSets
from fastdml.reducers import ThresholdReducer
from fastdml.wrappers import Labelled, MatryoshkaLoss, SelfSupervisedLoss

ROWS, OTHERS = 23, 31


def embeddings(rows, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=g, dtype=torch.float64).requires_grad_()


def sets(rows, seed, classes=17):
    found = torch.rand(rows, classes, generator=torch.Generator().manual_seed(seed)) < 0.08
    found[3] = False  # a sample without any
    return found


def case(one_set):
    """(x, y), bool sets of both, and which pairs are none."""
    x = embeddings(ROWS, 1)
    a = sets(ROWS, 2)
    if one_set:
        return x, None, a, None, torch.eye(ROWS, dtype=torch.bool)
    return x, embeddings(OTHERS, 3), a, sets(OTHERS, 4), torch.zeros(ROWS, OTHERS, dtype=torch.bool)


GRADES = {
    "shared": lambda a, b: a & b,
    "jaccard": lambda a, b: len(a & b) / len(a | b),
    "dice": lambda a, b: 2 * len(a & b) / (len(a) + len(b)),
    "cosine": lambda a, b: len(a & b) / (len(a) * len(b)) ** 0.5,
    "recall": lambda a, b: len(a & b) / len(a),
}


def as_lists(mask):
    return [row.nonzero()[:, 0].tolist() for row in mask]


@pytest.mark.parametrize("grade", GRADES)
def test_grades_of_sets(grade):
    """Against Python's own sets, from a mask of classes and from lists of any integers."""
    a, b = sets(5, 1), sets(6, 2)
    lists = [[[7 * k - 3 for k in row] for row in as_lists(m)] for m in (a, b)]
    for made in (LabelSets(a, b, grade), LabelSets(*lists, grade=grade)):
        positive, negative, weight = made(torch.arange(1, 5), torch.arange(6))
        for i in range(4):
            for j in range(6):
                one, other = set(lists[0][i + 1]), set(lists[1][j])
                assert positive[i, j] == bool(one & other) and negative[i, j] != positive[i, j]
                if one & other:
                    true = GRADES[grade](one, other)
                    assert weight[i, j].item() == pytest.approx(len(true) if grade == "shared" else true)


# Formulas: similarities or distances, weights of positives (0 elsewhere), and which pairs are negatives.


def sup_con(s, w, negative):
    z = s / 0.1
    level = z.masked_fill(~(negative | (w > 0)), -torch.inf).logsumexp(1)
    row = level - (w * z).sum(1) / w.sum(1).clamp(min=1e-300)
    return torch.where(w.sum(1) > 0, row, 0)


def multi_similarity(s, w, negative):
    pull = (1 + (w * torch.exp(-2 * (s - 0.5))).sum(1)).log() / 2
    return pull + (1 + (negative * torch.exp(50 * (s - 0.5))).sum(1)).log() / 50


def binomial_deviance(s, w, negative):
    pull = (w * softplus(-2 * (s - 0.5))).sum(1) / w.sum(1).clamp(min=1e-300)
    return pull + (negative * softplus(25 * (s - 0.5), threshold=1000)).sum(1) / negative.sum(1).clamp(min=1)


def nca(s, w, negative):
    e = torch.exp(-(2 - 2 * s))
    some = (w > 0).any(1) & negative.any(1)
    p = (w * e).sum(1) / (w * e + negative * e).sum(1)
    row = -torch.where(some, p, 1).log()
    return row * len(s) / (w > 0).any(1).sum()


def contrastive(s, w, negative):
    d = (2 - 2 * s).clamp(min=1e-30).sqrt()
    push = (negative * (1 - d).relu()).sum() / (negative & (d < 1)).sum()
    return ((w * d).sum() / w.sum() + push).expand(len(s))


GRADED = [
    (losses.SupConLoss(0.1, reduction="mean"), sup_con),
    (losses.MultiSimilarityLoss(), multi_similarity),
    (losses.BinomialDevianceLoss(), binomial_deviance),
    (losses.NCALoss(), nca),
    (losses.ContrastiveLoss(), contrastive),
]


@pytest.fixture
def small_blocks():
    fastdml.set_workspace(64 << 10)
    yield
    fastdml.set_workspace(None)


@pytest.mark.parametrize("backend", ["auto", "dense"])
@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("grade", [None, "jaccard", "shared"])
@pytest.mark.parametrize("loss,formula", GRADED, ids=lambda v: getattr(v, "__name__", ""))
def test_graded_positives(loss, formula, grade, one_set, backend, small_blocks, monkeypatch):
    """In several blocks of rows; without a grade, as labels that are sets."""
    x, y, a, b, none = case(one_set)
    relation = LabelSets(a, b, grade)
    leaves = [x] if one_set else [x, y]
    monkeypatch.setattr(loss, "backend", backend)
    found = loss(x, a, None, y, b) if grade is None else loss(x, None, relation, y)
    u = normalize(x, dim=1)
    v = u if one_set else normalize(y, dim=1)
    positive, negative, *weight = relation(torch.arange(len(u)), torch.arange(len(v)))
    w = weight[0].double() if weight else positive.double()
    w, negative = w.masked_fill(none, 0), negative & ~none
    true = formula(u @ v.t(), w, negative).mean()
    torch.testing.assert_close(found, true, rtol=1e-6, atol=0)  # weights are float32
    for mine, theirs in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(true, leaves)):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)


def test_siglip_with_several_graded_positives():
    x, y, a, b, _ = case(False)
    loss = losses.SigLIPLoss(5.0, -2.0).double()
    found = loss(x, y, positives=LabelSets(a, b, "jaccard"))
    w = LabelSets(a, b, "jaccard")(torch.arange(ROWS), torch.arange(OTHERS))[2].double()
    u = 5 * normalize(x, dim=1) @ normalize(y, dim=1).t() - 2
    true = -(w * logsigmoid(u) + (w == 0) * logsigmoid(-u)).sum(1).mean()
    torch.testing.assert_close(found, true, rtol=1e-6, atol=0)
    for mine, theirs in zip(torch.autograd.grad(found, [x, y]), torch.autograd.grad(true, [x, y])):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)


def test_a_users_function_of_weights():
    """Weights of 1 change nothing; a positive of weight 0 is none."""
    x, y = embeddings(ROWS, 1), torch.arange(ROWS) // 3

    def function(weight):
        def masks(i, j):
            same = y[i][:, None] == y[j]
            return same, ~same, weight(i[:, None], j).expand(same.shape)

        return masks

    loss = losses.MultiSimilarityLoss()
    ones = loss(x, None, function(lambda i, j: torch.ones(())))
    torch.testing.assert_close(ones, loss(x, y))
    some = loss(x, None, function(lambda i, j: ((i + j) % 2).double()))
    elsewhere = function(lambda i, j: ((i + j) % 2).double().masked_fill(y[i] != y[j], -torch.inf))
    assert loss(x, None, elsewhere) == some
    i, j = torch.triu_indices(ROWS, ROWS, 1)
    i, j = torch.cat([i, j]), torch.cat([j, i])
    positive, negative = (y[i] == y[j]) & ((i + j) % 2 == 1), y[i] != y[j]
    listed = loss(x, None, (i[positive], j[positive], i[negative], j[negative]))
    torch.testing.assert_close(some, listed)


def test_weights_are_refused_where_they_mean_nothing():
    x = embeddings(ROWS, 1)
    graded = LabelSets(sets(ROWS, 2), grade="jaccard")
    for name in ("Circle", "TripletMargin", "IntraPairVariance", "Angular"):
        with pytest.raises(ValueError, match=r"indices_tuple: .*weights of positives"):
            losses.MODULES[f"{name}Loss"]()(x, None, graded)
    for weight in (torch.ones(2, 2), -torch.ones(ROWS, ROWS), "a"):
        with pytest.raises(ValueError, match="indices_tuple: expected the function to return weights"):
            losses.SupConLoss()(x, None, lambda i, j: (*LabelSets(sets(ROWS, 2))(i, j), weight))  # noqa: B023


def test_the_document_names_the_losses_that_take_weights():
    x, graded = embeddings(ROWS, 1), LabelSets(sets(ROWS, 2), grade="jaccard")
    takes = set()
    for name, module in losses.MODULES.items():
        if issubclass(module, losses.base.SampleLoss) and not module.required:
            with contextlib.suppress(ValueError):
                module()(x, None, graded)
                takes.add(name.removesuffix("Loss"))
    assert takes == {
        "BalancedContrastive", "BinomialDeviance", "Calibration", "Contrastive", "Instance",
        "MultiSimilarity", "NCA", "SPCE", "SignalToNoiseRatioContrastive", "SupCon",
        "ThresholdConsistentMargin",
    }  # fmt: skip


def test_sets_are_checked():
    x, a = embeddings(ROWS, 1), sets(ROWS, 2)
    loss = losses.SupConLoss()
    for wrong, message in (
        (a[:5], "labels: expected 23 sets"),
        (a.long(), "labels: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(x, wrong)
    with pytest.raises(ValueError, match="ref_labels: expected one set"):
        loss(x, a, None, x.detach().clone())
    with pytest.raises(ValueError, match="ref_labels: expected 17 classes"):
        LabelSets(a, a[:, :4])
    with pytest.raises(ValueError, match="grade: expected one of"):
        LabelSets(a, grade="likely")
    for wrong, other, message in (
        (LabelSets(a[:9]), None, "^labels: expected 23 sets"),
        (LabelSets(torch.cat([a, a])), None, "^labels: expected 23 sets"),
        (LabelSets(a), x.detach() + 1, "^ref_labels: expected one set of labels per row of ref_emb"),
        (LabelSets(a, a[:9]), x.detach() + 1, "^ref_labels: expected 23 sets"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(x, None, wrong, other)
    assert loss(x, None, LabelSets(a), x) == loss(x, a)
    for words in (["12", "3"], [["a"]], [[1.5]], [[True, False]], a.numpy(), 5):
        with pytest.raises(ValueError, match=r"^labels: expected a list of lists of integers"):
            LabelSets(words)


# ---- labels to ignore


def ignored(one_set):
    y = torch.arange(ROWS) % 5
    y[[2, 7, 8]] = -100
    other = torch.arange(OTHERS) % 5
    other[[0, 4, 30]] = -100
    return y, (None if one_set else other)


@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "SupConLoss", "ContrastiveLoss", "SmoothAPLoss"])
def test_ignored_samples_are_not_there(name, one_set):
    x, (y, other) = embeddings(ROWS, 1), ignored(one_set)
    ref = None if one_set else embeddings(OTHERS, 2)
    kept = y != -100
    loss = getattr(losses, name)()
    found = Labelled(loss, ignore_label=-100)(x, y, None, ref, other)
    more = () if one_set else (None, ref[other != -100], other[other != -100])
    true = loss(x[kept], y[kept], *more)
    torch.testing.assert_close(found, true)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(true, x)[0])


def test_ignored_samples_of_lists_functions_and_memories():
    x, (y, _) = embeddings(ROWS, 1), ignored(True)
    rows = torch.arange(ROWS)
    t = (rows, (rows + 5) % ROWS, (rows + 1) % ROWS)
    kept = (y[t[0]] != -100) & (y[t[1]] != -100) & (y[t[2]] != -100)
    loss = losses.TripletMarginLoss()
    wrapped = Labelled(loss, ignore_label=-100)
    torch.testing.assert_close(wrapped(x, y, t), loss(x, None, tuple(i[kept] for i in t)))
    pairs = (*t[:2], rows, t[2])
    some = losses.ContrastiveLoss()
    positive, negative = kept_of(y, *pairs[:2]), kept_of(y, *pairs[2:])
    expected = some(x, None, (*(i[positive] for i in pairs[:2]), *(i[negative] for i in pairs[2:])))
    torch.testing.assert_close(Labelled(some, ignore_label=-100)(x, y, pairs), expected)

    def function(i, j):
        same = (i[:, None] + j) % 3 == 0
        return same, ~same

    left = (y != -100).nonzero()[:, 0]
    expected = some(x[left], None, lambda i, j: function(left[i], left[j]))
    torch.testing.assert_close(Labelled(some, ignore_label=-100)(x, y, function), expected)
    # Own copies in a memory are still known.
    memory = torch.cat([embeddings(4, 9), x]).detach()
    theirs = torch.cat([torch.tensor([0, 1, -100, 2]), y])
    found = Labelled(some, ignore_label=-100)(x, y, None, memory, theirs, own=4)
    own = torch.cumsum(theirs != -100, 0)[rows + 4][left] - 1
    there = theirs != -100
    expected = some(x[left], y[left], None, memory[there], theirs[there], own=own)
    torch.testing.assert_close(found, expected)
    detached = Labelled(some, ignore_label=-100)(x, y, None, x.detach(), y)
    torch.testing.assert_close(detached, some(x[left], y[left], None, x[left].detach(), y[left], own=0))


def test_candidates_without_labels_are_all_there():
    """In lists of pairs and functions, which need none; but own copies of what is ignored."""
    x, (y, _) = embeddings(ROWS, 1), ignored(True)
    kept, rows = y != -100, torch.arange(ROWS)
    left = kept.nonzero()[:, 0]
    loss = losses.ContrastiveLoss()
    wrapped = Labelled(loss, ignore_label=-100)
    tags = sets(OTHERS, 4)

    def function(i, j):
        same = (i[:, None] + j) % 3 == 0
        return same, ~same

    for count in (9, ROWS, OTHERS):
        ref = embeddings(OTHERS, 3)[:count]
        pairs = rows, (rows * 5 + 2) % count, rows, (rows * 7 + 1) % count
        expected = loss(x, None, tuple(i[kept] for i in pairs), ref)
        torch.testing.assert_close(wrapped(x, y, pairs, ref), expected)
        expected = loss(x[left], None, lambda i, j: function(left[i], j), ref)
        torch.testing.assert_close(wrapped(x, y, function, ref), expected)
        mine = sets(ROWS, 2)
        expected = loss(x[left], None, LabelSets(mine[left], tags[:count]), ref)
        torch.testing.assert_close(wrapped(x, y, LabelSets(mine, tags[:count]), ref), expected)
    memory = torch.cat([embeddings(4, 9), x]).detach()
    place = torch.cat([torch.arange(4), left + 4])
    own = torch.arange(len(left)) + 4
    expected = loss(x[left], None, lambda i, j: function(left[i], place[j]), memory[place], own=own)
    torch.testing.assert_close(wrapped(x, y, function, memory, own=4), expected)
    with pytest.raises(ValueError, match="ref_labels: expected one set of labels per row of ref_emb"):
        wrapped(x, y, LabelSets(sets(ROWS, 2)), embeddings(ROWS, 3))


@pytest.mark.parametrize("own", [0, torch.full((ROWS,), -1)])
def test_no_candidate_is_left(own):
    """Of other candidates that are all ignored, with own copies among them or not."""
    x, (y, other) = embeddings(ROWS, 1), ignored(False)
    wrapped = Labelled(losses.SupConLoss(reduction="none"), ignore_label=-100)
    found = wrapped(x, y, None, embeddings(OTHERS, 2), torch.full_like(other, -100), own=own)
    assert found.shape == (ROWS,) and not found.any()


def kept_of(y, i, j):
    return (y[i] != -100) & (y[j] != -100)


def test_ignored_rows_have_no_loss_and_an_ignored_batch_neither():
    x, (y, _) = embeddings(ROWS, 1), ignored(True)
    by_row = Labelled(losses.MultiSimilarityLoss(reduction="none"), ignore_label=-100)(x, y)
    assert by_row.shape == (ROWS,) and not by_row[y == -100].any() and by_row[y != -100].all()
    whole = Labelled(losses.MultiSimilarityLoss(), ignore_label=1)(x, torch.ones(ROWS, dtype=torch.int64))
    assert whole.item() == 0 and not torch.autograd.grad(whole, x)[0].any()


def test_ignored_rows_keep_their_places_in_every_wrapper():
    x, (y, _) = embeddings(ROWS, 1), ignored(True)
    rows = Labelled(losses.MultiSimilarityLoss(reduction="none"), ignore_label=-100)
    true, cut = rows(x, y), rows(x[:, :3], y)
    torch.testing.assert_close(wrap(rows)(x, y), true)
    torch.testing.assert_close(MatryoshkaLoss(rows, (3, x.shape[1]))(x, y), true + cut)
    # Rows that are proxies are all there, and what a reducer object makes of rows is one number.
    kept = y != -100
    anchor = losses.ProxyAnchorLoss(5, x.shape[1], reduction="none").double()
    torch.testing.assert_close(Labelled(anchor, ignore_label=-100)(x, y), anchor(x[kept], y[kept]))
    loss = losses.MultiSimilarityLoss(reducer=ThresholdReducer(low=0.3))
    torch.testing.assert_close(Labelled(loss, ignore_label=-100)(x, y), loss(x[kept], y[kept]))


def test_a_half_precision_batch_that_is_ignored_as_a_whole():
    x = embeddings(4, 1).detach().half().requires_grad_()
    ref = embeddings(6, 2).detach().half().requires_grad_()
    scale = torch.nn.Parameter(torch.tensor(0.1))
    loss = Labelled(losses.SupConLoss(scale), ignore_label=1)
    found = loss(x, torch.ones(4, dtype=torch.int64), None, ref, torch.arange(6))
    assert found.dtype == torch.float32
    assert not any(g.any() for g in torch.autograd.grad(found, (x, ref, scale)))


def test_a_miner_is_told_own_copies():
    x, (y, _) = embeddings(ROWS, 1), ignored(True)
    memory = torch.cat([embeddings(4, 9), x]).detach()
    theirs = torch.cat([torch.zeros(4, dtype=torch.int64), y])
    miner, loss = miners.BatchEasyHardMiner("easy", "hard"), losses.ContrastiveLoss()
    true = loss(x, y, miner(x, y, memory, theirs, own=4), memory, theirs, own=4)
    found = Labelled(loss, miner=miner)(x, y, None, memory, theirs, own=4)
    torch.testing.assert_close(found, true)


def test_a_miner_sees_what_is_left():
    x, (y, _) = embeddings(ROWS, 1), ignored(True)
    miner = miners.MultiSimilarityMiner()
    found = Labelled(losses.MultiSimilarityLoss(), ignore_label=-100, miner=miner)(x, y)
    kept = y != -100
    torch.testing.assert_close(found, losses.MultiSimilarityLoss(epsilon=0.1)(x[kept], y[kept]))


# ---- weights of samples


@pytest.mark.parametrize(
    "name", ["MultiSimilarityLoss", "SupConLoss", "SmoothAPLoss", "NormalizedSoftmaxLoss"]
)
@pytest.mark.parametrize("normalize_", [False, True])
def test_weights_of_classes_and_samples(name, normalize_):
    x, y = embeddings(ROWS, 1), torch.arange(ROWS) % 5
    proxies = (5, 6) if name == "NormalizedSoftmaxLoss" else ()
    kind = getattr(losses, name)
    loss, rows = kind(*proxies, reduction="mean").double(), kind(*proxies, reduction="none").double()
    rows.load_state_dict(loss.state_dict())
    of_class, of_sample = torch.rand(5, dtype=torch.float64), torch.rand(ROWS, dtype=torch.float64)
    wrapped = Labelled(loss, class_weights=of_class.float(), normalize=normalize_)
    found = wrapped(x, y, sample_weights=of_sample)
    w = of_class.float()[y].double() * of_sample
    true = (w * rows(x, y)).sum() / (w.sum() if normalize_ else ROWS)
    torch.testing.assert_close(found, true, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, x)[0], torch.autograd.grad(true, x)[0])


def test_weights_are_of_the_type_of_the_loss():
    x, y = embeddings(ROWS, 1), torch.arange(ROWS) % 5
    of_class, of_sample = torch.rand(5, dtype=torch.float64), torch.rand(ROWS)
    rows = losses.SupConLoss(reduction="none")(x, y)
    w = of_class[y] * of_sample.double()
    wrapped = Labelled(losses.SupConLoss(reduction="mean"), class_weights=of_class, normalize=True)
    true = (w * rows).sum() / w.sum()
    torch.testing.assert_close(wrapped(x, y, sample_weights=of_sample), true, rtol=1e-12, atol=0)


def test_weights_without_labels_and_before_a_reducer():
    x, tags = embeddings(ROWS, 1), sets(ROWS, 2)
    w = torch.rand(ROWS, dtype=torch.float64)
    rows = losses.SupConLoss(reduction="none")(x, tags)
    found = Labelled(losses.SupConLoss(reduction="mean"))(x, tags, sample_weights=w)
    torch.testing.assert_close(found, (w * rows).mean())
    weighted = w * rows
    loss = Labelled(losses.SupConLoss(reducer=ThresholdReducer(low=0.4)))
    torch.testing.assert_close(loss(x, tags, sample_weights=w), weighted[weighted > 0.4].mean())


def test_weights_of_listed_triplets():
    x, y = embeddings(ROWS, 1), torch.arange(ROWS) % 5
    rows = torch.arange(ROWS)
    t = (rows, (rows + 5) % ROWS, (rows + 1) % ROWS)
    w = torch.rand(ROWS, dtype=torch.float64)
    found = Labelled(losses.TripletMarginLoss(normalizer="triplets"))(x, y, t, sample_weights=w)
    each = losses.TripletMarginLoss(reduction="none")(x, y, t)
    torch.testing.assert_close(found, (w * each).sum() / ROWS)


def test_weights_of_proxies():
    """A row of Proxy-Anchor is a class."""
    x, y = embeddings(ROWS, 1), torch.arange(ROWS) % 5
    loss = losses.NormalizedSoftmaxLoss(5, 6)
    x = x.float()
    ones = Labelled(loss, class_weights=torch.ones(5))(x, y)
    torch.testing.assert_close(ones, loss(x, y))
    anchor = losses.ProxyAnchorLoss(5, 6)
    weighted = Labelled(anchor, class_weights=torch.tensor([1.0, 2, 0, 0, 0]))(x, y)
    assert weighted.item() > 0 and torch.isfinite(weighted)
    with pytest.raises(ValueError, match="sample_weights: a row of ProxyAnchorLoss is a proxy"):
        Labelled(anchor)(x, y, sample_weights=torch.ones(ROWS))


def test_weights_are_checked():
    x, y = embeddings(ROWS, 1), torch.arange(ROWS) % 5
    with pytest.raises(ValueError, match="loss: HistogramLoss is no sum over samples"):
        Labelled(losses.HistogramLoss())(x, y, sample_weights=torch.ones(ROWS))
    with pytest.raises(ValueError, match="loss: ContrastiveLoss is no sum over samples"):
        Labelled(losses.ContrastiveLoss())(x, y, sample_weights=torch.ones(ROWS))
    with pytest.raises(ValueError, match="loss: LiftedStructureLoss is no sum over samples"):
        Labelled(losses.LiftedStructureLoss())(x, y, sample_weights=torch.ones(ROWS))
    for weight in (torch.ones(4), torch.ones(ROWS + 1), -torch.ones(ROWS), torch.ones(ROWS).long(), [1.0]):
        for ignored in (None, 2):
            with pytest.raises(ValueError, match=r"^sample_weights: expected"):
                Labelled(losses.SupConLoss(), ignored)(x, y, sample_weights=weight)
    for name, more in {
        "ref_labels": (None, x.detach() + 1, y[:3]),
        "ref_emb": (None, None, y),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            Labelled(losses.SupConLoss(), 2)(x, y, *more)
    with pytest.raises(ValueError, match=r"^own: expected"):
        Labelled(losses.SupConLoss(), 2)(x, y, None, x.detach() + 1, y, own=torch.zeros(3))
    for wrong in ("abc", {}, [[1.0]]):
        with pytest.raises(ValueError, match=r"^class_weights: expected"):
            Labelled(losses.SupConLoss(), class_weights=wrong)
    with pytest.raises(ValueError, match="class_weights: expected"):
        Labelled(losses.SupConLoss(), class_weights=torch.tensor([1.0, -1]))
    with pytest.raises(ValueError, match="labels: expected values in"):
        Labelled(losses.SupConLoss(), class_weights=torch.ones(3))(x, y)
    with pytest.raises(ValueError, match="ignore_label: expected an integer"):
        Labelled(losses.SupConLoss(), ignore_label=0.5)


def test_several_views():
    """[B, V, D]: the views of a sample are its class."""
    views = torch.randn(7, 3, 5, dtype=torch.float64)
    labels = torch.arange(7).repeat_interleave(3)
    found = SelfSupervisedLoss(losses.SupConLoss())(views)
    torch.testing.assert_close(found, losses.SupConLoss()(views.flatten(0, 1), labels))
