"""Proxies of more classes than a process has room for: every rank has some of the classes.

Rows are the samples of all ranks. A rank compares them with its own proxies, row statistics are merged over
ranks, and the derivatives by its proxies stay where these are. *Partial FC: Training 10 Million Identities on
a Single Machine*, An et al., ICCVW 2021 (arXiv 2010.05222), is that with classes of which a share is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import autograd, check, schedule
from ..engine.call import Call, statistic_type
from ..engine.loss import RowLoss
from ..engine.problem import Problem, computed_scalars
from ..engine.relation import LabelRelation
from ..engine.schedule import Result, Wanted
from ..engine.similarity import unit, wide_type
from ..losses.base import total
from ..losses.parts import expect_parts
from ..losses.proxy.proxies import ProxyLoss
from ..mining.philox import uniforms
from .arguments import join, told
from .ranks import Ranks
from .shares import Rows
from .statistics import State, Statistics, merged_over, statistics_of
from .words import joined, mine, scaled, summed


class _Merged:
    """Runs all rows against a rank's own columns, whose statistics are merged over ranks
    (`engine.executors.Executor`)."""

    name = "shards"
    by_blocks = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def refuses(self, problem: Problem) -> str | None:
        found = statistics_of(problem.loss)
        return found if isinstance(found, str) else None

    def plan(self, problem: Problem) -> str:
        return f"proxies of {self.ranks.size} ranks, statistics of rows merged"

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        found = statistics_of(problem.loss)
        assert isinstance(found, Statistics)
        # What one rank finds out of range is everybody's.
        problem.__dict__["poison"] = self.ranks.total(problem.poison)
        state: State = found.start(problem)
        for sweep in range(len(found.sweeps)):
            state.fold(sweep).run(problem)
            merged_over(state, self.ranks)
            state.settle(sweep)
        out = state.result(wanted)
        if problem.relation.columns == 0:
            out.d_anchors = torch.zeros_like(problem.anchors, dtype=problem.statistic)
            out.d_candidates = torch.zeros_like(problem.candidates, dtype=problem.statistic)
        elif wanted:
            weighed = schedule.run(problem, state.weigh(), wanted)
            out.d_anchors, out.d_candidates = weighed.d_anchors, weighed.d_candidates
            out.d_col_values = weighed.d_col_values
        return out


@dataclasses.dataclass(eq=False)
class _AllRows:
    """All rows of a call are here (`engine.call.Whole`): only its columns are elsewhere."""

    rows: int
    executor: Any

    def total(self, x: Tensor) -> Tensor:
        return x

    def joined(self, x: Tensor) -> Tensor:
        return x

    def own(self, x: Tensor) -> Tensor:
        return x


class ShardedProxies(nn.Module):
    """A loss over proxies of which this rank has some; made by `shard`.

    Attributes:
        loss: of this rank's classes. Its parameters are this rank's alone: not for DDP.
        classes: the range of these among all.
    """

    step: Tensor

    def __init__(
        self,
        make: Callable[[int], ProxyLoss],
        num_classes: int,
        group: Any = None,
        *,
        sample: float = 1.0,
        seed: int = 0,
        gradient: str = "mean",
    ) -> None:
        super().__init__()
        self.ranks = Ranks(group)
        self.num_classes = check.count(num_classes, "num_classes")
        size = self.ranks.size
        if num_classes < size:
            raise ValueError(
                f"num_classes: expected at least one for each of {size} ranks, got {num_classes}"
            )
        self.counts = tuple(num_classes // size + (r < num_classes % size) for r in range(size))
        first = sum(self.counts[: self.ranks.rank])
        self.classes = range(first, first + self.counts[self.ranks.rank])
        self.loss = make(len(self.classes))
        if not isinstance(self.loss, ProxyLoss) or self.loss.num_classes != len(self.classes):
            raise ValueError(
                f"make: expected a loss over {len(self.classes)} proxies' classes, got {self.loss!r}"
            )
        expect_parts(self.loss)
        if self.loss.gives_elements:
            raise ValueError(f"make: expected a loss with a reduction, got reducer {self.loss.reducer!r}")
        penalty, share = self.loss.weight_regularizer, len(self.classes) / num_classes
        self._share = 1.0 if penalty is None else _share_of(penalty, self.loss.all_proxies, share)
        self.loss.num_classes = num_classes  # what the loss says of all classes
        check.one_of(gradient, "gradient", ("mean", "sum"))
        self.gradient = gradient
        self.sample = check.part(sample, "sample")
        self.seed = check.seed(seed, "seed")
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        description = self.loss.description()  # type: ignore[attr-defined]
        self._of_rows = description.rows == "proxies"
        if self._of_rows and sample < 1:
            raise ValueError("sample: expected 1 where proxies are the anchors")
        if not self._of_rows:
            self._check(description)

    def _expect_ranks(self) -> None:
        """ValueError on other ranks than those that the classes were shared out among."""
        ranks, first = self.ranks, sum(self.counts[: self.ranks.rank])
        if ranks.size != len(self.counts) or self.classes.start != first:
            raise ValueError(
                f"group: expected the {len(self.counts)} ranks that the loss was made on, and the one with "
                f"classes from {self.classes.start} on; got rank {ranks.rank} of {ranks.size}. Make the loss "
                "where torch.distributed is initialised, on every rank"
            )

    def _check(self, description: RowLoss) -> None:
        found = statistics_of(description)
        if isinstance(found, str):
            raise ValueError(f"make: {found}, which proxies on several ranks do not give")
        # Found here, with a gradient: a step without one would read the proxies of other classes.
        with torch.enable_grad():
            proxies = self.loss.all_proxies.detach().requires_grad_()
            row, label = proxies.detach()[:1], torch.zeros(1, dtype=torch.int64, device=proxies.device)
            parts = self.loss.parts(row, label, proxies=proxies)
            if any(isinstance(part, Call) and _reads(part.row_values, proxies) for part in parts):
                raise ValueError(
                    f"make: {description.name!r} needs the proxy of every row, which is on one rank only; "
                    f"expected another similarity than {description.similarity!r}"
                )

    @torch.compiler.disable
    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of the rows of all ranks; labels in [0, num_classes)."""
        ranks = self.ranks
        self._expect_ranks()
        factor = float(ranks.size) if self.gradient == "mean" else 1.0
        known = told(ranks, {"embeddings": embeddings, "labels": labels}, factor)
        rows = known.sets["embeddings"]
        x, y = (join(known.sets[name], ranks) for name in ("embeddings", "labels"))
        check.embeddings(x, "embeddings", self.loss.validate)
        y = check.labels(y, x.shape[0], x.device, "labels", "embeddings")
        check.class_range(y, self.num_classes, "labels", self.loss.validate)
        parts: list[Any] = []
        for part in self._parts(x, y):
            if not isinstance(part, Call):
                own = part.arguments[0] is not x
                parts.append(_Regularizer(part, ranks, self._share if own else None))
            elif self._of_rows:
                parts.append(_ProxyRows(self._proxy_rows(part, y), ranks, self.counts))
            else:
                parts.append(_ProxyColumns(self._proxy_columns(part, y), ranks, rows.counts))
        if self.training and self.sample < 1:
            self.step += 1
        return total(parts)

    def _parts(self, x: Tensor, y: Tensor) -> list[Any]:
        """The loss's own, of labels that are some class of this rank's."""
        found: list[Any] = self.loss.parts(x, y % len(self.classes))
        return found

    def _classes(self, like: Tensor) -> Tensor:
        """[proxies] the class of each among all."""
        found = torch.arange(self.classes.start, self.classes.stop, device=like.device)
        return found.repeat_interleave(self.loss.proxies_per_class)

    def _proxy_rows(self, call: Call, y: Tensor) -> Call:
        every = torch.arange(self.num_classes, device=y.device)
        every = every.repeat_interleave(self.loss.proxies_per_class)
        kind = statistic_type(call.anchors, call.candidates)
        counts = tuple(c * self.loss.proxies_per_class for c in self.counts)
        return call.replace(
            anchor_labels=self._classes(y),
            candidate_labels=y,
            computed=computed_scalars(call.loss, LabelRelation(every, y), y.device, kind),
            whole=Rows(self.ranks, counts),
        )

    def _proxy_columns(self, call: Call, y: Tensor) -> Call:
        assert call.candidates is not None
        classes, proxies, values = self._classes(y), call.candidates, call.col_values
        row_values = call.row_values
        if row_values is not None:  # all ranks have the same derivative by what rows have once
            row_values = scaled(row_values, 1 / self.ranks.size)
        if self.training and self.sample < 1:
            kept = self._drawn(classes, y)
            classes, proxies = classes[kept], proxies.index_select(0, kept)
            values = None if values is None else values.index_select(1, kept)
        whole = _AllRows(call.anchors.shape[0], _Merged(self.ranks))
        return call.replace(
            candidates=proxies, anchor_labels=y, candidate_labels=classes, col_values=values,
            row_values=row_values, whole=whole,
        )  # fmt: skip

    def _drawn(self, classes: Tensor, y: Tensor) -> Tensor:
        """This rank's classes that take part: those that samples are of, and of the others those that a
        number of their own lets in, whichever rank they are on."""
        zero = torch.zeros(1, 1, dtype=torch.int64, device=classes.device)
        stream = (zero + int(self.seed), zero + self.step % check.STREAMS)
        u = uniforms(classes, zero, 1, *stream, torch.float64)[0, :, 0]
        return ((u < self.sample) | torch.isin(classes, y)).nonzero()[:, 0]

    def full_state_dict(self) -> dict[str, Tensor]:
        """The state with the proxies of all ranks, the same on every rank: all of them call this."""
        self._expect_ranks()
        found = {}
        for name, x in self.state_dict().items():
            dim = self._dimension(name)
            if dim is not None:
                counts = [c * self.loss.proxies_per_class for c in self.counts]
                if x.shape[dim] == len(self.classes):
                    counts = list(self.counts)
                x = self.ranks.gather(x.movedim(dim, 0), counts).movedim(0, dim)
            found[name] = x
        return found

    def load_full_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes this rank's part of what `full_state_dict` gave, on any number of ranks."""
        mine = {}
        for name, x in state.items():
            dim = self._dimension(name)
            if dim is not None:
                each = x.shape[dim] // self.num_classes
                x = x.narrow(dim, self.classes.start * each, len(self.classes) * each)
            mine[name] = x
        self.load_state_dict(mine)

    def _dimension(self, name: str) -> int | None:
        """Along which dimension of a tensor of the state classes are; None: it has none."""
        if name == f"loss.{self.loss.parameter_name}":
            return int(self.loss.by_columns)
        x = self.get_buffer(name) if name in dict(self.named_buffers()) else self.get_parameter(name)
        return 0 if x.dim() and x.shape[0] == len(self.classes) else None

    def extra_repr(self) -> str:
        sampled = "" if self.sample == 1 else f", sample={self.sample}"
        return f"classes {self.classes.start} to {self.classes.stop - 1} of {self.num_classes}{sampled}"


