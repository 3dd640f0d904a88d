"""Miners: lazy descriptions of pairs, which losses fuse instead of listing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .engine import check
from .engine.loss import RowLoss
from .engine.op import statistic_type
from .engine.similarity import unit


class LazyPairs:
    """Index tensors (a1, p, a2, n) that exist only once somebody unpacks them.

    A loss that knows the rule by which they are mined applies the rule instead.

    mined: the arguments (embeddings, labels, ref_emb, ref_labels) of the miner's call.
    """

    def __init__(
        self,
        rule: dict[str, float],
        mined: tuple[Tensor | None, ...],
        materialise: Callable[[], tuple[Tensor, ...]],
        similarity: str = "cosine",
    ) -> None:
        self.rule = rule
        self.mined = mined
        self.similarity = similarity
        self._materialise = materialise
        self._tuple: tuple[Tensor, ...] | None = None

    def fuse(
        self,
        loss: RowLoss,
        embeddings: Tensor,
        labels: Tensor | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> RowLoss | None:
        """The loss with the mining rule in it; None where it has no such parameter.

        None also if the loss is called with other tensors than those that were mined, or multiplies
        embeddings otherwise: the indices then mean other pairs.
        """
        called = (embeddings, labels, ref_emb, ref_labels)
        may_be_left_out = (False, True, False, True)
        for mine, given, optional in zip(self.mined, called, may_be_left_out):
            if given is not mine and not (optional and given is None):
                return None
        if loss.similarity != self.similarity:
            return None
        fields = {f.name for f in dataclasses.fields(loss)}  # type: ignore[arg-type]
        if not set(self.rule) <= fields:
            return None
        return dataclasses.replace(loss, **self.rule)  # type: ignore[type-var, arg-type]

    def _pairs(self) -> tuple[Tensor, ...]:
        if self._tuple is None:
            self._tuple = self._materialise()
        return self._tuple

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._pairs())

    def __getitem__(self, k: int) -> Tensor:
        return self._pairs()[k]

    def __len__(self) -> int:
        return 4


class MultiSimilarityMiner:
    """Pairs within epsilon of the row's hardest pair of the other kind (cosine similarity).

    Wang et al., CVPR 2019 (arXiv 1904.06627), equations 11 and 12.

    Args:
        epsilon: finite width of the band.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`, it returns lazily
    `(a1, p, a2, n)`; `MultiSimilarityLoss` then mines inside its own pass and no index exists.
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        self.epsilon = check.finite(epsilon, "epsilon")

    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> LazyPairs:
        check.embeddings(embeddings, "embeddings")
        mined = (embeddings, labels, ref_emb, ref_labels)
        labels = check.labels(
            labels, embeddings.shape[0], embeddings.device, "labels", "embeddings"
        )
        if ref_emb is not None:
            check.embeddings(ref_emb, "ref_emb")
            check.same_space(embeddings, ref_emb, "embeddings", "ref_emb")
            if ref_labels is None:
                raise ValueError("ref_labels: expected one label per row of ref_emb, got None")
            ref_labels = check.labels(
                ref_labels, ref_emb.shape[0], ref_emb.device, "ref_labels", "ref_emb"
            )

        def materialise() -> tuple[Tensor, ...]:
            return _mine(embeddings, labels, ref_emb, ref_labels, self.epsilon)

        return LazyPairs({"epsilon": self.epsilon}, mined, materialise)


@torch.no_grad()
def _mine(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, ...]:
    kind = statistic_type(embeddings, ref_emb)
    x = unit(embeddings.to(kind))
    y = x if ref_emb is None else unit(ref_emb.to(kind))
    columns = labels if ref_labels is None else ref_labels
    found: list[list[Tensor]] = [[], [], [], []]
    step = max(1, (1 << 22) // max(1, y.shape[0]))
    for start in range(0, x.shape[0], step):
        s = x[start : start + step] @ y.t()
        positive = labels[start : start + step, None] == columns[None, :]
        negative = ~positive
        if ref_emb is None:
            own = torch.arange(s.shape[0], device=s.device)
            positive[own, own + start] = False
        hardest_positive = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        hardest_negative = s.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        kept = (
            positive & (s < hardest_negative + epsilon),
            negative & (s > hardest_positive - epsilon),
        )
        for k, mask in enumerate(kept):
            rows, cols = mask.nonzero(as_tuple=True)
            found[2 * k].append(rows + start)
            found[2 * k + 1].append(cols)
    return tuple(torch.cat(part) for part in found)
