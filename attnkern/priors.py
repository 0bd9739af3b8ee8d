"""Soft windows, position biases and sparse patterns, made for the operations' `attn_mask`.

No kernel knows them: a float mask is added to the scores and is differentiable, a bool one says where to look. Those
that depend on query and key together store `(heads, Lq, Lk)`, once for the whole batch; causal ALiBi and
Transformer-XL store no matrix. Query `i` stands at key `i + query_offset`, as in the operations.
"""

import math

import torch
from torch import Tensor

NEG_INF = float("-inf")


def alibi_slopes(num_heads: int) -> Tensor:
    """Press et al. 2022 (arXiv 2108.12409): `2^(-8 h / H)`, in float64 `(H,)`.

    Where H is no power of two: the slopes of the power below, then every other one of the power above, as in their
    code.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * h / below) for h in range(1, below + 1)]
    slopes += [2 ** (-8 * h / (2 * below)) for h in range(1, 2 * below, 2)]
    return torch.tensor(slopes[:num_heads], dtype=torch.float64)


def alibi(
    num_heads: int, len_q: int, len_k: int, *, is_causal: bool = False, query_offset: int = 0, device=None
) -> Tensor:
    """Attention with linear biases, `-slope |i - j|` (Press et al. 2022), in float32.

    With `is_causal`, which the operation must be given too, it is `(1, H, 1, Lk)`: `slope (j - i)` without the part
    that all keys of a query share. The softmax does not see it; the lse does, and so does rounding: in float32, amid
    16384 keys, outputs err by 2e-4, where the matrix errs by 6e-7.
    Otherwise `(1, H, Lq, Lk)`.
    """
    ahead = torch.arange(1 - len_k, 1, device=device)
    if not is_causal:
        ahead = -_ahead(len_q, len_k, query_offset, device).abs()
    return (alibi_slopes(num_heads).to(device).view(1, -1, 1, 1) * ahead).float()


def adaptive_span(span: Tensor, len_q: int, len_k: int, *, ramp: float = 32.0, query_offset: int = 0) -> Tensor:
    """Adaptive Span (Sukhbaatar et al. 2019, arXiv 1905.07799): weights times a learned ramp, renormalised.

    The ramp is `clamp((ramp + span - |i - j|) / ramp, 0, 1)`; here is its logarithm. With
    `local_attention(window=(reach, reach))`, reach at least `span.max() + ramp`, the cost follows the spans. The paper
    adds the spans' L1 norm, times a small number, to the loss.

    Args:
        span: z, keys at full weight to each side, `(H,)` or for all heads `()`; differentiable.
        ramp: R, keys over which the weight falls to 0.

    Returns:
        `(1, H | 1, Lq, Lk)`, -inf beyond the ramp.
    """
    if not 0 < ramp < math.inf:
        raise ValueError(f"ramp must be positive and finite, got {ramp}")
    span = _per_head("span", span)
    weight = (ramp + span - _ahead(len_q, len_k, query_offset, span.device).abs()) / ramp
    # beyond its ends the ramp has no gradient, and the logarithm of 0 is not taken
    log = weight.clamp(torch.finfo(span.dtype).tiny, 1).log()
    return log.masked_fill(weight <= 0, NEG_INF)


def gaussian_bias(w: Tensor, b: Tensor, len_q: int, len_k: int, *, query_offset: int = 0) -> Tensor:
    """Gaussian Transformer (Guo, Zhang, Liu 2019): `-|w (i - j)^2 + b|` in the softmax, w > 0 and b <= 0 learned.

    b lowers the weight of a query's own position. Where it is 0, `local_attention(window=(-1, -1),
    sigma=(2 w)^-0.5, renormalize=True)` is the same, narrower windows are cheaper, and no matrix is stored.

    Args:
        w, b: `(H,)`, or for all heads `()`; differentiable.

    Returns:
        `(1, H | 1, Lq, Lk)`.
    """
    w, b = _per_head("w", w), _per_head("b", b)
    return -(w * _ahead(len_q, len_k, query_offset, w.device).square() + b).abs()


def relative_bias(table: Tensor, len_q: int, len_k: int, *, query_offset: int | Tensor = 0) -> Tensor:
    """A learned bias for each head and distance, those beyond the table's as its ends (Shaw et al. 2018's clipping).

    Args:
        table: `(H, 2 R + 1)`, for the distances `j - i` from -R to R; differentiable.
        query_offset: an int, or one for each sentence, `(B,)`.

    Returns:
        `(1 | B, H, Lq, Lk)`.
    """
    if table.dim() != 2 or table.shape[1] % 2 == 0:
        raise ValueError(f"table must have shape (heads, 2 R + 1), got {tuple(table.shape)}")
    reach = table.shape[1] // 2
    if isinstance(query_offset, Tensor):
        query_offset = query_offset.view(-1, 1, 1)
    ahead = _ahead(len_q, len_k, query_offset, table.device).clamp(-reach, reach)
    return table[:, ahead.view(-1, len_q, len_k) + reach].transpose(0, 1)


def strided_pattern(length: int, stride: int, *, device=None) -> Tensor:
    """Sparse Transformer, strided (Child et al. 2019, arXiv 1904.10509): bool `(2, L, L)`, one for each kind of head.

    The first sees the `stride` keys before it and itself, the second every `stride`-th before it and itself; both are
    causal. `.any(0)` is the paper's merged head. The matrix takes a byte for each pair, and hidden pairs are computed;
    apart, the heads need none: the first is `local_attention(window=(stride, 0))`, the second plain causal attention
    after `x.unflatten(2, (-1, stride)).transpose(2, 3)`, with stride among the heads.
    """
    behind = _behind(length, stride, device)
    return torch.stack([behind <= stride, behind % stride == 0]) & (behind >= 0)


def fixed_pattern(length: int, stride: int, summary: int = 1, *, device=None) -> Tensor:
    """Sparse Transformer, fixed (Child et al. 2019): bool `(2, L, L)`, one for each kind of head.

    The first sees its own block of `stride` keys, the second the last `summary` keys of every block; both are causal,
    so the second sees nothing before the first summary. As with `strided_pattern`, the first needs no matrix: it is
    causal attention after `x.unflatten(2, (-1, stride))`, with the blocks among the heads.
    """
    behind = _behind(length, stride, device)
    if not 1 <= summary <= stride:
        raise ValueError(f"summary must be between 1 and stride {stride}, got {summary}")
    place = torch.arange(length, device=device)
    block, last = place // stride, place % stride >= stride - summary
    return torch.stack([block[:, None] == block, last.expand(length, -1)]) & (behind >= 0)


def transformer_xl(
    query: Tensor, key: Tensor, content_bias: Tensor, position_bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Transformer-XL's relative positions (Dai et al. 2019, arXiv 1901.02860) as more features of query and key.

    The score `(q_i + u) . k_j + (q_i + v) . W r_{i-j}`, with sinusoids `r`, is one product of features: the sine of a
    difference is a product of sines and cosines. So no matrix of biases is stored, in forward or backward:

        keys, values = torch.cat([memory_keys, keys], 2), torch.cat([memory_values, values], 2)
        features = transformer_xl(query, keys, u, v, weight)
        output = global_attention(*features, values, is_causal=True, query_offset="end", scale=query.shape[3] ** -0.5)

    Args:
        query, key: `(B, H, Lq, E)` and `(B, H, Lk, E)`; the memory, projected like the rest but without gradient, comes
            first, and the queries stand at the last keys.
        content_bias, position_bias: u and v, `(H, E)`.
        weight: W, each head's `(H, E, R)`, of sinusoids `r = [sin, cos](distance * 10000^(-2 f / R))`; R is even. The
            GPU kernels take E + R up to 256.

    Returns:
        Query `(B, H, Lq, E + R)` and key `(B, H, Lk, E + R)`.
    """
    heads, features = query.shape[1], query.shape[3]
    for name, bias in (("content_bias", content_bias), ("position_bias", position_bias)):
        if bias.shape != (heads, features):
            raise ValueError(f"{name} must have shape {(heads, features)}, got {tuple(bias.shape)}")
    if weight.dim() != 3 or weight.shape[:2] != (heads, features) or weight.shape[2] % 2:
        raise ValueError(f"weight must have shape ({heads}, {features}, an even number), got {tuple(weight.shape)}")
    width, len_k = weight.shape[2], key.shape[2]
    # in float64: far angles keep their digits
    frequency = 10_000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64, device=key.device) / width)
    angle = torch.arange(len_k, dtype=torch.float64, device=key.device)[:, None] * frequency
    sin, cos = angle.sin().to(key.dtype), angle.cos().to(key.dtype)
    sin_q, cos_q = sin[len_k - query.shape[2] :], cos[len_k - query.shape[2] :]

    a, b = ((query + position_bias.unsqueeze(1)) @ weight).chunk(2, -1)  # what multiplies sines, cosines of i - j
    query = torch.cat([query + content_bias.unsqueeze(1), a * sin_q + b * cos_q, b * sin_q - a * cos_q], -1)
    return query, torch.cat([key, torch.cat([cos, sin], -1).expand(*key.shape[:3], -1)], -1)


def _ahead(len_q: int, len_k: int, query_offset: int | Tensor, device) -> Tensor:
    """How far each key lies ahead of each query, `(Lq, Lk)`."""
    return torch.arange(len_k, device=device) - torch.arange(len_q, device=device)[:, None] - query_offset


def _behind(length: int, stride: int, device) -> Tensor:
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    return -_ahead(length, length, 0, device)


def _per_head(name: str, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, Tensor) or not parameter.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point Tensor, got {parameter!r}")
    if parameter.dim() > 1:
        raise ValueError(f"{name} must have shape (heads,) or (), got {tuple(parameter.shape)}")
    return parameter.view(1, -1, 1, 1)
