"""SOPRC: the area under the precision-recall curve, estimated with a table of scores per class."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import statistic_type
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...engine.similarity import unit, without_autocast
from ...mining.steps import recomputing
from ..base import PRODUCTS, SampleLoss
from ..pair.semi_variance import SemiVarianceLoss
from ..representation import unrounded
from ..terms import sort_code

__all__ = ["SOPRCLoss"]

_MOST = 256  # csrc/cpu/block.h: kLongestList


@register
@dataclasses.dataclass(frozen=True)
class SOPRC(RowLoss):
    """SPEC 2.17. row_values: (1 - prior) / prior of the row's class, then its table, a constant."""

    name = "soprc"
    provenance = "released code"
    outputs = 2
    counted = True
    threshold_list = True
    detaches = True  # what the table says of a positive is a constant

    tau1: float = 0.1
    tau2: float = 0.001
    table: int = 100
    sort: bool | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.positive(self.tau1, "tau1")
        check.positive(self.tau2, "tau2")
        check.integer(self.table, "table_size", 1, _MOST)

    def parameters(self) -> tuple[float, ...]:
        return (self.tau1, self.tau2, float(self.table), sort_code(self.sort))

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(0.3, 0.05, 9), cls(0.3, 0.05, 9, sort=True)]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        table = torch.arange(self.table) / self.table
        values = torch.cat([torch.tensor([9.0]), table]).repeat(rows, 1)
        return {"row_values": values + 0.01 * torch.arange(rows)[:, None] / max(1, rows)}

    def spec(self, rows: Rows) -> Tensor:
        assert rows.row_values is not None
        threshold, _, valid = rows.thresholds()
        u = ((rows.s[:, None, :] - threshold[:, :, None]) / self.tau1 + 1).relu()
        surrogate = torch.where(u > 1, 2 * u - 1, u * u)
        own, others = rows.positive.sum(1), rows.negative.sum(1)
        mask = valid[:, :, None] & rows.negative[:, None, :]
        above = torch.where(mask, surrogate, torch.zeros_like(surrogate)).sum(2)
        above = above / others.clamp(min=1)[:, None]
        odds, table = rows.row_values[:, :1], rows.row_values[:, 1:]
        ahead = (table[:, None, :] - threshold[:, :, None]) / self.tau2
        better = torch.where(ahead > 0, 2 * ahead.sigmoid() - 1, torch.zeros_like(ahead)).sum(2)
        b = ((1 + better) / (self.table + 1)).detach()
        r = odds.detach() * above / b
        part = torch.where(valid, r / (1 + r), torch.zeros_like(r)).sum(1)
        loss = part / own.clamp(min=1)
        return torch.stack([loss, (own > 0).to(loss.dtype)], dim=1)


_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define(
    "soprc_table_(Tensor(a!) table, Tensor embeddings, Tensor labels, float momentum, bool last) -> ()"
)


def _update(table: Tensor, embeddings: Tensor, labels: Tensor, momentum: float, last: bool) -> None:
    """Moves the tables [C, V] of a batch's classes towards the scores of their positives.

    Where to: the sorted similarities of a query and its positives, at V places between them. last: the
    query that comes last in the batch speaks for its class; otherwise the mean of all. A class whose
    scores are not finite keeps its table. (The sizes of the classes are read back from an accelerator.)
    """
    classes, counts = labels.unique(return_counts=True)
    order = labels.sort(stable=True).indices
    normalised = unit(embeddings.to(torch.promote_types(statistic_type(embeddings), table.dtype)))
    start = counts.cumsum(0) - counts
    for size in counts.unique().tolist():
        if size < 2:
            continue
        chosen = counts == size
        members = order[start[chosen, None] + torch.arange(size, device=order.device)]
        x = normalised[members]  # [U, size, D]
        queries = x[:, -1:] if last else x
        with without_autocast(x.device):
            s = queries @ x.transpose(1, 2)
        index = torch.arange(size, device=order.device)
        own = index[-1:] if last else index
        s = s.masked_fill(own[:, None] == index, torch.inf).sort(2).values[..., : size - 1]
        towards = _between(s, table.shape[1]).mean(1)
        found = classes[chosen]
        moved = ((1 - momentum) * table[found] + momentum * towards).to(table.dtype)
        # One batch with a NaN would leave its classes without scores for good.
        sound = moved.isfinite().all(1, keepdim=True)
        table[found] = torch.where(sound, moved, table[found])


