"""Miners that keep the pairs and triplets on one side of a margin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.call import statistic_type
from ..engine.similarity import SIMILARITIES
from .batch import Batch
from .miners import Chosen, Miner, Select
from .pairs import positive_pairs
from .triplets import Stream


class PairMarginMiner(Miner):
    """Positives farther than a margin and negatives nearer than another.

    Args:
        pos_margin: positives beyond are kept. neg_margin: negatives within are kept. In units of `distance`:
            of similarities those below pos_margin and above neg_margin.
        distance: Euclidean, of normalised embeddings, unless another one is given; see `Miner`.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily
    `(a1, p, a2, n)`; `ContrastiveLoss` then chooses inside its own pass and no index exists.
    """

    def __init__(self, pos_margin: float = 0.2, neg_margin: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_margin = check.finite(pos_margin, "pos_margin")
        self.neg_margin = check.finite(neg_margin, "neg_margin")

    def rule(self) -> Mapping[str, float | str]:
        return {"least_positive": self.pos_margin, "most_negative": self.neg_margin}

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        far, near = self.sign * self.pos_margin, self.sign * self.neg_margin

        def select(s: Tensor, positive: Tensor, negative: Tensor, _: Tensor) -> Chosen:
            s = self.sign * s
            return (
                *(positive & (s < far)).nonzero(as_tuple=True),
                *(negative & (s > near)).nonzero(as_tuple=True),
            )

        return select


_TRIPLETS = ("all", "hard", "semihard", "easy")


class TripletMarginMiner(Miner):
    """Triplets (a, p, n) by how much farther the negative is than the positive.

    Args:
        margin: in units of `distance`.
        type_of_triplets: "all": those that are not farther by more than the margin; of these "hard": the
            negative is no farther at all, "semihard": it is; "easy": the others.
        distance: Euclidean, of normalised embeddings, unless another one is given; see `Miner`.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily `(a, p, n)`, in
    that order; `TripletMarginLoss` chooses inside its own pass, where it counts the triplets above 0, and no
    index exists.
    """

    anchors = (0,)
    tensors = 3

    def __init__(self, margin: float = 0.2, type_of_triplets: str = "all", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = check.finite(margin, "margin")
        self.type_of_triplets = check.one_of(type_of_triplets, "type_of_triplets", _TRIPLETS)

    def rule(self) -> Mapping[str, float]:
        if self.type_of_triplets == "easy":
            return {"farther_than": self.margin}
        if self.type_of_triplets == "hard":
            return {"at_most": min(0.0, self.margin)}
        kept = {"at_most": self.margin}
        return {"farther_than": 0.0, **kept} if self.type_of_triplets == "semihard" else kept

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        def select(s: Tensor, positive: Tensor, negative: Tensor, _: Tensor) -> Chosen:
            s = self.sign * s
            rows, near = positive.nonzero(as_tuple=True)
            found = []
            step = max(1, self.at_once // max(1, s.shape[1]))
            for r, p in zip(rows.split(step), near.split(step)):
                kept = self.kept(s[r, p][:, None] - s[r]) & negative[r]
                pair, n = kept.nonzero(as_tuple=True)
                found.append((r[pair], p[pair], n))
            return tuple(torch.cat(t) for t in zip(*found, strict=True))

        return select

    def kept(self, excess: Tensor) -> Tensor:
        """Of triplets whose negative is farther than the positive by `excess`."""
        rule = self.rule()
        return (excess > rule.get("farther_than", -math.inf)) & (excess <= rule.get("at_most", math.inf))


class AngularMiner(Miner):
    """Triplets (a, p, n) whose angle at the negative, as in `AngularLoss`, is larger than another.

    *Deep Metric Learning with Angular Loss*, Wang et al., ICCV 2017 (arXiv 1708.01682): the angle whose
    tangent is |a - p| / (2 |n - (a + p) / 2|), of embeddings as they are: hand in normalised ones.

    Args:
        angle: in degrees.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily `(a, p, n)`.
    """

    similarities = ("distance",)
    anchors = (0,)
    tensors = 3

    def __init__(self, angle: float = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.angle = math.radians(check.finite(angle, "angle"))

    def found(self, batch: Batch, stream: Stream | None) -> tuple[Tensor, ...]:
        kind = statistic_type(batch.embeddings, batch.ref_emb)
        x, y = batch.embeddings.to(kind), batch.columns.to(kind)
        labels, columns = batch.need_labels(), batch.column_labels
        assert columns is not None
        a, p = positive_pairs(batch)
        order = (a * y.shape[0] + p).argsort()
        a, p = a[order], p[order]
        own = batch.own_columns()
        every = torch.arange(y.shape[0], device=y.device)
        found = []
        step = max(1, self.at_once // max(1, y.shape[0]))
        for i, j in zip(a.split(step), p.split(step)):
            side = torch.linalg.vector_norm(x[i] - y[j], dim=1)
            middle = SIMILARITIES["raw_distance"].dense((x[i] + y[j]) / 2, y, 0.0)
            wide = torch.atan2(side[:, None], 2 * middle) > self.angle
            wide &= (labels[i][:, None] != columns) & (own[i][:, None] != every)
            pair, n = wide.nonzero(as_tuple=True)
            found.append((i[pair], j[pair], n))
        return tuple(torch.cat(t) for t in zip(*found, strict=True))
