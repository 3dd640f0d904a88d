"""The description of a loss: what it computes on one row, never how it is scheduled."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .similarity import SIMILARITIES, Similarity


@dataclasses.dataclass
class Rows:
    """A block of rows, as the spec of a loss sees it.

    s: [R, N] similarities of R anchors and all N candidates, differentiable.
    positive, negative: bool [R, N]. A sample's pair with itself is in neither, unless the loss keeps
        it, and then it is a positive.
    pair: bool [R, N] or None: False for the pairs of samples with themselves; None if all count.
    teacher: [R, N] second matrix over the same pairs, or None.
    scalars: what `RowLoss.scalars` returned for this call.
    """

    s: Tensor
    positive: Tensor
    negative: Tensor
    pair: Tensor | None = None
    teacher: Tensor | None = None
    scalars: Tensor | None = None

    def thresholds(self) -> tuple[Tensor, Tensor, Tensor]:
        """The row's positives as a padded list: (similarities [R, P], columns [R, P], valid [R, P])."""
        longest = int(self.positive.sum(1).max()) if self.positive.numel() else 0
        # topk of a 0/1 row returns the ones first; which columns they are does not matter.
        valid, index = self.positive.to(torch.uint8).topk(max(1, longest), dim=1)
        return self.s.gather(1, index), index, valid.bool()


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """A loss that is a function of one row, summed over rows. Subclasses are frozen dataclasses.

    Their fields are the parameters; `parameters()` hands them to the compiled functor of the same
    `name` in the order of its members. `similarity` is what every loss has: "cosine" or "dot".
    """

    name: ClassVar[str]
    # Whether rows are the samples of a batch or the proxies of its classes.
    rows: ClassVar[Literal["samples", "proxies"]] = "samples"
    # What the pair of a sample with itself is, when anchors and candidates are one set.
    self_pair: ClassVar[Literal["exclude", "keep"]] = "exclude"
    # Bytes the spec needs per pair beyond the similarity itself, for the size of chunked blocks.
    spec_bytes: ClassVar[int] = 48
    # True where the row owns a list of thresholds: the spec then holds one copy per threshold.
    threshold_list: ClassVar[bool] = False

    similarity: str = dataclasses.field(default="cosine", kw_only=True)

    @property
    def metric(self) -> Similarity:
        return SIMILARITIES[self.similarity]

    def spec(self, rows: Rows) -> Tensor:
        """[R] losses of a block of rows, in differentiable torch."""
        raise NotImplementedError

    def parameters(self) -> tuple[float, ...]:
        """Members of the compiled functor."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "similarity")
        return tuple(float(getattr(self, name)) for name in names)

    def scalars(self, anchor_labels: Tensor, candidate_labels: Tensor) -> Tensor | None:
        """Values of one call that every row reads (counts of classes, say); no host sync."""
        return None
