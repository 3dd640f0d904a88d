"""The Hugging Face Trainer: any loss of embeddings, and retrieval metrics. Accelerate needs nothing of the
kind (docs/integrations.md).

What is here imports nothing of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import Distributed
from ..engine import check
from ..metrics import evaluate

__all__ = ["EmbedderWithLoss", "compute_loss", "compute_metrics", "pooled"]

_NAMES = ("embeddings", "sentence_embedding", "pooler_output", "image_embeds", "text_embeds")


def pooled(outputs: Any) -> Tensor:
    """The embeddings [B, D] among a model's outputs: the first of those that transformers' models return.

    Raises:
        ValueError: there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in _NAMES:
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise ValueError(
        f"embed: expected a function that finds embeddings in {type(outputs).__name__}, which has none of "
        f"{', '.join(_NAMES)}"
    )


def compute_loss(
    loss: nn.Module, embed: Callable[[Any], Tensor] = pooled, miner: nn.Module | None = None
) -> Callable[..., Tensor]:
    """`Trainer(compute_loss_func=compute_loss(loss))`: a loss of the embeddings and the labels of a batch.

    For losses and miners without parameters or other state (tables, memories, steps of draws), which that
    trainer would neither train nor save, and which its evaluation would move: see `EmbedderWithLoss`.
    The data's column is "label": a model that takes no "labels" would not be given one of that name.

    Args:
        loss: called with embeddings [B, D] and labels [B] (and what a miner finds). Over ranks:
            `fastdml.distributed.wrap(loss)`, or `wrap(loss, miner=miner)` to mine among all ranks' rows.
        embed: finds the embeddings in the model's outputs.

    A batch accumulated in several steps has the mean of its steps' losses, by what that trainer counts of
    their labels: all that are not -100.

    Raises:
        ValueError: the loss or the miner has parameters or other state, or a batch has no labels.
    """
    _check_stateless(loss, "loss")
    _check_stateless(miner, "miner")

    def function(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        if labels is None:
            raise ValueError('labels: expected batches with "labels", got None')
        value = _value(loss, miner, embed(outputs), labels)
        if num_items_in_batch is not None:
            whole = torch.as_tensor(num_items_in_batch, device=labels.device).clamp(min=1)
            value = value * (_items_of_each(loss, labels) / whole)
        return value

    return function


class EmbedderWithLoss(nn.Module):
    """A model whose forward returns {"loss", "embeddings"}, as trainers ask: proxies and scales of the loss
    are trained, saved and loaded with it.

    Args:
        model: called with the batch but its labels.
        loss, embed, miner: as in `compute_loss`.

    `TrainingArguments(remove_unused_columns=False)`: the trainer cannot see what the model takes. Of a batch
    accumulated in several steps the loss is the mean of theirs.
    """

    # The trainer takes a forward with keywords for one that divides its loss by the number of labels in all
    # steps and ranks, and would multiply it by the number of ranks.
    accepts_loss_kwargs = False

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        embed: Callable[[Any], Tensor] = pooled,
        miner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.miner = check.miner(miner)
        self._embed = embed

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> dict[str, Tensor]:
        embeddings = self._embed(self.model(**inputs))
        if labels is None:
            return {"embeddings": embeddings}
        return {"loss": _value(self.loss, self.miner, embeddings, labels), "embeddings": embeddings}


def compute_metrics(**options: Any) -> Callable[[Any], dict[str, float]]:
    """`Trainer(compute_metrics=compute_metrics(k=(1, 10)))`: retrieval metrics of the evaluated embeddings.

    Args:
        options: of `fastdml.metrics.evaluate`, such as metrics and k.

    Predictions must be the embeddings alone, as `EmbedderWithLoss` returns them.
    """

    def function(prediction: Any) -> dict[str, float]:
        embeddings, labels = prediction.predictions, prediction.label_ids
        found = evaluate(
            torch.as_tensor(embeddings, device="cpu"),
            torch.as_tensor(labels, device="cpu"),
            **options,
        )
        return {k: float(v) for k, v in found.items()}

    return function


def _check_stateless(given: object, name: str) -> None:
    held = [*given.state_dict()] if isinstance(given, nn.Module) else []
    if held:
        raise ValueError(
            f"{name}: expected one without parameters or other state, got {type(given).__name__} with "
            f"{', '.join(held)}: EmbedderWithLoss trains and saves that with its model"
        )


def _items_of_each(loss: nn.Module, labels: Tensor) -> Tensor:
    """What the trainer counts of this rank's labels, as it does of those of all steps and ranks; of a loss of
    all ranks' rows the mean over ranks, for all must scale it alike."""
    items = labels.ne(-100).sum()
    if not isinstance(loss, Distributed):
        return items
    return loss.ranks.total(items) / loss.ranks.size


def _value(loss: nn.Module, miner: nn.Module | None, embeddings: Tensor, labels: Tensor) -> Tensor:
    mined = [] if miner is None else [miner(embeddings, labels)]
    value: Tensor = loss(embeddings, labels, *mined)
    return value
