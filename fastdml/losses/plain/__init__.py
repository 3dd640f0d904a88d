"""Losses of plain torch: no sum over rows of a matrix of similarities."""
