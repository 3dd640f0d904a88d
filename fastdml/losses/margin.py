"""Margin loss, over all triplets or with negatives drawn by distance."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.loss import RowLoss, Rows
from ..engine.mining import distance_log_weight, draw, poison
from ..engine.registry import register
from .base import SampleLoss, sample_loss
from .terms import masked_sum

__all__ = ["MarginLoss", "margin"]

_NORMALIZERS = {"pairs": 0, "triplets": 1}
_TRIPLETS = ("all", "distance_weighted")


@register
@dataclasses.dataclass(frozen=True)
class Margin(RowLoss):
    """SPEC 2.14. row_values: beta of the row; then, for draws, its number and its stream's two numbers."""

    name = "margin"
    provenance = "released code"
    outputs = 2
    counted = True

    margin: float = 0.2
    nu: float = 0.0
    normalizer: str = "pairs"
    drawn: bool = False
    dimension: int = 128
    cutoff: float = 0.5
    nonzero_loss_cutoff: float = 1.4
    epsilon: float = 0.0
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")
        check.finite(self.nu, "nu")
        check.positive(self.cutoff, "cutoff")
        check.positive(self.nonzero_loss_cutoff, "nonzero_loss_cutoff")
        check.non_negative(self.epsilon, "epsilon")
        if self.normalizer not in _NORMALIZERS:
            raise ValueError(
                f"normalizer: expected one of {sorted(_NORMALIZERS)}, got {self.normalizer!r}"
            )

    @property
    def detaches(self) -> bool:  # type: ignore[override]
        return self.drawn  # which pairs are drawn is a step function of the distances

    def parameters(self) -> tuple[float, ...]:
        return (
            self.margin,
            self.nu,
            float(_NORMALIZERS[self.normalizer]),
            float(self.drawn),
            float(self.dimension),
            self.cutoff,
            self.nonzero_loss_cutoff,
        )

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.1, 0.3, "triplets")]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"row_values": torch.linspace(0.9, 1.4, rows)[:, None]}

    def distance_epsilon(self, dimension: int) -> float:
        return self.epsilon

    def spec(self, rows: Rows) -> Tensor:
        assert rows.row_values is not None
        beta = rows.row_values[:, 0]
        return self._drawn(rows, beta) if self.drawn else self._all(rows, beta)

    def _all(self, rows: Rows, beta: Tensor) -> Tensor:
        pull = rows.s - beta[:, None] + self.margin
        push = beta[:, None] - rows.s + self.margin
        kind = rows.s.dtype
        own, others = rows.positive.sum(1).to(kind), rows.negative.sum(1).to(kind)
        near = ((pull > 0) & rows.positive).sum(1).to(kind)
        far = ((push > 0) & rows.negative).sum(1).to(kind)
        loss = others * masked_sum(pull.relu(), rows.positive)
        loss = loss + own * masked_sum(push.relu(), rows.negative) + self.nu * beta * own * others
        if self.normalizer == "triplets":
            count = own * others - (own - near) * (others - far)
        else:
            count = others * near + own * far
        return torch.stack([loss, count], dim=1)

    def _drawn(self, rows: Rows, beta: Tensor) -> Tensor:
        assert rows.row_values is not None
        longest = int(rows.positive.sum(1).max()) if rows.positive.numel() else 0
        index = torch.arange(rows.s.shape[1], device=rows.s.device).expand_as(rows.s)
        index = index.masked_fill(~rows.positive, rows.s.shape[1]).sort(1).values[:, :longest]
        valid = index < rows.s.shape[1]
        d = rows.s.detach()
        eligible = rows.negative & (d < self.nonzero_loss_cutoff)
        weight = distance_log_weight(d, self.dimension, self.cutoff)
        drawn, some = draw(weight, eligible, longest, rows.row_values[:, 1:4].detach())
        valid = valid & some[:, None]
        pull = rows.s.gather(1, index.clamp(max=rows.s.shape[1] - 1)) - beta[:, None] + self.margin
        push = beta[:, None] - rows.s.gather(1, drawn) + self.margin
        near, far = valid & (pull > 0), valid & (push > 0)
        loss = (
            masked_sum(pull, near)
            + masked_sum(push, far)
            + self.nu * beta * valid.sum(1)
            + poison(d)
        )
        count = (near | far).sum(1) if self.normalizer == "triplets" else near.sum(1) + far.sum(1)
        return torch.stack([loss, count.to(loss.dtype)], dim=1)


