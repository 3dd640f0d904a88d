"""Metrics that grow batch by batch, in torchmetrics' form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import definitions, inputs
from ._metric import Kept, gather
from .evaluation import evaluate
from .problem import metric_of
from .result import Evaluation

if TYPE_CHECKING:
    from ._metric import Metric
else:
    try:
        from torchmetrics import Metric
    except ImportError:
        from ._metric import Metric


class RetrievalMetrics(Kept, Metric):
    """Retrieval metrics of all the embeddings that were shown to it since the last reset.

    A :class:`torchmetrics.Metric` where torchmetrics is installed, so that it goes into a MetricCollection
    and Lightning moves, resets and logs it (``self.log_dict(metric.compute())`` at the end of an epoch); the
    same form without. States are gathered over the ranks of a process group before they are computed; ranks
    may hold different numbers, or none.

    Args:
        metrics, k, far, similarity: as in :func:`fastdml.metrics.evaluate`.
        storage: type in which embeddings are kept, such as ``torch.float16``; None: as they come.
        gallery: whether queries and gallery are told apart: ``update(..., is_query=...)`` then says which
            of the two every row is. False: every item queries all the others.
        prefix: put before the keys of the result.
        kwargs: those of torchmetrics, such as ``dist_sync_on_step``.

    Raises:
        ValueError: an argument is not as described.

    Example::

        metric = RetrievalMetrics(("recall", "map@r"), k=(1, 10))
        for images, labels in loader:
            metric.update(network(images), labels)
        metric.compute()  # {"recall@1": ..., "recall@10": ..., "map@r": ...}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]
    labels: list[Tensor]
    queries: list[Tensor]

    def __init__(
        self,
        metrics: str | Iterable[str] | None = ("recall", "map@r"),
        k: int | Iterable[int] = (1, 4),
        far: float | Iterable[float] = (1e-3, 1e-2),
        similarity: str = "cosine",
        storage: torch.dtype | None = None,
        gallery: bool = False,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ks, self.fars = inputs.integers(k, "k"), inputs.fractions(far, "far")
        self.metrics = definitions.asked(metrics, self.ks, self.fars)
        self.similarity = metric_of(similarity, None).name
        if storage is not None and not (isinstance(storage, torch.dtype) and storage.is_floating_point):
            raise ValueError(f"storage: expected a floating point type, got {storage!r}")
        self.storage, self.gallery, self.prefix = storage, bool(gallery), str(prefix)
        # torchmetrics' own waits for ever where a rank has no batch at all.
        self.dist_sync_fn = kwargs.get("dist_sync_fn") or gather
        for state in ("embeddings", "labels", "queries"):
            self.add_state(state, default=[], dist_reduce_fx="cat")
        if storage is not None:
            # A MetricCollection shares states of one name that look equal, as rounded rows do: one name more
            # keeps these apart from those of another storage. It stays empty.
            name = f"kept_as_{str(storage).removeprefix('torch.')}"
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor, is_query: Tensor | bool | None = None) -> None:
        """Adds a batch.

        Args:
            embeddings: ``[B, D]`` floating point; without a row nothing is added.
            labels: ``[B]`` integers, a tensor, array or list.
            is_query: with ``gallery=True``, a bool for the batch or ``[B]`` bools: queries, or else gallery.
        """
        if getattr(embeddings, "ndim", None) == 2 and len(embeddings) == 0 and inputs.is_empty(labels):
            return
        given = inputs.embeddings(embeddings, "embeddings")
        held = self.embeddings[-1].shape[-1] if len(self.embeddings) else given.dim
        if given.dim != held:
            raise ValueError(
                f"embeddings: expected dimension {held}, as in batches before, got {given.dim}"
            )
        numbers = inputs.labels(labels, len(given), "labels")
        if numbers.dtype.kind != "i":
            raise ValueError(f"labels: expected integers, got {numbers.dtype}")
        found = torch.from_numpy(numbers.astype(np.int64))  # a copy, of one type on all ranks
        if (is_query is not None) != self.gallery:
            raise ValueError("is_query: expected exactly with gallery=True")
        x = given.tensor(0, len(given), self.storage or _type(given.data), given.device)
        try:
            mark = torch.as_tensor(False if is_query is None else is_query, device=x.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"is_query: expected a bool or {len(x)} of them, got {is_query!r}") from None
        if mark.dtype != torch.bool or mark.shape not in ((), (len(x),)):
            raise ValueError(f"is_query: expected a bool or {len(x)} of them, got {mark.dtype}")
        # The caller may write to a tensor once it was handed over.
        self.embeddings.append(x.clone() if x.data_ptr() == _pointer(given.data) else x)
        self.labels.append(found.to(x.device))
        self.queries.append(mark.expand(len(x)).clone())

    def evaluate(self) -> Evaluation:
        """The whole :class:`fastdml.metrics.Evaluation` of what this process holds."""
        embeddings, labels, queries = map(_joined, (self.embeddings, self.labels, self.queries))
        if not len(embeddings):
            raise ValueError("embeddings: expected at least one batch before compute")
        chosen: dict[str, Any] = {
            "metrics": self.metrics,
            "k": self.ks,
            "far": self.fars,
            "similarity": self.similarity,
        }
        if not self.gallery:
            return evaluate(embeddings, labels, **chosen)
        others = ~queries
        if not queries.any() or not others.any():
            raise ValueError("is_query: expected at least one query and one row of the gallery")
        return evaluate(
            embeddings[queries], labels[queries], embeddings[others], labels[others], **chosen
        )

    def compute(self) -> dict[str, Tensor]:
        """The metrics as float64 tensors, of all ranks' batches."""
        device = self.embeddings[0].device if len(self.embeddings) else torch.device("cpu")
        return {
            self.prefix + key: torch.tensor(value, dtype=torch.float64, device=device)
            for key, value in self.evaluate().items()
        }


def _type(x: Any) -> torch.dtype:
    return x.dtype if isinstance(x, Tensor) else torch.from_numpy(x[:0]).dtype


def _joined(held: Any) -> Tensor:
    """The rows of a state: a list of batches, or what torchmetrics has made of those of all ranks."""
    if isinstance(held, Tensor):
        return held
    return torch.cat(list(held)) if len(held) else torch.empty(0, device="cpu")


def _pointer(x: Any) -> int:
    return x.data_ptr() if isinstance(x, Tensor) else x.ctypes.data
