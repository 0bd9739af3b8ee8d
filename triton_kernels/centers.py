"""Windows around learned centres, and the Gaussians around those (local-p, Luong et al. 2015).

With CENTERED, the queries of each head are visited in the order of their anchors, the whole parts of their
centres: `order` holds their numbers and `anchors`, ascending, the keys that their windows lie around. So the windows
of a tile of queries lie close together, and those that see a tile of keys are neighbours, however the centres scatter.

GAUSSIAN: "after" the softmax it multiplies the weights, "inside" it is a bias; "none" for neither.
"""

import triton
import triton.language as tl

from attnkern.triton_kernels.scores import inner_key_bounds, key_bounds, load_rows, store_rows

FARTHEST_SIGMAS = tl.constexpr(1.0e15)  # its square is finite


@triton.jit
def tile_rows(order, head_rows, begin, len_q, CENTERED: tl.constexpr, ROWS: tl.constexpr):
    """Numbers of a head's rows `begin + (0 ... ROWS)` in visiting order, `len_q` past the end.

    head_rows: where the head's begin in `(B, H, Lq)`.
    """
    places = begin + tl.arange(0, ROWS)
    if CENTERED:
        return tl.load(order + head_rows + places, mask=places < len_q, other=len_q)
    else:
        return places


@triton.jit
def tile_anchors(anchors, head_rows, begin, len_q, ROWS: tl.constexpr):
    """Anchors of the same rows; past the end stands the last one, which widens no tile."""
    places = tl.minimum(begin + tl.arange(0, ROWS), len_q - 1)
    return tl.load(anchors + head_rows + places, mask=places >= 0, other=0)


@triton.jit
def centered_key_bounds(
    i, anchor, position, len_k, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr, CAUSAL: tl.constexpr
):
    """Keys `[begin, end)` between the first and the last that any of the rows `i` may look at."""
    begin, end = key_bounds(tl.min(anchor), tl.max(anchor), len_k, left, right, LEFT, RIGHT)
    if CAUSAL:
        end = tl.minimum(end, tl.max(i) + position + 1)
    return begin, end


@triton.jit
def keys_in_sight(
    i, anchors, head_rows, begin_m, position, len_q, len_k, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    CENTERED: tl.constexpr, CAUSAL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Anchors of a tile's rows `i`, `(ROWS, 1)`; keys `[begin, end)` that any may look at, then those that all do.

    Where centered, every tile of keys is an edge; elsewhere nobody reads the anchors.
    """
    if CENTERED:
        anchor = tile_anchors(anchors, head_rows, begin_m, len_q, ROWS)[:, None]
        begin, end = centered_key_bounds(i, anchor, position, len_k, left, right, LEFT, RIGHT, CAUSAL)
        inner_begin = tl.full((), 0, tl.int32)
        inner_end = inner_begin
    else:
        anchor = i
        first = begin_m + position
        last = tl.minimum(begin_m + ROWS, len_q) - 1 + position
        begin, end = key_bounds(first, last, len_k, left, right, LEFT, RIGHT)
        inner_begin, inner_end = inner_key_bounds(first, last, len_k, left, right, LEFT, RIGHT)
    return anchor, begin, end, inner_begin, inner_end


@triton.jit
def count_below(ascending, count, limit):
    """How many of `count` ascending numbers are below `limit`."""
    low = tl.full((), 0, tl.int32)
    high = low + count
    while low < high:
        middle = (low + high) // 2
        below = tl.load(ascending + middle) < limit
        low = tl.where(below, middle + 1, low)
        high = tl.where(below, high, middle)
    return low


@triton.jit
def centered_row_bounds(first, last, anchors, len_q, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Rows `[begin, end)`, in visiting order, whose windows hold any of the keys `first ... last`."""
    begin = 0
    end = len_q
    if RIGHT:
        begin = count_below(anchors, len_q, first - right)
    if LEFT:
        end = count_below(anchors, len_q, last + left + 1)
    return begin, end


@triton.jit
def load_gaussians(i, head_rows, center, sigma, len_q):
    """Centres and sigmas of rows, in the shape of `i`."""
    places = head_rows + i
    inside = i < len_q
    return tl.load(center + places, mask=inside, other=0.0), tl.load(sigma + places, mask=inside, other=1.0)


@triton.jit
def distance_in_sigmas(j, center, sigma):
    return tl.minimum(tl.maximum((j - center) / sigma, -FARTHEST_SIGMAS), FARTHEST_SIGMAS)


@triton.jit
def log_gaussian(distance, UNIT: tl.constexpr):
    return distance * distance * (-0.5 * UNIT)


@triton.jit
def load_query_rows(
    base, rows, begin, stride, low, high, FEATURES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    CENTERED: tl.constexpr, EDGE: tl.constexpr = True,
):  # fmt: skip
    """What `load_rows` does, of the rows that `tile_rows` names."""
    if CENTERED:
        columns = tl.arange(0, BLOCK)
        inside = (rows < high)[:, None] & (columns < FEATURES)[None, :]
        return tl.load(base + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)
    else:
        return load_rows(base, begin, stride, low, high, FEATURES, ROWS, BLOCK, EDGE)


@triton.jit
def store_query_rows(
    base, rows, begin, stride, high, values, FEATURES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    CENTERED: tl.constexpr,
):  # fmt: skip
    """What `store_rows` does, at the rows that `tile_rows` names."""
    if CENTERED:
        columns = tl.arange(0, BLOCK)
        inside = (rows < high)[:, None] & (columns < FEATURES)[None, :]
        pointers = base + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        tl.store(pointers, values.to(base.dtype.element_ty), mask=inside)
    else:
        store_rows(base, begin, stride, high, values, FEATURES, ROWS, BLOCK)
