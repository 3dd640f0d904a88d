"""A loss of the whole batch, of whose rows every rank evaluates some: calls to calls, parts to parts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import autograd, in_torch
from ..engine.call import Before, Call, statistic_type
from ..engine.op import row_outputs
from ..engine.problem import computed_scalars, relation_of
from ..losses.base import Part, Term, Weighted
from ..losses.teacher.relational_distillation import Vertices
from ..losses.triplet.listed import OneByOne
from ..losses.twotower.listed import OfRows
from ..losses.twotower.negatives import Beside
from ..wrappers.matryoshka import Widths
from .arguments import Set, join
from .ranks import Ranks
from .ring import Columns, Ring, refuses
from .travelling import Travelling
from .words import gathered, joined, scaled, spread, summed


@dataclasses.dataclass(eq=False)
class Rows:
    """All rows of a call, of which a rank has `counts[rank]`: what its shares tell each other
    (`engine.call.Whole`)."""

    ranks: Ranks
    counts: tuple[int, ...]
    executor: Any = None

    @property
    def rows(self) -> int:
        return sum(self.counts)

    @property
    def start(self) -> int:
        return sum(self.counts[: self.ranks.rank])

    @property
    def stop(self) -> int:
        return self.start + self.counts[self.ranks.rank]

    def total(self, x: Tensor) -> Tensor:
        return self.ranks.total(x)

    def joined(self, x: Tensor) -> Tensor:
        return self.ranks.gather(x, self.counts)

    def own(self, x: Tensor) -> Tensor:
        return x[self.start : self.stop]


class Shares:
    """How the parts of a loss of gathered sets are shared out.

    sets: (the rows of all ranks, this rank's set) of the arguments. Rows of such an argument are evaluated
    where they come from; others (proxies) are shared out evenly. ring: sets that are not here travel; else
    they are gathered where they are needed.
    """

    def __init__(
        self, ranks: Ranks, sets: Sequence[tuple[Tensor, Set]], ring: bool = False
    ) -> None:
        self.ranks, self.sets, self.ring = ranks, sets, ring

    def value(self, part: Call | Part) -> Tensor:
        """What a part of the loss is; with reduction "none", of this rank's rows."""
        if isinstance(part, Call):
            return self._of_call(part)
        if isinstance(part, Weighted):
            return part.weight * self.value(part.part)
        if isinstance(part, OneByOne):
            rows = self._rows(part.batch.embeddings)
            found = part.share(rows.start, rows.stop, rows).evaluate()
            return found if part.reduction == "none" else summed(found, self.ranks)
        if isinstance(part, Vertices):
            rows = self._rows(part.embeddings)
            return summed(part.share(rows.start, rows.stop).evaluate(), self.ranks)
        if isinstance(part, Widths):  # each by itself: a share has no sweep for several
            each = zip(part.calls, part.weights, strict=True)
            return functools.reduce(torch.add, [w * self._of_call(c) for c, w in each])
        if isinstance(part, OfRows):
            return self._of_rows_alone(part)
        if isinstance(part, Term) and not self.ring:
            arguments = tuple(self._here(x) for x in part.arguments)
            part = dataclasses.replace(part, arguments=arguments)
        found = part.evaluate()
        if found.dim():  # numbers of the rows
            return found[self._rows(found).start : self._rows(found).stop]
        return self._alike(found)

    def _of_rows_alone(self, part: OfRows) -> Tensor:
        """Of this rank's rows, which need no others."""
        rows = self._rows(part.arguments[0])
        sets = (self._set(x) for x in part.arguments)
        mine = [
            x[rows.start : rows.stop] if own is None else own.local
            for x, own in zip(part.arguments, sets, strict=True)
        ]
        losses = part.function(*mine)
        if part.reduction == "none":
            return losses
        value = summed(losses.sum(), self.ranks)
        return value / max(1, rows.rows) if part.reduction == "mean" else value

    def _alike(self, x: Tensor) -> Tensor:
        """x, which all ranks have computed from the same: its derivative counts once."""
        return scaled(x, 1 / self.ranks.size)

    def _here(self, x: Any) -> Any:
        """x, with the rows of all ranks if it is a set that is not here."""
        if not isinstance(x, Travelling):
            return x
        whole = join(x.own, self.ranks)
        return whole if x.requires_grad else whole.detach()

    def _set(self, x: Tensor) -> Set | None:
        if isinstance(x, Travelling):
            return x.own
        return next((own for whole, own in self.sets if whole is x), None)

    def _rows(self, x: Tensor, together: int = 1) -> Rows:
        """How the rows of x are shared out."""
        own, count = self._set(x), x.shape[0]
        alike = [s.counts for _, s in self.sets if s.rows == count]
        if own is not None or alike:
            counts = alike[0] if own is None else own.counts
            if all(c % together == 0 for c in counts):
                return Rows(self.ranks, counts)
        size, groups = self.ranks.size, count // together
        shares = [groups // size + (r < groups % size) for r in range(size)]
        return Rows(self.ranks, tuple(together * s for s in shares))

    def _of_call(self, call: Call) -> Tensor:
        before = call.before
        if before is not None:
            call = self._filled(call, before)
        rows = self._rows(call.anchors, call.loss.rows_together)
        local = self._local(call, rows)
        if call.loss.metric.in_torch:
            value = self._in_torch(call, rows)
            value = value[rows.start : rows.stop] if local else value
        else:
            share = self.share(call, rows)
            value = autograd.evaluate(share.replace(finish=None, weight=1.0))
            if call.reduction == "none" and not local:
                value = joined(value, self.ranks, rows.counts)
        if call.finish is not None:
            value = call.finish(value)
        weight = call.weight
        if isinstance(weight, Tensor):
            weight = weight if local else self._alike(weight)
        return value if isinstance(weight, float) and weight == 1 else value * weight

    def _in_torch(self, call: Call, rows: Rows) -> Tensor:
        """The value of a call that no executor runs, of all rows."""
        if self.ring:
            raise ValueError(
                f"schedule: pairs of the similarity {call.loss.similarity!r} are made in torch; "
                "expected 'gather'"
            )
        call = call.replace(
            anchors=self._here(call.anchors), candidates=self._here(call.candidates), finish=None,
            weight=1.0,
        )  # fmt: skip
        if call.loss.presweep() is not None:
            return self._alike(autograd.evaluate(call))
        share = self.share(call, rows).replace(whole=None)
        outputs = in_torch.row_outputs(share)
        if share.is_empty and not call.is_empty:
            # Ranks exchange derivatives by what a distance learns: all have it in their graphs, without a
            # pair as well.
            a, c = (x.to(outputs.dtype) for x in (share.anchors, share.columns))
            outputs = outputs + call.loss.metric.dense(a, c, 0.0).sum()
        every = joined(outputs, self.ranks, rows.counts)
        return in_torch.reduced(call.loss, every, call.row_weight, call.reduction)

    def _filled(self, call: Call, before: Before) -> Call:
        plain = call.replace(before=None)
        if isinstance(before.fill, Beside):
            return self._with_own_numbers(plain, before.fill, before.calls)
        if before.slopes:
            found = [
                autograd.slopes(self.share(c, self._rows(c.anchors))) for c in before.calls
            ]
        else:
            found = [self._told(c) for c in before.calls]
        return before.fill(plain, found)

    def _with_own_numbers(self, call: Call, beside: Beside, levels: Sequence[Call]) -> Call:
        """The call with numbers of this rank's rows, which are made of these alone; others' are 0."""
        rows = self._rows(call.anchors)

        def mine(x: Tensor) -> Tensor:
            own = self._set(x)
            return x[rows.start : rows.stop] if own is None else own.local

        found = beside.of(mine)(call, [self._of_call(c) for c in levels])
        if found.row_values is None:
            return found
        around = (0, 0, rows.start, rows.rows - rows.stop)
        return found.replace(row_values=torch.nn.functional.pad(found.row_values, around))

    def _told(self, call: Call) -> Tensor:
        """What a call is, that another one takes in on every rank."""
        value = self._of_call(call)
        rows = self._rows(call.anchors, call.loss.rows_together)
        if self._local(call, rows):
            return gathered(value, self.ranks, rows.counts)
        return spread(value, self.ranks)

    def _local(self, call: Call, rows: Rows) -> bool:
        """Whether a call's value is one of each row of this rank. (Rows that are proxies are everybody's,
        also where there are as many of them as samples.)"""
        samples = call.loss.rows != "proxies"
        return call.reduction == "none" and samples and any(s.rows == rows.rows for _, s in self.sets)

    def share(self, call: Call, rows: Rows) -> Call:
        """The rows of a call that are this rank's, against all its candidates."""
        own, some = self._set(call.anchors), slice(rows.start, rows.stop)
        call = call.replace(computed=_computed(call))
        if call.candidates is None:
            call = call.replace(candidates=call.anchors, candidate_labels=call.anchor_labels, own=0)
        parts = self._of_rows(call, rows, own, some)
        if isinstance(call.candidates, Travelling) and not self.ring:
            call = call.replace(candidates=self._here(call.candidates))
        if isinstance(call.candidates, Travelling):
            return self._of_travelling(call, rows, parts)
        if call.teacher:
            theirs = self._set(call.teacher[0])
            mine = call.teacher[0][some] if theirs is None else theirs.local
            parts["teacher"] = (mine, self._here(call.teacher[-1]))
        return call.replace(swept=self._swept(call), whole=rows, **parts)

    def _of_rows(self, call: Call, rows: Rows, own: Set | None, some: slice) -> dict[str, Any]:
        """The fields of a call that are of its rows."""
        names = ("anchor_labels", "row_values", "row_weight")
        parts: dict[str, Any] = {name: _part(getattr(call, name), some) for name in names}
        if call.predicate is not None:
            parts["predicate"] = functools.partial(_moved, call.predicate, rows.start)
        # A rank's own rows are there without a way round through all.
        anchors = call.anchors[some] if own is None else own.local
        pairs = _pairs(call.pairs, rows.start, rows.stop)
        return {**parts, "anchors": anchors, "pairs": pairs, "own": _own(call.own, some)}

    def _of_travelling(self, call: Call, rows: Rows, parts: dict[str, Any]) -> Call:
        """The share of a call whose candidates no rank has all of."""
        reason = refuses(call.loss)
        if call.pairs or call.predicate is not None:
            reason = "pairs that are listed or named by a function are found in whole rows"
        if reason is not None:
            raise ValueError(f"schedule: {reason}; expected 'gather'")
        assert isinstance(call.candidates, Travelling) and call.candidate_labels is not None
        swept, its = self._swept(call), call.candidates.own
        values = [v for v in (call.col_values, swept) if v is not None]
        place = parts["own"]
        if isinstance(place, int):
            index = torch.arange(rows.counts[self.ranks.rank], device=its.local.device) + place
            place = index.masked_fill(index >= its.rows, -1)
        columns = Columns(
            its,
            call.candidate_labels,
            place,
            torch.cat(values) if values else None,
            0 if swept is None else len(swept),
        )
        own = slice(its.start, its.stop)
        if call.teacher:
            theirs = [t.own.local for t in call.teacher if isinstance(t, Travelling)]
            parts["teacher"] = (theirs[0], theirs[-1])
        return call.replace(
            **{**parts, "own": None},
            candidates=its.local if call.candidates.requires_grad else its.local.detach(),
            candidate_labels=call.candidate_labels[own],
            col_values=None,
            whole=dataclasses.replace(rows, executor=Ring(self.ranks, columns)),
        )

    def _swept(self, call: Call) -> Tensor | None:
        """What the loss's presweep finds of all candidates, of which each rank sweeps some."""
        before = call.loss.presweep()
        if before is None:
            return None
        columns = call.candidates
        assert columns is not None
        other = relation_of(call).swapped()
        with torch.no_grad():
            whole = Call(
                before,
                columns.detach(),
                call.anchors.detach(),
                other.anchor_labels,  # type: ignore[attr-defined]
                other.candidate_labels,  # type: ignore[attr-defined]
                own=other.own,
                scalars=call.scalars,
                # Which functors a forced backend needs is the loss's affair, not that of what comes before.
                backend="auto" if call.backend == "native" else call.backend,
            )
            rows = self._rows(columns)
            share = self.share(whole, rows)
            return rows.joined(row_outputs(share)).t().contiguous()


def _computed(call: Call) -> Tensor | None:
    kind = statistic_type(call.anchors, call.candidates)
    return computed_scalars(call.loss, relation_of(call), call.anchors.device, kind)


def _part(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _own(own: int | Tensor | None, rows: slice) -> int | Tensor | None:
    if isinstance(own, Tensor):
        return own[rows]
    return None if own is None else own + rows.start


def _pairs(pairs: Sequence[Tensor], start: int, stop: int) -> tuple[Tensor, ...]:
    """The listed pairs of anchors [start, stop)."""
    found: list[Tensor] = []
    for anchors, others in zip(pairs[::2], pairs[1::2], strict=True):
        kept = ((anchors >= start) & (anchors < stop)).nonzero()[:, 0]
        found += [anchors[kept] - start, others[kept]]
    return tuple(found)


def _moved(predicate: Any, start: int, anchors: Tensor, candidates: Tensor) -> Any:
    """A function of the indices of all anchors, of those from `start` on."""
    return predicate(anchors + start, candidates)
