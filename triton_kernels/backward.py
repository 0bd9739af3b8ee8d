"""The backward pass of anything that reaches the scores through softmax weights `p`.

    g  = dropout * (grad_output . value + grad_weights)
    dS = p * (g - row - entropy * (s - lse)),    row = sum_j p_j g_j + whatever else is constant in a row

Which terms exist is fixed at compile time: softmax attention has grad_output and row; attention
weights have grad_weights and row; sampled attention has row and entropy; weights that are no softmax (ACTIVATION)
have grad_output alone, and `dS = g * their derivative`. Two kernels, one owning
tiles of queries and one tiles of keys, so that every sum has a fixed order: deterministic, no atomics.

For softmax attention the mean in `row` is `grad_output . output`, but that takes the output's rounding
along, which only 16-bit budgets do not notice; otherwise a pass of its own sums it from the same `g`.
"""

import triton
import triton.language as tl

from attnkern.triton_kernels.centers import (
    centered_row_bounds,
    gaussian_terms,
    keys_in_sight,
    load_gaussians,
    load_query_rows,
    store_query_rows,
    tile_anchors,
    tile_rows,
)
from attnkern.triton_kernels.gradients import load_lse, log_weight, score_gradient, weight_gradient
from attnkern.triton_kernels.packing import sequence
from attnkern.triton_kernels.random import dropout_keep
from attnkern.triton_kernels.scores import (
    at_most,
    cap_slope,
    capped_scores,
    exponential,
    inner_row_bounds,
    load_rows,
    loop_part,
    masked_scores,
    row_bounds,
    store_rows,
    where_seen,
)


