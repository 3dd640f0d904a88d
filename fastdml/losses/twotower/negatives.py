"""What else a pair is told from: negatives of its row alone, and those that are no negatives after all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...engine import check, own_candidates
from ...engine.call import Call
from ...engine.counting import row_counts
from ...engine.distances import metric_of
from ...engine.relation import Predicate
from ..terms import log_sum_exp
from .contrast import NOTHING, Contrast, pieces
from .paired import Own, partner_columns, partners

Mask = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Margin:
    """Negatives count up to their row's positive plus this, or times 1 + this.

    value: in units of the similarity; relative: of the positive's own size.
    """

    value: float
    relative: bool = False

    def limit(self, positive: Tensor) -> Tensor:
        by = positive.abs() * self.value if self.relative else self.value
        return positive + by


@dataclasses.dataclass(frozen=True, eq=False)
class Hard:
    """Negatives of one row each.

    embeddings: [B, K, D]. log_weights: [B, K] or None. ids: int64 [B, K] or None. guide: [B, K, E] of the
    guide, or None.
    """

    embeddings: Tensor
    log_weights: Tensor | None = None
    ids: Tensor | None = None
    guide: Tensor | None = None

    def of(self, some: Callable[[Tensor], Tensor]) -> Hard:
        """Of some of the rows."""
        each = (self.embeddings, self.log_weights, self.ids, self.guide)
        return Hard(*(None if x is None else some(x) for x in each))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, eq=False)
class Beside:
    """What a contrastive row has beside its matrix, made when the call is evaluated (`Call.before`), of
    embeddings as long as that call's are then.

    queries, documents: [B, D] the pairs. own_guide: [B, E] twice, of the guide. ids: int64 [B] of the
    documents. hard: negatives of one row each.
    """

    queries: Tensor
    documents: Tensor
    margin: Margin | None = None
    guide_margin: Margin | None = None
    own_guide: tuple[Tensor, Tensor] | None = None
    ids: Tensor | None = None
    hard: Hard | None = None

    def of(self, some: Callable[[Tensor], Tensor]) -> Beside:
        """Of some of the rows, which `some` takes out of each tensor."""
        guide = None if self.own_guide is None else (some(self.own_guide[0]), some(self.own_guide[1]))
        return dataclasses.replace(
            self,
            queries=some(self.queries),
            documents=some(self.documents),
            own_guide=guide,
            ids=None if self.ids is None else some(self.ids),
            hard=None if self.hard is None else self.hard.of(some),
        )

    def __call__(self, call: Call, levels: list[Tensor]) -> Call:
        """The call with its rows' numbers. levels: [B] each, of negatives in other matrices."""
        loss = call.loss
        assert isinstance(loss, Contrast)
        found = self._limits(loss, call.anchors.shape[1])
        if self.ids is not None:
            found |= {f"id {k}": piece for k, piece in enumerate(pieces(self.ids))}
        if loss.outside:
            found |= self._outside(loss, call, levels, found)
        if not loss.of_rows:
            return call
        assert call.scalars is not None
        values = [found[name].to(call.scalars.dtype) for name in loss.of_rows]
        return call.replace(row_values=torch.stack(values, dim=1))

    def _limits(self, loss: Contrast, width: int) -> dict[str, Tensor]:
        found = {}
        if self.margin is not None:
            a, c = self.queries[:, :width].detach(), self.documents[:, :width].detach()
            found["limit"] = self.margin.limit(loss.metric.sign * loss.metric.paired(a, c))
        if self.guide_margin is not None and self.own_guide is not None:
            guide = metric_of(loss.teacher_similarity or loss.similarity)
            found["guide limit"] = self.guide_margin.limit(guide.paired(*self.own_guide))
        return found

    def _outside(
        self, loss: Contrast, call: Call, levels: list[Tensor], limits: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        assert call.scalars is not None
        width = call.anchors.shape[1]
        found = list(levels)
        kind = call.scalars.dtype
        count = total = self.queries.new_zeros(self.queries.shape[0], dtype=kind)
        for other in levels:  # whether there is anything: how much does not show in a softmax
            count = count + (other > NOTHING / 2).to(kind)
        of_hardness = None
        if self.hard is not None:
            s = loss.metric.sign * own_candidates.values(
                loss.metric, self.queries[:, :width], self.hard.embeddings[:, :, :width]
            )
            kept = self._kept(loss, s.detach(), limits)
            z = call.scalars[0] * s
            weight = self.hard.log_weights
            beta = loss.hardness
            found.append(_level(z if beta is None else (1 + beta) * z, weight, kept))
            if beta is not None:
                of_hardness = _level(beta * z, weight, kept)
            count = count + row_counts(kept).to(kind)
            total = torch.where(kept, z, torch.zeros_like(z)).sum(1)
        level = found[0] if len(found) == 1 else torch.stack(found).logsumexp(0)
        made = {"level": level, "count": count, "sum": total}
        if of_hardness is not None:
            made["level of hardness"] = of_hardness
        return made

    def _kept(self, loss: Contrast, s: Tensor, limits: dict[str, Tensor]) -> Tensor:
        """bool [B, K]: which of the row's own negatives count."""
        assert self.hard is not None
        kept = torch.ones_like(s, dtype=torch.bool)
        if "limit" in limits:
            kept &= s <= limits["limit"][:, None]
        if "guide limit" in limits and self.own_guide is not None and self.hard.guide is not None:
            guide = metric_of(loss.teacher_similarity or loss.similarity)
            told = own_candidates.values(guide, self.own_guide[0], self.hard.guide)
            kept &= told <= limits["guide limit"][:, None]
        if self.ids is not None and self.hard.ids is not None:
            kept &= self.hard.ids != self.ids[:, None]
        return kept


def _level(z: Tensor, log_weights: Tensor | None, kept: Tensor) -> Tensor:
    """[B] of z [B, K]; the most negative number over none."""
    if z.shape[1] == 0:
        return z.sum(1) + torch.finfo(z.dtype).min
    # In the type of z: the most negative number of a wider one is infinite there.
    return log_sum_exp(z if log_weights is None else z + log_weights.to(z.dtype), kept)


@dataclasses.dataclass(eq=False)
class Pairs:
    """Queries, documents, and what tells negatives from pairs; `calls` reads it from both sides.

    queries, documents: [B, D], [N, D]. where: the rows' documents. ids: int64 [N] of the documents. guide,
    ref_guide: [B, E], [N, E] of the guide. mask: a function of indices of queries and documents. log_weights:
    [N] of the documents, or None. one_set: they are the same samples, of which each is not its own document.
    missing: bool [B], of the queries that are none: those of rows without a document, seen from its side.
    """

    queries: Tensor
    documents: Tensor
    where: Own = 0
    ids: Tensor | None = None
    guide: Tensor | None = None
    ref_guide: Tensor | None = None
    mask: Mask | None = None
    log_weights: Tensor | None = None
    one_set: bool = False
    missing: Tensor | None = None

    @staticmethod
    def checked(
        queries: Tensor,
        documents: Tensor,
        where: Own,
        ids: Tensor | None,
        guide: Tensor | None,
        ref_guide: Tensor | None,
        mask: Mask | None,
    ) -> Pairs:
        """Queries and documents are checked already."""
        rows, columns = queries.shape[0], documents.shape[0]
        if ids is not None:
            ids = check.labels(ids, columns, documents.device, "ids", "ref_emb")
        if (guide is None) != (ref_guide is None):
            name = "guide" if guide is None else "ref_guide"
            raise ValueError(f"{name}: expected the guide's embeddings as of the other set, got None")
        if guide is not None and ref_guide is not None:
            for x, count, name, of in (
                (guide, rows, "guide", "embeddings"),
                (ref_guide, columns, "ref_guide", "ref_emb"),
            ):
                check.embeddings(x, name)
                if x.shape[0] != count:
                    raise ValueError(f"{name}: expected {count} rows, one per row of {of}, got {x.shape[0]}")
                check.same_device(x, queries, name, "embeddings")
            check.same_space(guide, ref_guide, "guide", "ref_guide")
            guide, ref_guide = guide.detach(), ref_guide.detach()
        check.function(mask, "mask")
        mask = None if mask is None else _Asked(mask)
        return Pairs(queries, documents, where, ids, guide, ref_guide, mask)

    def hard(
        self,
        x: Tensor | None,
        weights: Tensor | None,
        ids: Tensor | None,
        guide: Tensor | None,
        validate: bool,
    ) -> Hard | None:
        """The checked hard negatives [B, K, D]; those [K, D] of all rows become documents."""
        if x is None:
            for value, name in ((weights, "hard_weights"), (ids, "hard_ids"), (guide, "hard_guide")):
                if value is not None:
                    raise ValueError(f"{name}: expected None without hard_negatives")
            return None
        if not isinstance(x, Tensor) or x.dim() not in (2, 3) or not x.is_floating_point():
            got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"hard_negatives: expected floats [batch, K, dim] or [K, dim], got {got}")
        rows, width = self.queries.shape
        shape = x.shape[:-1]
        if x.shape[-1] != width or (len(shape) == 2 and shape[0] != rows):
            expected = f"[{rows}, K, {width}]" if len(shape) == 2 else f"[K, {width}]"
            raise ValueError(f"hard_negatives: expected shape {expected}, got {tuple(x.shape)}")
        check.same_device(x, self.queries, "hard_negatives", "embeddings")
        if validate and x.numel():
            check.embeddings(x.reshape(-1, width), "hard_negatives", True)
        if ids is not None:
            if self.ids is None:
                raise ValueError("hard_ids: expected None without ids")
            _expect_shape(ids, "hard_ids", shape, x)
            flat = ids.reshape(-1)
            ids = check.labels(flat, flat.numel(), x.device, "hard_ids", "hard_negatives").view(shape)
        if guide is not None and self.guide is None:
            raise ValueError("hard_guide: expected None without guide")
        if self.guide is not None:
            _expect_shape(guide, "hard_guide", (*shape, self.guide.shape[1]), x)
            assert guide is not None
            guide = guide.detach()
        log_weights = None if weights is None else _logarithm(weights, shape, x)
        if len(shape) == 2:
            return Hard(x, log_weights, ids, guide)
        self._append(x, log_weights, ids, guide)
        return None

    def _append(
        self, x: Tensor, log_weights: Tensor | None, ids: Tensor | None, guide: Tensor | None
    ) -> None:
        count, more = self.documents.shape[0], x.shape[0]
        self.documents = torch.cat([self.documents, x.to(self.documents.dtype)])
        if log_weights is not None:
            self.log_weights = torch.cat([log_weights.new_zeros(count), log_weights])
        if self.ref_guide is not None and guide is not None:
            self.ref_guide = torch.cat([self.ref_guide, guide.to(self.ref_guide.dtype)])
        if self.ids is not None:
            self.ids = torch.cat([self.ids, _unlike(self.ids, more) if ids is None else ids])
        if self.mask is not None:
            self.mask = _Within(self.mask, count)

    @property
    def masked(self) -> bool:
        return self.mask is not None

    @property
    def teacher(self) -> tuple[Tensor, ...]:
        assert self.guide is not None and self.ref_guide is not None
        return (self.guide,) if self.one_set else (self.guide, self.ref_guide)

    def own(self, x: Tensor) -> Tensor:
        """[B, ...] of what belongs to documents [N, ...]: that of the rows' own."""
        return partners(x, self.where, self.queries.shape[0])

    def reversed(self) -> Pairs:
        """The rows' documents against the queries."""
        ref_guide = None if self.ref_guide is None else self.own(self.ref_guide)
        columns = partner_columns(self.where, self.queries.shape[0], self.queries.device)
        mask = None if self.mask is None else _Turned(self.mask, columns)
        where: Own = 0
        missing = None
        if isinstance(self.where, Tensor):  # rows without a document have no query either
            missing = self.where < 0
            index = torch.arange(self.queries.shape[0], device=self.queries.device)
            where = torch.where(missing, -1, index)
        documents = self.own(self.documents)
        return Pairs(
            documents, self.queries, where, self._own_ids(), ref_guide, self.guide, mask, missing=missing
        )

    def of_queries(self, one_set: bool) -> Pairs:
        """The queries against each other; their ids are those of their documents."""
        log_weights = None
        if self.missing is not None:
            log_weights = torch.where(self.missing, NOTHING, 0.0)
        each = (self.queries, self.queries, 0, self._own_ids(), self.guide, self.guide)
        return Pairs(*each, log_weights=log_weights, one_set=one_set)

    def _own_ids(self) -> Tensor | None:
        """int64 [B]: the ids of the rows' documents; rows that have none are like no other."""
        if self.ids is None or not isinstance(self.where, Tensor):
            return None if self.ids is None else self.own(self.ids)
        return self.own(self.ids).masked_fill(self.where < 0, _NO_ID)

    def predicate(self) -> Predicate:
        """The relation where a function says what is no negative."""
        assert self.mask is not None
        mine = partner_columns(self.where, self.queries.shape[0], self.queries.device)
        return _Negatives(self.mask, mine)


