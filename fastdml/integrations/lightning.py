"""Lightning: a module that trains an embedder with any loss, and a callback for retrieval metrics.

Needs ``pip install fastdml[integrations]``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from ..distributed import ShardedProxies
from ..engine import check
from ..large_batch import GradientCache
from ..metrics import RetrievalMetrics
from ..samplers.epochs import EpochSampler

__all__ = ["EmbeddingModule", "RetrievalCallback"]


class EmbeddingModule(pl.LightningModule):
    """A network, or one for each tower, and a loss.

    Args:
        towers: maps inputs to embeddings [B, D]; several where the loss compares sets.
        loss: called with the embeddings of all towers, then the rest of the batch. Over ranks:
            `fastdml.distributed.wrap(loss)`, or `wrap(loss, miner=miner)` to mine among all ranks' rows.
        optimizer: makes an optimizer of all parameters, of the loss too.
        miner: called with embeddings and labels of this rank; the loss gets what it finds.
        chunk: rows per pass through a network (gradient caching, docs/large-batch.md), for batches whose
            activations do not fit; None: the batch at once. Optimization is manual then (no gradient
            clipping or accumulation by the trainer); learning-rate schedulers step when Lightning would step
            them, but one that needs a metric is refused.

    Batches are tuples: the inputs of each tower, then what the loss takes beside embeddings. Validation steps
    return {"embeddings", "labels"} of the first tower, as `RetrievalCallback` reads them.

    Raises:
        ValueError: when training begins over several processes with proxies shared out (`shard`), or with a
            sampler of `fastdml.samplers` whose draws Lightning deals out to processes once more; or with
            `chunk` and a scheduler that cannot be stepped there.
    """

    def __init__(
        self,
        towers: nn.Module | Sequence[nn.Module],
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        *,
        miner: nn.Module | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList([towers] if isinstance(towers, nn.Module) else towers)
        self.loss = loss
        self.miner = check.miner(miner)
        self.chunk = chunk
        self.automatic_optimization = chunk is None
        self._optimizer = optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of the first tower."""
        found: Tensor = self.towers[0](inputs)
        return found

    def configure_optimizers(self) -> Any:
        return self._optimizer(self.parameters())

    def setup(self, stage: str) -> None:
        sharded = any(isinstance(m, ShardedProxies) for m in self.loss.modules())
        if sharded and self.trainer.world_size > 1:
            raise ValueError(
                "loss: expected wrap(loss) rather than shard(loss): a trainer's DDP and its checkpoint "
                "take the parameters of one rank for those of all"
            )

    def on_train_start(self) -> None:
        if self.chunk is not None:
            _check_schedulers(self.trainer.lr_scheduler_configs)
        for loader in _loaders(self.trainer.train_dataloader):
            sampler = _sampler(loader)
            if isinstance(sampler, DistributedSamplerWrapper):
                own = getattr(sampler.dataset, "_sampler", None)
                if isinstance(own, EpochSampler):
                    name = type(own).__name__
                    raise ValueError(
                        "use_distributed_sampler: expected Trainer(use_distributed_sampler=False) with "
                        f"{name}(rank=..., num_replicas=...), which deals its batches out to ranks "
                        "itself; Lightning would shuffle what it draws"
                    )

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor | None:
        if self.chunk is None:
            value = self._value(batch, lambda tower, inputs: tower(inputs))
        else:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            value = self._chunked(batch, self.chunk)
            optimizer.step()
            self._step_schedulers(batch_idx)
        self.log("train_loss", value.detach(), prog_bar=True)
        return value if self.chunk is None else None

    def _step_schedulers(self, batch_idx: int) -> None:
        """Lightning leaves them alone in manual optimization; these are the times when it would step them."""
        done = {"step": batch_idx + 1}
        if self.trainer.is_last_batch or done["step"] == self.trainer.num_training_batches:
            done["epoch"] = self.current_epoch + 1
        for config in self.trainer.lr_scheduler_configs:
            if config.interval in done and done[config.interval] % config.frequency == 0:
                self.lr_scheduler_step(config.scheduler, None)

    def _chunked(self, batch: Sequence[Any], chunk: int) -> Tensor:
        """The loss of a batch; its gradients, of all ranks under DDP, are where the optimizer finds them."""
        shared = self.trainer.strategy.model
        under_ddp = isinstance(shared, DistributedDataParallel)
        with shared.no_sync() if under_ddp else nullcontext(), GradientCache(chunk=chunk) as cache:
            value = self._value(batch, cache.embed)
            self.manual_backward(value)
        if under_ddp:
            # The towers run inside of DDP, which would take the first chunk's gradients for all there are.
            # A derivative of nothing makes it reduce what the chunks have gathered.
            found = [p.sum() for p in self.parameters() if p.grad is not None]
            self.manual_backward(0 * torch.stack(found).sum())
        return value

    def _value(self, batch: Sequence[Any], embed: Callable[[nn.Module, Any], Tensor]) -> Tensor:
        count = len(self.towers)
        embeddings = [embed(tower, x) for tower, x in zip(self.towers, batch)]
        rest = list(batch[count:])
        if self.miner is not None:
            rest.append(self.miner(*embeddings, *rest))
        value: Tensor = self.loss(*embeddings, *rest)
        return value

    def validation_step(
        self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        return {"embeddings": self(batch[0]), "labels": batch[-1]}


class RetrievalCallback(pl.Callback):
    """Logs retrieval metrics of what the validation steps of a module return: {"embeddings", "labels"}.

    Args:
        prefix: put before the names, "val_recall@1" and the like, which checkpoints may monitor.
        options: of `fastdml.metrics.RetrievalMetrics`.

    Of several loaders each has a gallery of its own, and the names end as Lightning ends them:
    "val_recall@1/dataloader_idx_0".

    Embeddings of all ranks are gathered first. A row that a `DistributedSampler` repeats, so that all ranks
    have equally many, is counted once. Ranks that go through all rows each, with no such sampler, count
    them several times; a warning says so.

    Raises:
        ValueError: a validation step returns something else.
    """

    def __init__(self, prefix: str = "val_", **options: Any) -> None:
        self.metric = RetrievalMetrics(prefix=prefix, **options)
        self.metrics = [self.metric]  # one for each loader
        self._seen: dict[int, int] = {}  # rows of each loader

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        self._seen.clear()
        loaders = _loaders(trainer.val_dataloaders)
        if trainer.world_size > 1:
            for loader in loaders:
                _warn_of_equal_rows(loader, trainer.world_size)
        self.metric.reset()
        self.metric.to(module.device)
        self.metrics = [self.metric, *(copy.deepcopy(self.metric) for _ in loaders[1:])]

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        try:
            embeddings, labels = outputs["embeddings"], outputs["labels"]
        except (KeyError, TypeError):
            raise ValueError(
                'validation_step: expected it to return {"embeddings": [B, D], "labels": [B]}, got '
                f"{type(outputs).__name__}"
            ) from None
        loader = _loaders(trainer.val_dataloaders)[dataloader_idx]
        seen = self._seen[dataloader_idx] = self._seen.get(dataloader_idx, 0) + len(labels)
        # Among the rows of a rank there is at most one that another has, its last.
        if _last_is_a_copy(_sampler(loader), seen) and batch_idx + 1 == len(loader):
            embeddings, labels = embeddings[:-1], labels[:-1]
        if len(labels):
            self.metrics[dataloader_idx].update(embeddings, labels)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        used = self._used(trainer)
        for k in used:
            try:
                found = self.metrics[k].compute()
            except ValueError:
                # A trial run takes a batch or two, in which no class need be there twice.
                if trainer.sanity_checking or trainer.fast_dev_run:
                    continue
                raise
            if used != [0]:
                found = {f"{name}/dataloader_idx_{k}": value for name, value in found.items()}
            # Equal on all ranks, whose mean changes nothing; without it Lightning warns that nobody took one.
            module.log_dict(found, prog_bar=True, sync_dist=True, add_dataloader_idx=False)

    def _used(self, trainer: Any) -> list[int]:
        """The loaders that have given rows to any rank: of some that are read side by side it is the first,
        and all ranks must compute the same."""
        if len(self.metrics) == 1:
            return [0]
        any_rank = trainer.strategy.reduce_boolean_decision
        found = [k for k, m in enumerate(self.metrics) if any_rank(len(m.embeddings) > 0, all=False)]
        return found or [0]


def _check_schedulers(configs: Iterable[Any]) -> None:
    """ValueError for those that a training step cannot step as Lightning would."""
    for config in configs:
        name = type(config.scheduler).__name__
        if isinstance(config.scheduler, ReduceLROnPlateau):
            raise ValueError(f"lr_scheduler: expected one that needs no metric with chunk=, got {name}")
        if config.interval not in ("step", "epoch"):
            raise ValueError(f"interval: expected 'step' or 'epoch', got {config.interval!r} of {name}")


def _loaders(found: Any) -> list[Any]:
    """What a trainer has for its loaders, as it counts them: one, or some in lists and dicts."""
    if isinstance(found, dict):
        found = list(found.values())
    if not isinstance(found, (list, tuple)):
        return [found]
    return [loader for part in found for loader in _loaders(part)]


def _sampler(loader: Any) -> Any:
    """What draws the rows of a loader; None where nobody can tell."""
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader if batches is None else batches, "sampler", None)


def _warn_of_equal_rows(loader: Any, ranks: int) -> None:
    if isinstance(_sampler(loader), (SequentialSampler, RandomSampler)):
        warnings.warn(
            f"RetrievalCallback: every rank evaluates all {len(loader.dataset)} rows of its data set, and "
            f"those of {ranks} ranks are put together. Where ranks have the same, give the loader "
            "sampler=DistributedSampler(data, shuffle=False)",
            stacklevel=2,
        )


def _last_is_a_copy(sampler: Any, seen: int) -> bool:
    """Whether the last row that a sampler has dealt to this rank is there to make ranks equal.

    seen: rows that came; where each draw is not one row, nobody can tell.
    """
    if not isinstance(sampler, DistributedSampler) or seen != len(sampler):
        return False
    rows: Any = sampler.dataset
    return sampler.rank + (seen - 1) * sampler.num_replicas >= len(rows)
