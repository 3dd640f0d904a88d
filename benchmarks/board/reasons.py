"""Why an entry stays low on the icons however long it trains: its definition, and trials of one change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastdml.metrics import map_at_r

from .plan import Plan

_BESIDE = "a regulariser, which its paper puts beside another loss: it says little of which pairs are near"
_MARGIN = "its margin multiplies angles from the first step on; blending it in is left to callers"
_ALIKE = (
    "rows have length 1 here and it has no temperature: all negatives weigh nearly alike, which few "
    "dimensions satisfy"
)

WHY: dict[str, str] = {
    "balanced_contrastive": "its mean over negatives is over all of them, few of which are within the margin",
    "calibration": "a term of ROADMAP (above), whose ranks do the rest",
    "contrastive_bayesian": "its variance term, a sum over negatives, holds all cosines together",
    "dark_rank": "it learns a teacher's order of a batch alone, and no labels",
    "dynamic_soft_margin": (
        "its weights are shares between 0 and 1: nearly all triplets weigh alike, which few dimensions "
        "satisfy"
    ),
    "generalized_lifted_structure": _ALIKE,
    "intra_pair_variance": _BESIDE,
    "large_margin_softmax": _MARGIN,
    "lifted_structure": _ALIKE,
    "n_pairs": _ALIKE,
    "p2_s_grad": (
        "the mean of squares over all classes is least, at first, where every cosine is 0: where the rate "
        "moves the network it goes there, and needs more than the budget to come back"
    ),
    "pce": (
        "it has no least value while the classifier's probabilities are constants: rows all alike, and ever "
        "longer, lower it without end"
    ),
    "semi_variance": _BESIDE,
    "spce": (
        "its pull is a sum over positives divided by the square of the batch, a 32nd of the push for 4 of "
        "128: rows shrink to where products are nearly 0, and the value nearly that of zeros"
    ),
    "sphere_face": _MARGIN,
    "threshold_consistent_margin": _BESIDE,
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One thing that is changed in a plan, in words and as it is done."""

    words: str
    change: Callable[[Plan], None]


def _with(**arguments: Any) -> Trial:
    def change(plan: Plan) -> None:
        for name, value in arguments.items():
            assert hasattr(plan.loss, name), name
            setattr(plan.loss, name, value)

    return Trial(", ".join(f"`{k}={v!r}`" for k, v in arguments.items()), change)


def _of_length(length: float, similarity: str) -> Trial:
    """A temperature, for losses that have none."""

    def change(plan: Plan) -> None:
        plain = plan.outputs

        def longer(images: Tensor) -> tuple[Tensor, ...]:
            return tuple(length * normalize(x, dim=1) for x in plain(images))

        plan.outputs = longer  # type: ignore[method-assign]
        plan.loss.similarity = similarity

    return Trial(f"rows of length {length:.3g}", change)


TRIALS: dict[str, Trial] = {
    "balanced_contrastive": _with(pos_aggregation="active", neg_aggregation="active"),
    "contrastive_bayesian": _with(variance_weight=0.0),
    "generalized_lifted_structure": _of_length(10.0, "raw_distance"),
    "lifted_structure": _of_length(10.0, "raw_distance"),
    "n_pairs": _of_length(10**0.5, "dot"),
}


def tried(plan: Plan) -> dict[str, float]:
    """Of the validation classes: MAP@R, mean and spread of cosines of negatives."""
    images = plan.task.val
    x = plan.embed(images.pixels)
    unit = normalize(x, dim=1)
    cosines = (unit @ unit.T)[images.labels[:, None] != images.labels]
    std, mean = torch.std_mean(cosines)
    return {"map@r": map_at_r(x, images.labels), "cosine": float(mean), "spread": float(std)}


def told(entry: str, trials: list[dict[str, Any]]) -> str:
    """The reason, and what was seen when it was taken away."""
    why = WHY.get(entry, "not known")
    own = {r["changed"]: r for r in trials if r["entry"] == entry and "error" not in r}
    if len(own) < 2:
        return why
    parts = [f"{own[k]['cosine']:.2f} ± {own[k]['spread']:.2f}" for k in (False, True)]
    scores = [f"{100 * own[k]['map@r']:.0f}" for k in (False, True)]
    return (
        f"{why}. With {TRIALS[entry].words}, MAP@R of the validation classes goes from {scores[0]} to "
        f"{scores[1]}, cosines of their negatives from {parts[0]} to {parts[1]}"
    )
