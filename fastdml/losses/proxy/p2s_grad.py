"""P2SGrad: cosines to all classes drawn to 0 and 1."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.autograd import refuse_transforms
from ...engine.call import statistic_type
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...engine.similarity import unit
from ...language import count, square, sum, where
from ...language.described import Described
from ...language.row import Row
from .proxies import ProxyLoss

__all__ = ["P2SGradLoss"]


@register
@dataclasses.dataclass(frozen=True)
class P2SGrad(Described):
    """The mean over the columns of (s - 1)^2 of the own class and of s^2 of the others."""

    name = "p2s_grad"
    provenance = "pytorch-metric-learning"
    columns = "proxies"

    similarity: str = dataclasses.field(default="dot", kw_only=True)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(similarity="cosine"), cls(similarity="projection")]

    def row(self, p: Row) -> Any:
        return sum(square(where(p.positive, p.s - 1, p.s)), where=p.pair) / count(where=p.pair)


def _of_length_1(x: Tensor) -> Tensor:
    """Rows of x brought to length 1 where they are not, but for rounding."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where((length - 1).abs() > 8 * torch.finfo(x.dtype).eps, unit(x), x)


class P2SGradLoss(ProxyLoss):
    """P2SGrad: the mean square of cosines to the classes less 1 for the own class and 0 for others.

    *P2SGrad: Refined Gradients for Optimizing Deep Face Models*, Zhang et al., CVPR 2019 (arXiv 1905.02479),
    in the form with a squared error that has the gradient of its equation 11 (as pytorch-metric-learning).

    Args:
        descriptors_dim: D. num_classes: C. The parameter is `weight` [D, C], whose columns are brought to
            length 1 at every call in place, and are then taken as they are: their gradient has a radial part.

    Other arguments: see `ProxyLoss`.
    """

    function = "p2s_grad"
    describes = P2SGrad
    mean_over = "samples"
    one_number = "mean"
    sets = ("embedding_size",)
    inputs = {"proxies": ("descriptors_dim", "num_classes", "weight_init_func")}
    default_similarity = "dot"
    similarities = ("dot",)
    parameter_name = "weight"
    by_columns = True

    def __init__(self, descriptors_dim: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes, check.count(descriptors_dim, "descriptors_dim"), **self.unset(kwargs))
        self.descriptors_dim = self.embedding_size

    @staticmethod
    def initialize(weight: Tensor) -> Any:
        nn.init.uniform_(weight, -1, 1)
        with torch.no_grad():
            return weight.copy_(unit(weight.t()).t())

    def get_logits(self, embeddings: Tensor) -> Tensor:
        return super().get_logits(unit(embeddings))

    def calls(self, *batch: Any, proxies: Tensor | None = None, **named: Any) -> list[Any]:
        weight = self.all_proxies if proxies is None else proxies
        if proxies is None and not torch.compiler.is_compiling():
            refuse_transforms()  # before anything is set
            # Not counted as a change: graphs of earlier calls have what they need.
            weight.data.copy_(_of_length_1(weight.data))
        elif isinstance(weight, Tensor) and weight.dim() == 2 and weight.is_floating_point():
            # Of length 1 and not changed in place, with the gradient of weights as they are all the same.
            proxies = _of_length_1(weight.detach()) + (weight - weight.detach())
        return super().calls(*batch, proxies=proxies, **named)

    def proxy_calls(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor, indices_tuple: object
    ) -> list[Any]:
        if indices_tuple is not None:
            raise ValueError("indices_tuple: P2SGrad weighs all samples alike; expected None")
        x = unit(embeddings.to(statistic_type(embeddings, proxies)))
        return super().proxy_calls(x, labels, proxies, None)