@dataclasses.dataclass(frozen=True)
class _ProxyRows:
    """A call whose rows are proxies: each rank its own."""

    call: Call
    ranks: Ranks
    counts: tuple[int, ...]

    def evaluate(self) -> Tensor:
        value = autograd.evaluate(self.call.replace(finish=None, weight=1.0))
        if self.call.reduction == "none":
            value = joined(value, self.ranks, self.call.whole.counts)  # type: ignore[union-attr]
        value = value if self.call.finish is None else self.call.finish(value)
        return value * self.call.weight


@dataclasses.dataclass(frozen=True)
class _ProxyColumns:
    """A call whose columns are proxies; of a loss of rows, this rank's."""

    call: Call
    ranks: Ranks
    counts: tuple[int, ...]

    def evaluate(self) -> Tensor:
        value = autograd.evaluate(self.call)
        return mine(value, self.ranks, self.counts) if value.dim() else value


@dataclasses.dataclass(frozen=True)
class _Regularizer:
    """A term of this rank's proxies, of which `share` adds up, or of the embeddings of all ranks."""

    term: Any
    ranks: Ranks
    share: float | None

    def evaluate(self) -> Tensor:
        value = self.term.evaluate()
        if self.share is None:
            return scaled(value, 1 / self.ranks.size)
        return summed(self.share * value, self.ranks)


