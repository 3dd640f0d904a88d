"""Penalties on embeddings or on proxies, as objects: `embedding_regularizer=` and `weight_regularizer=`.

A loss takes any function of a matrix [N, D] that returns a number; these are those of
pytorch-metric-learning, without its matrix of all pairs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from .distances import BaseDistance, CosineSimilarity, LpDistance, distance_of, similarity_of
from .engine import check
from .engine.autograd import evaluate
from .engine.call import Call
from .engine.distances import known, raised
from .engine.pair_values import pair_values
from .engine.registry import remember
from .engine.similarity import lengths, wide_type
from .language import amax, where
from .language.described import Described
from .language.row import Row
from .reducers import BaseReducer, DivisorReducer, MeanReducer

__all__ = [
    "BaseRegularizer",
    "CenterInvariantRegularizer",
    "LpRegularizer",
    "RegularFaceRegularizer",
    "SparseCentersRegularizer",
    "ZeroMeanRegularizer",
]


class BaseRegularizer(nn.Module):
    """A number of x [N, D]. A user's subclass says `elements(x)` -> [N], or `compute_loss(x)` as in
    pytorch-metric-learning: {name: {"losses", "indices", "reduction_type"}}.

    Args:
        reducer: of the elements; None: their mean. distance: where one is used.
        collect_stats: taken for pytorch-metric-learning's sake; nothing is collected.
    """

    def __init__(
        self,
        reducer: nn.Module | None = None,
        distance: BaseDistance | nn.Module | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        given = self.get_default_distance() if distance is None else distance
        self.distance = distance_of(given) if isinstance(given, str) and known(given) else given
        self.reducer = self.get_default_reducer() if reducer is None else reducer
        self.collect_stats = check.optional_flag(collect_stats, "collect_stats")

    def get_default_distance(self) -> BaseDistance:
        return LpDistance(p=2)

    def get_default_reducer(self) -> BaseReducer:
        return MeanReducer()

    def forward(self, x: Tensor) -> Tensor:
        """The penalty of x [N, D]: a scalar."""
        check.embeddings(x, "x")
        labels = torch.arange(x.shape[0], device=x.device)
        found: Tensor = self.reducer(self.compute_loss(x), x, labels)
        return found

    def compute_loss(self, x: Tensor) -> dict[str, Any]:
        losses = self.elements(x.to(wide_type(x)))
        index = torch.arange(losses.shape[0], device=x.device)
        info = {"losses": losses, "indices": index, "reduction_type": "element"}
        return {"loss": {**info, "divisor": self.divisor(x)}}

    def elements(self, x: Tensor) -> Tensor:
        """[N] what every row of x adds, which is float32 or float64."""
        raise NotImplementedError

    def divisor(self, x: Tensor) -> int:
        """What a DivisorReducer divides by."""
        return x.shape[0]


class LpRegularizer(BaseRegularizer):
    """The p-norms of the rows, to a power."""

    def __init__(self, p: float = 2, power: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p = check.positive(p, "p")
        self.power = check.positive(power, "power")

    def elements(self, x: Tensor) -> Tensor:
        norm = lengths(x)[:, 0] if self.p == 2 else torch.linalg.vector_norm(x, self.p, dim=1)
        return raised(norm, self.power)


class ZeroMeanRegularizer(BaseRegularizer):
    """The absolute sums of the rows."""

    def elements(self, x: Tensor) -> Tensor:
        return x.sum(1).abs()


class CenterInvariantRegularizer(BaseRegularizer):
    """(|x|^2 - mean |x|^2)^2 / 4 of the rows.

    *Deep Face Recognition with Center Invariant Loss*, Wu et al., 2017.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if similarity_of(self.distance, type(self).__name__) != "raw_distance":
            raise ValueError("distance: expected LpDistance(normalize_embeddings=False), lengths as they are")

    def get_default_distance(self) -> BaseDistance:
        return LpDistance(power=1, normalize_embeddings=False)

    def elements(self, x: Tensor) -> Tensor:
        square = lengths(x)[:, 0].square()
        return (square - square.mean()).square() / 4


@dataclasses.dataclass(frozen=True)
class Nearest(Described):
    """The largest similarity to another row."""

    name = "nearest_of_others"

    def row(self, p: Row) -> Any:
        largest = amax(p.s, where=p.pair)
        return where(largest > -3.0e38, largest, 0.0)


class RegularFaceRegularizer(BaseRegularizer):
    """The similarity of every row to the nearest other one.

    *RegularFace: Deep Face Recognition via Exclusive Regularization*, Zhao et al., CVPR 2019. One row alone
    has 0.

    Args:
        distance: a similarity, larger where more alike; None: the cosine.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        name = similarity_of(self.distance, type(self).__name__)
        if not self.distance.is_inverted:
            raise ValueError(f"distance: expected a similarity, got {self.distance!r}")
        self._description = Nearest(similarity=name)
        remember(self._description)

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def elements(self, x: Tensor) -> Tensor:
        labels = torch.arange(x.shape[0], device=x.device)
        return evaluate(Call(self._description, x, anchor_labels=labels, reduction="none"))


class SparseCentersRegularizer(BaseRegularizer):
    """sqrt(2 - 2 cosine) of the centres of a class with each other, over the number of such pairs, halved.

    *SoftTriple Loss: Deep Metric Learning Without Triplet Sampling*, Qian et al., ICCV 2019 (arXiv
    1909.05235). Rows [C K, D] come class by class. Centres that are equal have a distance of 0, whose
    derivative is taken to be 0.

    Args:
        num_classes: C. centers_per_class: K, at least 2.
    """

    def __init__(self, num_classes: int, centers_per_class: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = check.count(num_classes, "num_classes")
        self.centers_per_class = check.integer(centers_per_class, "centers_per_class", 2, 1 << 20)
        if similarity_of(self.distance, type(self).__name__) != "cosine":
            raise ValueError(f"distance: expected CosineSimilarity, got {self.distance!r}")

    def get_default_distance(self) -> BaseDistance:
        return CosineSimilarity()

    def get_default_reducer(self) -> BaseReducer:
        return DivisorReducer()

    def _pairs(self, device: torch.device) -> tuple[Tensor, Tensor]:
        size = self.centers_per_class
        first, second = torch.triu_indices(size, size, 1, device=device)
        start = torch.arange(self.num_classes, device=device)[:, None] * size
        return (start + first).flatten(), (start + second).flatten()

    def divisor(self, x: Tensor) -> int:
        return self.num_classes * self.centers_per_class * (self.centers_per_class - 1)

    def elements(self, x: Tensor) -> Tensor:
        rows = self.num_classes * self.centers_per_class
        if x.shape[0] != rows:
            classes = self.num_classes
            raise ValueError(f"x: expected {rows} rows, centres of {classes} classes, got {x.shape[0]}")
        return pair_values("distance", x, None, [self._pairs(x.device)])[0]
