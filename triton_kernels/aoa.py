"""Attention-over-Attention (Cui et al. 2017): two softmaxes of one score matrix that is never stored.

A row is a word of the document, a column one of the question. Kernels by row walk over the question and hold
a tile of the document; kernels by column hold a tile of the question and walk over a split of the document,
to be summed over splits. With ONE_TILE the whole question is one tile.
"""

import triton
import triton.language as tl

from attnkern.triton_kernels.scores import LARGEST, at_most, exponential, log_sum_exp


@triton.jit
def seen_words(mask, begin, length, MASK: tl.constexpr, WORDS: tl.constexpr):
    """Which of the words from `begin` there are."""
    words = begin + tl.arange(0, WORDS)
    seen = words < length
    if MASK:
        seen = seen & (tl.load(mask + words, mask=seen, other=0) != 0)
    return seen


@triton.jit
def load_words(base, begin, stride, seen, begin_e, FEATURES: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Features from `begin_e` of the words from `begin`, `(WORDS, BLOCK)`; 0 for words that are not seen."""
    words = tl.arange(0, WORDS)
    features = begin_e + tl.arange(0, BLOCK)
    start = tl.full((), 0, tl.int64) + begin
    pointers = base + start * stride + words[:, None] * stride + features[None, :]
    return tl.load(pointers, mask=seen[:, None] & (features < FEATURES)[None, :], other=0.0)


@triton.jit
def pair_scores(
    document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
    FEATURES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Scores `(BLOCK_M, BLOCK_N)`, -inf where either word is not seen."""
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin_e in range(0, FEATURES, BLOCK_E):
        d = load_words(document, begin_m, stride_dm, rows, begin_e, FEATURES, BLOCK_M, BLOCK_E)
        q = load_words(question, begin_n, stride_qn, columns, begin_e, FEATURES, BLOCK_N, BLOCK_E)
        product = tl.dot(d, tl.trans(q), product, input_precision=PRECISION)
    return tl.where(rows[:, None] & columns[None, :], at_most(product * UNIT, LARGEST), float("-inf"))


@triton.jit
def weights_of(score, lse, UNIT: tl.constexpr):
    """Softmax weights; none exceeds 1, however the rounding of a huge score falls."""
    return at_most(exponential(score - at_most(lse * UNIT, LARGEST), UNIT), 1.0)


@triton.jit
def finite_log_sum_exp(top, total, UNIT: tl.constexpr):
    """In nats; 0 where there is nothing to sum, so that weights come out 0 there."""
    return tl.where(total == 0, 0.0, log_sum_exp(top, total, UNIT))


@triton.jit
def load_vector(base, begin, length, SIZE: tl.constexpr):
    """Entries from `begin` on, in float32, 0 past the end."""
    entries = begin + tl.arange(0, SIZE)
    return tl.load(base + entries, mask=entries < length, other=0.0).to(tl.float32)


@triton.jit
def aoa_rows(
    document, question, document_mask, question_mask, row_lse,
    stride_db, stride_dm, stride_qb, stride_qn, len_d, len_q,
    DOCUMENT_MASK: tl.constexpr, QUESTION_MASK: tl.constexpr, FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The lse of each row, `(B, Ld)`, for questions longer than a tile."""
    tiles = tl.cdiv(len_d, BLOCK_M)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    begin_m = tl.program_id(0) % tiles * BLOCK_M
    document += batch * stride_db
    question += batch * stride_qb
    rows = seen_words(document_mask + batch * len_d, begin_m, len_d, DOCUMENT_MASK, BLOCK_M)
    top = tl.full((BLOCK_M,), -LARGEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for begin_n in tl.range(0, len_q, BLOCK_N):
        columns = seen_words(question_mask + batch * len_q, begin_n, len_q, QUESTION_MASK, BLOCK_N)
        score = pair_scores(
            document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
            FEATURES, BLOCK_M, BLOCK_N, BLOCK_E, PRECISION, UNIT,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(score, 1))
        total = total * exponential(top - new_top, UNIT) + tl.sum(exponential(score - new_top[:, None], UNIT), 1)
        top = new_top
    i = begin_m + tl.arange(0, BLOCK_M)
    tl.store(row_lse + batch * len_d + i, finite_log_sum_exp(top, total, UNIT), mask=i < len_d)


@triton.jit
def aoa_columns(
    document, question, document_mask, question_mask, row_lse, column_top, column_total, beta,
    stride_db, stride_dm, stride_qb, stride_qn, batches, len_d, len_q, split,
    DOCUMENT_MASK: tl.constexpr, QUESTION_MASK: tl.constexpr, FEATURES: tl.constexpr, ONE_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Of each column over each split, `(splits, B, Lq)`: the largest score, the sum of exponentials relative to it, and
    the sum of the rows' softmax.

    With ONE_TILE writes the rows' lse, otherwise reads it.
    """
    tiles = tl.cdiv(len_q, BLOCK_N)
    begin_n = tl.program_id(0) % tiles * BLOCK_N
    place = tl.program_id(0) // tiles
    batch = (place % batches).to(tl.int64)
    begin = place // batches * split
    document += batch * stride_db
    question += batch * stride_qb
    columns = seen_words(question_mask + batch * len_q, begin_n, len_q, QUESTION_MASK, BLOCK_N)
    top = tl.full((BLOCK_N,), -LARGEST, tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for begin_m in tl.range(begin, tl.minimum(begin + split, len_d), BLOCK_M):
        rows = seen_words(document_mask + batch * len_d, begin_m, len_d, DOCUMENT_MASK, BLOCK_M)
        score = pair_scores(
            document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
            FEATURES, BLOCK_M, BLOCK_N, BLOCK_E, PRECISION, UNIT,
        )  # fmt: skip
        if ONE_TILE:
            row_top = tl.maximum(tl.max(score, 1), -LARGEST)
            weight = exponential(score - row_top[:, None], UNIT)
            row_total = tl.sum(weight, 1)
            weight = weight / tl.where(row_total > 0, row_total, 1.0)[:, None]
            i = begin_m + tl.arange(0, BLOCK_M)
            lse = finite_log_sum_exp(row_top, row_total, UNIT)
            tl.store(row_lse + batch * len_d + i, lse, mask=i < len_d)
        else:
            lse = load_vector(row_lse + batch * len_d, begin_m, len_d, BLOCK_M)
            weight = weights_of(score, lse[:, None], UNIT)
        sums += tl.sum(weight, 0)
        new_top = tl.maximum(top, tl.max(score, 0))
        total = total * exponential(top - new_top, UNIT) + tl.sum(exponential(score - new_top[None, :], UNIT), 0)
        top = new_top
    j = begin_n + tl.arange(0, BLOCK_N)
    entries = place.to(tl.int64) * len_q + j
    tl.store(column_top + entries, top * (1 / UNIT), mask=j < len_q)
    tl.store(column_total + entries, total, mask=j < len_q)
    tl.store(beta + entries, sums, mask=j < len_q)


@triton.jit
def aoa_attention(
    document, question, document_mask, question_mask, column_top, weights, attention,
    stride_db, stride_dm, stride_qb, stride_qn, len_d, len_q,
    DOCUMENT_MASK: tl.constexpr, QUESTION_MASK: tl.constexpr, FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The result, `(B, Ld)`: exponentials relative to each column's largest, times the columns' weights."""
    tiles = tl.cdiv(len_d, BLOCK_M)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    begin_m = tl.program_id(0) % tiles * BLOCK_M
    document += batch * stride_db
    question += batch * stride_qb
    rows = seen_words(document_mask + batch * len_d, begin_m, len_d, DOCUMENT_MASK, BLOCK_M)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    for begin_n in tl.range(0, len_q, BLOCK_N):
        columns = seen_words(question_mask + batch * len_q, begin_n, len_q, QUESTION_MASK, BLOCK_N)
        score = pair_scores(
            document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
            FEATURES, BLOCK_M, BLOCK_N, BLOCK_E, PRECISION, UNIT,
        )  # fmt: skip
        top = load_vector(column_top + batch * len_q, begin_n, len_q, BLOCK_N)
        weight = load_vector(weights + batch * len_q, begin_n, len_q, BLOCK_N)
        sums += tl.sum(weights_of(score, top[None, :], UNIT) * weight[None, :], 1)
    i = begin_m + tl.arange(0, BLOCK_M)
    tl.store(attention + batch * len_d + i, sums.to(attention.dtype.element_ty), mask=i < len_d)
