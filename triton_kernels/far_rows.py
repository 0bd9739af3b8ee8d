"""The lse in two parts, of rows that a float mask puts so far out that float32 has no room for the logarithm.

With a whole row at -1e9, or two keys at infinity, `exp(score - lse)` forgets how many keys share the row. Kernels that
recompute weights of biased scores read `exp(score - base - rest)` instead: of far rows base is the largest score and
rest the logarithm of the sum relative to it, of the others the lse and 0.
"""

import triton
import triton.language as tl

from attnkern.triton_kernels.centers import gaussian_terms, keys_in_sight, load_gaussians, load_query_rows, tile_rows
from attnkern.triton_kernels.packing import sequence
from attnkern.triton_kernels.scores import LARGEST, LOG2E, at_most, capped_scores, exponential, load_rows, masked_scores

NEAR = tl.constexpr(256.0)  # nats: the rounding of such an lse is nothing beside a score's


@triton.jit
def far_rows(
    query, key, mask, offsets, cu_seq_q, cu_seq_k, order, anchors, nearest, mirror, sigma, lse, base, rest,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j,
    heads, group, tokens, len_q, len_k, scale, softcap, query_offset, left, right,
    HEAD_DIM: tl.constexpr, BLOCK_E: tl.constexpr, MASK: tl.constexpr, OFFSETS: tl.constexpr, PACKED: tl.constexpr,
    SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, CENTERED: tl.constexpr, CAUSAL: tl.constexpr,
    GAUSSIAN: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program per tile of queries of one head, which reads keys only if one of its rows is far out."""
    tiles = tl.cdiv(len_q, BLOCK_M)
    batch_head = tl.program_id(0) // tiles
    begin_m = tl.program_id(0) % tiles * BLOCK_M
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    first_q, first_k, len_q, len_k, head_rows = sequence(
        cu_seq_q, cu_seq_k, batch, head, heads, tokens, len_q, len_k, PACKED
    )
    rows = tile_rows(order, head_rows, begin_m, len_q, CENTERED, BLOCK_M)
    i = rows[:, None]
    row_lse = tl.load(lse + head_rows + rows, mask=rows < len_q, other=0.0)
    far = (tl.abs(row_lse) > NEAR) & (row_lse != float("-inf"))
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    anchor, begin, end, inner_begin, inner_end = keys_in_sight(
        i, anchors, head_rows, begin_m, position, len_q, len_k, left, right, LEFT, RIGHT, CENTERED, CAUSAL, BLOCK_M
    )
    end = tl.where(tl.max(far.to(tl.int32), 0) > 0, end, begin)
    query += batch * stride_qb + head * stride_qh + first_q * stride_qm
    key += batch * stride_kb + head // group * stride_kh + first_k * stride_kn
    mask += batch * stride_mask_b + head * stride_mask_h
    q = load_query_rows(query, rows, begin_m, stride_qm, 0, len_q, HEAD_DIM, BLOCK_M, BLOCK_E, CENTERED)
    if GAUSSIAN == "inside":
        near, mirrored, width = load_gaussians(i, head_rows, nearest, mirror, sigma, len_q)
    top = tl.full((BLOCK_M,), -LARGEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for begin_n in tl.range(begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
        k = load_rows(key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E)
        j = (begin_n + tl.arange(0, BLOCK_N))[None, :]
        score = masked_scores(
            capped_scores(tl.dot(q, tl.trans(k), input_precision=PRECISION), scale, softcap, SOFTCAP, UNIT),
            i, j, position, anchor, mask, stride_mask_i, stride_mask_j, len_q, len_k, left, right,
            MASK, LEFT, RIGHT, CENTERED, CAUSAL, True, UNIT,
        )  # fmt: skip
        if GAUSSIAN == "inside":
            distance, square = gaussian_terms(j, near, mirrored, width, GAUSSIAN)
            score += square * (-0.5 * UNIT)
        new_top = tl.minimum(tl.maximum(top, tl.max(score, 1)), LARGEST)
        weight = at_most(exponential(score - new_top[:, None], UNIT), 1.0)
        total = total * exponential(top - new_top, UNIT) + tl.sum(weight, 1)
        top = new_top
    far = far & (total > 0)  # not where something is NaN
    tl.store(base + head_rows + rows, tl.where(far, top, row_lse * UNIT), mask=rows < len_q)
    logarithm = tl.log2(tl.where(far, total, 1.0)) * (UNIT / LOG2E)
    tl.store(rest + head_rows + rows, logarithm, mask=rows < len_q)
