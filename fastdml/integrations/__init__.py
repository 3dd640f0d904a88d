"""Trained embedders outside of their training script. Needs ``pip install fastdml[embed]``.

The modules that are named after other libraries are for their trainers, and imported by their names alone
(docs/integrations.md).
"""

from .export import load_embedder, save_embedder

__all__ = ["load_embedder", "save_embedder"]
