"""Why an entry stays low on the icons however long it trains: by its definition, or as a trial has shown.

Trials were on the validation classes, 320 steps, with one thing changed; figures are MAP@R in percent.
"""

from __future__ import annotations

_BESIDE = "a regulariser, which its paper puts beside another loss: it says little of which pairs are near"
_MARGIN = "its margin multiplies angles from the first step on; blending it in is left to callers"
_FEW = "few dimensions will do (cosines of negatives are spread as in 5)"
_ALIKE = (
    "rows have length 1 here and it has no temperature: all negatives weigh nearly alike, and "
    + _FEW
    + ". With rows of length {}, MAP@R of the validation classes goes from {} to {}"
)

WHY: dict[str, str] = {
    "balanced_contrastive": (
        "the mean of its negatives is over all of them, few of which are within the margin. With "
        '`neg_aggregation="active"` and `pos_aggregation="active"` MAP@R of the validation classes goes from '
        "66 to 70"
    ),
    "calibration": "a term of ROADMAP (above), whose ranks do the rest",
    "contrastive_bayesian": (
        "its variance term, a sum over negatives, holds all cosines together (0.90 with a spread of 0.02). "
        "With a weight of 0 for it MAP@R of the validation classes goes from 30 to 77"
    ),
    "dark_rank": "it learns a teacher's order of a batch alone, and no labels",
    "dynamic_soft_margin": (
        f"its weights are shares between 0 and 1: nearly all triplets weigh alike, and {_FEW}"
    ),
    "generalized_lifted_structure": _ALIKE.format(10, 61, 81),
    "intra_pair_variance": _BESIDE,
    "large_margin_softmax": _MARGIN,
    "lifted_structure": _ALIKE.format(10, 63, 81),
    "n_pairs": _ALIKE.format("the root of 10", 55, 70),
    "p2_s_grad": (
        "the mean of squares over all classes is least, at first, where every cosine is 0; leaving that takes"
        " most of the steps"
    ),
    "pce": (
        "it has no least value while the classifier's probabilities are constants: rows all alike, and ever "
        "longer, lower it without end"
    ),
    "semi_variance": _BESIDE,
    "spce": (
        "its pull is a sum over positives divided by the square of the batch, a 32nd of the push for 4 of"
        " 128: rows shrink to length 1, where the value is nearly that of zeros (4.93, log 128 is 4.85)"
    ),
    "sphere_face": _MARGIN,
    "threshold_consistent_margin": _BESIDE,
}
