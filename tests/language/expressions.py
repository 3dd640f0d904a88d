"""Random functions of the row language: trees of words, evaluated on tensors or traced."""

import random

from hypothesis import strategies as st

from fastdml import language as L

# Pointwise words kept where they are smooth enough to be compared to 1e-11.
ONE = {
    "neg": lambda x: -x,
    "square": lambda x: L.square(x) / 4,
    "exp": lambda x: L.exp(L.minimum(x, 1.5)),
    "log": lambda x: L.log(1 + x * x),
    "sqrt": lambda x: L.sqrt(0.5 + x * x),
    "abs": lambda x: L.absolute(x - 0.123),
    "softplus": lambda x: L.softplus(3 * x),
    "sigmoid": lambda x: L.sigmoid(2 * x),
    "relu": lambda x: L.relu(x - 0.0771),
    "detach": L.detach,
}
TWO = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b / 2,
    "div": lambda a, b: a / (1 + b * b),
    # Offsets: constants that are equal but for rounding would decide differently.
    "max": lambda a, b: L.maximum(a, b + 0.0119),
    "min": lambda a, b: L.minimum(a, b - 0.0131),
    "where": lambda a, b: L.where(a < b + 0.0137, a * 1.5, b),
}
PAIR_LEAVES = ("s", "teacher", "column", "row_value", "scalar", "alpha", "constant")
ROW_LEAVES = ("row_value", "scalar", "alpha", "constant")
REDUCE = {
    "sum": lambda x, m: L.sum(x, where=m) / 5,
    "mean": lambda x, m: L.mean(x, where=m),
    "max": lambda x, m: L.where(L.count(where=m) > 0, L.amax(x, where=m), 0.25),
    "min": lambda x, m: L.where(L.count(where=m) > 0, L.amin(x, where=m), 0.25),
    "lse": lambda x, m: L.where(L.count(where=m) > 0, L.log_sum_exp(2 * x, where=m), -1.0),
    "lse1": lambda x, m: L.log_sum_exp(x, where=m, one=True),
    "count": lambda x, m: L.count(where=m & (x < 0.3017)) / 7,
}
MASKS = ("positive", "negative", "pair")


class _Trees:
    """Draws trees. (Recursive strategies of hypothesis take ten times as long as the tests themselves.)"""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def some(self, names):
        return self.random.choice(sorted(names))

    def pair(self, size, depth):
        kind = self.random.random()
        if size <= 1 or kind < 0.15:
            if kind > 0.6 and depth > 0:
                return self.row(depth - 1)
            return ("leaf", self.some(PAIR_LEAVES if kind < 0.9 else ("s",)))
        if kind < 0.55:
            return ("one", self.some(ONE), self.pair(size - 1, depth))
        left = self.random.randint(1, size - 1)
        return ("two", self.some(TWO), self.pair(left, depth), self.pair(size - left, depth))

    def mask(self, depth):
        kind = ("kind", self.some(MASKS))
        if self.random.random() < 0.5:
            return kind
        return ("below", kind, self.pair(2, depth), self.row(depth), self.random.random() < 0.5)

    def row(self, depth):
        if depth == 0:
            return ("leaf", self.some(ROW_LEAVES))
        reduced = ("reduce", self.some(REDUCE), self.pair(4, depth - 1), self.mask(depth - 1))
        kind = self.random.random()
        if kind < 0.4:
            return reduced
        if kind < 0.7:
            return ("one", self.some(ONE), reduced)
        return ("two", self.some(TWO), reduced, self.row(depth - 1))


def tree(seed):
    return _Trees(seed).row(3)


functions = st.integers(0, 2**32 - 1).map(tree)


def run(tree, p, alpha):
    """The tree's value on a row p, of tensors or traced."""
    kind, *rest = tree
    if kind == "leaf":
        return {
            "s": lambda: p.s,
            "teacher": lambda: p.teacher,
            "column": lambda: p.column(1),
            "row_value": lambda: p.row_value(0),
            "scalar": lambda: p.scalar(0),
            "alpha": lambda: alpha,
            "constant": lambda: 0.7,
        }[rest[0]]()
    if kind == "one":
        return ONE[rest[0]](run(rest[1], p, alpha))
    if kind == "two":
        return TWO[rest[0]](run(rest[1], p, alpha), run(rest[2], p, alpha))
    if kind == "kind":
        return getattr(p, rest[0])
    if kind == "below":
        mask, x, level, flipped = rest
        x, level = run(x, p, alpha), run(level, p, alpha)
        return run(mask, p, alpha) & ((x > level) if flipped else (x < level))
    return REDUCE[rest[0]](run(rest[1], p, alpha), run(rest[2], p, alpha))
