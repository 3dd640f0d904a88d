"""Lightning trains, evaluates, checkpoints and resumes."""

import copy
from types import SimpleNamespace

import pytest
import torch
from others import Lazy
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from fastdml import losses, miners
from fastdml.demo.data import load_icons
from fastdml.metrics import evaluate

pl, ours = Lazy("lightning.pytorch"), Lazy("fastdml.integrations.lightning")
TRAIN, TEST = load_icons(max_classes=12)
NETWORK = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 32))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def module(loss=None, **options):
    torch.manual_seed(0)
    loss = loss or losses.ProxyAnchorLoss(12, 32)
    return ours.EmbeddingModule(copy.deepcopy(NETWORK), loss, sgd, **options)


def loader(data, *more):
    return DataLoader(TensorDataset(data.pixels, *more or (data.labels,)), 24)


def fit(made, folder, epochs, checkpoint=None):
    keep = pl.callbacks.ModelCheckpoint(folder, monitor="val_recall@1", mode="max", save_last=True)
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=[ours.RetrievalCallback(k=(1, 4)), keep], logger=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(made, loader(TRAIN), loader(TEST), ckpt_path=checkpoint)
    return trainer


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.parameters()])


def test_it_trains_and_resumes(tmp_path):
    """Proxies are trained and kept with the network; the metrics are those of all batches together."""
    whole = module()
    before = weights(whole)
    trainer = fit(whole, tmp_path / "whole", 4)
    with torch.no_grad():
        expected = evaluate(whole(TEST.pixels), TEST.labels, metrics=("recall", "map@r"), k=(1, 4))
    for name, value in expected.items():
        assert trainer.callback_metrics[f"val_{name}"] == pytest.approx(value, abs=1e-6)
    first, second = module(), module()
    fit(first, tmp_path / "half", 2)
    fit(second, tmp_path / "half", 4, checkpoint=tmp_path / "half" / "last.ckpt")
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=1e-6)
    assert (weights(whole)[-12 * 32 :] - before[-12 * 32 :]).abs().max() > 1e-3  # the proxies


def test_chunks_are_the_same_step(tmp_path):
    """With a miner, which makes a difference."""
    miner = miners.MultiSimilarityMiner()
    made = [
        module(losses.MultiSimilarityLoss(), miner=one, chunk=chunk)
        for one, chunk in ((miner, None), (miner, 7), (None, None))
    ]
    for k, one in enumerate(made):
        fit(one, tmp_path / str(k), 2)
    plain, chunked, unmined = map(weights, made)
    torch.testing.assert_close(chunked, plain, rtol=0, atol=1e-6)
    assert (unmined - plain).abs().max() > 1e-4


def rates(folder, chunk, make, **config):
    """The learning rate of every step of three epochs."""
    found = []

    class Scheduled(ours.EmbeddingModule):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **config}}

        def on_train_batch_start(self, *_):
            found.append(self.optimizers().param_groups[0]["lr"])

    fit(Scheduled(copy.deepcopy(NETWORK), losses.SupConLoss(), sgd, chunk=chunk), folder, 3)
    return found


def halved(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize("config", [{}, {"frequency": 2}, {"interval": "step", "frequency": 2}], ids=str)
def test_schedulers_step_in_chunks_too(tmp_path, config):
    plain, chunked = (rates(tmp_path / str(chunk), chunk, halved, **config) for chunk in (None, 16))
    assert chunked == plain and len(set(plain)) > 1


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, {}, "lr_scheduler: expected one that needs no metric"),
        (halved, {"interval": "batch"}, "interval: expected 'step' or 'epoch', got 'batch'"),
    ],
)
def test_schedulers_that_chunks_cannot_step_are_named(tmp_path, make, config, message):
    with pytest.raises(ValueError, match=message):
        rates(tmp_path, 16, make, **config)


