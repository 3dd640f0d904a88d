"""What all losses over samples share: the call of pytorch-metric-learning's losses."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from ..engine import autograd, check
from ..engine.loss import RowLoss
from ..engine.op import predicate_handle
from ..engine.registry import handle
from ..engine.relation import Predicate
from ..mining.miners import LazyPairs
from .options import check_options
from .representation import arguments
from .sample_weights import sample_weights


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of `SampleLoss.forward`, checked; pairs: [a1, p, a2, n], or none; predicate: a
    function in their place."""

    embeddings: Tensor
    labels: Tensor | None
    ref_emb: Tensor | None
    ref_labels: Tensor | None
    pairs: list[Tensor]
    predicate: Predicate | None = None


def checked(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    validate: bool = False,
    functions: bool = False,
) -> Call:
    """ValueError unless these are arguments of `SampleLoss.forward`; functions: whether indices_tuple may
    be one."""
    check.embeddings(embeddings, "embeddings", validate)
    if ref_emb is not None:
        check.embeddings(ref_emb, "ref_emb", validate)
        check.same_space(embeddings, ref_emb, "embeddings", "ref_emb")
    columns = embeddings if ref_emb is None else ref_emb
    pairs: list[Tensor] = []
    predicate = None
    if isinstance(indices_tuple, LazyPairs):
        indices_tuple = tuple(indices_tuple)
    if functions and callable(indices_tuple):
        predicate = indices_tuple
    elif indices_tuple is not None:
        pairs = check.pairs(indices_tuple, embeddings.shape[0], columns.shape[0])
    elif labels is None:
        raise ValueError("labels: expected labels or indices_tuple, got neither")
    if labels is not None:
        labels = check.labels(
            labels, embeddings.shape[0], embeddings.device, "labels", "embeddings"
        )
    if ref_labels is not None and ref_emb is not None:
        ref_labels = check.labels(
            ref_labels, ref_emb.shape[0], ref_emb.device, "ref_labels", "ref_emb"
        )
    if ref_emb is not None and ref_labels is None and not pairs and predicate is None:
        raise ValueError("ref_labels: expected one label per row of ref_emb, got None")
    if ref_emb is None and ref_labels is not None:
        raise ValueError("ref_emb: expected embeddings with ref_labels, got None")
    return Call(embeddings, labels, ref_emb, ref_labels, pairs, predicate)


def checked_reduction(
    description: RowLoss,
    ref_emb: Tensor | None,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> str:
    """The reduction; ValueError unless these are options of `sample_loss` that fit."""
    check_options(reduction, backend, description.similarity)
    if description.metric.raw_anchors and ref_emb is None:
        raise ValueError(
            f"ref_emb: expected other candidates with similarity {description.similarity!r}, got None"
        )
    return reduction


def sample_loss(
    description: RowLoss,
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
    scalars: Tensor | None = None,
    row_values: Tensor | None = None,
) -> Tensor:
    """A loss whose rows are the samples. Arguments as `SampleLoss.forward` and `autograd.row_loss`."""
    checked_reduction(description, ref_emb, reduction, backend)
    if isinstance(indices_tuple, LazyPairs):
        fused = indices_tuple.fuse(description, embeddings, labels, ref_emb, ref_labels)
        if fused is not None:
            description = fused
            _, labels, _, ref_labels = indices_tuple.mined
            indices_tuple = None
    weight = None
    of_pairs = description.tuples == "pairs"
    if not of_pairs and indices_tuple is not None:
        if labels is None:
            raise ValueError("labels: expected one label per row of embeddings, got None")
        checked(embeddings, labels, None, ref_emb, ref_labels)
        weight = sample_weights(indices_tuple, embeddings, ref_emb=ref_emb)
        indices_tuple = None
    call = checked(embeddings, labels, indices_tuple, ref_emb, ref_labels, validate, of_pairs)
    return autograd.row_loss(
        call.embeddings,
        call.ref_emb,
        call.labels,
        call.ref_labels,
        loss=handle(description),
        scalars=scalars,
        row_values=row_values,
        pairs=call.pairs,
        row_weight=weight,
        relation="" if call.predicate is None else predicate_handle(call.predicate),
        backend=backend,
        reduction=reduction,
    )


class SampleLoss(nn.Module):
    """A loss whose rows are the samples of the batch.

    Keyword arguments of every loss:
        reduction: "mean" over rows, "sum", "nonzero" (mean over the rows with a non-zero loss) or
            "none" ([B] row losses).
        similarity: what a pair is compared by: "cosine", "dot", "projection" (the product with the
            normalised candidate), "distance" and "squared_distance" (Euclidean, of normalised
            embeddings), "raw_distance" and "raw_squared_distance" (not normalised). Most losses are
            defined on "cosine", their default.
        backend: "auto", "native", "chunked" or "dense" (see `fastdml.explain`).
        validate: also look for NaN and infinity, which costs a pass and, on CUDA, a synchronisation.
    """

    default_similarity = "cosine"

    def __init__(
        self,
        *,
        reduction: str = "mean",
        similarity: str | None = None,
        backend: str = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        similarity = self.default_similarity if similarity is None else similarity
        check_options(reduction, backend, similarity)
        self.similarity = similarity
        self.reduction = reduction
        self.backend = backend
        self.validate = validate

    def description(self) -> RowLoss:
        """The loss as mathematics."""
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: [B, D], any floating-point type; need not be normalised.
            labels: [B] integers of any values, in any order. Equal ones are positives.
            indices_tuple: a miner's result: `(a1, p, a2, n)` or `(a, p, n)` index tensors, the pairs
                that count. In FastAP, Smooth-AP and NCA the samples then weigh as often as it names
                them, relative to the most frequent one. Or a function of the indices of R anchors and
                of all N candidates that returns two bool masks [R, N], of positives and of negatives
                (a sample's pair with itself is taken out): called block by block, in eager mode.
            ref_emb, ref_labels: [N, D], [N]: other candidates than the batch itself; then every pair
                counts, a row of `embeddings` that is in `ref_emb` too like any other.

        Returns:
            float32 (float64 for float64 embeddings) scalar, or [B] with reduction="none".

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return self.losses(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def losses(self, *batch: Any) -> Tensor:
        """The loss of the arguments of `forward`, in their order; for losses that do more than rows."""
        return sample_loss(
            self.description(),
            *batch,
            reduction=self.reduction,
            backend=self.backend,
            validate=self.validate,
        )

    def options(self) -> dict[str, Any]:
        """Keywords of the functional form that every loss over samples has."""
        names = ("similarity", "reduction", "backend", "validate")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        return arguments(self)
