"""Cross-batch memory: past embeddings as further candidates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.arguments import NamedArguments
from ..engine.call import Call
from ..engine.peer import SeenAsPeer
from ..losses.base import SampleLoss, Term, total
from ..losses.parts import expect_parts
from ..mining.batch import checked
from ..mining.lazy import LazyPairs
from ..mining.pairs import all_pairs, mined
from ..mining.steps import recomputing
from ..mining.triplets import joined

_STATE = ("embedding_memory", "label_memory", "queue_idx", "filled", "curr_batch_idx")


class CrossBatchMemory(SeenAsPeer, NamedArguments):
    """A loss of the batch against a queue of the latest embeddings, the batch's own among them.

    *Cross-Batch Memory for Embedding Learning*, Wang et al., CVPR 2020 (arXiv 1912.06798). No gradient
    goes to the memory. A sample's own copy in it is no pair, known by where it was stored.

    Args:
        loss: a loss over samples, of this library or of pytorch-metric-learning.
        embedding_size: D.
        memory_size: embeddings that are kept, the oldest leave first.
        miner: called on the batch against the memory; None: all pairs.
        collect_stats: taken for pytorch-metric-learning's sake; nothing is collected.

    State: `embedding_memory` [memory_size, D], in the widest type of the batches so far (float32 at least),
    `label_memory` [memory_size], `queue_idx`, where the next batch goes, and `filled`, how many there are: a
    state_dict resumes where it was. One of pytorch-metric-learning, which has no position, resumes at 0 with
    as many as are not zero. `curr_batch_idx`: where the latest batch was stored. In evaluation mode a batch
    has the value that it would have in training, and the memory stays as it is. Activation checkpointing
    needs each call's backward pass before the next call.

    Called as `memory(embeddings, labels, indices_tuple=None, enqueue_mask=None)`: embeddings [B, D], labels
    [B]. indices_tuple: further pairs or triplets, of rows of the batch and rows of the memory. enqueue_mask:
    bool [B], which samples are stored; the others are then compared with the memory. None: all are stored,
    and all are compared.

    Raises:
        ValueError: naming the argument and what was expected of it. The memory is then as it was before.
    """

    peer = ("pytorch_metric_learning.losses", "CrossBatchMemory")

    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: Tensor
    filled: Tensor

    def __init__(
        self,
        loss: nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: nn.Module | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(**unknown)
        # A loss over samples of all processes is one: `distributed.wrap`.
        self._shared = hasattr(loss, "ranks") and isinstance(loss.loss, SampleLoss)
        self.loss = loss if self._shared else over_samples(loss)
        self.miner = check.miner(miner)
        self.embedding_size = check.count(embedding_size, "embedding_size")
        self.memory_size = check.count(memory_size, "memory_size")
        self.curr_batch_idx: Tensor | None = None
        self.register_buffer("embedding_memory", torch.zeros(self.memory_size, self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.int64))
        self.register_buffer("queue_idx", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def supported_losses() -> list[str]:
        """Losses that pytorch-metric-learning takes here; this class takes any loss over samples."""
        return [*SUPPORTED, "MarginLoss"]

    @property
    def has_been_filled(self) -> bool:
        """Whether the oldest embeddings leave."""
        return int(self.filled) == self.memory_size

    def reset_queue(self) -> None:
        """Forgets everything."""
        self.embedding_memory.zero_()
        self.label_memory.zero_()
        self.queue_idx = torch.zeros_like(self.queue_idx)
        self.filled = torch.zeros_like(self.filled)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        memory = state_dict.get(prefix + "embedding_memory")
        if memory is not None:
            # Not rounded on the way in.
            self.embedding_memory = self.embedding_memory.to(memory.dtype)
            some = (memory != 0).any(1).sum().to(torch.int64)
            state_dict.setdefault(prefix + "filled", some)
            state_dict.setdefault(prefix + "queue_idx", torch.zeros_like(some))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        self._expect(embeddings)
        with self._as_it_was(embeddings):
            return total(self.parts(embeddings, labels, indices_tuple, enqueue_mask))

    def parts(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> list[Any]:
        """Stores the batch (in training mode), and returns the parts of the loss of it against the memory."""
        self._expect(embeddings)
        with self._as_it_was(embeddings):
            return self._parts(embeddings, labels, indices_tuple, enqueue_mask)

    def _expect(self, embeddings: Tensor) -> None:
        if not (self._shared and embeddings.dim() == 2 and embeddings.shape[0] == 0):
            check.embeddings(embeddings, "embeddings")
        if embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings: expected dimension {self.embedding_size}, got {embeddings.shape[1]}"
            )

    @contextlib.contextmanager
    def _as_it_was(self, embeddings: Tensor) -> Iterator[None]:
        """Puts the memory back in evaluation mode, and where a batch is refused: kept, it would be refused in
        every later call."""
        kept = {name: getattr(self, name) for name in _STATE}
        count = min(embeddings.shape[0], self.memory_size)
        places = (self.queue_idx + torch.arange(count, device=self.queue_idx.device)) % self.memory_size
        memory, stored = self.embedding_memory, self.label_memory
        rows, labels = memory[places], stored[places]
        again = recomputing()  # a call that stores nothing, and that checkpointing may end by an error
        refused = True
        try:
            yield
            refused = False
        finally:
            refused = refused and not again
            if refused:
                memory[places], stored[places] = rows, labels
            if refused or not self.training:
                for name, value in kept.items():
                    setattr(self, name, value)

    def _parts(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Sequence[Tensor] | None,
        enqueue_mask: Tensor | None,
    ) -> list[Any]:
        rows = embeddings.shape[0]
        if isinstance(labels, Tensor):
            labels = labels.to(embeddings.device)
        labels = check.labels(labels, rows, embeddings.device, "labels", "embeddings")
        if not self.training:  # what is stored now is for this call alone
            self._go_on_with_a_copy()
        own: Tensor | None = None
        anchors, theirs = embeddings, labels
        if enqueue_mask is None:
            self._store(embeddings, labels)
            own = self._own(labels)
        else:
            if indices_tuple is not None:
                raise ValueError("indices_tuple: expected None with enqueue_mask")
            mask = self._mask(enqueue_mask, labels)
            self._store(embeddings[mask], labels[mask])
            anchors, theirs = embeddings[~mask], labels[~mask]
        count = int(self.filled)
        if indices_tuple is not None:
            indices_tuple = indices_tuple.listed() if isinstance(indices_tuple, LazyPairs) else indices_tuple
            check.pairs(indices_tuple, rows, count)
        of_ours = isinstance(self.loss, SampleLoss) or self._shared  # which know an empty set
        if (count == 0 or anchors.shape[0] == 0) and not of_ours:
            return [Term(_nothing, (embeddings,))]
        memory, stored = self.embedding_memory[:count], self.label_memory[:count]
        # Another type than the buffer's (half precision) is the batch's.
        memory = memory.to(embeddings.dtype)
        if indices_tuple is not None or not of_ours:
            pairs = self.create_indices_tuple(anchors, theirs, memory, stored, indices_tuple, own is not None)
            found = _parts_of(self.loss, anchors, theirs, pairs, memory, stored)
        else:
            loss: Any = self.loss
            chosen: Any = None
            if self.miner is not None:
                chosen = mined(self.miner, anchors, theirs, memory, stored, own)
            found = loss.parts(anchors, theirs, chosen, memory, stored, own=own)
        if torch.is_grad_enabled() and any(_reads_later(part) for part in found):
            # They keep this memory: the next call may write into it before their backward pass.
            self._go_on_with_a_copy()
        return found

    @torch.inference_mode(False)  # tensors of inference mode could not be written to outside of it
    def _go_on_with_a_copy(self) -> None:
        self.embedding_memory = self.embedding_memory.clone()
        self.label_memory = self.label_memory.clone()

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: Sequence[Tensor] | None,
        do_remove_self_comparisons: bool,
    ) -> tuple[Tensor, ...]:
        """The pairs or triplets of a batch and the memory, and those of input_indices_tuple after them, as
        index tensors."""
        own = self._own(labels) if do_remove_self_comparisons else None
        if self.miner is not None:
            chosen = mined(self.miner, embeddings, labels, E_mem, L_mem, own)
            found = chosen.listed() if isinstance(chosen, LazyPairs) else tuple(chosen)
        else:
            found = all_pairs(checked(embeddings, labels, None, E_mem, L_mem, own))
        if input_indices_tuple is None:
            return found
        given = tuple(input_indices_tuple)
        if len(given) == 3 and len(found) == 4:
            given = (given[0], given[1], given[0], given[2])
        elif len(given) == 4 and len(found) == 3:
            given = joined(*given)
        return tuple(torch.cat([a, b.to(a.device)]) for a, b in zip(found, given, strict=True))

    def _mask(self, mask: Tensor, labels: Tensor) -> Tensor:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != labels.shape:
            known = isinstance(mask, Tensor)
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if known else repr(mask)
            raise ValueError(f"enqueue_mask: expected bool of shape {tuple(labels.shape)}, got {got}")
        return mask.to(labels.device)

    def _own(self, labels: Tensor) -> Tensor:
        """int64 [B] places of the latest batch in the memory, -1 for samples that are there no more."""
        assert self.curr_batch_idx is not None
        found = torch.full_like(labels, -1)
        kept = self.curr_batch_idx[-self.memory_size :]  # of more than fit, the last
        found[labels.shape[0] - kept.shape[0] :] = kept.to(labels.device)
        return found

    def _store(self, embeddings: Tensor, labels: Tensor) -> None:
        """Stores a batch; one that is computed again in the backward pass is there already."""
        if not (self.training and recomputing()):
            self.add_to_memory(embeddings, labels)
        elif not self._is_latest(embeddings, labels):
            raise RuntimeError(
                "a batch that is computed again in the backward pass is not the memory's latest: activation "
                "checkpointing of a memory needs each call's backward pass before the next call, and "
                "preserve_rng_state=True, its default"
            )

    @torch.no_grad()
    def _is_latest(self, embeddings: Tensor, labels: Tensor) -> bool:
        """Whether this batch is what was stored last."""
        at = self.curr_batch_idx
        if at is None or at.shape != labels.shape:
            return False
        at, kept = at[-self.memory_size :], slice(-self.memory_size, None)
        rows = embeddings[kept].to(self.embedding_memory.dtype)
        same = torch.isclose(self.embedding_memory[at], rows, rtol=0, atol=0, equal_nan=True).all()
        return bool(same & (self.label_memory[at] == labels[kept]).all())

    @torch.inference_mode(False)  # tensors of inference mode could not be written to outside of it
    @torch.no_grad()
    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int | None = None) -> None:
        """Stores a batch."""
        count = embeddings.shape[0]
        if self.embedding_memory.device != embeddings.device:
            self.to(embeddings.device)
        wide = torch.promote_types(self.embedding_memory.dtype, embeddings.dtype)
        self.embedding_memory = self.embedding_memory.to(wide)
        index = torch.arange(count, device=embeddings.device)
        self.curr_batch_idx = (self.queue_idx + index) % self.memory_size
        kept = slice(max(0, count - self.memory_size), count)
        places = self.curr_batch_idx[kept]
        self.embedding_memory[places] = embeddings.detach()[kept].to(wide)
        self.label_memory[places] = labels[kept]
        # New tensors: who has asked for the position keeps it.
        self.queue_idx = (self.queue_idx + count) % self.memory_size
        self.filled = (self.filled + count).clamp(max=self.memory_size)


# Losses over samples that wrappers of pytorch-metric-learning take.
SUPPORTED = (
    "AngularLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "GeneralizedLiftedStructureLoss",
    "IntraPairVarianceLoss",
    "LiftedStructureLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "NCALoss",
    "TupletMarginLoss",
)


def over_samples(loss: nn.Module) -> nn.Module:
    """ValueError unless this is a loss over samples, of this library or of pytorch-metric-learning."""
    theirs = type(loss).__mro__[:-1]
    known = any(c.__name__ == "BaseMetricLossFunction" for c in theirs)
    if isinstance(loss, SampleLoss):
        expect_parts(loss)
        return loss
    if known:
        return loss
    raise ValueError(
        f"loss: expected a loss over samples of fastdml.losses, got {type(loss).__name__}"
    )


def _parts_of(loss: nn.Module, *batch: Any, own: Tensor | None = None) -> list[Any]:
    return loss.parts(*batch, own=own) if isinstance(loss, SampleLoss) else [_Other(loss, batch)]


def _reads_later(part: Any) -> bool:
    """Whether the backward pass of a part may read candidates: all but that of plain calls."""
    if not isinstance(part, Call) or part.before is not None:
        return True
    values = (part.scalars, part.row_values, part.col_values)  # maybe made of candidates
    made = any(t is not None and t.requires_grad for t in values)
    return made or part.reduction == "none" or part.loss.metric.in_torch


class _Other:
    """A loss of another library."""

    def __init__(self, loss: nn.Module, batch: tuple[Any, ...]) -> None:
        self.loss = loss
        self.batch = batch

    def evaluate(self) -> Any:
        return self.loss(*self.batch)


def _nothing(embeddings: Tensor) -> Tensor:
    """0 with a gradient: nothing is stored yet to compare with."""
    return (embeddings * 0).sum()
