"""What losses over learnable proxies share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..engine import autograd, check
from ..engine.dispatch import check_backend
from ..engine.loss import RowLoss
from ..engine.registry import handle


def proxy_row_loss(
    description: RowLoss,
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """A loss whose rows are proxies [C, D] and whose candidates are the batch [B, D]."""
    check.reduction(reduction)
    check.similarity(description.similarity)
    check_backend(backend)
    check.embeddings(embeddings, "embeddings", validate)
    check.embeddings(proxies, "proxies", validate)
    check.same_space(embeddings, proxies, "embeddings", "proxies")
    labels = check.labels(labels, embeddings.shape[0], embeddings.device, "labels", "embeddings")
    check.class_range(labels, proxies.shape[0], "labels", validate)
    classes = torch.arange(proxies.shape[0], device=proxies.device)
    return autograd.row_loss(
        proxies,
        embeddings,
        classes,
        labels,
        loss=handle(description),
        backend=backend,
        reduction=reduction,
    )


class ProxyLoss(nn.Module):
    """A loss with one learnable proxy per class, `proxies` [C, D]. Keywords as `SampleLoss`."""

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        reduction: str = "mean",
        similarity: str = "cosine",
        backend: str = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        for value, name in ((num_classes, "num_classes"), (embedding_size, "embedding_size")):
            if int(value) != value or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        check.reduction(reduction)
        check.similarity(similarity)
        check_backend(backend)
        self.similarity = similarity
        self.reduction = reduction
        self.backend = backend
        self.validate = validate
        self.proxies = nn.Parameter(torch.empty(int(num_classes), int(embedding_size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

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
        """The loss of embeddings [B, D] with labels [B] in [0, C).

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        for value, name in ((ref_emb, "ref_emb"), (ref_labels, "ref_labels")):
            if value is not None:
                raise ValueError(f"{name}: a proxy loss compares with its proxies; expected None")
        if labels is None:
            raise ValueError("labels: expected one label per row of embeddings, got None")
        if indices_tuple is not None:
            raise ValueError("indices_tuple: not supported by proxy losses yet; expected None")
        return proxy_row_loss(
            self.description(),
            embeddings,
            labels,
            self.proxies,
            reduction=self.reduction,
            backend=self.backend,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        c, d = self.proxies.shape
        return f"num_classes={c}, embedding_size={d}, reduction={self.reduction!r}, backend={self.backend!r}"
