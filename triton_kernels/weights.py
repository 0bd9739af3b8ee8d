"""Attention weights on request, recomputed from the lse: stored, or reduced against a gradient."""

import triton
import triton.language as tl

from attnkern.triton_kernels.backward import load_log2_lse
from attnkern.triton_kernels.random import dropout_keep
from attnkern.triton_kernels.scores import capped_scores, key_bounds, load_rows, masked_scores


@triton.jit
def weight_tile(
    query, key, mask, seed, lse, stride_qm, stride_kn, stride_mask_i, stride_mask_j, batch_head, begin_m, begin_n,
    begin, end, position, len_q, len_k, scale, softcap, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, BLOCK_E: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Weights after dropout of one tile of one head; the pointers are that head's."""
    i = (begin_m + tl.arange(0, BLOCK_M))[:, None]
    j = (begin_n + tl.arange(0, BLOCK_N))[None, :]
    q = load_rows(query, begin_m, stride_qm, 0, len_q, HEAD_DIM, BLOCK_M, BLOCK_E)
    k = load_rows(key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E)
    product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    score = masked_scores(
        capped_scores(product, scale, softcap, SOFTCAP), i, j, position, mask, stride_mask_i, stride_mask_j,
        len_q, len_k, left, right, MASK, LEFT, RIGHT, True,
    )  # fmt: skip
    weight = tl.minimum(tl.exp2(score - load_log2_lse(lse, i, len_q)), 1.0)
    if DROPOUT:
        keep = dropout_keep(tl.load(seed), batch_head, begin_m, begin_n, dropout_threshold, BLOCK_M, BLOCK_N, False)
        weight = tl.where(keep, weight * dropout_scale, 0.0)
    return weight


@triton.jit
def attention_weights(
    query, key, mask, offsets, seed, lse, weights,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j,
    heads, group, len_q, len_k, scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, BLOCK_E: tl.constexpr, MASK: tl.constexpr, OFFSETS: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, DROPOUT: tl.constexpr, MEAN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of the result: `(B, H, Lq, Lk)`, or with MEAN `(B, Lq, Lk)`, heads summed in registers."""
    tiles_n = tl.cdiv(len_k, BLOCK_N)
    tiles_m = tl.cdiv(len_q, BLOCK_M)
    begin_n = tl.program_id(0) % tiles_n * BLOCK_N
    begin_m = tl.program_id(0) // tiles_n % tiles_m * BLOCK_M
    place = tl.program_id(0) // tiles_n // tiles_m
    summed = heads if MEAN else 1
    batch = (place * summed // heads).to(tl.int64)
    first_head = place * summed % heads
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    last = tl.minimum(begin_m + BLOCK_M, len_q) - 1 + position
    begin, end = key_bounds(begin_m + position, last, len_k, left, right, LEFT, RIGHT)

    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if (begin_n < end) & (begin_n + BLOCK_N > begin):
        for member in range(0, summed):
            head = (first_head + member).to(tl.int64)
            batch_head = batch * heads + head
            sums += weight_tile(
                query + batch * stride_qb + head * stride_qh, key + batch * stride_kb + head // group * stride_kh,
                mask + batch * stride_mask_b + head * stride_mask_h, seed, lse + batch_head * len_q,
                stride_qm, stride_kn, stride_mask_i, stride_mask_j, batch_head, begin_m, begin_n, begin, end, position,
                len_q, len_k, scale, softcap, left, right, dropout_threshold, dropout_scale,
                HEAD_DIM, BLOCK_E, MASK, SOFTCAP, LEFT, RIGHT, DROPOUT, PRECISION, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    rows = begin_m + tl.arange(0, BLOCK_M)
    keys = begin_n + tl.arange(0, BLOCK_N)
    entries = weights + (place.to(tl.int64) * len_q + rows[:, None]) * len_k + keys[None, :]
    inside = (rows < len_q)[:, None] & (keys < len_k)[None, :]
    tl.store(entries, (sums / summed).to(weights.dtype.element_ty), mask=inside)


@triton.jit
def weights_dot(
    query, key, mask, offsets, seed, lse, grad_weights, result,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j, stride_gb, stride_gh, stride_gi, stride_gj,
    heads, group, len_q, len_k, scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, BLOCK_E: tl.constexpr, MASK: tl.constexpr, OFFSETS: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`result = sum_j weights * grad_weights`, `(B, H, Lq)`; one program per tile of queries of one head."""
    tiles_m = tl.cdiv(len_q, BLOCK_M)
    begin_m = tl.program_id(0) % tiles_m * BLOCK_M
    batch_head = (tl.program_id(0) // tiles_m).to(tl.int64)
    batch = batch_head // heads
    head = batch_head % heads
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    last = tl.minimum(begin_m + BLOCK_M, len_q) - 1 + position
    begin, end = key_bounds(begin_m + position, last, len_k, left, right, LEFT, RIGHT)
    rows = begin_m + tl.arange(0, BLOCK_M)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    for begin_n in tl.range(begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
        weight = weight_tile(
            query + batch * stride_qb + head * stride_qh, key + batch * stride_kb + head // group * stride_kh,
            mask + batch * stride_mask_b + head * stride_mask_h, seed, lse + batch_head * len_q,
            stride_qm, stride_kn, stride_mask_i, stride_mask_j, batch_head, begin_m, begin_n, begin, end, position,
            len_q, len_k, scale, softcap, left, right, dropout_threshold, dropout_scale,
            HEAD_DIM, BLOCK_E, MASK, SOFTCAP, LEFT, RIGHT, DROPOUT, PRECISION, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        keys = begin_n + tl.arange(0, BLOCK_N)
        entries = grad_weights + batch * stride_gb + head * stride_gh
        entries += rows.to(tl.int64)[:, None] * stride_gi + keys.to(tl.int64)[None, :] * stride_gj
        inside = (rows < len_q)[:, None] & (keys < len_k)[None, :]
        sums += tl.sum(weight * tl.load(entries, mask=inside, other=0.0).to(tl.float32), 1)
    tl.store(result + batch_head * len_q + rows, sums, mask=rows < len_q)
