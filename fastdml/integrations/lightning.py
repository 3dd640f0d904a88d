"""Lightning: a module that trains an embedder with any loss, and a callback for retrieval metrics.

Needs ``pip install fastdml[integrations]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ..large_batch import GradientCache
from ..metrics import RetrievalMetrics

__all__ = ["EmbeddingModule", "RetrievalCallback"]


class EmbeddingModule(pl.LightningModule):
    """A network, or one for each tower, and a loss.

    Args:
        towers: maps inputs to embeddings [B, D]; several where the loss compares sets.
        loss: called with the embeddings of all towers, then the rest of the batch. Over ranks:
            `fastdml.distributed.wrap(loss)`.
        optimizer: makes an optimizer of all parameters, of the loss too.
        miner: called with embeddings and labels; the loss gets what it finds.
        chunk: rows per pass through a network (gradient caching, docs/large-batch.md), for batches whose
            activations do not fit; None: the batch at once. Optimization is manual then (no gradient
            clipping or accumulation by the trainer).

    Batches are tuples: the inputs of each tower, then what the loss takes beside embeddings. Validation steps
    return {"embeddings", "labels"} of the first tower, as `RetrievalCallback` reads them.
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
        self.miner = miner
        self.chunk = chunk
        self.automatic_optimization = chunk is None
        self._optimizer = optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of the first tower."""
        found: Tensor = self.towers[0](inputs)
        return found

    def configure_optimizers(self) -> Any:
        return self._optimizer(self.parameters())

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor | None:
        if self.chunk is None:
            value = self._value(batch, lambda tower, inputs: tower(inputs))
        else:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            with GradientCache(chunk=self.chunk) as cache:
                value = self._value(batch, cache.embed)
                self.manual_backward(value)
            optimizer.step()
        self.log("train_loss", value.detach(), prog_bar=True)
        return value if self.chunk is None else None

    def _value(self, batch: Sequence[Any], embed: Callable[[nn.Module, Any], Tensor]) -> Tensor:
        count = len(self.towers)
        embeddings = [embed(tower, x) for tower, x in zip(self.towers, batch)]
        rest = list(batch[count:])
        if self.miner is not None:
            rest.append(self.miner(*embeddings, *rest))
        value: Tensor = self.loss(*embeddings, *rest)
        return value

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> dict[str, Tensor]:
        return {"embeddings": self(batch[0]), "labels": batch[-1]}


class RetrievalCallback(pl.Callback):
    """Logs retrieval metrics of what the validation steps of a module return: {"embeddings", "labels"}.

    Args:
        prefix: put before the names, "val_recall@1" and the like, which checkpoints may monitor.
        options: of `fastdml.metrics.RetrievalMetrics`.

    Embeddings of all ranks are gathered first.
    """

    def __init__(self, prefix: str = "val_", **options: Any) -> None:
        self.metric = RetrievalMetrics(prefix=prefix, **options)

    def on_validation_epoch_start(self, trainer: Any, module: Any) -> None:
        self.metric.reset()
        self.metric.to(module.device)

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
        self.metric.update(embeddings, labels)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        module.log_dict(self.metric.compute(), prog_bar=True)