@triton.jit
def backward_query(
    query, key, value, mask, offsets, cu_seq_q, cu_seq_k, seed, order, anchors, nearest, mirror, sigma,
    lse, rest, grad_output, grad_weights, row, entropy, grad_query, grad_center, grad_sigma,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j, stride_ob, stride_oh, stride_om,
    stride_gb, stride_gh, stride_gi, stride_gj, stride_dqb, stride_dqh, stride_dqm,
    heads, group, tokens, len_q, len_k, scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    MASK: tl.constexpr, OFFSETS: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, DROPOUT: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, MEAN: tl.constexpr, BIASED: tl.constexpr, ACTIVATION: tl.constexpr,
    CENTERED: tl.constexpr, CAUSAL: tl.constexpr, GAUSSIAN: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of queries of one head: `grad_query = scale * dS key`.

    With MEAN, a pass before that one, it writes `row = sum_j p_j g_j` instead.
    """
    tiles = tl.cdiv(len_q, BLOCK_M)
    batch_head = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    if RIGHT:
        tile = tiles - 1 - tile  # causal: the longest first
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    begin_m = tile * BLOCK_M

    first_q, first_k, len_q, len_k, head_rows = sequence(
        cu_seq_q, cu_seq_k, batch, head, heads, tokens, len_q, len_k, PACKED
    )
    if PACKED:
        len_k = tl.where(begin_m < len_q, len_k, 0)  # nothing to do for tiles past the end
    key += batch * stride_kb + head // group * stride_kh + first_k * stride_kn
    value += batch * stride_vb + head // group * stride_vh + first_k * stride_vn
    mask += batch * stride_mask_b + head * stride_mask_h
    grad_weights += batch * stride_gb + head * stride_gh
    row += head_rows
    entropy += head_rows
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    seed_value = tl.full((), 0, tl.int64)
    if DROPOUT:
        seed_value = tl.load(seed)

    rows = tile_rows(order, head_rows, begin_m, len_q, CENTERED, BLOCK_M)
    i = rows[:, None]
    query += batch * stride_qb + head * stride_qh + first_q * stride_qm
    q = load_query_rows(query, rows, begin_m, stride_qm, 0, len_q, HEAD_DIM, BLOCK_M, BLOCK_E, CENTERED)
    base, row_rest = load_lse(lse + head_rows, rest + head_rows, i, len_q, BIASED, UNIT)
    do = q
    if HAS_OUTPUT:
        grad_output += batch * stride_ob + head * stride_oh + first_q * stride_om
        do = load_query_rows(grad_output, rows, begin_m, stride_om, 0, len_q, VALUE_DIM, BLOCK_M, BLOCK_V, CENTERED)
    if MEAN:
        mean = tl.zeros((BLOCK_M,), tl.float32)
    else:
        dq = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
        if GAUSSIAN != "none":
            dcenter = tl.zeros((BLOCK_M,), tl.float32)
            dsigma = tl.zeros((BLOCK_M,), tl.float32)
    anchor, begin, end, inner_begin, inner_end = keys_in_sight(
        i, anchors, head_rows, begin_m, position, len_q, len_k, left, right, LEFT, RIGHT, CENTERED, CAUSAL, BLOCK_M
    )
    if GAUSSIAN != "none":
        near, far, width = load_gaussians(i, head_rows, nearest, mirror, sigma, len_q)
    for PART in tl.static_range(2 if CENTERED else 0 if LEFT else 1, 3):
        part_begin, part_end = loop_part(PART, begin, end, inner_begin, inner_end, BLOCK_N)
        for begin_n in tl.range(part_begin, part_end, BLOCK_N):
            k = load_rows(key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E, PART != 1)
            capped = capped_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, softcap, SOFTCAP, UNIT)
            j = (begin_n + tl.arange(0, BLOCK_N))[None, :]
            score = masked_scores(
                capped, i, j, position, anchor, mask, stride_mask_i, stride_mask_j, len_q, len_k, left, right,
                MASK, LEFT, RIGHT, CENTERED, CAUSAL, PART != 1, UNIT,
            )  # fmt: skip
            if GAUSSIAN != "none":
                distance, square = gaussian_terms(j, near, far, width, GAUSSIAN)
                gaussian = square * (-0.5 * UNIT)
            if GAUSSIAN == "inside":
                score += gaussian
            product_gradient = capped
            if HAS_OUTPUT:
                v = load_rows(value, begin_n, stride_vn, begin, end, VALUE_DIM, BLOCK_N, BLOCK_V, PART != 1)
                product_gradient = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            if GAUSSIAN == "after":
                product_gradient *= exponential(gaussian, UNIT)
            keep = i >= 0
            if DROPOUT:
                keep = dropout_keep(seed_value, batch_head, i, begin_n, dropout_threshold, BLOCK_M, BLOCK_N, False)
            if MEAN:
                gradient = weight_gradient(
                    product_gradient, keep, dropout_scale, i, j, len_q, len_k, grad_weights, stride_gi, stride_gj,
                    HAS_OUTPUT, HAS_WEIGHTS, DROPOUT,
                )  # fmt: skip
                weight = at_most(exponential(log_weight(score, base, row_rest, BIASED), UNIT), 1.0)
                mean += tl.sum(tl.where(weight == 0, 0.0, weight * gradient), 1)
            else:
                weight, gradient, ds = score_gradient(
                    score, base, row_rest, product_gradient, keep, dropout_scale, i, j, len_q, len_k,
                    grad_weights, stride_gi, stride_gj, row, entropy,
                    HAS_OUTPUT, HAS_WEIGHTS, HAS_ENTROPY, DROPOUT, PART != 1 or MASK != "none", BIASED, ACTIVATION,
                    UNIT,
                )  # fmt: skip
                if GAUSSIAN != "none":
                    part = tl.where(weight == 0, 0.0, weight * gradient) if GAUSSIAN == "after" else ds
                    dcenter += tl.sum(part * distance, 1)
                    dsigma += tl.sum(part * square, 1)
                if SOFTCAP:
                    ds *= cap_slope(capped, softcap, UNIT)
                k = where_seen(score, k, MASK != "none" or CENTERED)
                dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    if MEAN:
        tl.store(row + rows, mean, mask=rows < len_q)
    else:
        grad_query += batch * stride_dqb + head * stride_dqh + first_q * stride_dqm
        store_query_rows(grad_query, rows, begin_m, stride_dqm, len_q, dq * scale, HEAD_DIM, BLOCK_M, BLOCK_E, CENTERED)
        if GAUSSIAN != "none":
            width = tl.load(sigma + head_rows + rows, mask=rows < len_q, other=1.0)
            tl.store(grad_center + head_rows + rows, dcenter / width, mask=rows < len_q)
            tl.store(grad_sigma + head_rows + rows, dsigma / width, mask=rows < len_q)


@triton.jit
def backward_key_value(
    query, key, value, mask, offsets, cu_seq_q, cu_seq_k, seed, order, anchors, nearest, mirror, sigma,
    lse, rest, grad_output, grad_weights, row, entropy, grad_key, grad_value,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j, stride_ob, stride_oh, stride_om,
    stride_gb, stride_gh, stride_gi, stride_gj, stride_dkb, stride_dkh, stride_dkn, stride_dvb, stride_dvh, stride_dvn,
    heads, group, tokens, len_q, len_k, scale, softcap, query_offset, left, right, dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    MASK: tl.constexpr, OFFSETS: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, DROPOUT: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
    HAS_ENTROPY: tl.constexpr, BIASED: tl.constexpr, ACTIVATION: tl.constexpr, CENTERED: tl.constexpr,
    CAUSAL: tl.constexpr, GAUSSIAN: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of keys of one key head: `grad_key = scale * dS^T query`, `grad_value = P^T dO`.

    Works on the transposed tile `(keys, rows)`, so that P and dS are the left operands as they stand.
    """
    tiles = tl.cdiv(len_k, BLOCK_N)
    kv_heads = heads // group
    batch = (tl.program_id(0) // tiles // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(0) // tiles % kv_heads).to(tl.int64)
    begin_n = tl.program_id(0) % tiles * BLOCK_N
    first_q, first_k, len_q, len_k, first_head_rows = sequence(
        cu_seq_q, cu_seq_k, batch, kv_head * group, heads, tokens, len_q, len_k, PACKED
    )
    if PACKED:
        len_q = tl.where(begin_n < len_k, len_q, 0)  # nothing to do for tiles past the end
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    seed_value = tl.full((), 0, tl.int64)
    if DROPOUT:
        seed_value = tl.load(seed)

    j = (begin_n + tl.arange(0, BLOCK_N))[:, None]
    key += batch * stride_kb + kv_head * stride_kh + first_k * stride_kn
    value += batch * stride_vb + kv_head * stride_vh + first_k * stride_vn
    k = load_rows(key, begin_n, stride_kn, 0, len_k, HEAD_DIM, BLOCK_N, BLOCK_E)
    v = load_rows(value, begin_n, stride_vn, 0, len_k, VALUE_DIM, BLOCK_N, BLOCK_V)
    dk = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    first = begin_n
    last = tl.minimum(begin_n + BLOCK_N, len_k) - 1
    if not CENTERED:
        begin, end = row_bounds(first, last, len_q, position, left, right, LEFT, RIGHT)
        inner_begin, inner_end = inner_row_bounds(first, last, len_q, position, left, right, LEFT, RIGHT)
    for member in range(0, group):
        head = kv_head * group + member
        batch_head = batch * heads + head
        head_rows = first_head_rows + member * (tokens if PACKED else len_q)
        head_query = query + batch * stride_qb + head * stride_qh + first_q * stride_qm
        head_mask = mask + batch * stride_mask_b + head * stride_mask_h
        head_grad_output = grad_output + batch * stride_ob + head * stride_oh + first_q * stride_om
        head_grad_weights = grad_weights + batch * stride_gb + head * stride_gh
        if CENTERED:
            begin, end = centered_row_bounds(first, last, anchors + head_rows, len_q, left, right, LEFT, RIGHT)
            inner_begin, inner_end = 0, 0  # all tiles are edges
        high = len_q if CENTERED else end  # of row numbers
        for PART in tl.static_range(2 if CENTERED else 0 if RIGHT else 1, 3):
            part_begin, part_end = loop_part(PART, begin, end, inner_begin, inner_end, BLOCK_M)
            for begin_m in tl.range(part_begin, part_end, BLOCK_M):
                rows = tile_rows(order, head_rows, begin_m, len_q, CENTERED, BLOCK_M)
                i = rows[None, :]
                q = load_query_rows(
                    head_query, rows, begin_m, stride_qm, begin, high, HEAD_DIM, BLOCK_M, BLOCK_E, CENTERED, PART != 1
                )
                capped = capped_scores(tl.dot(k, tl.trans(q), input_precision=PRECISION), scale, softcap, SOFTCAP, UNIT)
                anchor = i
                if CENTERED:
                    anchor = tile_anchors(anchors, head_rows, begin_m, len_q, BLOCK_M)[None, :]
                score = masked_scores(
                    capped, i, j, position, anchor, head_mask, stride_mask_i, stride_mask_j, len_q, len_k, left, right,
                    MASK, LEFT, RIGHT, CENTERED, CAUSAL, PART != 1, UNIT,
                )  # fmt: skip
                if GAUSSIAN != "none":
                    near, far, width = load_gaussians(i, head_rows, nearest, mirror, sigma, len_q)
                    distance, square = gaussian_terms(j, near, far, width, GAUSSIAN)
                    gaussian = square * (-0.5 * UNIT)
                if GAUSSIAN == "inside":
                    score += gaussian
                keep = j >= 0
                if DROPOUT:
                    keep = dropout_keep(seed_value, batch_head, i, begin_n, dropout_threshold, BLOCK_M, BLOCK_N, True)
                product_gradient = capped
                if HAS_OUTPUT:
                    do = load_query_rows(
                        head_grad_output, rows, begin_m, stride_om, begin, high, VALUE_DIM, BLOCK_M, BLOCK_V, CENTERED,
                        PART != 1,
                    )  # fmt: skip
                    product_gradient = tl.dot(v, tl.trans(do), input_precision=PRECISION)
                if GAUSSIAN == "after":
                    factor = exponential(gaussian, UNIT)
                    product_gradient *= factor
                base, row_rest = load_lse(lse + head_rows, rest + head_rows, i, len_q, BIASED, UNIT)
                weight, _, ds = score_gradient(
                    score, base, row_rest, product_gradient, keep, dropout_scale, i, j, len_q, len_k,
                    head_grad_weights, stride_gi, stride_gj, row + head_rows, entropy + head_rows,
                    HAS_OUTPUT, HAS_WEIGHTS, HAS_ENTROPY, DROPOUT, True, BIASED, ACTIVATION, UNIT,
                )  # fmt: skip
                if HAS_OUTPUT:
                    if GAUSSIAN == "after":
                        weight *= factor
                    if DROPOUT:
                        weight = tl.where(keep, weight * dropout_scale, 0.0)
                    dv = tl.dot(weight.to(do.dtype), do, dv, input_precision=PRECISION)
                if SOFTCAP:
                    ds *= cap_slope(capped, softcap, UNIT)
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    grad_key += batch * stride_dkb + kv_head * stride_dkh + first_k * stride_dkn
    store_rows(grad_key, begin_n, stride_dkn, len_k, dk * scale, HEAD_DIM, BLOCK_N, BLOCK_E)
    if HAS_OUTPUT:
        grad_value += batch * stride_dvb + kv_head * stride_dvh + first_k * stride_dvn
        store_rows(grad_value, begin_n, stride_dvn, len_k, dv, VALUE_DIM, BLOCK_N, BLOCK_V)