def _between(s: Tensor, places: int) -> Tensor:
    """[..., places] means of the two neighbours' lines through sorted scores s [..., P]."""
    count = s.shape[-1]
    first, final = s[..., :1], s[..., -1:]
    if count > 1:
        first = (2 * first - s[..., 1:2]).clamp(min=-1)
        final = (2 * final - s[..., -2:-1]).clamp(max=1)
    s = torch.cat([first, s, final], dim=-1)
    step = -(-places // count)
    at = torch.arange(places, device=s.device)
    rank, part = at // step, (at % step).to(s.dtype) / step
    below, here, above = s[..., rank], s[..., rank + 1], s[..., rank + 2]
    return (below + part * (here - below) + here + part * (above - here)) / 2


_library.impl("soprc_table_", _update, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::soprc_table_", lambda *_: None, lib=_library)


class SOPRCLoss(SampleLoss):
    """SOPRC loss: area under the precision-recall curve, with a table of scores for each class.

    *Exploring the Algorithm-Dependent Generalization of AUPRC Optimization with List Stability*, Wen et
    al., NeurIPS 2022 (arXiv 2209.13262), as released, on cosine similarities s. For a query and its
    positive k, a_k is the mean over negatives of the Huber surrogate l1(s_k - s_j), b_k the share of
    the class's table above s_k (a constant for the gradient), and the loss the mean of r_k / (1 + r_k)
    with r_k = (1 - prior) / prior * a_k / b_k. In training mode every call first moves the tables of
    the batch's classes towards the scores of their positives; a call that activation checkpointing
    computes again in the backward pass does not.

    Args:
        num_classes: C; labels are 0 ... C - 1. State: `table` [C, table_size], `prior` [C].
        class_counts: [C] images of each class in the data, or None for classes of equal sizes. The
            prior is prior_mul * count / largest count.
        prior_mul: in (0, 1]; released: 0.01 for SOP, 0.1 for others.
        tau1, tau2: > 0, widths of the surrogates of negatives and of the table's scores.
        table_size: V, 1 to 256.
        momentum: in [0, 1], share of a batch in its classes' tables; released: 0.1, iNaturalist 0.001.
        update: "last": the last query of a class in the batch speaks for it (the released code on the
            CPU); "mean": all its queries do.
        semi_variance_weight: of `SemiVarianceLoss`, which is added; released: 5 or 1.
        sort: whether a row of similarities is sorted once, so that only the negatives within tau1 of a
            positive, on the bend of the surrogate, are evaluated one by one: None where a class is large
            enough for that to pay, on CUDA for more than 256 candidates of one class; True always, False
            never. The result is the same to rounding.

    Classes may have any sizes: queries without a positive are left out, those without a negative have
    a loss of 0. Other arguments: see `SampleLoss`.
    """

    function = "soprc"
    similarities = PRODUCTS
    mean_over = "queries with a positive"
    constants = ("prior", "table")
    inputs = {
        "prior": ("class_counts", "prior_mul"),
        "table": ("num_classes", "momentum", "update"),
    }
    input_defaults = {"prior": 0.1}

    table: Tensor
    prior: Tensor

    def __init__(
        self,
        num_classes: int,
        class_counts: Tensor | None = None,
        prior_mul: float = 0.1,
        tau1: float = 0.1,
        tau2: float = 0.001,
        table_size: int = 100,
        momentum: float = 0.1,
        update: str = "last",
        semi_variance_weight: float = 0.0,
        sort: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = check.count(num_classes, "num_classes")
        check.part(prior_mul, "prior_mul")
        check.fraction(momentum, "momentum")
        check.one_of(update, "update", ("last", "mean"))
        counts = torch.ones(self.num_classes, dtype=torch.float64)
        if class_counts is not None:
            counts = check.numbers(class_counts, "class_counts", self.num_classes)
        self.tau1 = tau1
        self.tau2 = tau2
        self.table_size = table_size
        self.momentum = momentum
        self.update = update
        self.sort = sort
        self.semi_variance_weight = check.non_negative(semi_variance_weight, "semi_variance_weight")
        self.description()  # checks the parameters
        untouched = self.untouched()
        table = untouched.to(torch.get_default_dtype()).repeat(self.num_classes, 1)
        self.register_buffer("table", table)
        self.starts("table", untouched)
        self.register_buffer("prior", prior_mul * counts / counts.max())

    def description(self) -> SOPRC:
        return SOPRC(
            self.tau1, self.tau2, self.table_size, similarity=self.similarity, sort=self.sort
        )

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
        prior: Tensor | float | None = None,
        table: Tensor | None = None,
    ) -> list[Any]:
        if labels is None:
            raise ValueError("labels: expected one label per row of embeddings, got None")
        if prior is None and table is None:
            self._follow(embeddings, labels)
        description, batch = self.resolved(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, own=own
        )
        labels = batch.need_labels()
        odds = self._odds(embeddings, labels, self.prior if prior is None else prior)
        if table is None and prior is None:
            table = self.table
        elif table is not None:
            self._expect_size(table)
        scores = self._scores(embeddings, labels, table)
        description = dataclasses.replace(description, table=scores.shape[1])
        values = torch.cat([((1 - odds) / odds)[:, None], scores], dim=1)
        parts: list[Any] = [self.sample_call(description, batch, row_values=values)]
        if self.semi_variance_weight:
            # Over the same pairs, and one number however the rows are reduced.
            other = SemiVarianceLoss(similarity=self.similarity, backend=self.backend)
            call = other.sample_call(other.description(), batch)
            parts.append(call.replace(weight=self.semi_variance_weight))
        return parts

    def untouched(self, device: torch.device | None = None) -> Tensor:
        """[V] scores of a class that was in no batch."""
        places = torch.arange(self.table_size, dtype=torch.float64, device=device)
        return places / self.table_size

    def _expect_size(self, table: Tensor) -> None:
        """A size beside a table would be passed over, unless it is the default."""
        if table.dim() == 2 and self.table_size not in (SOPRC.table, table.shape[1]):
            raise ValueError(
                f"table_size: expected {table.shape[1]}, the scores of table, or none, got {self.table_size}"
            )

    def _follow(self, embeddings: Tensor, labels: Tensor) -> None:
        """In training mode, moves the tables of the batch's classes towards its scores."""
        check.embeddings(embeddings, "embeddings", self.validate)
        labels = check.labels(
            labels, embeddings.shape[0], embeddings.device, "labels", "embeddings"
        )
        classes = self.table.shape[0]
        check.class_range(labels, classes, "labels", self.validate, "one table per class")
        if self.training and not recomputing():
            torch.ops.fastdml.soprc_table_(
                self.table, embeddings.detach(), labels, self.momentum, self.update == "last"
            )

    def _odds(self, embeddings: Tensor, labels: Tensor, prior: Tensor | float) -> Tensor:
        """[B] prior of every row's class."""
        kind = statistic_type(embeddings)
        if not isinstance(prior, Tensor):
            prior = check.part(prior, "prior")
            return torch.full(labels.shape, prior, dtype=kind, device=embeddings.device)
        odds = prior.detach().to(embeddings.device, kind)
        if odds.dim() > 1:
            raise ValueError(
                f"prior: expected a number or shape [classes], got {tuple(prior.shape)}"
            )
        if odds.dim() == 0:
            return odds.expand(labels.shape[0])
        check.class_range(labels, odds.shape[0], "labels", self.validate, "one prior per class")
        return odds[labels]

    def _scores(self, embeddings: Tensor, labels: Tensor, table: Tensor | None) -> Tensor:
        """[B, V] table of every row's class; None: the initial one."""
        if table is None:
            initial = self.untouched(embeddings.device).to(statistic_type(embeddings))
            return initial.expand(labels.shape[0], -1)
        if table.dim() != 2:
            raise ValueError(f"table: expected shape [classes, scores], got {tuple(table.shape)}")
        check.class_range(labels, table.shape[0], "labels", self.validate, "one table per class")
        kind = statistic_type(embeddings)
        scores = table.detach().to(embeddings.device)[labels]
        if table is self.table and kind == torch.float64 and scores.dtype != kind:
            return unrounded(scores, self.untouched(scores.device), scores.dtype)
        return scores.to(kind)
