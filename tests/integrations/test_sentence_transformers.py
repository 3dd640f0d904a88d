"""The drop-ins of sentence-transformers beside its own losses: values, gradients, whole trainings."""

import copy
import inspect
import json
import random
import runpy
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from others import Lazy
from texts import pairs

ours = Lazy("fastdml.integrations.sentence_transformers")
theirs = Lazy("sentence_transformers.sentence_transformer.losses")
util = Lazy("sentence_transformers.util")
TEXTS = pairs(64)
pytestmark = pytest.mark.usefixtures("compiled_quickly")
SYMMETRIC = ("query_to_doc", "doc_to_query")
ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sentence_transformer(tmp_path_factory.mktemp("model"), 0)


def sentence_transformer(folder, seed, texts=TEXTS):
    from train_sentences import sentence_transformer as made

    torch.manual_seed(seed)
    return made([text for pair in texts for text in pair], str(folder)).double().eval()


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """Other weights, the same tokenizer."""
    return sentence_transformer(tmp_path_factory.mktemp("guide"), 1)


def embeddings(columns, rows=13, dim=10):
    g = torch.Generator().manual_seed(columns)
    found = torch.randn(columns, rows, dim, generator=g, dtype=torch.float64)
    # What belongs together is somewhat alike.
    return [(e + found[0]).requires_grad_() for e in found]


def named(options):
    """Options whose functions are named."""
    return {k: getattr(util, v) if k == "similarity_fct" else v for k, v in options.items()}


def value_and_gradients(loss, given, labels):
    value = loss.compute_loss_from_embeddings(given, labels)
    return [value.detach(), *torch.autograd.grad(value, given)]


def agree(found, expected):
    """Also: there is something to be compared."""
    assert len(found) == len(expected) and any(bool(e.any()) for e in expected[1:])
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


# ---- Of embeddings

