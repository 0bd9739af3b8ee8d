"""Where a sequence lies: in a batch of one length, or (PACKED) among others of its own length, one after another."""

import triton
import triton.language as tl


@triton.jit
def sequence(cu_seq_q, cu_seq_k, batch, head, heads, tokens, len_q, len_k, PACKED: tl.constexpr):
    """First query and key, lengths, and where the head's rows begin in what is `(B, H, Lq)`, packed `(H, tokens)`."""
    first_q = tl.full((), 0, tl.int64)
    first_k = first_q
    head_rows = (batch * heads + head) * len_q
    if PACKED:
        first_q = tl.load(cu_seq_q + batch).to(tl.int64)
        first_k = tl.load(cu_seq_k + batch).to(tl.int64)
        len_q = (tl.load(cu_seq_q + batch + 1) - first_q).to(tl.int32)
        len_k = (tl.load(cu_seq_k + batch + 1) - first_k).to(tl.int32)
        head_rows = head * tokens + first_q
    return first_q, first_k, len_q, len_k, head_rows
