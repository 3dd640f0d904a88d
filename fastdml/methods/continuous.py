"""Training and retrieval with labels that are near or far rather than equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ..engine import check
from ..engine.similarity import exact_distances
from ..metrics import nearest_neighbours

# Of the indices [R] of queries and all items: distances [R, N]. Of labels [N, E]: Euclidean.
LabelDistance = Callable[[Tensor], Tensor]

_AT_ONCE = 1 << 22


class NearestLabelSampler(Sampler[list[int]]):
    """Batches of one anchor, its nearest neighbours in label space, and random others.

    Dense triplet mining of *Deep Metric Learning Beyond Binary Supervision*, Kim et al., CVPR 2019 (arXiv
    1904.09626), section 4.2, as in the released code: the anchor is the first sample, and the others follow
    in the order of their label distance to it. For `LogRatioLoss` and `DenseTripletLoss`, with the anchor's
    label distances or, which uses more of a batch, with all samples as anchors.

    Args:
        labels: [N] or [N, E] numbers, compared by Euclidean distance, or a function of the indices [R] of
            some samples that returns their label distances [R, N] to all samples.
        batch_size: at most N.
        nearest: how many neighbours.
        length: batches of an epoch.
        size: N, where labels are a function.
        seed: of the draws.

    `state_dict` holds the number of batches made: batch k is a function of seed and k.
    """

    def __init__(
        self,
        labels: Tensor | LabelDistance,
        batch_size: int,
        nearest: int = 5,
        length: int = 100,
        *,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        self._distance, self.size = label_distances(labels, size)
        self.batch_size = check.integer(batch_size, "batch_size", 3, self.size)
        self.nearest = check.integer(nearest, "nearest", 0, self.batch_size - 1)
        self.length = check.count(length, "length")
        self.seed = int(check.seed(seed, "seed"))
        self.batches = 0

    def __len__(self) -> int:
        return self.length - self.batches % self.length

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of the epoch."""
        while True:
            self.batches += 1
            yield self._batch(self.batches - 1)
            if self.batches % self.length == 0:
                return

    def _batch(self, number: int) -> list[int]:
        g = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + number)
        anchor = torch.randint(self.size, (1,), generator=g, device="cpu")
        # The caller's, of any type, may be a view of more.
        distance = self._distance(anchor)[0].cpu().to(torch.float64, copy=True)
        distance[anchor] = -1.0  # the anchor comes first
        near = distance.topk(self.nearest + 1, largest=False).indices
        left = torch.ones(self.size, dtype=torch.bool, device="cpu")
        left[near] = False
        rest = left.nonzero()[:, 0]
        order = torch.randperm(len(rest), generator=g, device="cpu")
        others = rest[order[: self.batch_size - len(near)]]
        chosen = torch.cat([near, others])
        return chosen[distance[chosen].argsort(stable=True)].tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = int(state["batches"])


def label_distances(
    labels: Tensor | LabelDistance, size: int | None = None
) -> tuple[LabelDistance, int]:
    """(function of indices [R] to distances [R, N], N) of labels or of such a function."""
    if not isinstance(labels, Tensor):
        if not callable(labels):
            raise ValueError(
                f"labels: expected a tensor [N] or [N, E], or a function, got {type(labels).__name__}"
            )
        if size is None:
            raise ValueError("size: expected the number of samples with a function as labels")
        return labels, check.count(size, "size")
    if labels.dim() not in (1, 2) or len(labels) == 0:
        raise ValueError(f"labels: expected shape [N] or [N, E], got {tuple(labels.shape)}")
    points = labels.reshape(len(labels), -1)
    points = points if points.is_floating_point() else points.double()

    def distance(rows: Tensor) -> Tensor:
        return exact_distances(points[rows], points)

    return distance, len(points)


@torch.no_grad()
def label_retrieval(
    embeddings: Tensor,
    labels: Tensor | LabelDistance,
    k: int | Iterable[int] = (1, 10),
    *,
    distance: str = "euclidean",
) -> dict[str, float]:
    """How near in label space the nearest neighbours in the embedding are.

    Every sample queries all others. "label_distance@k": the mean label distance of its k nearest.
    "ndcg@k": sum of gain_i / log2(i + 1) over its k nearest, over the largest possible, with gain
    1 / (1 + label distance), which is 2^r with the paper's relevance r = -log2(label distance + 1)
    (recalled, not re-read). Both as means over queries.

    Args:
        embeddings: [N, D]. labels: as in `NearestLabelSampler`.
        k: one or several numbers of neighbours, below N.
        distance: of embeddings: "euclidean", "cosine" or "dot".
    """
    check.embeddings(embeddings, "embeddings")
    size = len(embeddings)
    label_distance, count = label_distances(labels, size)
    if count != size:
        raise ValueError(f"labels: expected {size}, one per row of embeddings, got {count}")
    # A tensor of one number can be iterated by its type, but has no items.
    given: Any = k if isinstance(k, Iterable) and getattr(k, "ndim", None) != 0 else [k]
    ks = sorted({check.integer(n, "k", 1, size - 1) for n in given})
    if not ks:
        raise ValueError("k: expected at least one number of neighbours, got none")
    found = nearest_neighbours(embeddings, ks[-1], distance=distance).cpu()
    discount = (torch.arange(ks[-1], dtype=torch.float64, device="cpu") + 2).log2().reciprocal()
    totals = {name: 0.0 for n in ks for name in (f"label_distance@{n}", f"ndcg@{n}")}
    every = torch.arange(size, device="cpu")
    for rows in every.split(max(1, _AT_ONCE // size)):
        d = label_distance(rows).double().cpu()
        seen = d.gather(1, found[rows])
        own = every == rows[:, None]
        ideal = d.masked_fill(own, torch.inf).topk(ks[-1], largest=False).values
        gains, best = (discount / (1 + t) for t in (seen, ideal))
        for n in ks:
            totals[f"label_distance@{n}"] += float(seen[:, :n].mean(1).sum())
            totals[f"ndcg@{n}"] += float((gains[:, :n].sum(1) / best[:, :n].sum(1)).sum())
    return {name: total / size for name, total in totals.items()}


def unit_sphere(latitude: Tensor, longitude: Tensor) -> Tensor:
    """[N, 3] points of latitudes and longitudes [N] in degrees. Their Euclidean distance is that through
    the globe, which grows with the distance along it."""
    phi, theta = latitude.double().deg2rad(), longitude.double().deg2rad()
    return torch.stack(
        [phi.cos() * theta.cos(), phi.cos() * theta.sin(), phi.sin()], dim=1
    ).float()
