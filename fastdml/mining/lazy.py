"""Lazy descriptions of pairs, which losses fuse instead of listing."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext

from ..engine.loss import RowLoss
from .identity import equal_labels, same_memory

# What a copy is, so that torch.load reads a saved one.
torch.serialization.add_safe_globals([tuple])


class LazyPairs:
    """Index tensors (a1, p, a2, n), or (a, p, n), that exist only once somebody unpacks them.

    A loss that knows the rule by which they are mined applies the rule instead. To everybody else this is
    a tuple, to torch's functions too; pickled or copied it is a plain one. What asks for the type itself
    (an index, others' C code) takes `tuple(pairs)`.

    rule: fields of a description that make a loss choose the same, or none.
    mined: the arguments (embeddings, labels, ref_emb, ref_labels) of the miner's call; until the pairs
        are there, these must stay as they are.
    tensors: 4, or 3 for triplets (a, p, n).
    stream: seed and step of the draws of this call, where the rule draws.
    own: where anchors' own copies stand among other candidates (`engine.call.Call`).
    """

    def __init__(
        self,
        rule: Mapping[str, float | str],
        mined: tuple[Tensor | None, ...],
        materialise: Callable[[], tuple[Tensor, ...]],
        similarity: str = "cosine",
        tensors: int = 4,
        stream: tuple[int | Tensor, int | Tensor] | None = None,
        own: int | Tensor | None = None,
    ) -> None:
        self.rule = rule
        self.mined = mined
        self.stream = stream
        self.own = own
        self.similarity = similarity
        self._versions = _versions(mined)
        self._materialise = materialise
        self._tuple: tuple[Tensor, ...] | None = None
        self._tensors = tensors

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # isinstance() asks for this after the type: a tuple to other libraries. (A subclass of tuple
        # could not be made inside a compiled graph, and to whoever makes that graph this is none: it would
        # be read by a tuple's own functions.)
        return tuple if TracingContext.try_get() is None else LazyPairs

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # torch's parser takes true tuples only.
        return function(*_plain(args), **{k: _plain(v) for k, v in (kwargs or {}).items()})

    def fuse(
        self,
        loss: RowLoss,
        embeddings: Tensor,
        labels: Tensor | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> RowLoss | None:
        """The loss with the mining rule in it; None where it has no such parameter.

        None also if the loss is called with other samples than those that were mined, or multiplies
        embeddings otherwise: the indices then mean other pairs. That is said once, as it costs time.
        """
        fused = loss.with_rule(self.rule) if self.rule else None
        if fused is None:
            plain = type(loss).with_rule is RowLoss.with_rule
            if plain and self.rule and all(hasattr(loss, name) for name in self.rule):
                _say_once(loss.name, "it has a rule of its own")
            return None
        reason = self._differs(loss, embeddings, labels, ref_emb, ref_labels)
        if reason is not None:
            _say_once(loss.name, reason)
            return None
        if self._tuple is not None and self._changed():
            return None  # other pairs than those of now
        self._check_unchanged()
        return fused

    def _differs(
        self,
        loss: RowLoss,
        embeddings: Tensor,
        labels: Tensor | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> str | None:
        """Why the pairs that were mined are not those of this call, or None."""
        if loss.similarity != self.similarity:
            return f"it compares by {self.similarity!r} and the loss by {loss.similarity!r}"
        mine, theirs = self.mined[2], ref_emb
        if (mine is None) != (theirs is None) or not same_memory(self.mined[0], embeddings):  # type: ignore[arg-type]
            return "it was called on other embeddings"
        if mine is not None and theirs is not None and not same_memory(mine, theirs):
            return "it was called on another ref_emb"
        if not equal_labels(self.mined[1], labels) or not equal_labels(self.mined[3], ref_labels):
            return "it was called with labels that are not known to be equal"
        return None

    def _changed(self) -> bool:
        now = _versions(self.mined)
        return bool(now and self._versions) and now != self._versions

    def _check_unchanged(self) -> None:
        if self._changed():
            raise ValueError(
                "indices_tuple: expected embeddings and labels as they were when they were mined, got "
                "ones changed in place since; call the miner again, or unpack its result before the change"
            )

    def listed(self) -> tuple[Tensor, ...]:
        """A plain tuple of the pairs. (A compiled graph takes `tuple(...)` of what says that it is one for a
        tuple's own.)"""
        return self._pairs()

    def _pairs(self) -> tuple[Tensor, ...]:
        if self._tuple is None:
            self._check_unchanged()
            self._tuple = self._materialise()
        return self._tuple

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._pairs())

    def __getitem__(self, k: Any) -> Any:
        return self._pairs()[k]

    def __len__(self) -> int:
        return self._tensors

    def __add__(self, other: Any) -> Any:
        return self._pairs() + _plain(other)

    def __radd__(self, other: Any) -> Any:
        return other + self._pairs()

    def count(self, value: Any) -> int:
        return self._pairs().count(value)

    def index(self, value: Any, *span: int) -> int:
        return self._pairs().index(value, *span)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return tuple, (self._pairs(),)

    def __repr__(self) -> str:
        state = "listed" if self._tuple is not None else "not listed yet"
        return f"LazyPairs({dict(self.rule)}, {self._tensors} tensors, {state})"


def _plain(x: Any) -> Any:
    """What a function is called with, with tuples in place of lazy ones."""
    if type(x) is LazyPairs:
        return x.listed()
    return type(x)(map(_plain, x)) if type(x) in (tuple, list) else x


def _versions(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    """How often each was changed in place; a compiled graph and torch.inference_mode do not count."""
    if torch.compiler.is_compiling():
        return ()
    return tuple(t._version for t in tensors if t is not None and not t.is_inference())


@functools.cache
def _say_once(loss: str, reason: str) -> None:
    warnings.warn(
        f"indices_tuple: {loss!r} would apply the miner's rule in its own pass, but {reason}: its pairs "
        "are listed instead, which takes memory for every pair and many times as long. Call the miner on "
        "the embeddings (detached or not) and the labels that the loss is called with.",
        stacklevel=5,
    )
