"""Dot products of rows: `grad_output . output` is the mean of softmax attention's gradient under its weights."""

import triton
import triton.language as tl

from attnkern.triton_kernels.scores import load_rows


@triton.jit
def row_dot(left, right, result, stride_lb, stride_lh, stride_lm, stride_rb, stride_rh, stride_rm,
            heads, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """`result = sum(left * right, -1)`, `(B, H, L, WIDTH) -> (B, H, L)`, in float32."""
    tiles = tl.cdiv(rows, BLOCK_M)
    batch_head = tl.program_id(0) // tiles
    begin = tl.program_id(0) % tiles * BLOCK_M
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    left_rows = load_rows(left + batch * stride_lb + head * stride_lh, begin, stride_lm, 0, rows, WIDTH, BLOCK_M, BLOCK)
    right_rows = load_rows(
        right + batch * stride_rb + head * stride_rh, begin, stride_rm, 0, rows, WIDTH, BLOCK_M, BLOCK
    )
    i = begin + tl.arange(0, BLOCK_M)
    product = tl.sum(left_rows.to(tl.float32) * right_rows.to(tl.float32), 1)
    tl.store(result + batch_head.to(tl.int64) * rows + i, product, mask=i < rows)
