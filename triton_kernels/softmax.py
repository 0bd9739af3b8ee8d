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
from attnkern.triton_kernels.packing import sequence
from attnkern.triton_kernels.random import dropout_keep
from attnkern.triton_kernels.scores import (
    LARGEST,
    activated,
    at_most,
    capped_scores,
    exponential,
    load_rows,
    log_sum_exp,
    loop_part,
    masked_scores,
    where_seen,
)


@triton.jit
def share_of_keys(split, splits, begin, end, BLOCK: tl.constexpr):
    """The part of keys `[begin, end)`, in whole tiles, that one of several programs takes."""
    start = begin // BLOCK * BLOCK
    share = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), BLOCK), splits) * BLOCK
    first = start + (split * share).to(tl.int32)
    return tl.maximum(first, begin), tl.minimum(first + share, end)


@triton.jit
def combine_splits(
    parts, parts_lse, output, lse, stride_ps, stride_pb, stride_ph, stride_pm, stride_ob, stride_oh, stride_om,
    heads, tokens, splits, all_rows,
    VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program per row: softmaxes over parts of its keys, weighed by their sums, are one over them all."""
    row = tl.program_id(0).to(tl.int64)
    batch, head, place = row // tokens // heads, row // tokens % heads, row % tokens
    split = tl.arange(0, BLOCK_S)
    columns = tl.arange(0, BLOCK_V)
    lses = tl.load(parts_lse + split.to(tl.int64) * all_rows + row, mask=split < splits, other=float("-inf"))
    top = tl.max(lses, 0)
    share = tl.exp(lses - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(share, 0)
    rows = parts + batch * stride_pb + head * stride_ph + place * stride_pm + split.to(tl.int64)[:, None] * stride_ps
    inside = (split < splits)[:, None] & (columns < VALUE_DIM)[None, :]
    values = tl.load(rows + columns[None, :], mask=inside, other=0.0)
    result = tl.sum(values * share[:, None], 0) / tl.where(total == 0, 1.0, total)
    output += batch * stride_ob + head * stride_oh + place * stride_om
    tl.store(output + columns, result.to(output.dtype.element_ty), mask=columns < VALUE_DIM)
    tl.store(lse + row, tl.where(total == 0, float("-inf"), top + tl.log(total)))


@triton.jit
def softmax_forward(
    query, key, value, mask, offsets, cu_seq_q, cu_seq_k, seed, order, anchors, nearest, mirror, sigma, output, lse,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j, stride_ob, stride_oh, stride_om,
    heads, group, tokens, len_q, len_k, splits, stride_os, all_rows, scale, softcap, query_offset, left, right,
    dropout_threshold, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    MASK: tl.constexpr, OFFSETS: tl.constexpr, PACKED: tl.constexpr, SOFTCAP: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, DROPOUT: tl.constexpr, ACTIVATION: tl.constexpr, SPLIT: tl.constexpr,
    CENTERED: tl.constexpr, CAUSAL: tl.constexpr, GAUSSIAN: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of queries of one head: output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`.

    With SPLIT, as many as `splits` share the tile's keys: output and lse of each lead with that dimension.
    """
    tiles = tl.cdiv(len_q, BLOCK_M)
    program = tl.program_id(0)
    split = tl.full((), 0, tl.int64)
    if SPLIT:
        split = (program % splits).to(tl.int64)
        program = program // splits
    batch_head = program // tiles
    tile = program % tiles
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
    query += batch * stride_qb + head * stride_qh + first_q * stride_qm
    key += batch * stride_kb + head // group * stride_kh + first_k * stride_kn
    value += batch * stride_vb + head // group * stride_vh + first_k * stride_vn
    mask += batch * stride_mask_b + head * stride_mask_h
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    seed_value = tl.full((), 0, tl.int64)
    if DROPOUT:
        seed_value = tl.load(seed)

    rows = tile_rows(order, head_rows, begin_m, len_q, CENTERED, BLOCK_M)
    i = rows[:, None]
    q = load_query_rows(query, rows, begin_m, stride_qm, 0, len_q, HEAD_DIM, BLOCK_M, BLOCK_E, CENTERED)
    top = tl.full((BLOCK_M,), -LARGEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    sums = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)

    anchor, begin, end, inner_begin, inner_end = keys_in_sight(
        i, anchors, head_rows, begin_m, position, len_q, len_k, left, right, LEFT, RIGHT, CENTERED, CAUSAL, BLOCK_M
    )
    if SPLIT:
        begin, end = share_of_keys(split, splits, begin, end, BLOCK_N)
    if GAUSSIAN != "none":
        near, far, width = load_gaussians(i, head_rows, nearest, mirror, sigma, len_q)
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
                weight = at_most(exponential(score - new_top[:, None], UNIT), 1.0)
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
        sums /= tl.where(total == 0, 1.0, total)[:, None]
    output += split * stride_os + batch * stride_ob + head * stride_oh + first_q * stride_om
    store_query_rows(output, rows, begin_m, stride_om, len_q, sums, VALUE_DIM, BLOCK_M, BLOCK_V, CENTERED)
    if ACTIVATION == "softmax":
        tl.store(lse + split * all_rows + head_rows + rows, row_lse, mask=rows < len_q)
