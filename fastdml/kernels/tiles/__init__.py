"""Losses whose tile functions are written by hand: one file each. Those of losses in the row language are
printed.

A file has `tile(loss) -> TileLoss` and `parameters(loss) -> tuple of floats` for a description with
the attributes that the loss's own file names; log2(e) is folded in here.
"""
