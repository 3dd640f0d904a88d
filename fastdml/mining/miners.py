"""Miners: rules by which pairs are chosen, which losses apply themselves instead of a list."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distances import distance_of, settings_of, similarity_of
from ..engine import check
from ..engine.arguments import NamedArguments
from ..engine.call import Call, statistic_type
from ..engine.counting import longest_row
from ..engine.distances import metric_of
from ..engine.loss import RowLoss
from ..engine.peer import SeenAsPeer
from ..engine.problem import Problem
from .batch import Batch, checked
from .choice import check_strategies, chosen, distance_log_weight, draw, nearest
from .lazy import LazyPairs
from .steps import Steps
from .triplets import Stream

Chosen = tuple[Tensor, ...]  # index tensors of one block of rows
# (similarities or distances, positives, negatives, numbers of the rows) of a block
Select = Callable[[Tensor, Tensor, Tensor, Tensor], Chosen]


class Miner(SeenAsPeer, NamedArguments):
    """What all miners share: the call of pytorch-metric-learning's, whose result is lazy.

    num_pos_pairs, num_neg_pairs, num_triplets: of the latest result that still exists (0 where it was not
        kept: in a wrapper, or in the call of a loss); asking lists it.

    Args:
        distance: what pairs are compared by: an object of fastdml.distances or of pytorch-metric-learning, a
            user's module, or the name of a similarity; None: the miner's own. Kept as `miner.distance`.
        collect_stats: taken for pytorch-metric-learning's sake; nothing is collected.
    """

    peer = ("pytorch_metric_learning.miners", "BaseMiner")
    # What a pair is compared by unless another distance is given, and which are possible; empty: all.
    default_similarity = "distance"
    similarities: tuple[str, ...] = ()
    # Which of the result's tensors index anchors, and how many there are.
    anchors: tuple[int, ...] = (0, 2)
    tensors = 4
    at_once = 1 << 22  # pairs of a block

    _latest: weakref.ref[LazyPairs] | None = None
    distance: Any

    def __init__(
        self, *, distance: object = None, collect_stats: bool | None = None, **unknown: Any
    ) -> None:
        super().__init__(**unknown)
        self.distance = self.get_default_distance() if distance is None else distance
        self.collect_stats = check.optional_flag(collect_stats, "collect_stats")

    def get_default_distance(self) -> Any:
        """The distance object where none is given: a subclass may say another one."""
        return distance_of(self.default_similarity)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "distance":
            value = self._taken(value)
        super().__setattr__(name, value)

    def _taken(self, distance: object) -> nn.Module:
        """A distance as an object, by whose similarity the miner compares from now on."""
        name = type(self).__name__
        similarity = similarity_of(distance, name)
        if self.similarities and similarity not in self.similarities:
            expected = " or ".join(map(repr, self.similarities))
            raise ValueError(f"distance: {name} compares by {expected} alone, got {distance!r}")
        found = distance if isinstance(distance, nn.Module) else distance_of(similarity)
        self.similarity = similarity
        self._settings = settings_of(found)
        return found

    @property
    def sign(self) -> float:
        """1 where more alike is larger, -1 for distances."""
        return metric_of(self.similarity).sign

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> LazyPairs:
        """Pairs or triplets of embeddings [B, D] with labels [B], or of these with [N, D], [N] others.

        own: where a row's own copy stands among the others (see `SampleLoss.forward`), which is no pair.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        if settings_of(self.distance) != self._settings:  # set otherwise since
            self.distance = self.distance
        mined = (embeddings, labels, ref_emb, ref_labels)
        batch = checked(embeddings, labels, None, ref_emb, ref_labels, own)
        stream = self.stream(batch.need_labels())

        def materialise() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return self.found(batch, stream)

        found = LazyPairs(self.rule(), mined, materialise, self.similarity, self.tensors, stream, batch.own)
        if not torch.compiler.is_compiling():
            self._latest = weakref.ref(found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # The latest result is of this process.
        return {**self.__dict__, "_latest": None}

    def _counted(self, places: dict[int, int]) -> int:
        """Length of the latest result's tensor, by how many tensors it has: its place there."""
        latest = None if self._latest is None else self._latest()
        if latest is None or self.tensors not in places:
            return 0
        return len(latest[places[self.tensors]])

    @property
    def num_pos_pairs(self) -> int:
        return self._counted({4: 0})

    @property
    def num_neg_pairs(self) -> int:
        return self._counted({4: 2})

    @property
    def num_triplets(self) -> int:
        return self._counted({3: 0})

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Any:
        """The index tensors at once. Other candidates that are the very tensor `embeddings` are one set."""
        return tuple(self(embeddings, labels, ref_emb, ref_labels))

    def found(self, batch: Batch, stream: Stream | None) -> tuple[Tensor, ...]:
        """The index tensors of a batch."""
        select = self.selection(batch.embeddings.shape[1], stream)
        return by_rows(
            batch, select, self.anchors, self.tensors, self.similarity, self.at_once
        )

    def rule(self) -> Mapping[str, float | str]:
        """Fields of a description that make a loss choose the same; none: the pairs are listed."""
        return {}

    def stream(self, labels: Tensor) -> Stream | None:
        """Seed and step of the draws of a call, for miners that draw; the next call has another step."""
        return None

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        """How the pairs of a block of rows of embeddings of that dimension are chosen."""
        raise NotImplementedError


class MultiSimilarityMiner(Miner):
    """Pairs within epsilon of the row's hardest pair of the other kind.

    Wang et al., CVPR 2019 (arXiv 1904.06627), equations 11 and 12.

    Args:
        epsilon: finite width of the band.
        distance: the cosine unless another one is given; see `Miner`.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily
    `(a1, p, a2, n)`; `MultiSimilarityLoss` then mines inside its own pass and no index exists.
    """

    default_similarity = "cosine"

    def __init__(self, epsilon: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = check.finite(epsilon, "epsilon")

    def rule(self) -> Mapping[str, float | str]:
        return {"epsilon": self.epsilon}

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        def select(s: Tensor, positive: Tensor, negative: Tensor, _: Tensor) -> Chosen:
            s = self.sign * s
            hardest_positive = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
            hardest_negative = s.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
            return (
                *(positive & (s < hardest_negative + self.epsilon)).nonzero(as_tuple=True),
                *(negative & (s > hardest_positive - self.epsilon)).nonzero(as_tuple=True),
            )

        return select


class BatchEasyHardMiner(Miner):
    """One positive and one negative of each anchor.

    *Improved Embeddings with Easy Positive Triplet Mining*, Xuan et al., WACV 2020 (arXiv 1904.04370).

    Args:
        pos_strategy, neg_strategy: "hard" (farthest positive, nearest negative), "easy", "semihard"
            (the hardest that is on the right side of the other kind's choice) or "all".
        allowed_pos_range, allowed_neg_range: (low, high): of distances (or similarities) that a chosen pair
            may have, both included; None: any. They do not bear on "all".
        distance: Euclidean, of normalised embeddings, unless another one is given; see `Miner`.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily
    `(a1, p, a2, n)`; `TripletMarginLoss` then chooses inside its own pass and no index exists. Of
    distances that are equal to rounding the first candidate's counts.
    """

    HARD = "hard"
    SEMIHARD = "semihard"
    EASY = "easy"
    ALL = "all"
    all_batch_mining_strategies = [HARD, SEMIHARD, EASY, ALL]

    def __init__(
        self,
        pos_strategy: str = "easy",
        neg_strategy: str = "semihard",
        allowed_pos_range: Sequence[float] | None = None,
        allowed_neg_range: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_strategies(pos_strategy, neg_strategy, ("pos_strategy", "neg_strategy"))
        self.pos_strategy = pos_strategy
        self.neg_strategy = neg_strategy
        self.allowed_pos_range = _range(allowed_pos_range, "allowed_pos_range")
        self.allowed_neg_range = _range(allowed_neg_range, "allowed_neg_range")

    def rule(self) -> Mapping[str, float | str]:
        if self.allowed_pos_range is not None or self.allowed_neg_range is not None:
            return {}
        return {"positives": self.pos_strategy, "negatives": self.neg_strategy}

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        return self._choose

    def _choose(self, d: Tensor, positive: Tensor, negative: Tensor, _: Tensor) -> Chosen:
        if self.pos_strategy != "all":
            positive = _within(d, positive, self.allowed_pos_range)
        if self.neg_strategy != "all":
            negative = _within(d, negative, self.allowed_neg_range)
        kept = chosen(self.sign * d, positive, negative, self.pos_strategy, self.neg_strategy)
        return (*kept[0].nonzero(as_tuple=True), *kept[1].nonzero(as_tuple=True))


class BatchHardMiner(BatchEasyHardMiner):
    """The farthest positive and the nearest negative of each anchor, as triplets `(a, p, n)`.

    *In Defense of the Triplet Loss for Person Re-Identification*, Hermans et al., 2017 (arXiv
    1703.07737). See `BatchEasyHardMiner`.
    """

    sets = ("pos_strategy", "neg_strategy")
    anchors = (0,)
    tensors = 3

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("hard", "hard", **self.unset(kwargs))

    def _choose(self, d: Tensor, positive: Tensor, negative: Tensor, number: Tensor) -> Chosen:
        a, p, _, n = super()._choose(d, positive, negative, number)
        return a, p, n


class DrawingMiner(Miner):
    """A miner that draws, by a seed and the number of the call, `step`, which is in the state. A state
    without it (that of pytorch-metric-learning) loads too."""

    step: Tensor

    def __init__(self, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = check.seed(seed, "seed")
        # A number of Python would be a constant of a compiled graph.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._steps = Steps()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + "step", self.step)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def stream(self, labels: Tensor) -> Stream:
        return int(self.seed), self._steps.take(self.step)


class DistanceWeightedMiner(DrawingMiner):
    """For every positive of an anchor one negative, drawn inversely to the density of its distance.

    *Sampling Matters in Deep Embedding Learning*, Wu et al., ICCV 2017 (arXiv 1706.07567), section 4.

    Args:
        cutoff: >= 0, distances below count as this one. nonzero_loss_cutoff: negatives from this distance on
            are not drawn.
        seed: below 2^24. The draws are a function of the seed, the number of the call, the row and the
            positive's place among the row's: those of
            `MarginLoss(triplets_per_anchor="distance_weighted", seed=seed)`, on any device.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily triplets
    `(a, p, n)`; `MarginLoss` then draws the same inside its own pass and no index exists. An anchor
    without an admissible negative has no triplet.
    """

    similarities = ("distance",)
    anchors = (0,)
    tensors = 3
    at_once = 1 << 20  # weights are in double precision

    def __init__(
        self,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.cutoff = check.non_negative(cutoff, "cutoff")
        self.nonzero_loss_cutoff = check.finite(nonzero_loss_cutoff, "nonzero_loss_cutoff")

    def rule(self) -> Mapping[str, float | str]:
        cutoffs = {"cutoff": self.cutoff, "nonzero_loss_cutoff": self.nonzero_loss_cutoff}
        return {"drawn": True, **cutoffs}

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        assert stream is not None
        seed, step = stream

        def select(d: Tensor, positive: Tensor, negative: Tensor, number: Tensor) -> Chosen:
            longest = longest_row(positive)
            rows, columns = positive.nonzero(as_tuple=True)
            weight = distance_log_weight(d, dimension, self.cutoff)
            eligible = negative & (d < self.nonzero_loss_cutoff)
            parts = [torch.zeros_like(number) + seed, torch.zeros_like(number) + step]
            drawn, some = draw(weight, eligible, longest, torch.stack([number, *parts], dim=1))
            rank = positive.cumsum(1)[rows, columns] - 1
            kept = some[rows]
            rows, columns, rank = rows[kept], columns[kept], rank[kept]
            return rows, columns, drawn[rows, rank]

        return select


class NearestNegativeMiner(Miner):
    """All positives and the k nearest negatives of each anchor (of normalised embeddings).

    Args:
        k: >= 1; anchors with fewer negatives keep all. Negatives as near as the k-th, to rounding, are
            all in.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily
    `(a1, p, a2, n)`; `TripletMarginLoss` then chooses inside its own pass and no index exists.
    """

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = check.count(k, "k")

    def rule(self) -> Mapping[str, float | str]:
        return {"negatives": "nearest", "k": self.k}

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        def select(d: Tensor, positive: Tensor, negative: Tensor, _: Tensor) -> Chosen:
            kept = nearest(self.sign * d, negative, self.k)
            return (*positive.nonzero(as_tuple=True), *kept.nonzero(as_tuple=True))

        return select


def _range(given: Sequence[float] | None, name: str) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        low, high = map(float, () if isinstance(given, str) else given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected two numbers or None, got {given!r}") from error
    if not low <= high:
        raise ValueError(f"{name}: expected (low, high), low no larger than high, got {given!r}")
    return low, high


def _within(d: Tensor, mask: Tensor, allowed: tuple[float, float] | None) -> Tensor:
    return mask if allowed is None else mask & (d >= allowed[0]) & (d <= allowed[1])


@torch.no_grad()
def by_rows(
    batch: Batch,
    select: Select,
    anchors: tuple[int, ...],
    tensors: int,
    similarity: str,
    at_once: int,
) -> tuple[Tensor, ...]:
    """Index tensors that select(s, positive, negative, row numbers) finds in blocks of rows, joined.

    s [R, N]: cosine similarities, or Euclidean distances of normalised embeddings. tensors: how
    many there are, anchors: which of them are rows of the block. at_once: how many pairs a block has at most.
    """
    kind = statistic_type(batch.embeddings, batch.ref_emb)
    x = batch.embeddings.to(kind)
    y = None if batch.ref_emb is None else batch.ref_emb.to(kind)
    call = Call(
        RowLoss(similarity=similarity),
        x,
        y,
        anchor_labels=batch.labels,
        candidate_labels=batch.ref_labels,
        own=batch.own,
    )
    problem = Problem.of(call)
    relation = problem.relation
    found: list[list[Tensor]] = []
    if relation.rows == 0 or relation.columns == 0:
        nothing = torch.empty(0, dtype=torch.int64, device=x.device)
        return (nothing,) * tensors
    for start, stop, positive, negative in relation.blocks(at_once=at_once):
        s = problem.similarities(start, stop)
        number = torch.arange(start, stop, device=s.device)
        chosen = select(s, positive, negative, number)
        found.append([t + start if k in anchors else t for k, t in enumerate(chosen)])
    return tuple(torch.cat(part) for part in zip(*found, strict=True))
