"""What pairs are compared by, as objects: those that users of pytorch-metric-learning pass as `distance=`.

A loss takes an object of that library's just as well, and one of a user's own: a module
`distance(query_emb, ref_emb) -> [B, N]` with an attribute `is_inverted` (True: larger means more alike).
Cosine, dot product, and Euclidean distances of power 1 and 2 run as the losses' own `similarity=`; the others
run in torch, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .engine import check
from .engine.distances import known, lp_name, metric_of, snr_name, user_name
from .engine.peer import Recorded
from .engine.similarity import PRODUCT, Metric, products, unit, wide_type

__all__ = [
    "BaseDistance",
    "BatchedDistance",
    "CosineSimilarity",
    "DotProductSimilarity",
    "LpDistance",
    "SNRDistance",
    "distance_of",
    "similarity_of",
]


class BaseDistance(Recorded):
    """A distance or a similarity. A subclass of a user's says `compute_mat(query_emb, ref_emb)`.

    Args:
        normalize_embeddings: whether embeddings are divided by their p-norms first.
        p: of the norm. power: to which the matrix is raised.
        is_inverted: whether larger means more alike.
        collect_stats: taken for pytorch-metric-learning's sake; nothing is collected.
    """

    invertible = True  # False: of a distance that losses know, they would take it for a similarity or not

    def __init__(
        self,
        normalize_embeddings: bool = True,
        p: float = 2,
        power: float = 1,
        is_inverted: bool = False,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        if is_inverted and not self.invertible:
            raise ValueError(f"is_inverted: expected False for {type(self).__name__}, a distance, got True")
        self.normalize_embeddings = normalize_embeddings
        self.p = p
        self.power = power
        self.is_inverted = is_inverted
        self.collect_stats = check.optional_flag(collect_stats, "collect_stats")

    @property
    def similarity(self) -> str | None:
        """The name under which losses know it; None: it is a user's own."""
        return None

    @property
    def metric(self) -> Metric | None:
        name = self.similarity
        return None if name is None else metric_of(name)

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        """[B, N] of embeddings [B, D] and [N, D]; without ref_emb of the former with themselves."""
        self.check_shapes(query_emb, ref_emb)
        ref_emb = query_emb if ref_emb is None else ref_emb
        given = torch.promote_types(query_emb.dtype, ref_emb.dtype)
        query_emb, ref_emb = query_emb.to(given), ref_emb.to(given)
        metric = self.metric
        if metric is not None and metric.kind == PRODUCT:
            return metric.dense(query_emb, ref_emb, 0.0)
        if metric is not None:  # half precision has no digits for small distances of products
            wide = wide_type(query_emb)
            return metric.dense(query_emb.to(wide), ref_emb.to(wide), 0.0).to(given)
        mat = self.compute_mat(self.maybe_normalize(query_emb), self.maybe_normalize(ref_emb))
        return mat if self.power == 1 else mat**self.power

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """[B, N] of embeddings as they come, before the power."""
        raise NotImplementedError

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """[B] of row i and row i, as they are: neither normalised nor raised to the power."""
        raise NotImplementedError

    def smallest_dist(self, *args: Any, **kwargs: Any) -> Any:
        """torch.min, or torch.max where larger means more alike."""
        return (torch.max if self.is_inverted else torch.min)(*args, **kwargs)

    def largest_dist(self, *args: Any, **kwargs: Any) -> Any:
        """The other way about."""
        return (torch.min if self.is_inverted else torch.max)(*args, **kwargs)

    def margin(self, x: Any, y: Any) -> Any:
        """By how much x is farther than y."""
        return y - x if self.is_inverted else x - y

    def normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """Embeddings over their p-norms, 0 where they have no direction; kwargs: of torch's `normalize`."""
        if kwargs:
            return torch.nn.functional.normalize(embeddings, p=self.p, dim=dim, **kwargs)
        rows = embeddings.movedim(dim, -1)
        return unit(rows.reshape(-1, rows.shape[-1]), self.p).view(rows.shape).movedim(-1, dim)

    def maybe_normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """The same if `normalize_embeddings`."""
        return self.normalize(embeddings, dim, **kwargs) if self.normalize_embeddings else embeddings

    def get_norm(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """[B] p-norms."""
        return torch.linalg.vector_norm(embeddings, self.p, dim=dim, **kwargs)

    def check_shapes(self, query_emb: Tensor, ref_emb: Tensor | None) -> None:
        """ValueError unless both are matrices."""
        for x, name in ((query_emb, "query_emb"), (ref_emb, "ref_emb")):
            if x is not None and x.dim() != 2:
                raise ValueError(f"{name}: expected shape [batch, dim], got {tuple(x.shape)}")

    def extra_repr(self) -> str:
        names = ("normalize_embeddings", "p", "power", "is_inverted")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class DotProductSimilarity(BaseDistance):
    """x.y, of normalised embeddings unless normalize_embeddings=False."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(is_inverted=True, **kwargs)

    @property
    def similarity(self) -> str | None:
        if type(self) not in (DotProductSimilarity, CosineSimilarity) or self.power != 1 or self.p != 2:
            return None
        return "cosine" if self.normalize_embeddings else "dot"

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return products(query_emb, ref_emb)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return (query_emb * ref_emb).sum(1)


class CosineSimilarity(DotProductSimilarity):
    """The cosine of the angle between x and y."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(normalize_embeddings=True, **kwargs)


class LpDistance(BaseDistance):
    """|x - y| in the p-norm, to a power; of embeddings that the p-norm has normalised, unless
    normalize_embeddings=False."""

    invertible = False

    @property
    def similarity(self) -> str | None:
        if type(self) is not LpDistance:
            return None
        return lp_name(self.p, self.power, self.normalize_embeddings)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return metric_of(lp_name(self.p, 1, False)).dense(query_emb, ref_emb, 0.0)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return metric_of(lp_name(self.p, 1, False)).paired(query_emb, ref_emb)


class SNRDistance(BaseDistance):
    """var(x - y) / var(x), variances over the dimensions (arXiv 1904.02616); x is the anchor."""

    invertible = False

    @property
    def similarity(self) -> str | None:
        if type(self) is not SNRDistance or self.power != 1 or self.p != 2:
            return None
        return snr_name(self.normalize_embeddings)

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return metric_of(snr_name(False)).dense(query_emb, ref_emb, 0.0)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return metric_of(snr_name(False)).paired(query_emb, ref_emb)


class BatchedDistance(nn.Module):
    """Calls iter_fn(matrix, start, stop) with the rows of a distance's matrix, batch_size at a time."""

    def __init__(
        self,
        distance: nn.Module,
        iter_fn: Callable[[Tensor, int, int], Any] | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.iter_fn = iter_fn
        self.batch_size = check.whole(batch_size, "batch_size", 1)

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> None:
        if self.iter_fn is None:
            raise ValueError("iter_fn: expected a function of (matrix, start, stop), got None")
        ref_emb = query_emb if ref_emb is None else ref_emb
        for start in range(0, query_emb.shape[0], self.batch_size):
            stop = start + self.batch_size
            self.iter_fn(self.distance(query_emb[start:stop], ref_emb), start, stop)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.distance, name)


_OBJECTS: dict[str, tuple[type[BaseDistance], dict[str, Any]]] = {
    "cosine": (CosineSimilarity, {}),
    "dot": (DotProductSimilarity, {"normalize_embeddings": False}),
    "distance": (LpDistance, {}),
    "squared_distance": (LpDistance, {"power": 2}),
    "raw_distance": (LpDistance, {"normalize_embeddings": False}),
    "raw_squared_distance": (LpDistance, {"normalize_embeddings": False, "power": 2}),
    "snr_distance": (SNRDistance, {}),
    "raw_snr_distance": (SNRDistance, {"normalize_embeddings": False}),
}


class _Named(BaseDistance):
    """A similarity that has a name only."""

    def __init__(self, name: str) -> None:
        metric = metric_of(name)
        super().__init__(metric.normalized, is_inverted=metric.kind == PRODUCT)
        self._name = name

    @property
    def similarity(self) -> str | None:
        return self._name


def settings_of(distance: nn.Module) -> tuple[Any, ...]:
    """What a distance object is made of: whoever has taken it looks whether that has been set anew."""
    given = (getattr(distance, n, None) for n in ("normalize_embeddings", "p", "power", "is_inverted"))
    return tuple(v if isinstance(v, (bool, int, float)) else None for v in given)


def distance_of(similarity: str) -> BaseDistance:
    """An object for the name of a similarity."""
    if similarity in _OBJECTS:
        kind, arguments = _OBJECTS[similarity]
        return kind(**arguments)
    return _Named(similarity)


def similarity_of(distance: object, whose: str) -> str:
    """The name of a similarity for a distance object: of this library, of pytorch-metric-learning, of a user;
    or for a name.

    whose: which loss's or miner's argument it is, for the message.

    Raises:
        ValueError: naming it, where it is none.
    """
    if isinstance(distance, str):
        if known(distance):
            return distance
    elif isinstance(distance, BaseDistance):
        return distance.similarity or _users(distance)
    elif isinstance(distance, nn.Module) and hasattr(distance, "is_inverted"):
        return _theirs(distance) or _users(distance)
    raise ValueError(
        f"distance: expected for {whose} a name of a similarity, an object of fastdml.distances, or a module "
        f"with is_inverted that makes a matrix of two sets of embeddings; got {distance!r}"
    )


def _theirs(distance: Any) -> str | None:
    """The name for an object of a class of pytorch-metric-learning; None: it is a user's."""
    kind = type(distance)
    if not kind.__module__.startswith("pytorch_metric_learning."):
        return None
    normalized, p, power = bool(distance.normalize_embeddings), distance.p, distance.power
    if kind.__name__ == "LpDistance":
        return lp_name(p, power, normalized)
    if power != 1 or p != 2:
        return None
    if kind.__name__ in ("CosineSimilarity", "DotProductSimilarity"):
        return "cosine" if normalized else "dot"
    return snr_name(normalized) if kind.__name__ == "SNRDistance" else None


def _users(distance: nn.Module) -> str:
    return user_name(distance, bool(distance.is_inverted), type(distance).__name__)