@torch.no_grad()
def _share_of(penalty: Callable[[Tensor], Any], proxies: Tensor, share: float) -> float:
    """How much of a penalty of some proxies is of all ranks': all of a sum over proxies, its share of a mean.

    What it is shows in the penalties of 3 and of 5 rows, of different lengths that are partly alike, alone
    and together.
    """
    g = torch.Generator().manual_seed(0)
    drawn = torch.randn(9, proxies.shape[1], generator=g, device="cpu")
    lengths = drawn.new_tensor([0.1, 10, 0.7, 0.2, 0.4, 1.5, 3, 6])[:, None]
    x = (unit(drawn[:8] + drawn[8]) * lengths).to(proxies.device, wide_type(proxies))
    try:
        whole, first, second = (float(penalty(rows)) for rows in (x, x[:3], x[3:]))
    except Exception as error:
        raise ValueError(f"{_PENALTY}, got {penalty!r}, which raises on 8 proxies: {error}") from error
    for value, found in ((first + second, 1.0), ((3 * first + 5 * second) / 8, share)):
        if abs(whole - value) <= 1e-5 * (abs(first) + abs(second)):
            return found
    raise ValueError(f"{_PENALTY}, got {penalty!r}")


_PENALTY = "weight_regularizer: expected a sum or a mean over any number of proxies"


