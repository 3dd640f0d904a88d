"""Over ranks: trainers of others, beside a loop in one process over the rows of all of them."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from others import Lazy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from fastdml import losses
from fastdml.distributed import shard, wrap
from fastdml.large_batch import GradientCache
from fastdml.metrics import evaluate
from fastdml.samplers import MPerClassSampler

pl, ours = Lazy("lightning.pytorch"), Lazy("fastdml.integrations.lightning")
sentences = Lazy("fastdml.integrations.sentence_transformers")
accelerate, transformers = Lazy("accelerate"), Lazy("transformers")
helpers = Lazy("fastdml.integrations.transformers")

ROOT = Path(__file__).resolve().parents[2]
RANKS, BATCH, ROWS, CLASSES, DIM = 2, 4, 32, 5, 6  # BATCH: rows of a rank
TOGETHER = RANKS * BATCH
STEPS = ROWS // TOGETHER  # of an epoch
EPOCHS = 2
UNSEEN = 9  # rows of the validation, which two ranks cannot halve

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "SupCon": losses.SupConLoss,
    "ProxyAnchor": lambda: losses.ProxyAnchorLoss(CLASSES, DIM),
    "CLIP": losses.CLIPLoss,
}


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(inputs [count, 5], classes [count])."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=g, dtype=torch.float64), torch.arange(count) * 3 % CLASSES


def batch(name: str) -> tuple[Tensor, ...]:
    """All rows of the training, as a loss takes them."""
    x, y = rows(ROWS, 1)
    return (x, x.flip(1)) if name == "CLIP" else (x, y)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, DIM)).double()


def made(name: str) -> tuple[nn.ModuleList, nn.Module]:
    """(networks, loss), equal wherever they are made."""
    torch.manual_seed(2)
    return nn.ModuleList(network() for _ in range(1 + (name == "CLIP"))), LOSSES[name]().double()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def weights(*modules: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


Order = Callable[[int], Sequence[int]]


def in_order(epoch: int) -> Sequence[int]:
    """The rows of an epoch."""
    return range(ROWS)


def alone(name: str, accumulated: int = 1, order: Order = in_order) -> tuple[list[float], Tensor]:
    """(losses of the steps, weights) after all epochs of one process. accumulated: batches of a step."""
    towers, loss = made(name)
    optimizer = sgd([*towers.parameters(), *loss.parameters()])
    parts = [part for epoch in range(EPOCHS) for part in torch.tensor(order(epoch)).split(TOGETHER)]
    values = []
    for step in range(EPOCHS * STEPS // accumulated):
        optimizer.zero_grad()
        values.append(0.0)
        for part in parts[step * accumulated : (step + 1) * accumulated]:
            given = [x[part] for x in batch(name)]
            embeddings = [tower(x) for tower, x in zip(towers, given)]
            value = loss(*embeddings, *given[len(towers) :]) / accumulated
            value.backward()
            values[-1] += value.item()
        optimizer.step()
    return values, weights(towers, loss)


def forgotten(*modules: nn.Module) -> None:
    """Weights from which no training would come to the same, for what a checkpoint has to bring back."""
    with torch.no_grad():
        for parameter in (p for m in modules for p in m.parameters()):
            parameter.zero_()


@contextlib.contextmanager
def refused(message: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        assert str(error).startswith(message), error
    else:
        raise AssertionError(f"not refused: {message}")


def close(found: Tensor, true: Tensor, what: str, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        found, true, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}"
    )


def close_losses(found: list[float], true: list[float]) -> None:
    """Losses as trainers log them, in single precision."""
    close(torch.tensor(found), torch.tensor(true), "losses", 1e-6)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """One that all ranks have."""
    with contextlib.ExitStack() as stack:
        name = [""]
        if dist.get_rank() == 0:
            name = [stack.enter_context(tempfile.TemporaryDirectory())]
        dist.broadcast_object_list(name)
        yield Path(name[0])
        dist.barrier()


# ---- Lightning


def shuffled(epoch: int) -> Sequence[int]:
    """As its sampler deals rows out for training; those of a step are next to each other."""
    sampler = DistributedSampler(range(ROWS), 1, 0)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    return list(sampler)


def by_class(rank: int) -> MPerClassSampler:
    options = {"batch_size": BATCH, "length_before_new_iter": ROWS}
    return MPerClassSampler(rows(ROWS, 1)[1], 2, rank=rank, num_replicas=RANKS, **options)


def dealt_by_class(epoch: int) -> Sequence[int]:
    samplers = [by_class(rank) for rank in range(RANKS)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    batches = [torch.tensor(list(sampler)).view(-1, BATCH) for sampler in samplers]
    found: list[int] = torch.stack(batches, 1).flatten().tolist()
    return found


def seen() -> tuple[Any, list[float]]:
    """(a callback, the losses that it has seen logged)."""
    found: list[float] = []
    return pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda trainer, *_: found.append(float(trainer.callback_metrics["train_loss"]))
    ), found


def lightning_trainer(here: Path, *callbacks: Any, **options: Any) -> Any:
    return pl.Trainer(
        accelerator="cpu", devices=RANKS, strategy="ddp", logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=here, **options,
    )  # fmt: skip


def lightning_module(name: str, chunk: int | None = None) -> Any:
    towers, loss = made(name)
    return ours.EmbeddingModule(list(towers), wrap(loss), sgd, chunk=chunk)


def lightning(name: str, chunk: int | None, classes: bool = False) -> None:
    """Trained in one go, and resumed half way from what rank 0 has saved. classes: a sampler of ours, which
    deals its batches out to ranks itself."""
    losses_of_steps, true = alone(name, order=dealt_by_class if classes else shuffled)
    unseen = rows(UNSEEN, 3)
    with folder() as here:

        def fit(epochs: int, kept: str, checkpoint: Path | None = None) -> tuple[Any, Any, list[float]]:
            listener, found = seen()
            keep = pl.callbacks.ModelCheckpoint(here / kept, save_last=True)
            trainer = lightning_trainer(
                here, listener, keep, ours.RetrievalCallback(k=(1, 2)), max_epochs=epochs,
                use_distributed_sampler=not classes,
            )  # fmt: skip
            module, data = lightning_module(name, chunk), TensorDataset(*unseen)
            if checkpoint is not None:
                forgotten(module)
            own = by_class(dist.get_rank()) if classes else None
            # The row that a rank repeats comes in a batch of its own, or with another.
            validation = DataLoader(data, 2)
            if classes:
                validation = DataLoader(data, 3, sampler=DistributedSampler(data, shuffle=False))
            training = DataLoader(TensorDataset(*batch(name)), BATCH, sampler=own)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                trainer.fit(module, training, validation, ckpt_path=checkpoint)
            assert not [w for w in said if "sync_dist=True" in str(w.message)]
            return trainer, module, found

        trainer, module, found = fit(EPOCHS, "whole")
        close(weights(module), true, "weights")
        close_losses(found, losses_of_steps)
        with torch.no_grad():
            expected = evaluate(module(unseen[0]), unseen[1], metrics=("recall", "map@r"), k=(1, 2))
        for key, value in expected.items():
            close_losses([float(trainer.callback_metrics[f"val_{key}"])], [value])
        fit(1, "half")
        _, resumed, _ = fit(EPOCHS, "again", here / "half" / "last.ckpt")
        close(weights(resumed), true, "resumed")


def lightning_refuses() -> None:
    """A sampler that deals to ranks itself, dealt out again; rows that no sampler deals out; proxies that
    DDP would make alike."""
    training = DataLoader(TensorDataset(*batch("SupCon")), BATCH, sampler=by_class(dist.get_rank()))
    with folder() as here, refused("use_distributed_sampler: expected"):
        lightning_trainer(here, max_epochs=1).fit(lightning_module("SupCon"), training)
    with folder() as here, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = lightning_trainer(here, ours.RetrievalCallback(), use_distributed_sampler=False)
        trainer.validate(lightning_module("SupCon"), DataLoader(TensorDataset(*rows(UNSEEN, 3)), 2))
    assert any("every rank evaluates all 9 rows" in str(w.message) for w in said)
    shards = shard(lambda n: losses.ArcFaceLoss(n, DIM), num_classes=CLASSES)
    with folder() as here, refused("loss: expected wrap"):
        module = ours.EmbeddingModule(network(), shards, sgd)
        lightning_trainer(here, max_epochs=1).fit(module, training)


class Inside(nn.Module):
    """Gradient caching within a module, which goes into DDP as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with GradientCache(chunk=3) as cache:
            value = losses.SupConLoss()(cache.embed(self.body, x), y)
            value.backward()
        return value.detach()


