"""Contrastive loss on signal-to-noise distances."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine.call import Call
from ...engine.distances import inverse_power, signal
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...engine.similarity import power_of_two, wide_type
from ...mining.batch import Batch
from .contrastive import Contrastive, TwoSums

__all__ = ["SignalToNoiseRatioContrastiveLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SignalToNoise(Contrastive):
    """Squared distances of centred embeddings, over the anchor's power."""

    name = "signal_to_noise_contrastive"
    provenance = "pytorch-metric-learning"

    relative: bool = True
    similarity: str = dataclasses.field(default="raw_squared_distance", kw_only=True)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls()]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"row_values": torch.linspace(0.3, 0.05, rows)[:, None]}


class SignalToNoiseRatioContrastiveLoss(TwoSums):
    """Contrastive loss on signal-to-noise distances.

    *Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning*, Yuan et al., CVPR 2019
    (arXiv 1904.02616), equation 6: d(a, b) = var(a - b) / var(a), variances over the dimensions, in
    [d - pos_margin]_+ over positives plus [neg_margin - d]_+ over negatives. Not symmetric: a is the
    anchor. A constant embedding has no signal: its distances as an anchor count as 0.

    Args:
        pos_margin, neg_margin: in units of d.
        similarity: "cosine" (the default) normalises embeddings first, as pytorch-metric-learning does;
            "dot" takes them as they are, as the paper does.
        reduction: "nonzero" (the default) divides each sum by its number of terms above 0, "mean" by
            its number of pairs; "sum" does not divide.

    Centred copies of the embeddings are made. Other arguments: see `SampleLoss`.
    """

    similarities = ("cosine", "dot")
    distances = {"snr_distance": "cosine", "raw_snr_distance": "dot"}
    function = "signal_to_noise_contrastive"

    def description(self) -> Contrastive:
        return self.described(SignalToNoise)

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        normalize = self.similarity == "cosine"
        x, some = signal(_wide(batch.embeddings), normalize)
        ref = None if batch.ref_emb is None else signal(_wide(batch.ref_emb), normalize)[0]
        if not normalize:
            x, ref = _in_common_range(x, ref)
        # var(a - b) / var(a) = |a - b|^2 / |a|^2 of centred rows.
        unit = inverse_power(x, some)
        batch = batch.replace(embeddings=x, ref_emb=ref)
        return super().sample_call(description, batch, row_values=unit, **fields)


def _in_common_range(x: Tensor, ref: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both sets over one power of two, which ratios of squares do not see: squares of long rows overflow,
    those of short ones vanish."""
    both = [v for v in (x, ref) if v is not None and v.shape[0]]
    if not both:
        return x, ref
    largest = torch.stack([v.detach().abs().amax() for v in both]).amax()
    factor = power_of_two(-torch.frexp(largest).exponent.clamp(-120, 120), x.dtype)
    return x * factor, None if ref is None else ref * factor


def _wide(x: Tensor) -> Tensor:
    return x.to(wide_type(x))
