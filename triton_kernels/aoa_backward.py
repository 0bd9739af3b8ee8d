"""The backward of Attention-over-Attention: `attnkern/backends/aoa_blocked.py` has the formula.

`grad_columns` is the gradient of beta, `mean` the same over the number of document words, `row_mean` its mean
under each row's softmax.
"""

import triton
import triton.language as tl

from attnkern.triton_kernels.aoa import load_vector, load_words, pair_scores, seen_words, weights_of


@triton.jit
def aoa_grad_columns(
    document, question, document_mask, question_mask, column_lse, grad_attention, grad_columns, column_total,
    stride_db, stride_dm, stride_qb, stride_qn, batches, len_d, len_q, split,
    DOCUMENT_MASK: tl.constexpr, QUESTION_MASK: tl.constexpr, FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """By column, over each split, and the sum of the columns' softmax: `(splits, B, Lq)`."""
    tiles = tl.cdiv(len_q, BLOCK_N)
    begin_n = tl.program_id(0) % tiles * BLOCK_N
    place = tl.program_id(0) // tiles
    batch = (place % batches).to(tl.int64)
    begin = place // batches * split
    document += batch * stride_db
    question += batch * stride_qb
    columns = seen_words(question_mask + batch * len_q, begin_n, len_q, QUESTION_MASK, BLOCK_N)
    lse = load_vector(column_lse + batch * len_q, begin_n, len_q, BLOCK_N)
    sums = tl.zeros((BLOCK_N,), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for begin_m in tl.range(begin, tl.minimum(begin + split, len_d), BLOCK_M):
        rows = seen_words(document_mask + batch * len_d, begin_m, len_d, DOCUMENT_MASK, BLOCK_M)
        score = pair_scores(
            document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
            FEATURES, BLOCK_M, BLOCK_N, BLOCK_E, PRECISION, UNIT,
        )  # fmt: skip
        grad = load_vector(grad_attention + batch * len_d, begin_m, len_d, BLOCK_M)
        weight = weights_of(score, lse[None, :], UNIT)
        total += tl.sum(weight, 0)
        sums += tl.sum(weight * grad[:, None], 0)
    j = begin_n + tl.arange(0, BLOCK_N)
    entries = place.to(tl.int64) * len_q + j
    tl.store(grad_columns + entries, sums, mask=j < len_q)
    tl.store(column_total + entries, total, mask=j < len_q)


@triton.jit
def aoa_row_mean(
    document, question, document_mask, question_mask, row_lse, mean, row_mean,
    stride_db, stride_dm, stride_qb, stride_qn, len_d, len_q,
    DOCUMENT_MASK: tl.constexpr, QUESTION_MASK: tl.constexpr, FEATURES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """By row, `(B, Ld)`, for questions longer than a tile."""
    tiles = tl.cdiv(len_d, BLOCK_M)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    begin_m = tl.program_id(0) % tiles * BLOCK_M
    document += batch * stride_db
    question += batch * stride_qb
    rows = seen_words(document_mask + batch * len_d, begin_m, len_d, DOCUMENT_MASK, BLOCK_M)
    lse = load_vector(row_lse + batch * len_d, begin_m, len_d, BLOCK_M)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    for begin_n in tl.range(0, len_q, BLOCK_N):
        columns = seen_words(question_mask + batch * len_q, begin_n, len_q, QUESTION_MASK, BLOCK_N)
        score = pair_scores(
            document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
            FEATURES, BLOCK_M, BLOCK_N, BLOCK_E, PRECISION, UNIT,
        )  # fmt: skip
        column_mean = load_vector(mean + batch * len_q, begin_n, len_q, BLOCK_N)
        sums += tl.sum(weights_of(score, lse[:, None], UNIT) * column_mean[None, :], 1)
    i = begin_m + tl.arange(0, BLOCK_M)
    tl.store(row_mean + batch * len_d + i, sums, mask=i < len_d)


@triton.jit
def score_gradient(
    score, begin_m, begin_n, grad_attention, row_lse, row_mean, column_lse, beta, grad_columns, mean, len_d, len_q,
    ONE_TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """dM of a tile; the pointers are the batch element's. With ONE_TILE `row_mean` is found here."""
    lse = load_vector(row_lse, begin_m, len_d, BLOCK_M)
    column_mean = load_vector(mean, begin_n, len_q, BLOCK_N)
    by_row = weights_of(score, lse[:, None], UNIT)
    if ONE_TILE:
        total = tl.sum(by_row, 1)  # the lse was rounded: not quite 1
        by_row /= tl.where(total > 0, total, 1.0)[:, None]
        own_mean = tl.sum(by_row * column_mean[None, :], 1)
    else:
        own_mean = load_vector(row_mean, begin_m, len_d, BLOCK_M)
    by_row *= column_mean[None, :] - own_mean[:, None]

    lse = load_vector(column_lse, begin_n, len_q, BLOCK_N)
    grad = load_vector(grad_attention, begin_m, len_d, BLOCK_M)
    weight = load_vector(beta, begin_n, len_q, BLOCK_N)
    column = load_vector(grad_columns, begin_n, len_q, BLOCK_N)
    by_column = weights_of(score, lse[None, :], UNIT) * weight[None, :]
    return by_row + by_column * (grad[:, None] - column[None, :])


@triton.jit
def aoa_backward_document(
    document, question, document_mask, question_mask, grad_attention, row_lse, row_mean, column_lse, beta,
    grad_columns, mean, grad_document,
    stride_db, stride_dm, stride_qb, stride_qn, stride_gdb, stride_gdm, len_d, len_q,
    DOCUMENT_MASK: tl.constexpr, QUESTION_MASK: tl.constexpr, FEATURES: tl.constexpr, ONE_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr, GRAD_PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """One program per tile of the document and BLOCK_E features: `dM question`."""
    chunks: tl.constexpr = (FEATURES + BLOCK_E - 1) // BLOCK_E
    tiles = tl.cdiv(len_d, BLOCK_M)
    begin_e = tl.program_id(0) % chunks * BLOCK_E
    begin_m = tl.program_id(0) // chunks % tiles * BLOCK_M
    batch = (tl.program_id(0) // chunks // tiles).to(tl.int64)
    document += batch * stride_db
    question += batch * stride_qb
    rows = seen_words(document_mask + batch * len_d, begin_m, len_d, DOCUMENT_MASK, BLOCK_M)
    sums = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for begin_n in tl.range(0, len_q, BLOCK_N):
        columns = seen_words(question_mask + batch * len_q, begin_n, len_q, QUESTION_MASK, BLOCK_N)
        score = pair_scores(
            document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
            FEATURES, BLOCK_M, BLOCK_N, BLOCK_E, PRECISION, UNIT,
        )  # fmt: skip
        grad_score = score_gradient(
            score, begin_m, begin_n, grad_attention + batch * len_d, row_lse + batch * len_d, row_mean + batch * len_d,
            column_lse + batch * len_q, beta + batch * len_q, grad_columns + batch * len_q, mean + batch * len_q,
            len_d, len_q, ONE_TILE, BLOCK_M, BLOCK_N, UNIT,
        )  # fmt: skip
        q = load_words(question, begin_n, stride_qn, columns, begin_e, FEATURES, BLOCK_N, BLOCK_E)
        sums = tl.dot(grad_score, q.to(tl.float32), sums, input_precision=GRAD_PRECISION)
    i = (begin_m + tl.arange(0, BLOCK_M))[:, None]
    features = begin_e + tl.arange(0, BLOCK_E)[None, :]
    pointers = grad_document + batch * stride_gdb + i.to(tl.int64) * stride_gdm + features
    tl.store(pointers, sums.to(grad_document.dtype.element_ty), mask=(i < len_d) & (features < FEATURES))


@triton.jit
def aoa_backward_question(
    document, question, document_mask, question_mask, grad_attention, row_lse, row_mean, column_lse, beta,
    grad_columns, mean, grad_question,
    stride_db, stride_dm, stride_qb, stride_qn, batches, len_d, len_q, split,
    DOCUMENT_MASK: tl.constexpr, QUESTION_MASK: tl.constexpr, FEATURES: tl.constexpr, ONE_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr, GRAD_PRECISION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """One program per tile of the question, BLOCK_E features and split: `dM^T document`, `(splits, B, Lq, E)`."""
    chunks: tl.constexpr = (FEATURES + BLOCK_E - 1) // BLOCK_E
    tiles = tl.cdiv(len_q, BLOCK_N)
    begin_e = tl.program_id(0) % chunks * BLOCK_E
    begin_n = tl.program_id(0) // chunks % tiles * BLOCK_N
    place = tl.program_id(0) // chunks // tiles
    batch = (place % batches).to(tl.int64)
    begin = place // batches * split
    document += batch * stride_db
    question += batch * stride_qb
    columns = seen_words(question_mask + batch * len_q, begin_n, len_q, QUESTION_MASK, BLOCK_N)
    sums = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    for begin_m in tl.range(begin, tl.minimum(begin + split, len_d), BLOCK_M):
        rows = seen_words(document_mask + batch * len_d, begin_m, len_d, DOCUMENT_MASK, BLOCK_M)
        score = pair_scores(
            document, question, begin_m, begin_n, stride_dm, stride_qn, rows, columns,
            FEATURES, BLOCK_M, BLOCK_N, BLOCK_E, PRECISION, UNIT,
        )  # fmt: skip
        grad_score = score_gradient(
            score, begin_m, begin_n, grad_attention + batch * len_d, row_lse + batch * len_d, row_mean + batch * len_d,
            column_lse + batch * len_q, beta + batch * len_q, grad_columns + batch * len_q, mean + batch * len_q,
            len_d, len_q, ONE_TILE, BLOCK_M, BLOCK_N, UNIT,
        )  # fmt: skip
        d = load_words(document, begin_m, stride_dm, rows, begin_e, FEATURES, BLOCK_M, BLOCK_E)
        sums = tl.dot(tl.trans(grad_score), d.to(tl.float32), sums, input_precision=GRAD_PRECISION)
    j = (begin_n + tl.arange(0, BLOCK_N))[:, None]
    features = begin_e + tl.arange(0, BLOCK_E)[None, :]
    pointers = grad_question + (place.to(tl.int64) * len_q + j) * FEATURES + features
    tl.store(pointers, sums, mask=(j < len_q) & (features < FEATURES))
