"""Sampled hard attention: an exact draw in one pass over the keys (Xu et al. 2015), no second product."""

import triton
import triton.language as tl

from attnkern.triton_kernels.packing import sequence
from attnkern.triton_kernels.random import SAMPLE_BLOCK, SAMPLE_STREAM, philox_words, uniform
from attnkern.triton_kernels.scores import (
    FAR,
    LARGEST,
    at_least,
    at_most,
    capped_scores,
    exponential,
    inner_key_bounds,
    key_bounds,
    load_rows,
    log_sum_exp,
    loop_part,
    masked_scores,
)


@triton.jit
def sample_forward(
    query, key, mask, offsets, cu_seq_q, cu_seq_k, seed, index, score, lse, entropy,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    stride_mask_b, stride_mask_h, stride_mask_i, stride_mask_j,
    batch_heads, all_rows, heads, group, tokens, len_q, len_k, num_samples, scale, softcap, query_offset, left, right,
    HEAD_DIM: tl.constexpr, BLOCK_E: tl.constexpr, MASK: tl.constexpr, OFFSETS: tl.constexpr, PACKED: tl.constexpr,
    SOFTCAP: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, ARGMAX: tl.constexpr, SAMPLES: tl.constexpr,
    PRECISION: tl.constexpr, UNIT: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program per tile of queries, head and SAMPLES (1, 2 or 4) of the draws.

    index, score: `(S, B, H, Lq)`; lse, entropy: `(B, H, Lq)`, of `all_rows` entries. A tile of keys is the block
    of 64 that shares a uniform, by definition.
    """
    BLOCK_N: tl.constexpr = SAMPLE_BLOCK
    tiles = tl.cdiv(len_q, BLOCK_M)
    begin_m = tl.program_id(0) % tiles * BLOCK_M
    batch_head = tl.program_id(0) // tiles % batch_heads
    sample_group = tl.program_id(0) // tiles // batch_heads
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    first_q, first_k, len_q, len_k, head_rows = sequence(
        cu_seq_q, cu_seq_k, batch, head, heads, tokens, len_q, len_k, PACKED
    )
    if PACKED:
        len_k = tl.where(begin_m < len_q, len_k, 0)  # nothing to do for tiles past the end
    query += batch * stride_qb + head * stride_qh + first_q * stride_qm
    key += batch * stride_kb + head // group * stride_kh + first_k * stride_kn
    mask += batch * stride_mask_b + head * stride_mask_h
    position = query_offset
    if OFFSETS:
        position = tl.load(offsets + batch).to(tl.int32)
    seed_value = tl.full((), 0, tl.int64)
    if not ARGMAX:
        seed_value = tl.load(seed)

    rows = begin_m + tl.arange(0, BLOCK_M)
    i = rows[:, None]
    columns = tl.arange(0, BLOCK_N)
    draws = tl.arange(0, SAMPLES)[None, :]
    q = load_rows(query, begin_m, stride_qm, 0, len_q, HEAD_DIM, BLOCK_M, BLOCK_E)
    top = tl.full((BLOCK_M,), -LARGEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    surprise = tl.zeros((BLOCK_M,), tl.float32)  # sum of e^(s - top) * (s - top)
    picked = tl.full((BLOCK_M, SAMPLES), -1, tl.int32)
    picked_score = tl.zeros((BLOCK_M, SAMPLES), tl.float32)

    first = begin_m + position
    last = tl.minimum(begin_m + BLOCK_M, len_q) - 1 + position
    begin, end = key_bounds(first, last, len_k, left, right, LEFT, RIGHT)
    inner_begin, inner_end = inner_key_bounds(first, last, len_k, left, right, LEFT, RIGHT)
    for PART in tl.static_range(0 if LEFT else 1, 3):
        part_begin, part_end = loop_part(PART, begin, end, inner_begin, inner_end, BLOCK_N)
        for begin_n in tl.range(part_begin, part_end, BLOCK_N):
            k = load_rows(key, begin_n, stride_kn, begin, end, HEAD_DIM, BLOCK_N, BLOCK_E, PART != 1)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            capped = capped_scores(product, scale, softcap, SOFTCAP, UNIT)
            tile = masked_scores(
                capped, i, begin_n + columns[None, :], position, i, mask, stride_mask_i, stride_mask_j,
                len_q, len_k, left, right, MASK, LEFT, RIGHT, False, False, PART != 1, UNIT,
            )  # fmt: skip
            highest = tl.max(tile, 1)
            new_top = tl.minimum(tl.maximum(top, highest), LARGEST)
            drop = tl.maximum(top - new_top, FAR)
            top = new_top
            distance = at_most(at_least(tile - new_top[:, None], FAR), 0.0)
            mass = exponential(distance, UNIT)
            block_mass = tl.sum(mass, 1)
            decay = exponential(drop, UNIT)
            surprise = decay * (surprise + drop * total) + tl.sum(mass * distance, 1)
            total = total * decay + block_mass
            if ARGMAX:
                better = (highest[:, None] > picked_score) | ((picked < 0) & (block_mass > 0)[:, None])
                place = begin_n + tl.argmax(tile, 1, tie_break_left=True).to(tl.int32)
                picked = tl.where(better, place[:, None], picked)
                picked_score = tl.where(better, highest[:, None], picked_score)
            else:
                stream = sample_group + SAMPLE_STREAM
                w0, w1, w2, w3 = philox_words(seed_value, i, batch_head, stream, (begin_n + draws * 0) // BLOCK_N)
                word = tl.where(draws == 0, w0, tl.where(draws == 1, w1, tl.where(draws == 2, w2, w3)))
                target = uniform(word) * total[:, None]
                # the first block with any mass is always taken; rounding must not lose it
                taken = (block_mass > 0)[:, None] & ((target < block_mass[:, None]) | (picked < 0))
                if tl.max(taken.to(tl.int32)) > 0:  # nested, Triton 3.6 cannot compile it for sm_100
                    running = tl.cumsum(mass, 1)
                    final = tl.max(tl.where(mass > 0, columns[None, :], -1), 1)
                    for draw in tl.static_range(SAMPLES):
                        this = draws == draw
                        own_target = tl.sum(tl.where(this, target, 0.0), 1)
                        reached = tl.sum((running <= own_target[:, None]).to(tl.int32), 1)
                        place = tl.minimum(reached, final)
                        place_score = tl.sum(tl.where(columns[None, :] == place[:, None], tile, 0.0), 1)
                        moved = taken & this
                        picked = tl.where(moved, (begin_n + place)[:, None], picked)
                        picked_score = tl.where(moved, place_score[:, None], picked_score)

    row = head_rows + rows
    sample = sample_group * 4 + draws
    entries = sample.to(tl.int64) * all_rows + row[:, None]
    inside = (rows < len_q)[:, None] & (sample < num_samples)
    tl.store(index + entries, picked.to(tl.int64), mask=inside)
    tl.store(score + entries, at_most(picked_score * (1 / UNIT), LARGEST), mask=inside)
    if sample_group == 0:
        tl.store(lse + row, log_sum_exp(top, total, UNIT), mask=rows < len_q)
        total = tl.where(total == 0, 1.0, total)
        tl.store(entropy + row, tl.log(total) - surprise / total * (1 / UNIT), mask=rows < len_q)
