"""Relations of samples that a loss takes in the place of labels (docs/labels.md)."""

from .mining.label_sets import LabelSets

__all__ = ["LabelSets"]
