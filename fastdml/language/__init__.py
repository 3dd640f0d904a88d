"""The row language: a loss written once, as a function of one row. See docs/language.md.

from fastdml.language import log_sum_exp

def multi_similarity(p, alpha, beta, base):
    pull = log_sum_exp(-alpha * (p.s - base), where=p.positive, one=True)
    push = log_sum_exp(beta * (p.s - base), where=p.negative, one=True)
    return pull / alpha + push / beta
"""

from .graph import NotInLanguage
from .row import Row, trace
from .words import (
    absolute,
    amax,
    amin,
    apart,
    cos,
    count,
    detach,
    equal,
    exp,
    log,
    log_sum_exp,
    lowest,
    maximum,
    mean,
    minimum,
    relu,
    rounding,
    share,
    sigmoid,
    sin,
    softplus,
    sqrt,
    square,
    sum,
    where,
)

__all__ = [
    "NotInLanguage", "Row", "absolute", "amax", "amin", "apart", "cos", "count", "detach", "equal", "exp",
    "log", "log_sum_exp", "lowest", "maximum", "mean", "minimum", "relu", "rounding", "share", "sigmoid",
    "sin", "softplus", "sqrt", "square", "sum", "trace", "where",
]  # fmt: skip
