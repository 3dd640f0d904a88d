"""The row language: a loss written once, as a function of one row. See docs/language.md.

from fastdml.language import log_sum_exp

def multi_similarity(p, alpha, beta, base):
    pull = log_sum_exp(-alpha * (p.s - base), where=p.positive, one=True)
    push = log_sum_exp(beta * (p.s - base), where=p.negative, one=True)
    return pull / alpha + push / beta
"""

from . import words
from .graph import NotInLanguage
from .row import Row, trace
from .words import *  # noqa: F403

__all__ = ["NotInLanguage", "Row", "trace", *words.__all__]
