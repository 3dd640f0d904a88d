"""The options that every loss has."""

from __future__ import annotations

from ..engine import check
from ..engine.dispatch import check_backend


def check_options(reduction: str, backend: str, similarity: str | None = None) -> None:
    """ValueError naming the option unless these are known; similarity: where a loss has one."""
    check.reduction(reduction)
    if similarity is not None:
        check.similarity(similarity)
    check_backend(backend)
