# ruff: noqa: RUF005  (Triton knows the concatenation of tuples, not unpacking)
"""Kernel 2: the tile again, turned into pair weights and multiplied.

One operand stays (its gradient is being built), the other streams past. For the other operand's
gradient the roles are swapped and the transposed tile is computed directly, so that no accumulator is
ever transposed and nothing is written twice. Where both sides have row statistics (one set of
embeddings, or a loss of rows and columns) the weights of both directions are summed in one sweep. Where
weights need no statistics of their row, these are found in the same sweep, and kernel 1 is spared.

An embedding that no program can hold would be multiplied by chunks, each with all similarities anew. There
the weights of a block of rows are written instead (STORE), once, for the library's products.
"""

import triton
import triton.language as tl

from .lists import list_weight
from .reductions import empty, fold, values
from .similarity import (
    SIZES,
    as_column,
    as_row,
    centres,
    grouped,
    load_norms,
    load_rows,
    load_scalars,
    load_vectors,
    near_tile,
    numbers,
    plain_tile,
    product_weights,
    products,
    sweep,
)


@triton.jit
def _weigh_tile(
    acc, totals, folded, tile, a_rows, a_tile, ta_tile, a_norm, ta_norm, a_cls, a_exists,
    a_state, a_weight, a_value, a_low, p, a, b, b_norms, b_label, a_states, b_states, b_weights, b_values,
    b_low, ta, tb, tb_norms, by_row, out, M, N, first_o,
    WEIGHT: tl.constexpr, COLUMN_SLOPES: tl.constexpr, LINEAR: tl.constexpr, STATES: tl.constexpr,
    A_STATE: tl.constexpr, B_STATE: tl.constexpr, WEIGHTED: tl.constexpr, SUMS: tl.constexpr,
    SPARSE: tl.constexpr, W_SCALE: tl.constexpr, METRIC: tl.constexpr, EPSILON: tl.constexpr,
    NEAREST: tl.constexpr, TEACHER: tl.constexpr, T_EPSILON: tl.constexpr, GROUPS: tl.constexpr,
    AXIS: tl.constexpr,
    K: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr, DT: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr, COLUMN_VALUES: tl.constexpr, SLOTS: tl.constexpr, OWN: tl.constexpr,
    SELF: tl.constexpr, FOLD: tl.constexpr, KINDS: tl.constexpr, STORE: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    index = tile * BLOCK_B + tl.arange(0, BLOCK_B)
    # Centres lie along the streamed axis (AXIS 1) or along the one that stays (0).
    if AXIS == 1:
        cls, b_rows, b_exists = centres(index, N, K, PADDED)
    else:
        cls, b_rows, b_exists = centres(index, N, 1, 1)
    b_tile = load_rows(b, b_rows, 0, D, BLOCK_D)
    s = products(a, a_rows, a_tile, b, b_rows, b_tile, D, BLOCK_D, PRECISION)
    b_total = N * K if AXIS == 1 else N
    b_norm = load_norms(b_norms, b_rows, b_total, METRIC)
    s, over = numbers(s, a_norm, b_norm, METRIC, EPSILON)
    raw = s
    if TEACHER == "none":
        t = 0.0
    else:
        tb_tile = load_rows(tb, b_rows, 0, DT, BLOCK_T)
        t = products(ta, a_rows, ta_tile, tb, b_rows, tb_tile, DT, BLOCK_T, PRECISION)
        tb_norm = load_norms(tb_norms, b_rows, b_total, TEACHER)
        t = numbers(t, ta_norm, tb_norm, TEACHER, T_EPSILON)[0]
    if GROUPS != "none":
        s, slope = grouped(s, p[len(p) - 1], GROUPS, K, PADDED, AXIS)
    if NEAR:
        positive = a_cls[:, None] == tl.load(b_label + cls)[None, :]
    else:
        positive = tl.zeros([a_rows.shape[0], BLOCK_B], tl.int1)

    listed = positive
    if OWN and SELF and NEAR:
        listed = listed & (index[None, :] != a_rows[:, None])
    valid = a_exists[:, None] & b_exists[None, :]
    if SELF and NEAR and not OWN:
        valid = valid & (index[None, :] != a_rows[:, None])
    if FOLD is not None:
        if COLUMN_VALUES > 0:
            tiles = FOLD(s, as_row(load_vectors(b_values, cls, N, COLUMN_VALUES)), positive, (), p)
        else:
            tiles = FOLD(s, t, positive, (), p)
        folded = fold(folded, tiles, positive, valid, KINDS, NEAR)
    w = tl.zeros([a_rows.shape[0], BLOCK_B], tl.float32)
    slopes = ()
    together: tl.constexpr = LINEAR and A_STATE and B_STATE and not WEIGHTED
    if together:
        of_b = as_row(load_vectors(b_states, b_rows, N, STATES))
        both = ()
        for k in tl.static_range(STATES):
            both = both + (a_state[k] + of_b[k],)
        w = WEIGHT(s, t, positive, both, p)
    if A_STATE and not together:
        if SLOTS > 0:
            slot = index[None, :] - a_low[:, None]
            one = list_weight(s, slot, listed, a_states, a_rows, M, p, WEIGHT, SLOTS, 0, NEAR)
        elif COLUMN_VALUES > 0:
            of_b = as_row(load_vectors(b_values, cls, N, COLUMN_VALUES))
            one = WEIGHT(s, of_b, positive, a_state, p)
        else:
            one = WEIGHT(s, t, positive, a_state, p)
        if B_STATE and WEIGHTED:
            one = one * a_weight[:, None]
        w = one + w
    if B_STATE and not together:
        if SLOTS > 0:
            slot = a_rows[:, None] - tl.load(b_low + b_rows)[None, :]
            other = list_weight(s, slot, listed, b_states, b_rows, N, p, WEIGHT, SLOTS, 1, NEAR)
        else:
            state = as_row(load_vectors(b_states, b_rows, N, STATES))
            if COLUMN_VALUES > 0:
                other = WEIGHT(s, a_value, positive, state, p)
            else:
                other = WEIGHT(s, t, positive, state, p)
            if COLUMN_SLOPES is not None:
                slopes = COLUMN_SLOPES(s, a_value, positive, state, p)
        if WEIGHTED:
            b_weight = tl.load(b_weights + b_rows)[None, :]
            other = other * b_weight
        w = w + other
    if GROUPS != "none":
        w = w * slope
    if NEAR or GROUPS != "none":
        w = tl.where(valid, w, 0.0)
    w = product_weights(w, raw, over, METRIC, NEAREST)
    sum_w, sum_ws = totals[0], totals[1]
    if SUMS:
        sum_w += tl.sum(w, 1)
        sum_ws += tl.sum(w * raw, 1)
    sums = (sum_w, sum_ws)
    for i in tl.static_range(len(slopes)):
        slope = slopes[i]
        if WEIGHTED:
            slope = slope * b_weight
        if NEAR:
            slope = tl.where(valid, slope, 0.0)
        sums = sums + (totals[2 + i] + tl.sum(slope, 1),)  # type: ignore[assignment]
    if METRIC == "cosine" or METRIC == "distance" or METRIC == "squared_distance":
        w = w * b_norm[0][None, :]
    if W_SCALE != 1.0:
        # float16: keeps small weights normal; nothing may become infinite.
        w = tl.minimum(tl.maximum(w * W_SCALE, -65504.0), 65504.0)
    used = not STORE
    if STORE:
        at = out + index[None, :]
        # Without a mask along the row 16 bytes are written at once; behind its end there is room.
        tl.store(at, (w * by_row[:, None]).to(out.dtype.element_ty), mask=a_exists[:, None])
    elif SPARSE:
        used = tl.max(tl.max(tl.abs(w), 1), 0) > 0.0
    if used:
        if D <= BLOCK_D and BLOCK_O == BLOCK_D:  # noqa: SIM108  (Triton traces one branch)
            o_tile = b_tile
        else:
            o_tile = load_rows(b, b_rows, first_o, D, BLOCK_O)
        acc = tl.dot(w.to(o_tile.dtype), o_tile, acc, input_precision=PRECISION)
    return acc, sums, folded


@triton.jit(do_not_specialize=SIZES)
def weights_kernel(
    a, b, a_norms, b_norms, a_label, b_label, a_states, b_states, a_weights, b_weights,
    a_values, b_values, a_low, b_low, ta, tb, ta_norms, tb_norms, parameters, factor, near,
    out, sums, partial, M, N, tiles_per_split, first_block, first_tile, count, eighths,
    WEIGHT: tl.constexpr, COLUMN_SLOPES: tl.constexpr, LINEAR: tl.constexpr, GAIN: tl.constexpr,
    STATES: tl.constexpr, PARAMETERS: tl.constexpr,
    A_STATE: tl.constexpr, B_STATE: tl.constexpr, WEIGHTED: tl.constexpr, SUMS: tl.constexpr,
    SPARSE: tl.constexpr, W_SCALE: tl.constexpr, METRIC: tl.constexpr, EPSILON: tl.constexpr,
    NEAREST: tl.constexpr, TEACHER: tl.constexpr, T_EPSILON: tl.constexpr,
    GROUPS: tl.constexpr, AXIS: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr,
    D: tl.constexpr, DT: tl.constexpr, SELF: tl.constexpr, COLUMN_VALUES: tl.constexpr,
    SLOTS: tl.constexpr, OWN: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, NARROW: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, PRECISION: tl.constexpr,
    FOLD: tl.constexpr, KINDS: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """out [splits, rows of a, D] = pair weights times b, scaled; where STORE, out [count, 8 eighths] = the
    weights of the products of `count` rows of a, from block first_block on, whose rows end with a whole
    tile, by the columns from tile first_tile on. sums [splits, 2 or more, rows of a].

    a stays, b streams. A_STATE, B_STATE: whether rows of the loss lie along a, along b, or both.
    M, N: their samples or classes. a_values, b_values [COLUMN_VALUES, their samples or classes]; a_low,
    b_low: where the lists of the loss's rows begin along the other operand. near, SELF: as in kernel 1,
    with a for the rows. factor: one float that everything is multiplied by. sums: per row of a, the
    sum of the weights of its products, and of those times the numbers (where SUMS), and the derivatives
    by its column values (where COLUMN_SLOPES and the loss's rows lie along b). partial [splits, values, rows
    of a, or count]: as kernel 1 leaves it, where there is a FOLD, which reads no statistics; D is one chunk
    then. Grid: (blocks of a, splits, chunks of D).
    """
    stay = PADDED if AXIS == 0 else 1
    pass_by = PADDED if AXIS == 1 else 1
    split = tl.program_id(1)
    first_o = tl.program_id(2) * BLOCK_O
    block = tl.program_id(0) + first_block
    place = block * BLOCK_A + tl.arange(0, BLOCK_A)
    if AXIS == 0:
        cls, rows, exists = centres(place, M, K, PADDED)
        total = M * K
    else:
        cls, rows, exists = centres(place, M, 1, 1)
        total = M
    a_tile = load_rows(a, rows, 0, D, BLOCK_D)
    ta_tile = a_tile
    ta_norm = ()
    if TEACHER != "none":
        ta_tile = load_rows(ta, rows, 0, DT, BLOCK_T)
        ta_norm = load_norms(ta_norms, rows, total, TEACHER)
    norm = load_norms(a_norms, rows, total, METRIC)
    label = tl.load(a_label + cls)
    state = ()
    if A_STATE and SLOTS == 0:
        state = as_column(load_vectors(a_states, rows, M, STATES))
    value = ()
    if COLUMN_VALUES > 0 and B_STATE:
        value = as_column(load_vectors(a_values, cls, M, COLUMN_VALUES))
    lows = rows
    if SLOTS > 0 and A_STATE:
        lows = tl.load(a_low + rows)
    weight = tl.full([BLOCK_A], 1.0, tl.float32)
    if WEIGHTED and A_STATE:
        weight = tl.load(a_weights + rows)
    p = load_scalars(parameters, PARAMETERS)

    first = first_tile + split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(N * pass_by, BLOCK_B))
    plain, start, around, hanging, end = sweep(
        near, block, first, last, N * pass_by, BLOCK_B
    )
    acc = tl.zeros([BLOCK_A, BLOCK_O], tl.float32)
    sum_of_columns: tl.constexpr = COLUMN_SLOPES is not None and B_STATE
    totals = (tl.zeros([BLOCK_A], tl.float32), tl.zeros([BLOCK_A], tl.float32))
    if sum_of_columns:
        for _ in tl.static_range(COLUMN_VALUES):
            totals = totals + (tl.zeros([BLOCK_A], tl.float32),)  # type: ignore[assignment]
    folded = ()
    if FOLD is not None:
        folded = empty(KINDS, BLOCK_A)
    scale = tl.load(factor)
    if GAIN is not None:
        scale = scale * GAIN(p)
    by_row = tl.zeros([BLOCK_A], tl.float32) + scale
    if WEIGHTED and A_STATE and not B_STATE:
        by_row = by_row * weight
    local = place - first_block * BLOCK_A
    written = out
    if STORE:
        written = out + local[:, None].to(tl.int64) * (eighths * 8)
        if METRIC == "cosine" or METRIC == "distance" or METRIC == "squared_distance":
            by_row = by_row * norm[0]
    for i in range(0, plain):
        acc, totals, folded = _weigh_tile(
            acc, totals, folded, plain_tile(i, first, start, around), rows, a_tile,
            ta_tile, norm, ta_norm, label, exists, state, weight, value, lows, p, a, b, b_norms, b_label,
            a_states, b_states, b_weights, b_values, b_low, ta, tb, tb_norms, by_row, written, M, N, first_o,
            WEIGHT, COLUMN_SLOPES, LINEAR, STATES, A_STATE, B_STATE, WEIGHTED, SUMS, SPARSE, W_SCALE, METRIC,
            EPSILON, NEAREST, TEACHER, T_EPSILON, GROUPS, AXIS, K, PADDED, D, DT,
            BLOCK_B, BLOCK_D, BLOCK_T, BLOCK_O, PRECISION, COLUMN_VALUES, SLOTS, OWN, SELF, FOLD, KINDS,
            STORE, False,
        )  # fmt: skip
    for i in range(0, (around + hanging) * (BLOCK_B // NARROW)):
        acc, totals, folded = _weigh_tile(
            acc, totals, folded, near_tile(i, start, around, end, BLOCK_B // NARROW), rows, a_tile,
            ta_tile, norm, ta_norm, label, exists, state, weight, value, lows, p, a, b, b_norms, b_label,
            a_states, b_states, b_weights, b_values, b_low, ta, tb, tb_norms, by_row, written, M, N, first_o,
            WEIGHT, COLUMN_SLOPES, LINEAR, STATES, A_STATE, B_STATE, WEIGHTED, SUMS, SPARSE, W_SCALE, METRIC,
            EPSILON, NEAREST, TEACHER, T_EPSILON, GROUPS, AXIS, K, PADDED, D, DT,
            NARROW, BLOCK_D, BLOCK_T, BLOCK_O, PRECISION, COLUMN_VALUES, SLOTS, OWN, SELF, FOLD, KINDS,
            STORE, True,
        )  # fmt: skip
    keep = exists & (place < total * stay)
    if SUMS or sum_of_columns:
        at = sums + split.to(tl.int64) * len(totals) * total + rows
        for i in tl.static_range(len(totals)):
            tl.store(at + i * total.to(tl.int64), totals[i] * by_row, mask=keep)
    if FOLD is not None:
        found = values(folded, KINDS)
        at = partial + split.to(tl.int64) * len(found) * count + local
        for i in tl.static_range(len(found)):
            tl.store(at + i * count.to(tl.int64), found[i], mask=keep)
    if not STORE:
        if METRIC == "cosine" or METRIC == "distance" or METRIC == "squared_distance":
            acc = acc * norm[0][:, None]
        acc = acc * (by_row * (1.0 / W_SCALE))[:, None]
        d = first_o + tl.arange(0, BLOCK_O)
        at = out + (split.to(tl.int64) * total + rows[:, None]) * D + d[None, :]
        tl.store(at, acc, mask=keep[:, None] & (d[None, :] < D))