def _expect_shape(x: Any, name: str, shape: tuple[int, ...], of: Tensor) -> None:
    """of: the hard negatives that it belongs to."""
    check.shape(x, name, shape)
    check.same_device(x, of, name, "hard_negatives")


def _logarithm(weights: Tensor, shape: torch.Size, of: Tensor) -> Tensor:
    _expect_shape(weights, "hard_weights", shape, of)
    readable = weights.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not bool(((weights > 0) & (weights < torch.inf)).all()):
        raise ValueError("hard_weights: expected positive numbers")
    return weights.detach().log()


def _unlike(ids: Tensor, count: int) -> Tensor:
    """Ids of `count` documents of which nothing is known."""
    return ids.new_full((count,), _NO_ID)


# No id that a row can have: `pieces` of it are equal to no other's.
_NO_ID = torch.iinfo(torch.int64).min


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """A user's function, whose answer is a mask."""

    mask: Mask

    def __call__(self, i: Tensor, j: Tensor) -> Tensor:
        found, shape = self.mask(i, j), (i.shape[0], j.shape[0])
        if not isinstance(found, Tensor) or found.dtype != torch.bool or tuple(found.shape) != shape:
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else found
            raise ValueError(f"mask: expected the function to return a bool mask of shape {shape}, got {got}")
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Within:
    """A function of indices of documents of which there are `count`; what comes after them is a negative."""

    mask: Mask
    count: int

    def __call__(self, i: Tensor, j: Tensor) -> Tensor:
        there = j < self.count
        found = torch.zeros(i.shape[0], j.shape[0], dtype=torch.bool, device=j.device)
        found[:, there] = self.mask(i, j[there])
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Turned:
    """The function asked with the rows' documents, `columns`, for rows and queries for columns."""

    mask: Mask
    columns: Tensor

    def __call__(self, i: Tensor, j: Tensor) -> Tensor:
        return self.mask(j, self.columns[i].clamp(min=0)).t()


@dataclasses.dataclass(frozen=True, eq=False)
class _Negatives:
    """(positive, negative) of indices: the rows' partners, and what is neither that nor masked."""

    mask: Mask
    partner: Tensor

    def __call__(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        positive = self.partner[i][:, None] == j
        return positive, ~positive & ~self.mask(i, j)
