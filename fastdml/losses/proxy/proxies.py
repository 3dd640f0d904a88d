"""What losses over learnable proxies share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import autograd, check
from ...engine.loss import RowLoss
from ...engine.registry import handle
from ...engine.similarity import SIMILARITIES
from ..options import check_options
from ..representation import arguments
from ..sample_weights import sample_weights

Regularizer = Callable[[Tensor], Tensor]


def proxy_row_loss(
    description: RowLoss,
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    indices_tuple: object = None,
    *,
    anchors_only: bool = False,
    row_values: Tensor | None = None,
    col_values: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """A loss of the batch [B, D] and the proxies [C K, D] of C classes, those of a class in a row.

    Args:
        labels: [B] in [0, C).
        indices_tuple: a miner's result; makes weights of the samples' losses (count / largest count).
        anchors_only: whether only the anchors that the tuple names count.
        row_values, col_values: as `autograd.row_loss`.
        reduction: over rows (samples, or proxies in Proxy-Anchor): "mean", "sum", "nonzero", "none".
        backend, validate: see `SampleLoss`.
    """
    check_options(reduction, backend, description.similarity)
    check.embeddings(embeddings, "embeddings", validate)
    check.embeddings(proxies, "proxies", validate)
    check.same_space(embeddings, proxies, "embeddings", "proxies")
    size = description.columns_per_class
    if proxies.shape[0] % size:
        raise ValueError(
            f"proxies: expected {size} rows for every class, got {proxies.shape[0]} rows in all"
        )
    labels = check.labels(labels, embeddings.shape[0], embeddings.device, "labels", "embeddings")
    check.class_range(labels, proxies.shape[0] // size, "labels", validate)
    classes = torch.arange(proxies.shape[0], device=proxies.device)
    if size > 1:
        classes.div_(size, rounding_mode="floor")
    options: dict[str, Any] = {
        "loss": handle(description),
        "row_values": row_values,
        "col_values": col_values,
        "backend": backend,
        "reduction": reduction,
    }
    if description.rows == "proxies":
        return autograd.row_loss(proxies, embeddings, classes, labels, **options)
    weight = sample_weights(indices_tuple, embeddings, anchors_only)
    return autograd.row_loss(embeddings, proxies, labels, classes, row_weight=weight, **options)


class ProxyLoss(nn.Module):
    """A loss with learnable proxies.

    Args:
        num_classes: C. Labels are 0 ... C - 1.
        embedding_size: D.
        weight_init_func: called with the parameter to fill it; None: the loss's own way.
        weight_regularizer: called with the proxies [C, D], for a scalar that is added to the loss
            times `weight_reg_weight`.
        embedding_regularizer: the same for the embeddings, times `embedding_reg_weight`.
        reduction, similarity, backend, validate: see `SampleLoss`.
    """

    default_similarity = "cosine"
    # Name of the parameter, and whether it is stored as [D, C]: as pytorch-metric-learning has it.
    parameter_name = "proxies"
    by_columns = False

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        proxies_per_class: int = 1,
        weight_init_func: Callable[[Tensor], Any] | None = None,
        weight_regularizer: Regularizer | None = None,
        weight_reg_weight: float = 1,
        embedding_regularizer: Regularizer | None = None,
        embedding_reg_weight: float = 1,
        reduction: str = "mean",
        similarity: str | None = None,
        backend: str = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = check.count(num_classes, "num_classes")
        self.embedding_size = check.count(embedding_size, "embedding_size")
        self.proxies_per_class = check.count(proxies_per_class, "proxies_per_class")
        self.similarity = self.default_similarity if similarity is None else similarity
        check_options(reduction, backend, self.similarity)
        if reduction == "none" and (weight_regularizer or embedding_regularizer):
            raise ValueError("reduction: regularizers need a scalar loss; expected another kind")
        self.weight_init_func = weight_init_func
        self.weight_regularizer = weight_regularizer
        self.weight_reg_weight = check.finite(weight_reg_weight, "weight_reg_weight")
        self.embedding_regularizer = embedding_regularizer
        self.embedding_reg_weight = check.finite(embedding_reg_weight, "embedding_reg_weight")
        self.reduction = reduction
        self.backend = backend
        self.validate = validate
        shape = (self.num_classes * self.proxies_per_class, self.embedding_size)
        weight = nn.Parameter(torch.empty(shape[::-1] if self.by_columns else shape))
        self.register_parameter(self.parameter_name, weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fills the proxies anew."""
        weight = getattr(self, self.parameter_name)
        (self.weight_init_func or self.initialize)(weight)

    @staticmethod
    def initialize(weight: Tensor) -> Any:
        """How this loss fills its parameter."""
        return nn.init.normal_(weight)

    @property
    def all_proxies(self) -> Tensor:
        """[C K, D], a view of the parameter."""
        weight: Tensor = getattr(self, self.parameter_name)
        return weight.t() if self.by_columns else weight

    def description(self) -> RowLoss:
        """The loss as mathematics."""
        raise NotImplementedError

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """[B, C] what the loss compares classes by, differentiable; holds the whole matrix."""
        check.embeddings(embeddings, "embeddings", self.validate)
        check.same_space(embeddings, self.all_proxies, "embeddings", self.parameter_name)
        proxies = self.all_proxies.to(embeddings.dtype)
        return SIMILARITIES[self.similarity].dense(embeddings, proxies, 0.0)

    def losses(self, embeddings: Tensor, labels: Tensor, indices_tuple: object) -> Tensor:
        """The loss without regularizers."""
        return proxy_row_loss(
            self.description(),
            embeddings,
            labels,
            self.all_proxies,
            indices_tuple,
            **self.options(),
        )

    def options(self) -> dict[str, Any]:
        """Keywords of the functional form that every proxy loss has."""
        return {
            "reduction": self.reduction,
            "backend": self.backend,
            "validate": self.validate,
        }

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of embeddings [B, D] with labels [B] in [0, C).

        Args:
            indices_tuple: a miner's result: samples then weigh as often as it names them, relative to
                the most frequent one.
            ref_emb, ref_labels: not meaningful here; None.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        for value, name in ((ref_emb, "ref_emb"), (ref_labels, "ref_labels")):
            if value is not None:
                raise ValueError(f"{name}: a proxy loss compares with its proxies; expected None")
        if labels is None:
            raise ValueError("labels: expected one label per row of embeddings, got None")
        loss = self.losses(embeddings, labels, indices_tuple)
        if self.weight_regularizer is not None:
            loss = loss + self.weight_reg_weight * self.weight_regularizer(self.all_proxies)
        if self.embedding_regularizer is not None:
            loss = loss + self.embedding_reg_weight * self.embedding_regularizer(embeddings)
        return loss

    def extra_repr(self) -> str:
        return arguments(self)
