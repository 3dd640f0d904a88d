"""Losses of sentence-transformers, computed here: its classes, their arguments, its numbers.

Each derives from the class of its name, which embeds the texts, keeps the arguments and writes the model
card; what becomes of the embeddings is the engine's affair. What the engine has no form of is left to theirs,
and said once (docs/integrations.md has the list). Needs ``pip install fastdml[integrations]``.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import util
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.sentence_transformer.losses import (
    # As they are: they compare the pairs that they are given, and there is nothing to save.
    ContrastiveLoss,
    OnlineContrastiveLoss,
)
from sentence_transformers.sentence_transformer.losses.batch_hard_triplet import (
    BatchHardTripletLossDistanceFunction,
)
from sentence_transformers.sentence_transformer.losses.matryoshka import CachedLossDecorator
from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric
from torch import Tensor, nn

from .. import losses, miners
from ..distributed import wrap
from ..engine.similarity import unit
from ..wrappers import MatryoshkaLoss as Widths

__all__ = [
    "AnglELoss",
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "CoSENTLoss",
    "ContrastiveLoss",
    "GISTEmbedLoss",
    "MatryoshkaLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
    "OnlineContrastiveLoss",
    "TripletLoss",
]

Features = Iterable[dict[str, Tensor]]
# A loss of this library, and what it is called with.
Asked = tuple[nn.Module, dict[str, Any]]

# Their functions, by what compares a pair here. A constant beside a distance is in no difference of two.
_COMPARED = {
    util.cos_sim: "cosine",
    util.pytorch_cos_sim: "cosine",
    util.dot_score: "dot",
    util.euclidean_sim: "raw_distance",
    util.pairwise_cos_sim: "cosine",
    util.pairwise_dot_score: "dot",
    util.pairwise_euclidean_sim: "raw_distance",
    util.pairwise_angle_sim: "angle",
    TripletDistanceMetric.COSINE: "cosine",
    TripletDistanceMetric.EUCLIDEAN: "raw_distance",
    BatchHardTripletLossDistanceFunction.cosine_distance: "cosine",
    BatchHardTripletLossDistanceFunction.euclidean_distance: "raw_distance",
}
# Their Matryoshka normalises what it has cut, whatever it is compared by then.
_NORMALISED = {"dot": "cosine", "raw_distance": "distance"}


class _Left(Exception):
    """Why a batch is left to sentence-transformers."""


class _Computed:
    """A loss of theirs whose embeddings go to a loss of ours, which `asked` makes.

    widths: (dimension, weight), ascending, while a `MatryoshkaLoss` calls.
    """

    widths: Sequence[tuple[int, float]] | None = None
    _said = False

    if TYPE_CHECKING:  # what their class has

        def __getattr__(self, name: str) -> Any: ...

    def asked(self, *given: Any) -> Asked:
        raise NotImplementedError

    def compared(self, function: Any, name: str) -> str:
        """What compares a pair here as this function of theirs does. name: of the argument."""
        found = _COMPARED.get(function)
        if found is None:
            raise _Left(f"{name}={getattr(function, '__name__', function)}")
        return found if self.widths is None else _NORMALISED.get(found, found)

    def value(self, loss: nn.Module, batch: dict[str, Any]) -> Tensor:
        if getattr(self, "gather_across_devices", False):
            loss = wrap(loss)
        if self.widths is not None:
            loss = Widths(loss, *zip(*self.widths))
        found: Tensor = loss(**batch)
        return found

    def say(self, left: _Left) -> None:
        if not self._said:
            self._said = True
            name = type(self).__name__
            warnings.warn(f"{name}: {left} is computed by sentence-transformers", stacklevel=4)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        try:
            return self.value(*self.asked(embeddings, labels))
        except _Left as left:
            self.say(left)
        compute = super().compute_loss_from_embeddings  # type: ignore[misc]
        if self.widths is None:
            return compute(embeddings, labels)
        cut = [[unit(e[:, :d]) for e in embeddings] for d, _ in self.widths]
        return sum(w * compute(e, labels) for (_, w), e in zip(self.widths, cut))


class _Cached(_Computed):
    """The same with gradient caching: it calls `calculate_loss` with the embeddings of all mini-batches."""

    def calculate_loss(
        self, reps: list[list[Tensor]], others: Any = None, *, with_backward: bool = False
    ) -> Tensor:
        """others: labels, or embeddings of a guide, mini-batch by mini-batch."""
        guides = isinstance(others, list)
        given = [torch.cat(r) for r in others] if guides else others
        try:
            value = self.value(*self.asked([torch.cat(r) for r in reps], given))
        except _Left as left:
            self.say(left)
            compute = super().calculate_loss  # type: ignore[misc]
            if self.widths is not None:
                compute = CachedLossDecorator(compute, *zip(*self.widths))
            return compute(reps, others, with_backward=with_backward)
        if not with_backward:
            return value
        value.backward()
        return value.detach()


# ---- Queries and documents


class _Ranking(_Computed):
    def asked(self, embeddings: list[Tensor], labels: Tensor | None) -> Asked:
        queries, *documents = embeddings
        if not documents:
            raise ValueError("sentence_features: expected at least 2 columns, got 1")
        directions = set(self.directions)
        if self.hardness_mode is not None and self.hardness_strength > 0:
            raise _Left(f"hardness_mode={self.hardness_mode!r}")
        if "doc_to_doc" in directions and len(documents) > 1:
            raise _Left("'doc_to_doc' with hard negatives")
        batch = {"embeddings": queries, "ref_emb": joined(documents)}
        joint, negatives = self.partition_mode == "joint", ["qd"]
        if joint:
            short = {"query_to_query": "qq", "doc_to_doc": "dd", "doc_to_query": "dq"}
            negatives += [short[name] for name in self.directions if name in short]
        if "dq" in negatives:
            # They have the pair itself among the row's queries, for a second time.
            batch["hard_negatives"] = documents[0][:, None]
        loss = losses.InfoNCELoss(
            1.0 / self.scale,
            symmetric=not joint and "doc_to_query" in directions,
            negatives=negatives,
            similarity=self.compared(self.similarity_fct, "similarity_fct"),
        )
        return loss, batch


class MultipleNegativesRankingLoss(_Ranking, theirs.MultipleNegativesRankingLoss):
    """InfoNCE with the batch's other documents, in linear memory."""