def margin(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    nu: float = 0,
    beta: Tensor | float = 1.2,
    triplets_per_anchor: str = "all",
    normalizer: str = "pairs",
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    epsilon: float = 0.0,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    similarity: str = "distance",
    **options: Any,
) -> Tensor:
    """Margin loss as a function; see `MarginLoss`.

    beta: a number, or a tensor of one or [C] elements, which may want a gradient; with [C], labels are
    0 ... C - 1. seed, step: below 2^24, the stream of draws. options: see `sample_loss`.
    """
    if triplets_per_anchor not in _TRIPLETS:
        raise ValueError(
            f"triplets_per_anchor: expected one of {_TRIPLETS}, got {triplets_per_anchor!r}"
        )
    check.embeddings(embeddings, "embeddings")
    drawn = triplets_per_anchor == "distance_weighted"
    if "distance" not in similarity or (drawn and similarity != "distance"):
        kinds = "'distance' with draws" if drawn else "a kind of distance"
        raise ValueError(f"similarity: expected {kinds}, got {similarity!r}")
    kind = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    rows = embeddings.shape[0]
    values = torch.as_tensor(beta, dtype=kind, device=embeddings.device).reshape(-1)
    if values.shape[0] == 1:
        values = values.expand(rows)
    else:
        if labels is None:
            raise ValueError("labels: expected labels with a beta for every class, got None")
        values = values[labels]
    values = values[:, None]
    if drawn:
        number = torch.arange(rows, dtype=kind, device=embeddings.device)
        stream = [torch.as_tensor(v, dtype=kind, device=embeddings.device) for v in (seed, step)]
        parts = [values, number[:, None], *(v.reshape(1, 1).expand(rows, 1) for v in stream)]
        values = torch.cat(parts, dim=1)
    description = Margin(
        margin,
        nu,
        normalizer,
        drawn,
        embeddings.shape[1],
        cutoff,
        nonzero_loss_cutoff,
        epsilon,
        similarity=similarity,
    )
    return sample_loss(
        description,
        embeddings,
        labels,
        indices_tuple,
        ref_emb,
        ref_labels,
        row_values=values,
        **options,
    )


class MarginLoss(SampleLoss):
    """Margin loss.

    *Sampling Matters in Deep Embedding Learning*, Wu et al., ICCV 2017 (arXiv 1706.07567), equations 3
    and 4, on Euclidean distances d of normalised embeddings, over triplets of an anchor a, a positive p
    and a negative n:

        [d_ap - beta + margin]_+ + [beta - d_an + margin]_+

    divided by the number of active pairs of all triplets.

    Args:
        margin: half the width of the band around beta. nu: weight of beta itself.
        beta: the boundary's initial value. learn_beta: whether it is learnt, as the parameter `beta`.
        num_classes: None: one beta; otherwise one for each class 0 ... num_classes - 1, of the anchor.
        triplets_per_anchor: "all", or "distance_weighted": for every positive one negative is drawn,
            with probabilities inverse to the density of distances on the sphere, inside the pass over
            the row. An anchor without an admissible negative has no triplet then.
        normalizer: "pairs" (above; the released code), or "triplets" with at least one active pair.
        cutoff: distances below count as this one. nonzero_loss_cutoff: negatives farther are not drawn.
        epsilon: added to squared distances under the root (1e-8 in the released code).
        seed: of the draws, an integer in [0, 2^24). In training mode every call takes the next numbers
            (`step`, in the state); the same state gives the same draws on every device.

    With reduction="sum" nothing is divided; "none" returns the sum of each row's triplets. Other
    arguments: see `SampleLoss`.
    """

    default_similarity = "distance"
    step: Tensor

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0,
        beta: float = 1.2,
        triplets_per_anchor: str = "all",
        learn_beta: bool = False,
        num_classes: int | None = None,
        *,
        normalizer: str = "pairs",
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        epsilon: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.nu = nu
        self.learn_beta = learn_beta
        self.triplets_per_anchor = triplets_per_anchor
        self.normalizer = normalizer
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff
        self.epsilon = epsilon
        if not 0 <= seed < 1 << 24:
            raise ValueError(f"seed: expected an integer in [0, 2^24), got {seed}")
        self.seed = seed
        initial = torch.full((num_classes or 1,), check.finite(beta, "beta"))
        if learn_beta:
            self.beta = nn.Parameter(initial)
        else:
            self.register_buffer("beta", initial)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.description()  # checks the parameters

    def description(self) -> Margin:
        return Margin(
            self.margin,
            self.nu if self.learn_beta else 0.0,
            self.normalizer,
            epsilon=self.epsilon,
            cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
            similarity=self.similarity,
        )

    def losses(self, *batch: Any) -> Tensor:
        step = self.step % (1 << 24)
        if self.training and self.triplets_per_anchor != "all":
            step = step.clone()
            self.step += 1
        return margin(
            *batch,
            margin=self.margin,
            nu=self.nu if self.learn_beta else 0.0,
            beta=self.beta,
            triplets_per_anchor=self.triplets_per_anchor,
            normalizer=self.normalizer,
            cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
            epsilon=self.epsilon,
            seed=self.seed,
            step=step,
            **self.options(),
        )
