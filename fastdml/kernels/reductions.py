# ruff: noqa: RUF005  (Triton knows the concatenation of tuples, not unpacking)
"""Row statistics: monoids that a tile is folded into."""

import triton
import triton.language as tl


@triton.jit
def empty(KINDS: tl.constexpr, ROWS: tl.constexpr):
    """The statistics of no pair at all. Sums of exponentials are kept as (maximum, scaled sum)."""
    acc = ()
    for i in tl.static_range(len(KINDS)):
        if KINDS[i] == "sum":
            acc = acc + (tl.zeros([ROWS], tl.float32),)
        elif KINDS[i] == "min":
            acc = acc + (tl.full([ROWS], float("inf"), tl.float32),)
        elif KINDS[i] == "max":
            acc = acc + (tl.full([ROWS], float("-inf"), tl.float32),)
        else:
            for _ in tl.static_range(2 if KINDS[i] == "lse_split" else 1):
                acc = acc + (
                    tl.full([ROWS], float("-inf"), tl.float32),
                    tl.zeros([ROWS], tl.float32),
                )
            if KINDS[i] == "lse_mean":
                acc = acc + (tl.zeros([ROWS], tl.float32),)
    return acc


@triton.jit
def _maximum(before, z):
    """The new running maximum, what to subtract (never -inf), and the factor of the old sums."""
    now = tl.maximum(before, tl.max(z, 1))
    base = tl.where(now == float("-inf"), 0.0, now)
    return now, base, tl.exp2(before - base)


@triton.jit
def fold(acc, tiles, positive, valid, KINDS: tl.constexpr, MASKED: tl.constexpr):
    """acc with a tile [ROWS, COLUMNS] of contributions added. valid: where MASKED, pairs that exist."""
    out = ()
    # Statistics take different numbers of contributions: the length of `taken` is the position.
    taken = ()
    for i in tl.static_range(len(KINDS)):
        x = tiles[len(taken)]
        if KINDS[i] == "sum":
            if MASKED:
                x = tl.where(valid, x, 0.0)
            out = out + (acc[len(out)] + tl.sum(x, 1),)
        elif KINDS[i] == "min":
            if MASKED:
                x = tl.where(valid, x, float("inf"))
            out = out + (tl.minimum(acc[len(out)], tl.min(x, 1)),)
        elif KINDS[i] == "max":
            if MASKED:
                x = tl.where(valid, x, float("-inf"))
            out = out + (tl.maximum(acc[len(out)], tl.max(x, 1)),)
        else:
            if MASKED:
                x = tl.where(valid, x, float("-inf"))
            if KINDS[i] == "lse_split":
                m1, b1, f1 = _maximum(acc[len(out)], tl.where(positive, x, float("-inf")))
                m2, b2, f2 = _maximum(acc[len(out) + 2], tl.where(positive, float("-inf"), x))
                e = tl.exp2(x - tl.where(positive, b1[:, None], b2[:, None]))
                l1 = acc[len(out) + 1] * f1 + tl.sum(tl.where(positive, e, 0.0), 1)
                l2 = acc[len(out) + 3] * f2 + tl.sum(tl.where(positive, 0.0, e), 1)
                out = out + (m1, l1, m2, l2)
            else:
                m, b, f = _maximum(acc[len(out)], x)
                e = tl.exp2(x - b[:, None])
                total = acc[len(out) + 1] * f + tl.sum(e, 1)
                if KINDS[i] == "lse_mean":
                    v = tiles[len(taken) + 1]
                    # 0 * inf must not appear where a pair does not count.
                    v = tl.where(e == 0.0, 0.0, v)
                    out = out + (m, total, acc[len(out) + 2] * f + tl.sum(e * v, 1))
                    taken = taken + (0,)
                else:
                    out = out + (m, total)
        taken = taken + (0,)
    return out


@triton.jit
def values(acc, KINDS: tl.constexpr):
    """The finished values: each sum of exponentials as its log2 (-inf for none)."""
    out = ()
    taken = ()
    for i in tl.static_range(len(KINDS)):
        if KINDS[i] == "sum" or KINDS[i] == "min" or KINDS[i] == "max":
            out = out + (acc[len(taken)],)
            taken = taken + (0,)
        else:
            for _ in tl.static_range(2 if KINDS[i] == "lse_split" else 1):
                out = out + (acc[len(taken)] + tl.log2(acc[len(taken) + 1]),)
                taken = taken + (0, 0)
            if KINDS[i] == "lse_mean":
                total = acc[len(taken) - 1]
                out = out + (acc[len(taken)] / tl.where(total == 0.0, 1.0, total),)
                taken = taken + (0,)
    return out


@triton.jit
def softplus2(z):
    """log2(1 + 2**z): turns the sum of exponentials 2**z into the one with a 1 inside."""
    return tl.maximum(z, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(z)))


@triton.jit
def sigmoid2(z):
    """1 / (1 + 2**-z), in an exponent that cannot overflow to NaN. The square of a reciprocal root is two
    instructions, where a division of any two numbers takes nine."""
    root = tl.rsqrt(1.0 + tl.exp2(-z))
    return root * root