def _reads(x: Tensor | None, of: Tensor) -> bool:
    """Whether x was computed from `of`."""
    if x is None or not x.requires_grad:
        return False
    (found,) = torch.autograd.grad(x.sum(), of, retain_graph=True, allow_unused=True)
    return found is not None


def shard(
    make: Callable[[int], ProxyLoss],
    num_classes: int,
    group: Any = None,
    *,
    sample: float = 1.0,
    seed: int = 0,
    gradient: str = "mean",
) -> ShardedProxies:
    """A loss over proxies whose classes are shared out among processes.

        loss = fastdml.distributed.shard(lambda n: ArcFaceLoss(n, 512), num_classes=10_000_000)
        loss(network(images), labels).backward()

    Value and gradients are those of one process with all proxies and all rows. Embeddings are gathered,
    proxies never leave their rank: their parameters are in no DDP and in the optimizer of their rank. Make it
    where torch.distributed is initialised. Every rank fills its own: ranks that are seeded alike begin with
    the same proxies.

    Args:
        make: called with the number of this rank's classes, for a loss with one proxy a class: rows are
            samples (ArcFace, CosFace, SphereFace, normalised softmax, Proxy-NCA, cross-entropy), or
            proxies (Proxy-Anchor, also with several a class). A weight_regularizer of it must be a sum or a
            mean over proxies, a reducer a reduction: what compares proxies would need those of all ranks.
        num_classes: of all ranks. Labels are 0 ... num_classes - 1.
        group: a process group of torch.distributed; None: all processes.
        sample: share of the classes that take part in a step of training, beside those of the batch's own
            samples: An et al., 2021 (arXiv 2010.05222). Which ones depends on the class, the seed and
            `step` (in the state), not on the number of ranks.
        seed: of these draws, an integer in [0, 2^24).
        gradient: of the embeddings: see `wrap`. That of proxies is whole.

    Raises:
        ValueError: naming the argument and what was expected of it; in a call, where the ranks are not those
            that the loss was made on.
        RankError: see `wrap`.
    """
    return ShardedProxies(
        make, num_classes, group, sample=sample, seed=seed, gradient=gradient
    )
