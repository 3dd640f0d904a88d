"""The Hugging Face Trainer and Accelerate train, evaluate, checkpoint and resume."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from others import Lazy
from texts import functions
from torch import nn

from fastdml import losses, miners
from fastdml.demo.data import load_icons
from fastdml.integrations.transformers import (
    EmbedderWithLoss,
    compute_loss,
    compute_metrics,
    pooled,
)
from fastdml.large_batch import GradientCache
from fastdml.metrics import evaluate
from fastdml.wrappers import CrossBatchMemory, Labelled

transformers = Lazy("transformers")
FOUND = functions(64, most=8)
SUBJECTS = sorted({module for module, _, _ in FOUND})


@pytest.fixture(scope="module")
def data():
    from small_bert import embedder

    torch.manual_seed(0)
    tokenizer, network = embedder([said for _, _, said in FOUND], width=16)
    rows = [
        {**tokenizer(said, truncation=True), "label": SUBJECTS.index(module)}
        for module, _, said in FOUND
    ]
    return transformers.DataCollatorWithPadding(tokenizer), network, rows


def trainer(model, data, folder, steps=6, **more):
    options = {"remove_unused_columns": not isinstance(model, EmbedderWithLoss)}
    options.update({k: more.pop(k) for k in ("gradient_accumulation_steps",) if k in more})
    settings = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=more.pop("batch", 16), learning_rate=1e-3,
        save_steps=3, report_to="none", use_cpu=True, disable_tqdm=True, seed=3, **options,
    )  # fmt: skip
    return transformers.Trainer(model, settings, data[0], data[2], data[2][:30], **more)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_proxies_are_trained_saved_and_resumed(data, tmp_path):
    torch.manual_seed(0)
    start = EmbedderWithLoss(copy.deepcopy(data[1]), losses.ProxyAnchorLoss(len(SUBJECTS), 16))
    model, again = copy.deepcopy(start), copy.deepcopy(start)
    metrics = compute_metrics(metrics="recall", k=(1, 5))
    whole = trainer(model, data, tmp_path, compute_metrics=metrics)
    whole.train()
    found = whole.evaluate()
    model.eval()
    batch = data[0](data[2][:30])
    with torch.no_grad():
        given = model(**batch)
    expected = evaluate(given["embeddings"], batch["labels"], metrics="recall", k=(1, 5))
    assert found["eval_recall@5"] == pytest.approx(expected["recall@5"])
    trainer(again, data, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(weights(again), weights(model), rtol=0, atol=1e-6)
    moved = (again.loss.proxies - start.loss.proxies).abs().max()
    assert moved > 1e-4
    assert set(model(input_ids=batch["input_ids"])) == {"embeddings"}  # without labels


def test_a_loss_function_of_outputs(data, tmp_path):
    """The same steps as a model that returns its loss."""
    made = [copy.deepcopy(data[1]), EmbedderWithLoss(copy.deepcopy(data[1]), losses.SupConLoss())]
    trainer(made[0], data, tmp_path, compute_loss_func=compute_loss(losses.SupConLoss())).train()
    trainer(made[1], data, tmp_path).train()
    torch.testing.assert_close(weights(made[0]), weights(made[1]), rtol=0, atol=1e-6)
    assert (weights(made[0]) - weights(data[1])).abs().max() > 1e-4


def test_the_embeddings_among_several_outputs():
    x, y = torch.randn(2, 8, 4)
    names = ("embeddings", "sentence_embedding", "pooler_output", "image_embeds", "text_embeds")
    for name, other in itertools.pairwise(names):
        both = {other: y, "last_hidden_state": y, name: x}
        assert pooled(both) is x and pooled(SimpleNamespace(**both)) is x


def test_steps_that_are_accumulated(data):
    """Each by its share of the rows."""
    outputs = SimpleNamespace(pooler_output=torch.randn(8, 4))
    labels = torch.arange(8) // 2
    plain = compute_loss(losses.SupConLoss())
    mined = compute_loss(losses.SupConLoss(), miner=miners.HDCMiner())
    value = plain(outputs, labels)
    torch.testing.assert_close(value, losses.SupConLoss()(outputs.pooler_output, labels))
    torch.testing.assert_close(plain(outputs, labels, num_items_in_batch=torch.tensor(32)), value / 4)
    assert float(mined(outputs, labels)) != pytest.approx(float(value))


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (losses.MultiSimilarityLoss(), torch.arange(8)[:, None] // 3 == torch.arange(5)),
        (Labelled(losses.SupConLoss(), ignore_label=-100), torch.tensor([0, 0, 1, 1, 2, 2, -100, -100])),
        (losses.LogRatioLoss(), torch.arange(24.0).reshape(8, 3)),
    ],
    ids=["sets of classes", "labels to ignore", "vectors"],
)
def test_a_batch_of_one_step_has_its_own_loss(loss, labels):
    """Whatever the trainer counts of its labels, as it does."""
    outputs, items = torch.randn(8, 4), labels.ne(-100).sum()
    for steps in (1, 4):
        value = compute_loss(loss)(outputs, labels, num_items_in_batch=steps * items)
        torch.testing.assert_close(value, loss(outputs, labels) / steps)


def test_steps_without_a_label_count_nothing():
    loss = compute_loss(Labelled(losses.SupConLoss(), ignore_label=-100))
    value = loss(torch.randn(4, 4), torch.full((4,), -100), num_items_in_batch=torch.tensor(0))
    assert value == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compute_loss(losses.ProxyAnchorLoss(3, 4)), "loss: expected one without parameters"),
        (lambda: compute_loss(losses.SOPRCLoss(3)), "loss: .* state, got SOPRCLoss with table, prior: Emb"),
        (lambda: compute_loss(losses.TripletMarginLoss(triplets_per_anchor=2)), "loss: .* with step: Emb"),
        (lambda: compute_loss(CrossBatchMemory(losses.SupConLoss(), 4)), "loss: .* with embedding_memory"),
        (
            lambda: compute_loss(losses.SupConLoss(), miner=miners.DistanceWeightedMiner()),
            "miner: expected one without .* got DistanceWeightedMiner with step",
        ),
        (lambda: compute_loss(losses.SupConLoss())(torch.randn(2, 3), None), "labels: expected batches"),
        (lambda: pooled({"logits": torch.zeros(2)}), "embed: expected a function that finds .* in dict"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_accelerate_resumes(tmp_path):
    """Gradient caching through its backward; its checkpoint has the loss's proxies, and goes on as if nothing
    had been."""
    from accelerate import Accelerator

    icons, _ = load_icons(max_classes=12)

    def start():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.Dropout(0.2))
        loss = losses.ProxyAnchorLoss(12, 16)
        accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=1e-2)
        return accelerator, *accelerator.prepare(network, loss, optimizer)

    def steps(accelerator, network, loss, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            with GradientCache(chunk=16) as cache:
                accelerator.backward(loss(cache.embed(network, icons.pixels), icons.labels))
            optimizer.step()
        return torch.cat([weights(network), weights(loss)])

    first = start()
    begun = steps(*first, 2)
    first[0].save_state(str(tmp_path))
    end = steps(*first, 2)
    second = start()
    second[0].load_state(str(tmp_path))
    torch.testing.assert_close(torch.cat([weights(m) for m in second[1:3]]), begun, rtol=0, atol=0)
    torch.testing.assert_close(steps(*second, 2), end, rtol=0, atol=1e-6)
    assert (end - begun).abs().max() > 1e-3
