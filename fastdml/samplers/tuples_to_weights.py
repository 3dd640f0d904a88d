"""Items that a miner finds hard, more often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..engine import check
from ..engine.similarity import unit
from .epochs import EpochSampler


class TuplesToWeightsSampler(EpochSampler):
    """Draws items in proportion to how often a miner names them, anew in every epoch.

    When an epoch begins, the data set (or a random subset) is embedded, the miner looks for pairs or
    triplets in it, and an item's weight is the number of times it occurs in these, over the largest such
    number. Items are then drawn with replacement in proportion to their weights. Where the miner finds
    nothing, all that was embedded has the same weight.

    Args:
        model: maps a batch of the data set's inputs to ``[B, D]`` embeddings; in evaluation mode and
            without gradients meanwhile.
        miner: called as ``miner(embeddings, labels)``, returns index tensors.
        dataset: its items are ``(input, label)``, or what ``data_and_label_getter`` makes that of.
        subset_size: embed so many items, drawn without replacement in every epoch, and draw as many.
        batch_size: of embedding.
        normalize_embeddings: to length 1, before they are mined.
        dataloader_num_workers: processes that load the data set.
        data_device: where batches go before the model (default: where its parameters are).
        data_and_label_getter: from an item of the ``DataLoader`` to ``(input, label)``.
        seed: see :class:`.EpochSampler`.
        rank: which share of the draws this process takes. All ranks embed the same items, and where
            their models are equal, as DDP keeps them, draw from the same weights.
        num_replicas: number of shares.

    Attributes:
        weights: ``[N]`` float32 of the latest epoch, or None before the first.

    Raises:
        ValueError: an argument is out of range; in an epoch: labels are not one integer per item.
    """

    def __init__(
        self,
        model: Callable[[Any], Tensor],
        miner: Callable[[Tensor, Tensor], Any],
        dataset: Dataset,
        subset_size: int | None = None,
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = True,
        dataloader_num_workers: int = 0,
        data_device: torch.device | str | None = None,
        data_and_label_getter: Callable[[Any], tuple[Any, Tensor]] | None = None,
        seed: int | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        super().__init__(seed, rank, num_replicas)
        self._size = check.whole(len(dataset), "number of items in dataset", 1)  # type: ignore[arg-type]
        for name, value in (("model", model), ("miner", miner)):
            if not callable(value):
                raise ValueError(f"{name}: expected something to call, got {value!r}")
        check.miner(miner)
        self.model, self.miner, self.dataset = model, miner, dataset
        self.subset_size = (
            None
            if subset_size is None
            else check.whole(subset_size, "subset_size", 1, self._size)
        )
        self.batch_size = check.whole(batch_size, "batch_size", 1)
        self.normalize_embeddings = normalize_embeddings
        self.dataloader_num_workers = check.whole(
            dataloader_num_workers, "dataloader_num_workers", 0
        )
        self.data_device = data_device
        self.data_and_label_getter = data_and_label_getter or tuple
        self.weights: Tensor | None = None
        self._weighed = -1  # the epoch that the weights are of

    def __len__(self) -> int:
        return (self.subset_size or self._size) // self.num_replicas

    def _settings(self) -> dict[str, Any]:
        return {"items": self._size, "subset_size": self.subset_size}

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """As :meth:`.EpochSampler.state_dict`, and the weights: the model has moved on since."""
        state = super().state_dict(consumed)
        if state["position"] and self.weights is not None:
            state["weights"] = self.weights.clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(state, dict) and state.get("position") and "weights" not in state:
            raise ValueError("state: expected weights with a position within an epoch, got none")
        super().load_state_dict(state)
        self._weighed = -1
        if state["position"]:
            self.weights = state["weights"].clone()
            self._weighed = state["epoch"]

    def _draw(self, epoch: int) -> Iterator[int]:
        if self._weighed != epoch or self.weights is None:
            # A stream of its own, so that draws from loaded weights are the same.
            self.weights = self._weigh(np.random.default_rng([self._seed, epoch, 0]))
        self._weighed = -1  # once: by the next iteration the model is another
        random = np.random.default_rng([self._seed, epoch, 1])
        sums = self.weights.double().cumsum(0).numpy()
        drawn = np.searchsorted(
            sums, random.random(len(self) * self.num_replicas) * sums[-1], side="right"
        )
        yield from drawn[self.rank :: self.num_replicas].tolist()

    def _weigh(self, random: np.random.Generator) -> Tensor:
        chosen = torch.arange(self._size, device="cpu")
        dataset = self.dataset
        if self.subset_size is not None:
            chosen = torch.from_numpy(
                np.sort(random.choice(self._size, self.subset_size, replace=False))
            )
            dataset = Subset(dataset, chosen.tolist())
        counts = torch.zeros(len(chosen), dtype=torch.long, device="cpu")
        for indices in self.miner(*self._embed(dataset)):
            counts += torch.bincount(indices.reshape(-1), minlength=len(chosen)).cpu()
        if not counts.any():
            counts += 1
        weights = torch.zeros(self._size, device="cpu")
        weights[chosen] = counts / counts.max()
        return weights

    @torch.no_grad()
    def _embed(self, dataset: Dataset) -> tuple[Tensor, Tensor]:
        model = self.model
        was_training = isinstance(model, torch.nn.Module) and model.training
        if was_training:
            model.eval()  # type: ignore[attr-defined]
        device = self._device()
        embeddings, labels = [], []
        try:
            for batch in DataLoader(
                dataset, self.batch_size, num_workers=self.dataloader_num_workers
            ):
                data, label = self.data_and_label_getter(batch)
                if device is not None and isinstance(data, Tensor):
                    data = data.to(device)
                embeddings.append(model(data))
                labels.append(torch.as_tensor(label, device=embeddings[-1].device))
        finally:
            if was_training:
                model.train()  # type: ignore[attr-defined]
        found = torch.cat(embeddings)
        if self.normalize_embeddings:
            found = unit(found)
        classes = torch.cat(labels)
        if classes.dim() == 2 and classes.shape[1] == 1:
            classes = classes[:, 0]
        if classes.dim() != 1 or classes.is_floating_point():
            raise ValueError(
                "labels: expected one integer per item of the data set, got "
                f"{classes.dtype} {tuple(classes.shape)}"
            )
        return found, classes

    def _device(self) -> torch.device | None:
        if self.data_device is not None:
            return torch.device(self.data_device)
        if isinstance(self.model, torch.nn.Module):
            first = next(self.model.parameters(), None)
            return None if first is None else first.device
        return None
