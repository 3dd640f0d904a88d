"""Cross-batch memory: past embeddings as further candidates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..losses.base import SampleLoss, total
from ..mining.miners import Miner


class CrossBatchMemory(nn.Module):
    """A loss of the batch against a queue of the latest embeddings, the batch's own among them.

    *Cross-Batch Memory for Embedding Learning*, Wang et al., CVPR 2020 (arXiv 1912.06798). No gradient
    goes to the memory. A sample's own copy in it is no pair, known by where it was stored.

    Args:
        loss: a loss over samples.
        embedding_size: D.
        memory_size: embeddings that are kept, the oldest leave first.
        miner: called on the batch against the memory; None: all pairs.

    State: `embedding_memory` [memory_size, D], `label_memory` [memory_size], `queue_idx`, where the next
    batch goes, and `filled`, how many there are: a state_dict resumes where it was.

    Called as `memory(embeddings, labels, indices_tuple=None, enqueue_mask=None)`: embeddings [B, D],
    labels [B]; enqueue_mask: bool [B], which samples are stored (and then compared with none of their own
    copies); None: all. An `indices_tuple` of the batch is not taken: hand the miner to this class.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: Tensor
    filled: Tensor

    def __init__(
        self,
        loss: SampleLoss,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Miner | None = None,
    ) -> None:
        super().__init__()
        # A loss over samples of all processes is one: `distributed.wrap`.
        self._shared = hasattr(loss, "ranks") and isinstance(loss.loss, SampleLoss)
        if not self._shared and not isinstance(loss, SampleLoss):
            raise ValueError(
                f"loss: expected a loss over samples of fastdml.losses, got {type(loss).__name__}"
            )
        self.loss = loss
        self.miner = miner
        self.embedding_size = check.count(embedding_size, "embedding_size")
        self.memory_size = check.count(memory_size, "memory_size")
        self.register_buffer("embedding_memory", torch.zeros(self.memory_size, self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.int64))
        self.register_buffer("queue_idx", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def reset_queue(self) -> None:
        """Forgets everything."""
        self.queue_idx.zero_()
        self.filled.zero_()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: object = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        return total(self.parts(embeddings, labels, indices_tuple, enqueue_mask))

    def parts(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: object = None,
        enqueue_mask: Tensor | None = None,
    ) -> list[Any]:
        """Stores the batch, and returns the parts of the loss of it against the memory."""
        if not (self._shared and embeddings.dim() == 2 and embeddings.shape[0] == 0):
            check.embeddings(embeddings, "embeddings")
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings: expected dimension {self.embedding_size}, got {embeddings.shape[1]}"
            )
        labels = check.labels(
            labels, embeddings.shape[0], embeddings.device, "labels", "embeddings"
        )
        if indices_tuple is not None:
            raise ValueError(
                "indices_tuple: expected None; pairs are of the batch and the memory: hand the miner to "
                "CrossBatchMemory(miner=...)"
            )
        own = self._store(embeddings.detach(), labels, enqueue_mask)
        count = int(self.filled)
        if count == 0 and not self._shared:  # other processes may have some
            return [_Nothing(embeddings)]
        # Another dtype than the buffer's (half precision) is the batch's.
        memory = self.embedding_memory[:count].to(embeddings.dtype)
        stored = self.label_memory[:count]
        pairs = None
        if self.miner is not None:
            pairs = self.miner(embeddings, labels, memory, stored, own=own)
        return self.loss.parts(embeddings, labels, pairs, memory, stored, own=own)

    @torch.no_grad()
    def _store(self, embeddings: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """int64 [B] places of the batch in the memory, -1 for samples that are not there."""
        rows = torch.arange(embeddings.shape[0], device=embeddings.device)
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != labels.shape:
                raise ValueError(
                    f"enqueue_mask: expected bool of shape {tuple(labels.shape)}, got {mask.dtype} of "
                    f"shape {tuple(mask.shape)}"
                )
            rows = rows[mask]
        rows = rows[-self.memory_size :]  # of more than fit, the last
        places = (self.queue_idx + torch.arange(len(rows), device=rows.device)) % self.memory_size
        self.embedding_memory[places] = embeddings[rows].to(self.embedding_memory.dtype)
        self.label_memory[places] = labels[rows]
        self.queue_idx.copy_((self.queue_idx + len(rows)) % self.memory_size)
        self.filled.copy_((self.filled + len(rows)).clamp(max=self.memory_size))
        return torch.full_like(labels, -1).index_put_((rows,), places)


class _Nothing:
    """0 with a gradient: nothing is stored yet to compare with."""

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def evaluate(self) -> Tensor:
        return (self.embeddings * 0).sum()
