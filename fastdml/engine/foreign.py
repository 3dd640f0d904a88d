"""Objects of pytorch-metric-learning in arguments of losses: what they mean in our words."""

from __future__ import annotations

from collections.abc import Mapping

from .similarity import SIMILARITIES

# Euclidean distances, by whether embeddings are normalised and by their power.
_LP = {
    (True, 1): "distance",
    (True, 2): "squared_distance",
    (False, 1): "raw_distance",
    (False, 2): "raw_squared_distance",
}
# Reducers by the names of their classes, for losses whose elements are rows there as here.
REDUCERS = {
    "MeanReducer": "mean",
    "SumReducer": "sum",
    "AvgNonZeroReducer": "nonzero",
    "DoNothingReducer": "none",
}


def similarity_of(distance: object, loss: str) -> str:
    """The similarity of a distance object, told by its class's name and its attributes.

    loss: whose argument it is, for the message.

    Raises:
        ValueError: naming the loss, where there is none.
    """
    if isinstance(distance, str) and distance in SIMILARITIES:
        return distance
    kind = type(distance).__name__
    normalised = bool(getattr(distance, "normalize_embeddings", True))
    p, power = getattr(distance, "p", 2), getattr(distance, "power", 1)
    found = None
    if kind in ("CosineSimilarity", "DotProductSimilarity"):
        found = "cosine" if normalised else "dot"
    elif kind == "LpDistance" and p == 2:
        found = _LP.get((normalised, power))
    if found is not None:
        return found
    raise ValueError(
        f"distance: {loss} has no form for {distance!r}; expected CosineSimilarity, DotProductSimilarity "
        "or LpDistance with p=2 and power 1 or 2, or use similarity= with a name (fastdml.losses.base.Loss); "
        "signal-to-noise distances have losses of their own"
    )


def reduction_of(
    reducer: object, loss: str, known: tuple[str, ...], reducers: Mapping[str, str]
) -> str:
    """The reduction of a reducer object, by the name of its class in `reducers`; ValueError naming the loss,
    where there is none among those that it knows."""
    found = reducer if isinstance(reducer, str) else reducers.get(type(reducer).__name__)
    if found in known:
        return found
    taken = sorted(name for name, kind in reducers.items() if kind in known)
    raise ValueError(
        f"reducer: {loss} has no form for {reducer!r}; expected one of {taken}, or use reduction= with one "
        f"of {known}, whose elements may be others (docs/reductions.md)"
    )
