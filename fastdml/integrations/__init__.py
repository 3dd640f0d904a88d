"""Trained embedders outside of their training script. Needs ``pip install fastdml[embed]``."""

from .export import load_embedder, save_embedder

__all__ = ["load_embedder", "save_embedder"]
