"""One problem to measure: a loss, sizes, types, and the data made from them."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

Option = float | str | bool


@dataclasses.dataclass(frozen=True)
class Inputs:
    """embeddings [B, D] (a leaf), labels [B]; ref [N, D], ref_labels [N] or None; teacher [B, D]."""

    embeddings: Tensor
    labels: Tensor
    ref: Tensor | None
    ref_labels: Tensor | None
    teacher: Tensor


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes and settings of one measurement.

    loss: registered name. options: arguments of the loss. batch: B. candidates: N rows of
    `ref_emb` without gradient, or None for the batch itself. classes: proxies of proxy losses.
    spread: distance of the embeddings from their class centre, in units of the centre's length;
    infinite: random.
    """

    loss: str
    batch: int
    dim: int = 128
    per_class: int = 4
    candidates: int | None = None
    classes: int = 1000
    dtype: str = "float32"
    device: str = "cpu"
    spread: float = 2.0
    seed: int = 0
    options: tuple[tuple[str, Option], ...] = ()

    @property
    def title(self) -> str:
        """The loss and its options, as --loss takes them."""
        if not self.options:
            return self.loss
        return self.loss + ":" + ",".join(f"{k}={v}" for k, v in self.options)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def small(self) -> Workload:
        """The same kind of problem in small, to load code and start threads with."""
        limit = 16 * self.per_class
        return dataclasses.replace(
            self,
            batch=min(self.batch, limit),
            candidates=None if self.candidates is None else min(self.candidates, limit),
            classes=min(self.classes, 64),
        )

    def inputs(
        self, dtype: torch.dtype | None = None, paired: bool = False, proxies: bool = False
    ) -> Inputs:
        """The data: always the same for the same workload.

        paired: row i of the embeddings belongs to row i of a second set, which then wants a gradient.
        proxies: labels are in [0, classes), so a large batch has more of a class than per_class.
        """
        generator = torch.Generator().manual_seed(self.seed)
        kind = dtype or self.torch_dtype
        per_class = 1 if paired else self.per_class
        candidates = self.batch if paired else self.candidates
        groups = math.ceil(max(self.batch, candidates or 0) / per_class)
        if proxies:
            groups = min(groups, self.classes)
        centres = torch.randn(groups, self.dim, generator=generator)
        names = torch.randperm(self.classes if proxies else groups, generator=generator)[:groups]

        def draw(count: int) -> tuple[Tensor, Tensor]:
            # Classes in runs, as a class-balanced sampler gives them.
            group = torch.arange(count) // per_class % groups
            noise = torch.randn(count, self.dim, generator=generator)
            x = noise if math.isinf(self.spread) else centres[group] + self.spread * noise
            # Rounded to the type that is measured, so that the reference sees the same numbers.
            x = x.to(self.torch_dtype).to(kind)
            return x.to(self.device), names[group].to(self.device)

        x, y = draw(self.batch)
        ref, ref_y = (None, None) if candidates is None else draw(candidates)
        if ref is not None and paired:
            ref.requires_grad_()
        return Inputs(x.requires_grad_(), y, ref, ref_y, draw(self.batch)[0])


def parse_loss(text: str) -> tuple[str, tuple[tuple[str, Option], ...]]:
    """'multi_similarity:epsilon=0.1' as a name and options.

    Raises:
        ValueError: for a part that is not name=value.
    """
    name, _, rest = text.partition(":")
    options = []
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise ValueError(f"--loss: expected NAME:KEY=VALUE,..., got {part!r} in {text!r}")
        options.append((key, _value(value)))
    return name, tuple(options)


def _value(text: str) -> Option:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text
