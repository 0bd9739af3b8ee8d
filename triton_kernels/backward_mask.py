"""The gradient of a float mask of any broadcast shape: dS summed over the dimensions it is broadcast in."""

import triton
import triton.language as tl

from attnkern.triton_kernels.centers import (
    gaussian_terms,
    keys_in_sight,
    load_gaussians,
    load_query_rows,
    tile_rows,
)
from attnkern.triton_kernels.gradients import load_lse, score_gradient
from attnkern.triton_kernels.packing import sequence
from attnkern.triton_kernels.random import dropout_keep
from attnkern.triton_kernels.scores import capped_scores, exponential, load_rows, masked_scores


@triton.jit
def backward_mask(
    query, key, value, mask, offsets, cu_seq_q, cu_seq_k, seed, order, anchors, nearest, mirror, sigma,
    lse, rest, grad_output, grad_weights, row, entropy, grad_mask,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j, stride_ob, stride_oh, stride_om,
    stride_gb, stride_gh, stride_gi, stride_gj,
    batches, heads, group, tokens, len_q, len_k, mask_batches, mask_heads, mask_rows, mask_keys, splits,
    scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    MASK: tl.constexpr, OFFSETS: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, DROPOUT: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, SUM_ROWS: tl.constexpr, SUM_KEYS: tl.constexpr, BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr, CENTERED: tl.constexpr, CAUSAL: tl.constexpr, GAUSSIAN: tl.constexpr,
    PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of the mask and split: its share of dS, summed over the mask's broadcast dimensions.

    grad_mask: `(splits, *mask.shape)`; the caller adds the splits. SUM_ROWS, SUM_KEYS: the mask has
    size 1 where the scores have rows, keys.
    """
    tiles_m = tl.cdiv(len_q, BLOCK_M)
    tiles_n = tl.cdiv(len_k, BLOCK_N)
    own_m = 1 if SUM_ROWS else tiles_m
    own_n = 1 if SUM_KEYS else tiles_n
    split = tl.program_id(0) % splits
    place = tl.program_id(0) // splits
    own_tile_n = place % own_n
    own_tile_m = place // own_n % own_m
    own_head = place // own_n // own_m % mask_heads
    own_batch = place // own_n // own_m // mask_heads

    sum_n = tiles_n // own_n
    sum_m = tiles_m // own_m
    sum_heads = heads // mask_heads
    count = sum_n * sum_m * sum_heads * (batches // mask_batches)
    seed_value = tl.full((), 0, tl.int64)
    if DROPOUT:
        seed_value = tl.load(seed)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(split, count, splits):
        begin_n = (own_tile_n + step % sum_n) * BLOCK_N
        begin_m = (own_tile_m + step // sum_n % sum_m) * BLOCK_M
        head = (own_head + step // sum_n // sum_m % sum_heads).to(tl.int64)
        batch = (own_batch + step // sum_n // sum_m // sum_heads).to(tl.int64)
        batch_head = batch * heads + head
        first_q, first_k, own_q, own_k, head_rows = sequence(
            cu_seq_q, cu_seq_k, batch, head, heads, tokens, len_q, len_k, PACKED
        )
        if PACKED:
            own_k = tl.where(begin_m < own_q, own_k, 0)
        position = query_offset
        if OFFSETS:
            position = tl.load(offsets + batch).to(tl.int32)
        rows = tile_rows(order, head_rows, begin_m, own_q, CENTERED, BLOCK_M)
        i = rows[:, None]
        anchor, begin, end, inner_begin, inner_end = keys_in_sight(
            i, anchors, head_rows, begin_m, position, own_q, own_k, left, right, LEFT, RIGHT, CENTERED, CAUSAL, BLOCK_M
        )
        if (begin_n < end) & (begin_n + BLOCK_N > begin):
            j = (begin_n + tl.arange(0, BLOCK_N))[None, :]
            head_query = query + batch * stride_qb + head * stride_qh + first_q * stride_qm
            head_key = key + batch * stride_kb + head // group * stride_kh + first_k * stride_kn
            q = load_query_rows(head_query, rows, begin_m, stride_qm, 0, own_q, HEAD_DIM, BLOCK_M, BLOCK_E, CENTERED)
            k = load_rows(head_key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E)
            capped = capped_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, softcap, SOFTCAP, UNIT)
            score = masked_scores(
                capped, i, j, position, anchor, mask + batch * stride_mask_b + head * stride_mask_h,
                stride_mask_i, stride_mask_j, own_q, own_k, left, right,
                MASK, LEFT, RIGHT, CENTERED, CAUSAL, True, UNIT,
            )  # fmt: skip
            if GAUSSIAN != "none":
                near, far, width = load_gaussians(i, head_rows, nearest, mirror, sigma, own_q)
                distance, square = gaussian_terms(j, near, far, width, GAUSSIAN)
                gaussian = square * (-0.5 * UNIT)
            if GAUSSIAN == "inside":
                score += gaussian
            product_gradient = capped
            if HAS_OUTPUT:
                head_value = value + batch * stride_vb + head // group * stride_vh + first_k * stride_vn
                head_grad_output = grad_output + batch * stride_ob + head * stride_oh + first_q * stride_om
                v = load_rows(head_value, begin_n, stride_vn, begin, end, VALUE_DIM, BLOCK_N, BLOCK_V)
                do = load_query_rows(
                    head_grad_output, rows, begin_m, stride_om, 0, own_q, VALUE_DIM, BLOCK_M, BLOCK_V, CENTERED
                )
                product_gradient = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            if GAUSSIAN == "after":
                product_gradient *= exponential(gaussian, UNIT)
            keep = i >= 0
            if DROPOUT:
                keep = dropout_keep(seed_value, batch_head, i, begin_n, dropout_threshold, BLOCK_M, BLOCK_N, False)
            row_base, row_rest = load_lse(lse + head_rows, rest + head_rows, i, own_q, BIASED, UNIT)
            _, _, ds = score_gradient(
                score, row_base, row_rest, product_gradient, keep, dropout_scale,
                i, j, own_q, own_k, grad_weights + batch * stride_gb + head * stride_gh, stride_gi, stride_gj,
                row + head_rows, entropy + head_rows,
                HAS_OUTPUT, HAS_WEIGHTS, HAS_ENTROPY, DROPOUT, True, BIASED, ACTIVATION, UNIT,
            )  # fmt: skip
            sums += ds

    base = grad_mask + ((split * mask_batches + own_batch) * mask_heads + own_head).to(tl.int64) * mask_rows * mask_keys
    rows = own_tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    keys = own_tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if SUM_ROWS and SUM_KEYS:
        tl.store(base, tl.sum(tl.sum(sums, 1), 0))
    elif SUM_ROWS:
        tl.store(base + keys, tl.sum(sums, 0), mask=keys < len_k)
    elif SUM_KEYS:
        tl.store(base + rows, tl.sum(sums, 1), mask=rows < len_q)
    else:
        entries = base + rows.to(tl.int64)[:, None] * mask_keys + keys[None, :]
        tl.store(entries, sums, mask=(rows < len_q)[:, None] & (keys < len_k)[None, :])
