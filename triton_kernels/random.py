"""Philox4x32-10 on the device, laid out as `attnkern/philox.py` defines it."""

import triton
import triton.language as tl

DROPOUT_STREAM = tl.constexpr(0)
SAMPLE_STREAM = tl.constexpr(1)
SAMPLE_BLOCK = tl.constexpr(64)


@triton.jit
def philox_words(seed, row, batch_head, stream, block):
    """Four uint32 words for each broadcast counter `(row, batch_head, stream, block)`."""
    zero = (row * 0 + block * 0).to(tl.uint32)
    c0, c1 = zero + row.to(tl.uint32), zero + batch_head.to(tl.uint32)
    c2, c3 = zero + stream.to(tl.uint32), zero + block.to(tl.uint32)
    return tl.philox(seed, c0, c1, c2, c3, 10)


@triton.jit
def uniform(word):
    """The top 24 bits of a word, as float32 in [0, 1)."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def dropout_keep(
    seed, batch_head, row, key_begin, threshold, ROWS: tl.constexpr, KEYS: tl.constexpr, KEYS_FIRST: tl.constexpr
):
    """True where dropout keeps the weight: `(ROWS, KEYS)`, or `(KEYS, ROWS)` with KEYS_FIRST.

    row: numbers of the rows, `(ROWS, 1)`, or `(1, ROWS)` with KEYS_FIRST. One call decides 4 consecutive keys;
    `key_begin` must be a multiple of 4.
    """
    blocks = key_begin // 4 + tl.arange(0, KEYS // 4)
    stream = tl.full((), DROPOUT_STREAM, tl.int32)
    if KEYS_FIRST:
        w0, w1, w2, w3 = philox_words(seed, row, batch_head, stream, blocks[:, None])
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (KEYS / 4, ROWS, 2, 2)
        words = tl.reshape(tl.permute(words, (0, 2, 3, 1)), (KEYS, ROWS))
    else:
        w0, w1, w2, w3 = philox_words(seed, row, batch_head, stream, blocks[None, :])
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, KEYS))
    return (words >> 8).to(tl.int32) >= threshold
