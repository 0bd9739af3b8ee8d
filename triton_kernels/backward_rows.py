"""What the backward pass subtracts from each row: the mean of the gradient under the softmax weights.

For softmax attention it is `grad_output . output`. That form takes the output's rounding along, which
16-bit budgets do not notice; in float32, and where there is no output, `weighted_mean` sums it afresh.
"""

import triton
import triton.language as tl

from attnkern.triton_kernels.backward import load_lse, weight_gradient
from attnkern.triton_kernels.random import dropout_keep
from attnkern.triton_kernels.scores import (
    capped_scores,
    exponential,
    inner_key_bounds,
    key_bounds,
    load_rows,
    loop_part,
    masked_scores,
)


@triton.jit
def row_dot(left, right, result, stride_lb, stride_lh, stride_lm, stride_rb, stride_rh, stride_rm,
            heads, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """`result = sum(left * right, -1)`, `(B, H, L, WIDTH) -> (B, H, L)`, in float32."""
    tiles = tl.cdiv(rows, BLOCK_M)
    batch_head = tl.program_id(0) // tiles
    begin = tl.program_id(0) % tiles * BLOCK_M
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    left_rows = load_rows(left + batch * stride_lb + head * stride_lh, begin, stride_lm, 0, rows, WIDTH, BLOCK_M, BLOCK)
    right_rows = load_rows(
        right + batch * stride_rb + head * stride_rh, begin, stride_rm, 0, rows, WIDTH, BLOCK_M, BLOCK
    )
    i = begin + tl.arange(0, BLOCK_M)
    product = tl.sum(left_rows.to(tl.float32) * right_rows.to(tl.float32), 1)
    tl.store(result + batch_head.to(tl.int64) * rows + i, product, mask=i < rows)


@triton.jit
def weighted_mean(
    query, key, value, mask, offsets, seed, lse, grad_output, grad_weights, result,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j, stride_ob, stride_oh, stride_om,
    stride_gb, stride_gh, stride_gi, stride_gj,
    heads, group, len_q, len_k, scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    MASK: tl.constexpr, OFFSETS: tl.constexpr, SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    DROPOUT: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`result = sum_j p_j g_j`, `(B, H, Lq)`; one program per tile of queries of one head."""
    tiles = tl.cdiv(len_q, BLOCK_M)
    batch_head = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    if RIGHT:
        tile = tiles - 1 - tile  # causal: the longest first
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    begin_m = tile * BLOCK_M

    key += batch * stride_kb + head // group * stride_kh
    value += batch * stride_vb + head // group * stride_vh
    mask += batch * stride_mask_b + head * stride_mask_h
    grad_weights += batch * stride_gb + head * stride_gh
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    seed_value = tl.full((), 0, tl.int64)
    if DROPOUT:
        seed_value = tl.load(seed)

    i = (begin_m + tl.arange(0, BLOCK_M))[:, None]
    q = load_rows(
        query + batch * stride_qb + head * stride_qh, begin_m, stride_qm, 0, len_q, HEAD_DIM, BLOCK_M, BLOCK_E
    )
    row_lse = load_lse(lse + batch_head.to(tl.int64) * len_q, i, len_q, UNIT)
    do = q
    if HAS_OUTPUT:
        do = load_rows(
            grad_output + batch * stride_ob + head * stride_oh,
            begin_m,
            stride_om,
            0,
            len_q,
            VALUE_DIM,
            BLOCK_M,
            BLOCK_V,
        )
    sums = tl.zeros((BLOCK_M,), tl.float32)
    first = begin_m + position
    last = tl.minimum(begin_m + BLOCK_M, len_q) - 1 + position
    begin, end = key_bounds(first, last, len_k, left, right, LEFT, RIGHT)
    inner_begin, inner_end = inner_key_bounds(first, last, len_k, left, right, LEFT, RIGHT)
    for PART in tl.static_range(0 if LEFT else 1, 3):
        part_begin, part_end = loop_part(PART, begin, end, inner_begin, inner_end, BLOCK_N)
        for begin_n in tl.range(part_begin, part_end, BLOCK_N):
            k = load_rows(key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E, PART != 1)
            capped = capped_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, softcap, SOFTCAP, UNIT)
            j = (begin_n + tl.arange(0, BLOCK_N))[None, :]
            score = masked_scores(
                capped, i, j, position, mask, stride_mask_i, stride_mask_j, len_q, len_k, left, right,
                MASK, LEFT, RIGHT, PART != 1, UNIT,
            )  # fmt: skip
            product_gradient = capped
            if HAS_OUTPUT:
                v = load_rows(value, begin_n, stride_vn, begin, end, VALUE_DIM, BLOCK_N, BLOCK_V, PART != 1)
                product_gradient = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            keep = i >= 0
            if DROPOUT:
                keep = dropout_keep(
                    seed_value, batch_head, begin_m, begin_n, dropout_threshold, BLOCK_M, BLOCK_N, False
                )
            gradient = weight_gradient(
                product_gradient, keep, dropout_scale, i, j, len_q, len_k, grad_weights, stride_gi, stride_gj,
                HAS_OUTPUT, HAS_WEIGHTS, DROPOUT,
            )  # fmt: skip
            weight = tl.minimum(exponential(score - row_lse, UNIT), 1.0)
            sums += tl.sum(tl.where(weight > 0, weight * gradient, 0.0), 1)
    rows = begin_m + tl.arange(0, BLOCK_M)
    tl.store(result + batch_head.to(tl.int64) * len_q + rows, sums, mask=rows < len_q)
