"""From a product of queries and keys to scores: soft cap, mask, window.

`i` and `j` are row and key indices shaped to broadcast, `(M, 1)` and `(1, N)` or the transpose, so
the same lines serve both orientations of a tile.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LARGEST = tl.constexpr(3.4028234663852886e38)
INFINITE = tl.constexpr(3.4e38)  # an lse of that size is an infinite score's, whatever unit it was rounded in
FAR = tl.constexpr(-1.0e4)  # its exponential is 0, and 0 * FAR is not NaN


@triton.jit
def key_bounds(first, last, len_k, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Keys `[begin, end)` that any of the queries at positions `first ... last` may look at."""
    begin = 0
    end = len_k
    if LEFT:
        begin = tl.maximum(first - left, 0)
    if RIGHT:
        end = tl.minimum(last + right + 1, len_k)
    return begin, end


@triton.jit
def row_bounds(first, last, len_q, position, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Rows `[begin, end)` that may look at any of the keys `first ... last`."""
    begin = 0
    end = len_q
    if RIGHT:
        begin = tl.maximum(first - right - position, 0)
    if LEFT:
        end = tl.minimum(last + left - position + 1, len_q)
    return begin, end


@triton.jit
def inner_key_bounds(first, last, len_k, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Keys `[begin, end)` that all of the queries at positions `first ... last` may look at."""
    return key_bounds(last, first, len_k, left, right, LEFT, RIGHT)


@triton.jit
def inner_row_bounds(first, last, len_q, position, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Rows `[begin, end)` that may look at all of the keys `first ... last`."""
    return row_bounds(last, first, len_q, position, left, right, LEFT, RIGHT)


@triton.jit
def loop_part(PART: tl.constexpr, begin, end, inner_begin, inner_end, BLOCK: tl.constexpr):
    """A loop over tiles of `[begin, end)` in three parts: edge, inner, edge; only edges need checks.

    Every part starts at a multiple of BLOCK.
    """
    loop_begin = begin // BLOCK * BLOCK
    end = tl.maximum(end, loop_begin)
    inner_begin = tl.minimum(tl.maximum(tl.cdiv(inner_begin, BLOCK) * BLOCK, loop_begin), end)
    inner_end = tl.maximum(tl.minimum(tl.maximum(inner_end, 0), end) // BLOCK * BLOCK, inner_begin)
    if PART == 0:
        return loop_begin, inner_begin
    elif PART == 1:
        return inner_begin, inner_end
    else:
        return inner_end, end


@triton.jit
def exponential(x, UNIT: tl.constexpr):
    """e to the x nats."""
    if UNIT == 1.0:
        return tl.exp(x)
    else:
        return tl.exp2(x)


@triton.jit
def at_most(x, bound):
    """The smaller of both; NaN stays NaN, which a plain minimum on a GPU would lose."""
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_least(x, bound):
    """The larger of both; NaN stays NaN."""
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activated(score, ACTIVATION: tl.constexpr, UNIT: tl.constexpr):
    """Weights that depend on their own scores alone; 0 where a query may not look."""
    if ACTIVATION == "exp":
        return exponential(score, UNIT)
    elif ACTIVATION == "relu":
        return tl.where(score < 0, 0.0, score)
    else:
        return tl.where(score == float("-inf"), 0.0, score)


@triton.jit
def log_sum_exp(top, total, UNIT: tl.constexpr):
    """In nats, from a row's largest score and the sum relative to it; -inf for an empty row."""
    top = tl.where(tl.abs(top) >= LARGEST, top, top * (1 / UNIT))  # the largest number is that in any unit
    return tl.where(total == 0, float("-inf"), top + tl.log(tl.where(total == 0, 1.0, total)))


@triton.jit
def capped_scores(product, scale, softcap, SOFTCAP: tl.constexpr, UNIT: tl.constexpr):
    """Scaled and soft-capped scores."""
    if SOFTCAP:
        return tanh(product * (scale / softcap)) * (softcap * UNIT)
    else:
        return product * (scale * UNIT)


@triton.jit
def cap_slope(capped, softcap, UNIT: tl.constexpr):
    """Derivative of the soft cap, from its result."""
    relative = capped / (softcap * UNIT)
    return 1 - relative * relative


@triton.jit
def masked_scores(
    score, i, j, position, anchor, mask, stride_mask_i, stride_mask_j, len_q, len_k, left, right,
    MASK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CENTERED: tl.constexpr, CAUSAL: tl.constexpr,
    EDGE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Scores with the mask applied; -inf where a query may not look.

    position: key position of row 0. CENTERED: each row's window lies around its `anchor` instead, and CAUSAL is a bound
    of its own. EDGE: the tile may leave the window or the matrix.
    """
    if EDGE or MASK != "none":
        inside = (i < len_q) & (j < len_k)
    if MASK != "none":
        entries = mask + i.to(tl.int64) * stride_mask_i + j.to(tl.int64) * stride_mask_j
        if MASK == "bool":
            score = tl.where(tl.load(entries, mask=inside, other=0) != 0, score, float("-inf"))
        else:
            bias = tl.load(entries, mask=inside, other=float("-inf")).to(tl.float32)
            # a finite bias stays finite in any unit
            score = tl.where(bias == float("-inf"), bias, score + at_least(bias * UNIT, -LARGEST))
    if EDGE:
        middle = anchor if CENTERED else i + position
        if LEFT:
            inside = inside & (j >= middle - left)
        if RIGHT:
            inside = inside & (j <= middle + right)
        if CAUSAL:
            inside = inside & (j <= i + position)
        score = tl.where(inside, score, float("-inf"))
    return score


@triton.jit
def load_rows(
    base, begin, stride, low, high,
    FEATURES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EDGE: tl.constexpr = True,
):  # fmt: skip
    """Rows `begin + (0 ... ROWS)` of a matrix, `(ROWS, BLOCK)`.

    0 past FEATURES and, with EDGE, outside rows `[low, high)`.
    """
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    start = tl.full((), 0, tl.int64) + begin
    pointers = base + start * stride + rows[:, None] * stride + columns[None, :]
    if EDGE:
        inside = ((rows + begin >= low) & (rows + begin < high))[:, None] & (columns < FEATURES)[None, :]
        return tl.load(pointers, mask=inside, other=0.0)
    elif FEATURES != BLOCK:
        return tl.load(pointers, mask=(columns < FEATURES)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_rows(base, begin, stride, high, values, FEATURES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Stores `(ROWS, BLOCK)` at rows `begin + (0 ... ROWS)` below `high`."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    start = tl.full((), 0, tl.int64) + begin
    pointers = base + start * stride + rows[:, None] * stride + columns[None, :]
    inside = (rows + begin < high)[:, None] & (columns < FEATURES)[None, :]
    tl.store(pointers, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def where_seen(score, rows, GAPS: tl.constexpr):
    """Clears the keys (or values) of a tile that none of its queries may look at, whatever they hold.

    GAPS: there may be some between the others.
    """
    if GAPS:
        return tl.where((tl.max(score, 0) > float("-inf"))[:, None], rows, 0.0)
    else:
        return rows


@triton.jit
def tanh(x):
    """Accurate to float32 near 0 as well, where the exponential form cancels."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    magnitude = 1 - 2 / (tl.exp2(tl.minimum(tl.abs(x), 44.0) * (2 * LOG2E)) + 1)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -magnitude, magnitude))
