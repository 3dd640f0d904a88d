"""Relations of samples that have several labels each: functions of indices, for blocks of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.similarity import products

# How alike two sets of labels are, from how many they share and how many each has.
_KINDS = ("shared", "jaccard", "dice", "cosine", "recall")


class LabelSets:
    """A pair is positive where the two samples share a label: a function of indices that a loss takes in
    the place of labels (`indices_tuple`), block by block; nothing of size [B, N] exists.

    Args:
        labels: the samples' labels: bool [B, C], which of C classes; or a list of B lists of integers.
        ref_labels: the same of the candidates, where these are other samples.
        grade: None: positives are positives. Else they weigh as much as the sets are alike, in losses that
            know weights of positives: "jaccard" |A n B| / |A u B|, "dice" 2 |A n B| / (|A| + |B|), "cosine"
            |A n B| / sqrt(|A| |B|), "recall" |A n B| / |A|, of the anchor's set A; "shared" |A n B|.

    A sample without labels is a negative of all others.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[Sequence[int]],
        ref_labels: Tensor | Sequence[Sequence[int]] | None = None,
        grade: str | None = None,
    ) -> None:
        if grade is not None:
            check.one_of(grade, "grade", _KINDS)
        self.grade = grade
        if not isinstance(labels, Tensor) or not isinstance(ref_labels, (Tensor, type(None))):
            given = [_listed(labels, "labels")]
            given += [] if ref_labels is None else [_listed(ref_labels, "ref_labels")]
            every = sorted({x for g in given for row in g for x in row})
            number = {label: k for k, label in enumerate(every)}
            masks = [_of_lists(g, number) for g in given]
        else:
            masks = [_of_classes(labels, "labels")]
            masks += [] if ref_labels is None else [_of_classes(ref_labels, "ref_labels")]
            if masks[0].shape[1] != masks[-1].shape[1]:
                classes, got = masks[0].shape[1], masks[-1].shape[1]
                raise ValueError(f"ref_labels: expected {classes} classes, as in labels, got {got}")
        self.others = ref_labels is not None
        self.rows, self.columns = masks[0].float(), masks[-1].float()
        self._counts = self.rows.sum(1), self.columns.sum(1)

    def expect(self, rows: int, columns: int, apart: bool) -> None:
        """ValueError unless these are the sets of so many rows and candidates; apart: these are others."""
        if apart and not self.others:
            raise ValueError("ref_labels: expected one set of labels per row of ref_emb, got None")
        for name, sets, count in (("labels", self.rows, rows), ("ref_labels", self.columns, columns)):
            if sets.shape[0] != count:
                raise ValueError(f"{name}: expected {count} sets, one per row, got {sets.shape[0]}")

    def __call__(self, anchors: Tensor, candidates: Tensor) -> tuple[Tensor, ...]:
        """Masks of positives and negatives, and with `grade` weights of the positives, all [R, N]."""
        a, mine = self._of(anchors, self.rows, self._counts[0], "labels")
        b, theirs = self._of(candidates, self.columns, self._counts[1], "ref_labels")
        mine = mine[:, None]
        shared = products(a, b)
        positive = shared > 0
        if self.grade is None:
            return positive, ~positive
        whole = {
            "shared": torch.ones_like(shared),
            "jaccard": mine + theirs - shared,
            "dice": (mine + theirs) / 2,
            "cosine": (mine * theirs).sqrt(),
            "recall": mine.expand_as(shared),
        }[self.grade]
        return positive, ~positive, shared / whole.clamp(min=1)

    def _of(self, index: Tensor, sets: Tensor, counts: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The sets and the sizes of some samples."""
        if index.device.type == "cpu" and index.shape[0] and int(index[-1]) >= sets.shape[0]:
            raise ValueError(f"{name}: expected one set per embedding, got {sets.shape[0]}")
        return sets.to(index.device)[index], counts.to(index.device)[index]


def _of_classes(labels: Any, name: str) -> Tensor:
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.dtype != torch.bool:
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"{name}: expected a bool tensor [samples, classes], got {got}")
    return labels


def _listed(labels: Any, name: str) -> list[list[int]]:
    if isinstance(labels, Tensor):
        raise ValueError(f"{name}: expected lists of integers, as the other labels are, got a tensor")
    try:
        # Neither the letters of a word nor masks as lists are labels.
        found = [[check.whole(x, name, -(1 << 63), (1 << 63) - 1) for x in row] for row in labels]
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a list of lists of integers, or a bool tensor") from None
    return found


def _of_lists(labels: list[list[int]], number: dict[int, int]) -> Tensor:
    found = torch.zeros(len(labels), max(1, len(number)), dtype=torch.bool, device="cpu")
    for k, row in enumerate(labels):
        found[k, [number[x] for x in row]] = True
    return found