def chunks_inside_ddp() -> None:
    """Refused where DDP would reduce the first chunk alone; not where it reduces nothing."""
    x, y = rows(TOGETHER, 1)
    several = DistributedDataParallel(Inside())
    with refused("GradientCache: expected DDP around the network itself"):
        several(x, y)
    with several.no_sync():
        several(x, y)


# ---- Accelerate


def accelerated(name: str, chunk: int | None, accumulated: int) -> None:
    losses_of_steps, true = alone(name, accumulated)
    (own,), loss = made(name)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    assert accelerator.num_processes == RANKS
    optimizer = sgd([*own.parameters(), *loss.parameters()])
    loader = DataLoader(TensorDataset(*batch(name)), BATCH)
    net, together, optimizer, loader = accelerator.prepare(own, wrap(loss), optimizer, loader)

    def epoch() -> list[float]:
        found = []
        for x, y in loader:
            with accelerator.accumulate(net, together):
                if chunk is None:
                    value = together(net(x), y)
                    accelerator.backward(value)
                else:
                    with GradientCache(chunk=chunk) as cache:
                        value = together(cache.embed(net, x), y)
                        accelerator.backward(value)
                optimizer.step()
                optimizer.zero_grad()
            found.append(value.item())
        return [sum(found[k : k + accumulated]) / accumulated for k in range(0, len(found), accumulated)]

    found = epoch()
    with folder() as here:
        accelerator.save_state(str(here / "state"))
        close_losses(found + epoch(), losses_of_steps)
        close(weights(own, loss), true, "weights")
        forgotten(own, loss)
        accelerator.load_state(str(here / "state"))
        epoch()
        close(weights(own, loss), true, "resumed")


