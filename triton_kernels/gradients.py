"""Of one tile: the gradient to its weights, and the one to its scores; backward.py has the formulas."""

import triton
import triton.language as tl

from attnkern.triton_kernels.scores import FAR, INFINITE, LARGEST, activated, at_most, exponential


@triton.jit
def load_lse(lse, rest, i, len_q, BIASED: tl.constexpr, UNIT: tl.constexpr):
    """Rows' lse in two parts, see far_rows.py; an empty row's weights come out 0, as do those of rows past the end."""
    base = tl.load(lse + i, mask=i < len_q, other=float("inf"))
    if BIASED:
        return tl.where(base == float("-inf"), 0.0, at_most(base, LARGEST)), tl.load(rest + i, i < len_q, other=0.0)
    else:
        base = tl.where(base == float("-inf"), 0.0, at_most(base * UNIT, LARGEST))
        return base, base


@triton.jit
def log_weight(score, base, rest, BIASED: tl.constexpr):
    """Logarithm of the weight, in the scores' unit."""
    if BIASED:
        return at_most(score - base, 0.0) - rest  # infinite scores share the row
    else:
        return score - base


@triton.jit
def weight_gradient(
    product_gradient, keep, dropout_scale, i, j, len_q, len_k, grad_weights, stride_gi, stride_gj,
    HAS_OUTPUT: tl.constexpr, HAS_WEIGHTS: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """`g`, the gradient to the weights before dropout. `product_gradient` is `grad_output . value`."""
    gradient = tl.zeros_like(product_gradient)
    if HAS_OUTPUT:
        gradient += product_gradient
    if HAS_WEIGHTS:
        entries = grad_weights + i.to(tl.int64) * stride_gi + j.to(tl.int64) * stride_gj
        gradient += tl.load(entries, mask=(i < len_q) & (j < len_k), other=0.0).to(tl.float32)
    if DROPOUT:
        gradient = tl.where(keep, gradient * dropout_scale, 0.0)
    return gradient


@triton.jit
def score_gradient(
    score, base, rest, product_gradient, keep, dropout_scale, i, j, len_q, len_k, grad_weights, stride_gi, stride_gj,
    row, entropy, HAS_OUTPUT: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_ENTROPY: tl.constexpr,
    DROPOUT: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr, ACTIVATION: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Weights before dropout, their gradient g, and dS.

    `base` and `rest` come shaped to broadcast like `i`; `row`, `entropy` point at row 0.
    """
    if ACTIVATION == "softmax":
        distance = log_weight(score, base, rest, BIASED)
        weight = at_most(exponential(distance, UNIT), 1.0)
    else:
        weight = activated(score, ACTIVATION, UNIT)
    gradient = weight_gradient(
        product_gradient, keep, dropout_scale, i, j, len_q, len_k, grad_weights, stride_gi, stride_gj,
        HAS_OUTPUT, HAS_WEIGHTS, DROPOUT,
    )  # fmt: skip
    ds = gradient
    if ACTIVATION == "softmax":
        ds -= tl.load(row + i, mask=i < len_q, other=0.0)
    if HAS_ENTROPY:
        surprise = tl.minimum(tl.maximum(distance, FAR), 0.0) * (1 / UNIT)
        ds -= tl.load(entropy + i, mask=i < len_q, other=0.0) * surprise
    if ACTIVATION == "relu":
        ds = tl.where(score > 0, ds, 0.0)
    elif ACTIVATION != "linear":
        ds *= weight
    if MASKED:  # a hidden value may hold anything, NaN included
        ds = tl.where(score == float("-inf"), 0.0, ds)
    if BIASED and ACTIVATION == "softmax":  # a score that the mask makes infinite is a constant
        ds = tl.where(base >= INFINITE, 0.0, ds)
    return weight, gradient, ds
