"""The forward pass of global and local attention: an online softmax over tiles of keys.

Where weights are no softmax (ACTIVATION is linear, relu or exp), neither maximum nor sum is kept.
"""

import triton
import triton.language as tl

from attnkern.triton_kernels.centers import (
    gaussian_terms,
    keys_in_sight,
    load_gaussians,
    load_query_rows,
    store_query_rows,
    tile_rows,
)
from attnkern.triton_kernels.random import dropout_keep
from attnkern.triton_kernels.scores import (
    LARGEST,
    activated,
    capped_scores,
    exponential,
    load_rows,
    log_sum_exp,
    loop_part,
    masked_scores,
    where_seen,
)


@triton.jit
def softmax_forward(
    query, key, value, mask, offsets, seed, order, anchors, nearest, mirror, sigma, output, lse,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j, stride_ob, stride_oh, stride_om,
    heads, group, len_q, len_k, scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    MASK: tl.constexpr, OFFSETS: tl.constexpr, SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    DROPOUT: tl.constexpr, ACTIVATION: tl.constexpr, CENTERED: tl.constexpr, CAUSAL: tl.constexpr,
    GAUSSIAN: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of queries of one head: output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`."""
    tiles = tl.cdiv(len_q, BLOCK_M)
    batch_head = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    if RIGHT:
        tile = tiles - 1 - tile  # causal: the longest first
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    begin_m = tile * BLOCK_M

    query += batch * stride_qb + head * stride_qh
    key += batch * stride_kb + head // group * stride_kh
    value += batch * stride_vb + head // group * stride_vh
    mask += batch * stride_mask_b + head * stride_mask_h
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    seed_value = tl.full((), 0, tl.int64)
    if DROPOUT:
        seed_value = tl.load(seed)

    rows = tile_rows(order, batch_head, begin_m, len_q, CENTERED, BLOCK_M)
    i = rows[:, None]
    q = load_query_rows(query, rows, begin_m, stride_qm, 0, len_q, HEAD_DIM, BLOCK_M, BLOCK_E, CENTERED)
    top = tl.full((BLOCK_M,), -LARGEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)

    anchor, begin, end, inner_begin, inner_end = keys_in_sight(
        i, anchors, batch_head, begin_m, position, len_q, len_k, left, right, LEFT, RIGHT, CENTERED, CAUSAL, BLOCK_M
    )
    if GAUSSIAN != "none":
        near, far, width = load_gaussians(i, batch_head, nearest, mirror, sigma, len_q)
    for PART in tl.static_range(2 if CENTERED else 0 if LEFT else 1, 3):
        part_begin, part_end = loop_part(PART, begin, end, inner_begin, inner_end, BLOCK_N)
        for begin_n in tl.range(part_begin, part_end, BLOCK_N):
            k = load_rows(key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E, PART != 1)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            j = (begin_n + tl.arange(0, BLOCK_N))[None, :]
            capped = capped_scores(product, scale, softcap, SOFTCAP, UNIT)
            score = masked_scores(
                capped, i, j, position, anchor, mask, stride_mask_i, stride_mask_j, len_q, len_k, left, right,
                MASK, LEFT, RIGHT, CENTERED, CAUSAL, PART != 1, UNIT,
            )  # fmt: skip
            if GAUSSIAN != "none":
                distance, square = gaussian_terms(j, near, far, width, GAUSSIAN)
                gaussian = square * (-0.5 * UNIT)
            if GAUSSIAN == "inside":
                score += gaussian
            if ACTIVATION == "softmax":
                new_top = tl.minimum(tl.maximum(top, tl.max(score, 1)), LARGEST)
                # no weight exceeds 1, however large the scores
                weight = tl.minimum(exponential(score - new_top[:, None], UNIT), 1.0)
                decay = exponential(top - new_top, UNIT)
                total = total * decay + tl.sum(weight, 1)
                top = new_top
            else:
                weight = activated(score, ACTIVATION, UNIT)
            if GAUSSIAN == "after":
                weight *= exponential(gaussian, UNIT)
            if DROPOUT:
                keep = dropout_keep(seed_value, batch_head, i, begin_n, dropout_threshold, BLOCK_M, BLOCK_N, False)
                weight = tl.where(keep, weight * dropout_scale, 0.0)
            v = load_rows(value, begin_n, stride_vn, begin, end, VALUE_DIM, BLOCK_N, BLOCK_V, PART != 1)
            v = where_seen(score, v, MASK != "none" or CENTERED)
            if ACTIVATION == "softmax":
                sums *= decay[:, None]
            sums = tl.dot(weight.to(v.dtype), v, sums, input_precision=PRECISION)

    if ACTIVATION == "softmax":
        row_lse = log_sum_exp(top, total, UNIT)
        sums /= tl.where(total > 0, total, 1.0)[:, None]
    output += batch * stride_ob + head * stride_oh
    store_query_rows(output, rows, begin_m, stride_om, len_q, sums, VALUE_DIM, BLOCK_M, BLOCK_V, CENTERED)
    if ACTIVATION == "softmax":
        tl.store(lse + batch_head.to(tl.int64) * len_q + rows, row_lse, mask=rows < len_q)
