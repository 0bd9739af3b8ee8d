"""Attention weights on request, recomputed from the lse."""

import triton
import triton.language as tl

from attnkern.triton_kernels.gradients import load_lse, log_weight
from attnkern.triton_kernels.packing import sequence
from attnkern.triton_kernels.random import dropout_keep
from attnkern.triton_kernels.scores import at_most, capped_scores, exponential, key_bounds, load_rows, masked_scores


@triton.jit
def attention_weights(
    query, key, mask, offsets, cu_seq_q, cu_seq_k, seed, lse, rest, weights,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j,
    heads, group, tokens, len_q, len_k, scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, BLOCK_E: tl.constexpr, MASK: tl.constexpr, OFFSETS: tl.constexpr, PACKED: tl.constexpr,
    SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, DROPOUT: tl.constexpr, MEAN: tl.constexpr,
    BIASED: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
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
    first_q, first_k, own_q, own_k, first_head_rows = sequence(
        cu_seq_q, cu_seq_k, batch, first_head, heads, tokens, len_q, len_k, PACKED
    )
    last = tl.minimum(begin_m + BLOCK_M, own_q) - 1 + position
    begin, end = key_bounds(begin_m + position, last, own_k, left, right, LEFT, RIGHT)

    i = (begin_m + tl.arange(0, BLOCK_M))[:, None]
    j = (begin_n + tl.arange(0, BLOCK_N))[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if (begin_m < own_q) & (begin_n < end) & (begin_n + BLOCK_N > begin):
        for member in range(0, summed):
            head = (first_head + member).to(tl.int64)
            batch_head = batch * heads + head
            head_rows = first_head_rows + member * (tokens if PACKED else len_q)
            head_query = query + batch * stride_qb + head * stride_qh + first_q * stride_qm
            head_key = key + batch * stride_kb + head // group * stride_kh + first_k * stride_kn
            q = load_rows(head_query, begin_m, stride_qm, 0, own_q, HEAD_DIM, BLOCK_M, BLOCK_E)
            k = load_rows(head_key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            score = masked_scores(
                capped_scores(product, scale, softcap, SOFTCAP, UNIT), i, j, position, i,
                mask + batch * stride_mask_b + head * stride_mask_h, stride_mask_i, stride_mask_j,
                own_q, own_k, left, right, MASK, LEFT, RIGHT, False, False, True, UNIT,
            )  # fmt: skip
            base, row_rest = load_lse(lse + head_rows, rest + head_rows, i, own_q, BIASED, UNIT)
            weight = at_most(exponential(log_weight(score, base, row_rest, BIASED), UNIT), 1.0)
            if DROPOUT:
                seed_value = tl.load(seed)
                keep = dropout_keep(seed_value, batch_head, i, begin_n, dropout_threshold, BLOCK_M, BLOCK_N, False)
                weight = tl.where(keep, weight * dropout_scale, 0.0)
            sums += weight
    entries = weights + (place.to(tl.int64) * len_q + i) * len_k + j
    tl.store(entries, (sums / summed).to(weights.dtype.element_ty), mask=(i < len_q) & (j < len_k))