def test_two_towers(tmp_path):
    """A batch of both sets; the loss is that of the embeddings."""
    torch.manual_seed(0)
    towers = [copy.deepcopy(NETWORK), torch.nn.Linear(5, 32)]
    other = torch.randn(len(TRAIN), 5)
    with torch.no_grad():
        expected = losses.CLIPLoss()(towers[0](TRAIN.pixels[:24]), towers[1](other[:24]))
    made = ours.EmbeddingModule(towers, losses.CLIPLoss(), sgd)
    trainer = pl.Trainer(
        max_steps=1, logger=False, accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(made, loader(TRAIN, other))
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(float(expected), rel=1e-5)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.zeros(5, 1, 3))


def test_several_rows_of_a_draw_are_all_kept():
    """What a sampler repeats can only be told where each draw is one row."""
    data = TensorDataset(torch.randn(9, 3))
    validation = DataLoader(data, 1, sampler=DistributedSampler(data, 2, 1, shuffle=False))
    callback = ours.RetrievalCallback()
    endless = DataLoader(Endless(), 1)
    loaders = [{"some": validation, "more": endless}, validation]
    trainer = SimpleNamespace(world_size=2, val_dataloaders=loaders)
    callback.on_validation_epoch_start(trainer, SimpleNamespace(device="cpu"))
    outputs = {"embeddings": torch.randn(5, 3), "labels": torch.arange(5)}
    for k in range(2):
        for loader in range(3):
            callback.on_validation_batch_end(trainer, None, outputs, None, k, loader)
    assert [len(torch.cat(m.embeddings)) for m in callback.metrics] == [10, 10, 10]


def logged(made, loaders):
    trainer = pl.Trainer(
        callbacks=[ours.RetrievalCallback(k=1)], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.validate(made, loaders, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_several_loaders_are_several_galleries():
    """Classes of the same numbers in two data sets are none of each other's."""
    sets = [(x, torch.arange(32) // 4) for x in torch.randn(2, 32, 4)]
    loaders = [DataLoader(TensorDataset(*one), 16) for one in sets]
    found = logged(ours.EmbeddingModule(torch.nn.Identity(), losses.SupConLoss(), sgd), loaders)
    expected = {
        f"val_{name}/dataloader_idx_{k}": value
        for k, one in enumerate(sets)
        for name, value in evaluate(*one, metrics=("recall", "map@r"), k=1).items()
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_loaders_side_by_side_are_one_gallery():
    """A batch of both; the module says what becomes of it."""

    class Joined(ours.EmbeddingModule):
        def validation_step(self, batch, batch_idx):
            return super().validation_step([torch.cat(both) for both in zip(*batch)], batch_idx)

    x, y = torch.randn(32, 4), torch.arange(32) // 4
    halves = [DataLoader(TensorDataset(x[k::2], y[k::2]), 8) for k in (0, 1)]
    side_by_side = pl.utilities.CombinedLoader(halves, "max_size")
    found = logged(Joined(torch.nn.Identity(), losses.SupConLoss(), sgd), side_by_side)
    assert found["val_recall@1"] == pytest.approx(evaluate(x, y, k=1)["recall@1"], abs=1e-6)


@pytest.mark.parametrize("trial", [{}, {"fast_dev_run": True}])
def test_a_trial_run_needs_no_class_twice(tmp_path, trial):
    """Lightning's first check takes two batches of the validation rows."""
    x, y = torch.randn(64, 1024), torch.arange(64) % 32
    rows = DataLoader(TensorDataset(x, y), 8)
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[ours.RetrievalCallback()], logger=False, enable_checkpointing=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, **trial,
    )  # fmt: skip
    trainer.fit(module(losses.MultiSimilarityLoss()), rows, rows)
    assert trial or "val_recall@1" in trainer.callback_metrics


def test_a_validation_step_that_returns_nothing_is_named():
    with pytest.raises(ValueError, match="validation_step: expected it to return"):
        ours.RetrievalCallback().on_validation_batch_end(None, None, None, None, 0)