# ---- The Hugging Face Trainer


class Embedder(nn.Module):
    """A model by whose arguments that trainer finds its columns."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"embeddings": self.body(x)}


def arguments(kind: Any, here: Path, accumulated: int, **more: Any) -> Any:
    """Of a trainer: steps of `sgd`, of the rows in their order."""
    return kind(
        str(here), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, per_device_eval_batch_size=2,
        gradient_accumulation_steps=accumulated, learning_rate=0.05, optim="sgd", optim_args="momentum=0.9",
        lr_scheduler_type="constant", max_grad_norm=0, logging_steps=1, save_steps=STEPS // accumulated,
        report_to="none", use_cpu=True, disable_tqdm=True, **more,
    )  # fmt: skip


def logged(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def hugging_face(name: str, way: str, accumulated: int, count: int = ROWS) -> None:
    """way: "model": the loss goes around the model; "function": beside it. count: rows of an epoch, the last
    of which one rank has fewer of, where they are no whole batches."""
    losses_of_steps, true = alone(name, accumulated, lambda epoch: range(count))
    unseen = rows(UNSEEN, 3)
    with folder() as here:

        def train(checkpoint: Path | None = None) -> tuple[Any, Tensor]:
            (own,), loss = made(name)
            model: nn.Module = Embedder(own)
            more: dict[str, Any] = {}
            if way == "function":
                more["compute_loss_func"] = helpers.compute_loss(wrap(loss))
            else:
                model = helpers.EmbedderWithLoss(model, wrap(loss))
                more["compute_metrics"] = helpers.compute_metrics(k=(1, 2))
            data = [
                [{"x": x, "label": int(y)} for x, y in zip(*given)] for given in (batch(name), unseen)
            ]
            data[0] = data[0][:count]
            settings = arguments(
                transformers.TrainingArguments, here, accumulated,
                train_sampling_strategy="sequential", remove_unused_columns=False,
                accelerator_config={"even_batches": count == ROWS},
            )  # fmt: skip
            assert settings.world_size == RANKS
            trainer = transformers.Trainer(
                model, settings, train_dataset=data[0], eval_dataset=data[1], **more
            )
            if checkpoint is not None:
                forgotten(own, loss)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return trainer, weights(own, loss)

        trainer, found = train()
        close(found, true, "weights")
        close_losses(logged(trainer), losses_of_steps)
        if way == "model" and count == ROWS:
            metrics = trainer.evaluate()
            with torch.no_grad():
                embeddings = trainer.model(x=unseen[0])["embeddings"]
            for key, value in evaluate(embeddings, unseen[1], k=(1, 2)).items():
                close_losses([metrics[f"eval_{key}"]], [value])
        _, again = train(here / f"checkpoint-{STEPS // accumulated}")
        close(again, true, "resumed")


# ---- The trainer of sentence-transformers


@functools.cache
def sentence_transformer() -> tuple[Any, list[tuple[str, str]]]:
    """(a small model without dropout, pairs of texts)."""
    from texts import pairs
    from train_sentences import sentence_transformer as small

    found = pairs(ROWS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as here:
        model = small([text for pair in found for text in pair], here).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, found


def sampler_in_order(dataset: Any, **options: Any) -> Any:
    from sentence_transformers.base.sampler import DefaultBatchSampler

    return DefaultBatchSampler(torch.utils.data.SequentialSampler(dataset), **options)


def of_sentences(name: str, **options: Any) -> None:
    import copy

    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    start, texts = sentence_transformer()
    made = functools.partial(getattr(sentences, name), **options)
    model = copy.deepcopy(start)
    loss, optimizer, losses_of_steps = made(model), sgd(model.parameters()), []
    for step in range(EPOCHS * STEPS):
        begin = step * TOGETHER % ROWS
        optimizer.zero_grad()
        columns = zip(*texts[begin : begin + TOGETHER])
        value = loss([model.preprocess(list(column)) for column in columns], None)
        value.backward()
        optimizer.step()
        losses_of_steps.append(value.item())
    true = weights(model)
    with folder() as here:

        def train(checkpoint: Path | None = None) -> tuple[Any, Tensor]:
            model = copy.deepcopy(start)
            kind = SentenceTransformerTrainingArguments
            settings = arguments(kind, here, 1, batch_sampler=sampler_in_order)
            questions, answers = zip(*texts)
            trainer = SentenceTransformerTrainer(
                model, settings, loss=made(model, gather_across_devices=True),
                train_dataset=Dataset.from_dict({"anchor": questions, "positive": answers}),
            )  # fmt: skip
            if checkpoint is not None:
                forgotten(model)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return trainer, weights(model)

        trainer, found = train()
        close(found, true, "weights")
        close_losses(logged(trainer), losses_of_steps)
        _, again = train(here / f"checkpoint-{STEPS}")
        close(again, true, "resumed")


def document() -> None:
    """What docs/integrations.md says of several processes, as it stands there."""
    text = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    before = os.getcwd()
    with folder() as here:
        os.chdir(here)
        try:
            for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
                if "open_clip" not in code:
                    exec(code, names)
            names["trainer"].fit(names["module"], names["Data"]())
        finally:
            os.chdir(before)
    rows, classes = names["rows"], names["classes"]
    with torch.no_grad():
        assert names["scores"] == pytest.approx(evaluate(names["network"](rows), classes), rel=1e-6)
        expected = evaluate(names["module"](rows), classes, k=1, metrics="recall")["recall@1"]
    assert float(names["trainer"].callback_metrics["val_recall@1"]) == pytest.approx(expected)


def launched(check: Callable[[], None]) -> None:
    """With what `torchrun` tells a process."""
    rank = str(dist.get_rank())
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS), GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", TORCHELASTIC_RUN_ID="check",
    )  # fmt: skip
    check()


def prepare() -> None:
    """Imports what the ranks need, once for all."""
    assert ours.EmbeddingModule and accelerate.Accelerator and transformers.Trainer
    sentence_transformer()


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    assert size == RANKS
    ranking = "MultipleNegativesRankingLoss"
    checks: dict[str, Callable[[], None]] = {
        "Lightning": functools.partial(lightning, "SupCon", None),
        "Lightning, proxies": functools.partial(lightning, "ProxyAnchor", None),
        "Lightning, in chunks": functools.partial(lightning, "ProxyAnchor", 3),
        "Lightning, two towers in chunks": functools.partial(lightning, "CLIP", 3),
        "Lightning, a sampler of classes": functools.partial(lightning, "SupCon", None, True),
        "Lightning refuses": lightning_refuses,
        "chunks inside of DDP": chunks_inside_ddp,
        "Accelerate": functools.partial(accelerated, "ProxyAnchor", None, 1),
        "Accelerate, accumulated in chunks": functools.partial(accelerated, "ProxyAnchor", 3, 2),
        "Trainer": functools.partial(hugging_face, "ProxyAnchor", "model", 1),
        "Trainer, accumulated": functools.partial(hugging_face, "SupCon", "model", 2),
        "Trainer, a function": functools.partial(hugging_face, "SupCon", "function", 1),
        "Trainer, a function accumulated": functools.partial(hugging_face, "SupCon", "function", 2),
        "Trainer, a function, unequal ranks": functools.partial(
            hugging_face, "SupCon", "function", 1, ROWS - 1
        ),
        "Trainer, unequal ranks": functools.partial(hugging_face, "ProxyAnchor", "model", 1, ROWS - 1),
        "sentence-transformers": functools.partial(of_sentences, ranking),
        "sentence-transformers, cached": functools.partial(
            of_sentences, f"Cached{ranking}", mini_batch_size=3
        ),
    }
    checks["the document"] = document
    return {name: functools.partial(launched, check) for name, check in checks.items()}