class CachedMultipleNegativesRankingLoss(
    _Cached, _Ranking, theirs.CachedMultipleNegativesRankingLoss
):
    """InfoNCE with activations of `mini_batch_size` texts at a time."""


# Theirs of this name are what this says too, and to derive from them warns that they will go.
_BOTH_WAYS: dict[str, Any] = {
    "directions": ("query_to_doc", "doc_to_query"),
    "partition_mode": "per_direction",
}


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """InfoNCE of both directions, each with a softmax of its own."""

    def __init__(
        self,
        model: Any,
        scale: float = 20.0,
        similarity_fct: Any = util.cos_sim,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(model, scale, similarity_fct, gather_across_devices, **_BOTH_WAYS)


class CachedMultipleNegativesSymmetricRankingLoss(CachedMultipleNegativesRankingLoss):
    """InfoNCE of both directions with activations of `mini_batch_size` texts at a time."""

    def __init__(
        self,
        model: Any,
        scale: float = 20.0,
        similarity_fct: Any = util.cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(
            model, scale, similarity_fct, mini_batch_size, mini_batch_num_tokens, gather_across_devices,
            show_progress_bar=show_progress_bar, **_BOTH_WAYS,
        )  # fmt: skip


class _Guided(_Computed):
    def asked(self, embeddings: list[Tensor], guides: list[Tensor]) -> Asked:
        negatives = ["qd"] + ["qq"] * self.contrast_anchors + ["dd"] * self.contrast_positives
        loss = losses.InfoNCELoss(
            self.temperature,
            negatives=negatives,
            guide_margin=-self.margin,
            relative=self.margin_strategy == "relative",
        )
        names = ("embeddings", "ref_emb", "guide", "ref_guide")
        sets = (embeddings[0], joined(embeddings[1:]), guides[0], joined(guides[1:]))
        return loss, dict(zip(names, sets))


class GISTEmbedLoss(_Guided, theirs.GISTEmbedLoss):
    """InfoNCE without the negatives that a guide finds more alike than the pair."""

    def forward(self, sentence_features: Features, labels: Tensor) -> Tensor:
        features = list(sentence_features)
        # Copies: a model writes its outputs into what it is given.
        guided = [dict(f) for f in features]
        embeddings = embed_columns(self.model, features)
        with torch.no_grad():
            if self.must_retokenize:
                guided = [self._anew(f) for f in guided]
            guides = embed_columns(self.guide, guided)
        return self.value(*self.asked(embeddings, guides))

    def _anew(self, features: dict[str, Any]) -> dict[str, Any]:
        """The texts as the guide's own tokenizer has them."""
        if "cu_seq_lens_q" in features:
            raise ValueError("guide: expected one of the model's tokenizer with flattened inputs")
        texts = self.tokenizer.batch_decode(features["input_ids"], skip_special_tokens=True)
        found: dict[str, Any] = util.batch_to_device(self.guide.preprocess(texts), self.guide.device)
        return found


class CachedGISTEmbedLoss(_Cached, _Guided, theirs.CachedGISTEmbedLoss):
    """`GISTEmbedLoss` with activations of `mini_batch_size` texts at a time."""


# ---- Scored pairs


class CoSENTLoss(_Computed, theirs.CoSENTLoss):
    """Similarities in the order of the scores."""

    def asked(self, embeddings: list[Tensor], labels: Tensor | None) -> Asked:
        assert labels is not None
        kind = self.compared(self.similarity_fct, "similarity_fct")
        t = 1.0 / self.scale
        loss = losses.AnglELoss(t) if kind == "angle" else losses.CoSENTLoss(t, similarity=kind)
        names = ("embeddings", "ref_emb", "scores")
        scores = labels if labels.is_floating_point() else labels.double()
        return loss, dict(zip(names, (*embeddings, scores.reshape(-1))))


class AnglELoss(theirs.AnglELoss, CoSENTLoss):
    """Angles of complex embeddings in the order of the scores."""


# ---- Triplets


class TripletLoss(_Computed, theirs.TripletLoss):
    """Triplets as they are given."""

    def asked(self, embeddings: list[Tensor], labels: Tensor | None) -> Asked:
        anchors, positives, negatives = embeddings
        kind = self.compared(self.distance_metric, "distance_metric")
        each = torch.arange(len(anchors), device=anchors.device)
        return _triplets(self.triplet_margin, kind, normalizer="triplets"), {
            "embeddings": anchors,
            "ref_emb": torch.cat([positives, negatives]),
            "indices_tuple": (each, each, each + len(positives)),
        }


class _Labelled(_Computed):
    """Triplets of a batch of samples with labels. options: of `fastdml.losses.TripletMarginLoss`."""

    options: dict[str, Any]

    def asked(self, embeddings: list[Tensor], labels: Tensor | None) -> Asked:
        assert labels is not None
        kind = self.compared(self.distance_metric, "distance_metric")
        # Two names of theirs for one thing; the soft form has one that it does not use.
        margin = self.triplet_margin if hasattr(self, "triplet_margin") else self.margin
        loss = _triplets(0.0 if "smooth_loss" in self.options else margin, kind, **self.options)
        classes = labels.reshape(-1)
        if classes.dtype != torch.int64:  # there they are only compared, and of any type
            classes = classes.unique(return_inverse=True)[1]
        return loss, {"embeddings": embeddings[0], "labels": classes}


_HARDEST = {"positives": "hard", "negatives": "hard", "normalizer": "anchors"}


class BatchAllTripletLoss(_Labelled, theirs.BatchAllTripletLoss):
    """The mean over all triplets above 0, none of which is listed."""

    options = {}


class BatchHardTripletLoss(_Labelled, theirs.BatchHardTripletLoss):
    """Every anchor's farthest positive and nearest negative."""

    options = _HARDEST


class BatchHardSoftMarginTripletLoss(_Labelled, theirs.BatchHardSoftMarginTripletLoss):
    """Every anchor's farthest positive and nearest negative, softly."""

    options = {**_HARDEST, "smooth_loss": True}


class BatchSemiHardTripletLoss(_Labelled, theirs.BatchSemiHardTripletLoss):
    """Every positive pair with the nearest negative that is farther, or with the farthest there is."""

    options = {"normalizer": "triplets"}

    def asked(self, embeddings: list[Tensor], labels: Tensor | None) -> Asked:
        loss, batch = super().asked(embeddings, labels)
        x, y = batch["embeddings"].detach(), batch["labels"]
        kind = loss.similarity
        a, p, n = miners.SemiHardMiner(distance=kind)(x, y)
        of, q, anchors, far = miners.BatchEasyHardMiner("all", "easy", distance=kind)(x, y)
        farthest = torch.zeros_like(y).index_put((anchors,), far)
        left = ~torch.isin(of * len(x) + q, a * len(x) + p)
        of, q = of[left], q[left]
        listed = zip((a, p, n), (of, q, farthest[of]))
        return loss, {**batch, "indices_tuple": tuple(torch.cat(both) for both in listed)}


def _triplets(margin: float, kind: str, **options: Any) -> nn.Module:
    return losses.TripletMarginLoss(margin, similarity=kind, **options)


def joined(sets: Sequence[Tensor]) -> Tensor:
    """[sum of rows, D], without a copy of one alone."""
    return sets[0] if len(sets) == 1 else torch.cat(list(sets))


# ---- Several widths


class MatryoshkaLoss(theirs.MatryoshkaLoss):
    """Another loss at several widths of the embeddings, in one sweep if it is one of these."""

    def __init__(
        self,
        model: Any,
        loss: nn.Module,
        matryoshka_dims: Sequence[int],
        matryoshka_weights: Sequence[float] | Sequence[int] | None = None,
        n_dims_per_step: int = -1,
    ) -> None:
        super().__init__(model, loss, matryoshka_dims, matryoshka_weights, n_dims_per_step)
        if isinstance(loss, _Cached):
            del loss.calculate_loss  # theirs, which goes through the widths one by one

    def forward(self, sentence_features: Features, labels: Tensor) -> Tensor:
        loss: Any = self.loss
        if not isinstance(self.loss, _Computed):
            return super().forward(sentence_features, labels)  # type: ignore[no-any-return]
        widths = list(zip(self.matryoshka_dims, self.matryoshka_weights))
        if 0 < self.n_dims_per_step < len(widths):
            chosen = random.sample(range(len(widths)), self.n_dims_per_step)  # drawn as they draw
            widths = [widths[k] for k in sorted(chosen)]
        summed: dict[int, float] = {}  # they take a width as often as it is named
        for width, weight in widths:
            summed[width] = summed.get(width, 0.0) + weight
        loss.widths = sorted(summed.items())
        try:
            return loss(sentence_features, labels)  # type: ignore[no-any-return]
        finally:
            loss.widths = None
