"""Lazy descriptions of pairs, which losses fuse instead of listing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..engine.loss import RowLoss


class LazyPairs:
    """Index tensors (a1, p, a2, n) that exist only once somebody unpacks them.

    A loss that knows the rule by which they are mined applies the rule instead.

    mined: the arguments (embeddings, labels, ref_emb, ref_labels) of the miner's call; until the pairs
        are there, these must stay as they are.
    tensors: 4, or 3 for triplets (a, p, n).
    stream: seed and step of the draws of this call, where the rule draws.
    """

    def __init__(
        self,
        rule: Mapping[str, float | str],
        mined: tuple[Tensor | None, ...],
        materialise: Callable[[], tuple[Tensor, ...]],
        similarity: str = "cosine",
        tensors: int = 4,
        stream: tuple[int, int] | None = None,
    ) -> None:
        self.rule = rule
        self.mined = mined
        self.stream = stream
        self._versions = _versions(mined)
        self.similarity = similarity
        self._materialise = materialise
        self._tuple: tuple[Tensor, ...] | None = None
        self._tensors = tensors

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
        fused = loss.with_rule(self.rule) if self.rule else None
        if fused is None:
            return None
        if self._tuple is not None and self._changed():
            return None  # other pairs than those of now
        self._check_unchanged()
        return fused

    def _changed(self) -> bool:
        now = _versions(self.mined)
        return bool(now and self._versions) and now != self._versions

    def _check_unchanged(self) -> None:
        if self._changed():
            raise ValueError(
                "indices_tuple: expected embeddings and labels as they were when they were mined, got "
                "ones changed in place since; call the miner again, or unpack its result before the change"
            )

    def _pairs(self) -> tuple[Tensor, ...]:
        if self._tuple is None:
            self._check_unchanged()
            self._tuple = self._materialise()
        return self._tuple

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._pairs())

    def __getitem__(self, k: int) -> Tensor:
        return self._pairs()[k]

    def __len__(self) -> int:
        return self._tensors


def _versions(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    """How often each was changed in place; a compiled graph and torch.inference_mode do not count."""
    if torch.compiler.is_compiling():
        return ()
    return tuple(t._version for t in tensors if t is not None and not t.is_inference())
