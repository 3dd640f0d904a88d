"""What losses over learnable proxies share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.call import Call
from ...engine.distances import metric_of
from ...mining.sample_weights import sample_weights
from ..base import Loss, Regularizer, Term, total
from ..representation import learnt


class ProxyLoss(Loss):
    """A loss with learnable proxies.

    Args:
        num_classes: C. Labels are 0 ... C - 1.
        embedding_size: D.
        weight_init_func: called with the parameter to fill it; None: the loss's own way.
        weight_regularizer: called with the proxies [C, D], for a scalar that is added to the loss
            times `weight_reg_weight`.
        reduction: over rows (samples, or proxies in Proxy-Anchor).
        similarity, backend, validate: see `Loss`.
    """

    inputs = {"proxies": ("num_classes", "embedding_size", "weight_init_func")}
    positional = ("embeddings", "labels", "proxies", "indices_tuple")
    num_classes: int
    # Name of the parameter, and whether it is stored as [D, C]: as pytorch-metric-learning has it.
    parameter_name = "proxies"
    by_columns = False
    # Whether only the anchors of an index tuple count, not its positives and negatives.
    weighs_anchors_only = False

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        _proxies_per_class: int = 1,
        weight_init_func: Callable[[Tensor], Any] | None = None,
        weight_regularizer: Regularizer | None = None,
        weight_reg_weight: float = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = check.count(num_classes, "num_classes")
        self.embedding_size = check.count(embedding_size, "embedding_size")
        self.proxies_per_class = check.count(_proxies_per_class, "proxies_per_class")
        if weight_regularizer is not None:
            self._expect_scalar(self.reduction)
        self.weight_init_func = check.function(weight_init_func, "weight_init_func")
        self.weight_regularizer = check.function(weight_regularizer, "weight_regularizer")
        self.weight_reg_weight = check.finite(weight_reg_weight, "weight_reg_weight")
        shape = (self.num_classes * self.proxies_per_class, self.embedding_size)
        weight = torch.empty(shape[::-1] if self.by_columns else shape)
        setattr(self, self.parameter_name, learnt(weight))
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

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """[B, C] what the loss compares classes by, differentiable; holds the whole matrix."""
        check.embeddings(embeddings, "embeddings", self.validate)
        check.same_space(embeddings, self.all_proxies, "embeddings", self.parameter_name)
        proxies = self.all_proxies.to(embeddings.dtype)
        return metric_of(self.similarity).dense(embeddings, proxies, 0.0)

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        proxies: Tensor | None = None,
    ) -> list[Any]:
        for value, name in ((ref_emb, "ref_emb"), (ref_labels, "ref_labels")):
            if value is not None:
                raise ValueError(f"{name}: a proxy loss compares with its proxies; expected None")
        proxies = self.all_proxies if proxies is None else proxies
        labels = self.checked(embeddings, labels, proxies)
        parts = self.proxy_calls(embeddings, labels, proxies, indices_tuple)
        if self.weight_regularizer is not None:
            parts.append(Term(self.weight_regularizer, (proxies,), self.weight_reg_weight))
        return parts

    def proxy_calls(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor, indices_tuple: object
    ) -> list[Any]:
        """The calls of a checked batch [B, D] and all proxies [C K, D], those of a class in a row."""
        weight = sample_weights(indices_tuple, embeddings, self.weighs_anchors_only)
        return [self.proxy_call(embeddings, labels, proxies, row_weight=weight)]

    def checked(self, embeddings: Tensor, labels: Tensor | None, proxies: Tensor) -> Tensor:
        """The labels; ValueError unless these fit together."""
        if labels is None:
            raise ValueError("labels: expected one label per row of embeddings, got None")
        check.embeddings(embeddings, "embeddings", self.validate)
        check.embeddings(proxies, "proxies", self.validate)
        check.same_space(embeddings, proxies, "embeddings", "proxies")
        size = self.proxies_per_class
        if proxies.shape[0] % size:
            raise ValueError(
                f"proxies: expected {size} rows for every class, got {proxies.shape[0]} rows in all"
            )
        labels = check.labels(
            labels, embeddings.shape[0], embeddings.device, "labels", "embeddings"
        )
        check.class_range(labels, proxies.shape[0] // size, "labels", self.validate)
        return labels

    def proxy_call(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor, **fields: Any
    ) -> Call:
        """The call of samples and proxies: the description says which of them are the rows."""
        description = fields.pop("description", None) or self.described_once()
        classes = torch.arange(proxies.shape[0], device=proxies.device)
        if self.proxies_per_class > 1:
            classes.div_(self.proxies_per_class, rounding_mode="floor")
        rows, columns = (embeddings, labels), (proxies, classes)
        if description.rows == "proxies":
            rows, columns = columns, rows
        return self.call(
            description,
            rows[0],
            candidates=columns[0],
            anchor_labels=rows[1],
            candidate_labels=columns[1],
            **fields,
        )

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
        return total(self.parts(embeddings, labels, indices_tuple, ref_emb, ref_labels))