RANKING = {
    "plain": (2, {}),
    "hard negatives": (4, {"scale": 7.0}),
    "dot": (3, {"similarity_fct": "dot_score", "scale": 0.3}),
    "distance": (2, {"similarity_fct": "euclidean_sim", "scale": 2.0}),
    "queries too": (3, {"directions": ("query_to_doc", "query_to_query")}),
    "queries too, distance": (
        2, {"directions": ("query_to_doc", "query_to_query"), "similarity_fct": "euclidean_sim", "scale": 2.0}
    ),
    "all, jointly": (2, {"directions": ALL, "scale": 3.0}),
    "both ways, jointly": (3, {"directions": SYMMETRIC, "scale": 3.0}),
    "both ways": (3, {"directions": SYMMETRIC, "partition_mode": "per_direction"}),
}
LEFT = {
    "'doc_to_doc' with hard negatives": (3, {"directions": ALL}),
    "hardness_mode='all_negatives'": (2, {"hardness_mode": "all_negatives", "hardness_strength": 2.0}),
    "similarity_fct=manhattan_sim": (2, {"similarity_fct": "manhattan_sim"}),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", [*RANKING, *LEFT])
def test_ranking(model, name, cached):
    """What has no form here is theirs, and said once; nothing is said of the others."""
    columns, options = {**RANKING, **LEFT}[name]
    given = embeddings(columns)
    kind = "CachedMultipleNegativesRankingLoss" if cached else "MultipleNegativesRankingLoss"
    mine, other = (getattr(library, kind)(model, **named(options)) for library in (ours, theirs))

    def found(loss):
        if not cached:
            return value_and_gradients(loss, given, None)
        # As the mini-batches of the first pass come.
        chunks = [[c.detach().requires_grad_() for c in e.split(5)] for e in given]
        value = loss.calculate_loss(chunks, None, with_backward=True)
        assert not value.requires_grad
        return [value, *(torch.cat([c.grad for c in column]) for column in chunks)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        agree(found(mine), found(other))
        found(mine)
    said = [str(w.message) for w in caught if "is computed by sentence-transformers" in str(w.message)]
    assert said == ([f"{kind}: {name} is computed by sentence-transformers"] if name in LEFT else [])


SCORED = {
    "CoSENTLoss": (2, {}),
    "CoSENTLoss, dot": (2, {"similarity_fct": "pairwise_dot_score", "scale": 1.0}),
    "CoSENTLoss, distance": (2, {"similarity_fct": "pairwise_euclidean_sim"}),
    "AnglELoss": (2, {"scale": 5.0}),
    "AnglELoss, of several": (4, {}),
}


@pytest.mark.parametrize("name", SCORED)
def test_scored_pairs(model, name):
    columns, options = SCORED[name]
    scores = torch.arange(13) % 5 / 4 if columns > 2 else torch.arange(13) % 5  # with equal ones
    mine, other = (getattr(m, name.split(",")[0])(model, **named(options)) for m in (ours, theirs))
    agree(*(value_and_gradients(loss, embeddings(columns), scores) for loss in (mine, other)))


@pytest.mark.parametrize("metric", ["EUCLIDEAN", "COSINE", "MANHATTAN"])
def test_triplets(model, metric):
    options = {"distance_metric": getattr(theirs.TripletDistanceMetric, metric), "triplet_margin": 0.4}
    mine, other = (m.TripletLoss(model, **options) for m in (ours, theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if metric == "MANHATTAN" else "error", UserWarning)
        agree(*(value_and_gradients(loss, embeddings(3), None) for loss in (mine, other)))


@pytest.mark.parametrize("distance", ["euclidean_distance", "cosine_distance"])
@pytest.mark.parametrize(
    "name", [f"Batch{kind}TripletLoss" for kind in ("All", "Hard", "HardSoftMargin", "SemiHard")]
)
def test_triplets_of_labels(model, name, distance):
    options = {} if "Soft" in name else {"margin": 0.3 if distance == "euclidean_distance" else 0.0}
    function = getattr(theirs.BatchHardTripletLossDistanceFunction, distance)
    mine, other = (getattr(m, name)(model, function, **options) for m in (ours, theirs))
    (given,) = embeddings(1, rows=24)
    labels = torch.arange(24) % 7
    agree(*(value_and_gradients(loss, [given], labels) for loss in (mine, other)))


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.float32])
@pytest.mark.parametrize("name", ["BatchAllTripletLoss", "BatchSemiHardTripletLoss"])
def test_triplets_of_labels_of_any_type(model, name, kind):
    mine, other = (getattr(m, name)(model, margin=0.3) for m in (ours, theirs))
    (given,) = embeddings(1, rows=24)
    labels = (torch.arange(24) % 2 if kind == torch.bool else torch.arange(24) % 7 / 2).to(kind)
    agree(*(value_and_gradients(loss, [given], labels) for loss in (mine, other)))


# ---- Of texts


def features(model, columns):
    """The texts of some rows of several columns, as the collator gives them."""
    given = [[pair[k % 2] for pair in TEXTS[8 * k : 8 * k + 24]] for k in range(columns)]
    return [model.preprocess(texts) for texts in given]


def trained(model, loss, columns, labels=None):
    """Value of a loss of texts, and gradients of the network."""
    model.zero_grad()
    random.seed(3)
    value = loss([dict(f) for f in features(model, columns)], labels)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


GUIDED = {
    "GISTEmbedLoss": (2, {}),
    "GISTEmbedLoss, margin": (3, {"margin": 0.05, "contrast_positives": False}),
    "GISTEmbedLoss, relative": (2, {"margin_strategy": "relative", "margin": 0.1, "contrast_anchors": False}),
    "CachedGISTEmbedLoss": (4, {"mini_batch_size": 7, "margin": 0.02}),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guided(model, guide, name):
    columns, options = GUIDED[name]
    mine, other = (getattr(m, name.split(",")[0])(model, guide, **options) for m in (ours, theirs))
    agree(*(trained(model, loss, columns) for loss in (mine, other)))


def test_a_guide_with_another_tokenizer(model, tmp_path):
    other_guide = sentence_transformer(tmp_path, 1, TEXTS[::2])
    losses = [m.GISTEmbedLoss(model, other_guide) for m in (ours, theirs)]
    assert losses[0].must_retokenize
    agree(*(trained(model, loss, 2) for loss in losses))


NESTED = {
    "MultipleNegativesRankingLoss": (3, {}),
    "MultipleNegativesRankingLoss, dot": (2, {"similarity_fct": "dot_score"}),
    "MultipleNegativesRankingLoss, theirs": (2, {"hardness_mode": "all_negatives", "hardness_strength": 2.0}),
    "CachedMultipleNegativesSymmetricRankingLoss": (2, {"mini_batch_size": 9}),
    "CachedMultipleNegativesRankingLoss, theirs": (
        2, {"hardness_mode": "all_negatives", "hardness_strength": 2.0, "mini_batch_size": 9},
    ),
    "CoSENTLoss": (2, {}),
    "BatchAllTripletLoss": (1, {"margin": 0.3}),
    "GISTEmbedLoss": (2, {}),
    "MSELoss": (1, {}),
    "ContrastiveLoss": (2, {}),
    "OnlineContrastiveLoss": (2, {"margin": 0.2}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is computed by sentence-transformers", "ignore:.*is deprecated")
@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize(
    ("widths", "drawn"), [([64, 10, 33], -1), ([64, 10, 33], 2), ([64, 8, 8], -1)], ids=str
)
def test_matryoshka(model, guide, name, widths, drawn):
    columns, options = NESTED[name]
    kind = name.split(",")[0]
    labels = {
        "CoSENTLoss": torch.arange(24) % 5 / 4,
        "BatchAllTripletLoss": torch.arange(24) % 7,
        "ContrastiveLoss": torch.arange(24) % 2,
        "OnlineContrastiveLoss": torch.arange(24) % 2,
        "MSELoss": torch.randn(24, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    }.get(kind)

    def made(library):
        models = (model, guide) if kind == "GISTEmbedLoss" else (model,)
        loss = getattr(library if kind in ours.__all__ else theirs, kind)(*models, **named(options))
        return library.MatryoshkaLoss(model, loss, widths, [1.0, 0.3, 2.0], drawn)

    found = [trained(model, made(library), columns, labels) for library in (ours, theirs)]
    agree(*found)


def test_signatures_are_theirs():
    for name in ours.__all__:
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert issubclass(mine, other) or "Symmetric" in name
        told = [inspect.signature(kind.__init__).parameters.values() for kind in (mine, other)]
        assert [(p.name, p.default) for p in told[0]] == [(p.name, p.default) for p in told[1]]


# ---- By its trainer


def fitted(model, loss, folder, resume=None, epochs=2):
    """(losses of the steps, weights) of its trainer; from a checkpoint on where there is one."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    model = copy.deepcopy(model).float().train()
    questions, answers = zip(*TEXTS)
    settings = SentenceTransformerTrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=1e-3, seed=5,
        save_steps=4, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    made, curve = loss(model), []
    made.register_forward_hook(lambda module, given, value: curve.append(value.item()))
    trainer = SentenceTransformerTrainer(
        model,
        settings,
        train_dataset=Dataset.from_dict({"anchor": questions, "positive": answers}),
        loss=made,
    )
    trainer.train(resume_from_checkpoint=resume)
    return curve, [p.detach() for p in model.parameters()]


def test_the_same_curve_and_resuming(model, tmp_path):
    """With dropout, whose draws are theirs; every loss to 1e-4, and after a checkpoint the very same."""
    curves = {
        name: fitted(model, library.MultipleNegativesRankingLoss, tmp_path / name)
        for name, library in (("ours", ours), ("theirs", theirs))
    }
    mine, other = curves["ours"][0], curves["theirs"][0]
    assert len(mine) == 8 and max(mine) - min(mine) > 0.05
    assert mine == pytest.approx(other, abs=1e-4)
    resumed = fitted(
        model, ours.MultipleNegativesRankingLoss, tmp_path / "again",
        resume=str(tmp_path / "ours" / "checkpoint-4"),
    )  # fmt: skip
    assert resumed[0] == pytest.approx(mine[4:], abs=1e-6)
    for a, b in zip(resumed[1], curves["ours"][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_cached_form_trains_alike(model, tmp_path):
    """Also the model card is theirs."""

    def cached(library):
        return lambda m: library.CachedMultipleNegativesRankingLoss(m, mini_batch_size=9)

    curves = [
        fitted(model, cached(library), tmp_path / str(k), epochs=1)[0]
        for k, library in enumerate((ours, theirs))
    ]
    assert len(curves[0]) == 4
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    card = (tmp_path / "0" / "checkpoint-4" / "README.md").read_text()
    assert "CachedMultipleNegativesRankingLoss" in card


def test_the_benchmark_measures_the_same_loss(capsys):
    """Its network and its batches, at the size of a look."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "sentences.py"))
    size = SimpleNamespace(threads=1, width=16, layers=1, tokens=4, chunk=8)
    for library in ("fastdml", "sentence-transformers"):
        for name in (script["PLAIN"], script["CACHED"]):
            script["one_step"](library, name, 20, size)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["loss"] for t in told] == pytest.approx([told[0]["loss"]] * 4, rel=1e-5)
    assert all(t["seconds"] > 0 for t in told)
