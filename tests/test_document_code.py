"""The code of documents that no other test runs, with stand-ins for what is the reader's own."""

import re
import sys
import types

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from torch import nn
from torch.nn import functional as F

from fastdml import losses
from fastdml.engine.registry import LOSSES

C, D, WIDTH = 6, 8, 12


def blocks(document: str) -> list[str]:
    """What Python takes by itself, in order."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    assert found
    return found


def own(rows: int = 48, classes: int = C) -> dict[str, object]:
    """What a reader has: a network, its data, its optimiser, and the losses that texts name."""
    torch.manual_seed(0)
    images, labels = torch.randn(rows, WIDTH), torch.arange(rows) % classes
    model = nn.Sequential(nn.Linear(WIDTH, D), nn.BatchNorm1d(D))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return {
        "torch": torch, "F": F, "Adam": torch.optim.Adam, "DataLoader": torch.utils.data.DataLoader,
        **losses.MODULES, "C": C, "D": D, "num_classes": classes, "embedding_size": D,
        "images": images, "labels": labels, "x": images, "y": labels, "batches": [(images, labels)],
        "model": model, "network": model, "optimizer": optimizer, "embed": model,
        "embeddings": model(images), "all_embeddings": model(images).detach(), "all_labels": labels,
        "epoch": 1, "epochs": 4, "rate": 0.01,
    }  # fmt: skip


# Beside these, by what the fragment is of.
FURTHER = {
    "NovelClasses": lambda: {
        "steps_of_two_epochs": 0, "generator_optimizer": torch.optim.SGD([torch.ones(1)], 1),
    },
    "ChanceConstraints": lambda: {"validation_map_at_r": 0.5},
    "RepresentativeSampler": lambda: {
        **(mine := own(160, 40)), "embed_rows": lambda rows: mine["model"](mine["images"][rows]),
        "data": torch.utils.data.TensorDataset(mine["images"], mine["labels"]),
    },
    "EmbeddingTransfer": lambda: {
        "source": nn.Linear(WIDTH, 5), "target": nn.Linear(WIDTH, D), "augment": lambda image: image + 0.1,
    },
    "LossEnsemble": lambda: dict.fromkeys(("head_1", "head_2"), torch.randn(48, D)),
    "balance_search": lambda: {"train_and_score": lambda setting, seed: -setting["balance"]},
    "HybridLoss": lambda: {
        "backbone": lambda images: (torch.randn(48, 1024, 3, 3), torch.randn(48, 2048, 2, 2)),
    },
    "label_the_rest": lambda: {
        "clusters": 3, "embed": lambda model: own()["all_embeddings"], "validation_score": 0.5,
        "labels": torch.arange(48) % (C + 1) - 1,
    },
    "NearestLabelSampler": lambda: {
        "labels": torch.rand(200), "inputs": torch.randn(200, WIDTH), "test_inputs": torch.randn(30, WIDTH),
        "test_labels": torch.rand(30),
    },
}  # fmt: skip


@pytest.mark.parametrize("code", blocks("methods.md"), ids=lambda code: code.split()[3].strip(","))
def test_methods(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = own()
    for name, further in FURTHER.items():
        if name in code:
            names |= further()
    exec(compile(code, "docs/methods.md", "exec"), names)


@pytest.mark.parametrize("document", ["labels.md", "metrics.md"])
def test_in_order(document):
    names = own()
    names |= {k: names["all_embeddings"] for k in ("queries", "gallery")}
    names |= {k: names["labels"] for k in ("query_labels", "gallery_labels")}
    names["embeddings"] = names["all_embeddings"]
    for code in blocks(document):
        exec(compile(code, f"docs/{document}", "exec"), names)


def test_distributed(monkeypatch):
    """With one process, and fewer classes."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for name, value in (("MASTER_PORT", "0"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    names = own()
    network = nn.Linear(WIDTH, 512)
    try:
        for code in blocks("distributed.md"):
            code = code.replace('"nccl"', '"gloo"').replace("10_000_000", "100")
            exec(compile(code, "docs/distributed.md", "exec"), names | {"network": network})
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert network.weight.grad is not None


def test_a_loss_that_is_added(monkeypatch):
    (code,) = blocks("adding-a-loss.md")
    file = types.ModuleType("fastdml.losses.pair.soft_lifted")
    file.__package__ = "fastdml.losses.pair"
    monkeypatch.setitem(sys.modules, file.__name__, file)
    try:
        exec(compile(code, "docs/adding-a-loss.md", "exec"), vars(file))
        given = own()
        file.SoftLiftedLoss(backend="chunked")(given["embeddings"], given["labels"]).backward()
    finally:
        LOSSES.pop("soft_lifted", None)
    assert given["model"][0].weight.grad.any()
