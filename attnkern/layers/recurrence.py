"""Recurrences that are attention with a causal mask: every step at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnkern.api import mac_attention

CHUNK = 64  # steps that are attended to at once; the states between chunks are a recurrence again
LEAST_TOTAL = 1e-6  # what Katharopoulos et al. add to a row's total


def linear_recurrence(decay: Tensor, input: Tensor) -> Tensor:
    """`h_t = decay_t * h_{t-1} + input_t` from `h_{-1} = 0`, as attention with weights `exp(L_t - L_s)`.

    `L` is the running sum of `log(decay)`; L_t - L_s is a product of features, so no bias is stored. Time and memory
    are linear in the length: chunks attend to themselves, and what they hand on is a recurrence of chunks. Computed
    in float32 at least, `L` in float64.

    Args:
        decay: `(B, L, D)`, or `(B, L, 1)` for one that all features share; positive.
        input: `(B, L, D)`.

    Returns:
        All states, `(B, L, D)`.

    Raises:
        ValueError: shapes differ, or a decay is not positive (not checked under `torch.compile`).
    """
    if input.dim() != 3 or decay.shape not in (input.shape, (*input.shape[:2], 1)):
        raise ValueError(
            f"decay must have the shape of input, (B, L, D), or (B, L, 1), got {tuple(decay.shape)} "
            f"for {tuple(input.shape)}"
        )
    if not torch.compiler.is_compiling() and not (decay > 0).all():
        raise ValueError("decay must be positive, got 0, a negative number or NaN")
    dtype = torch.promote_types(input.dtype, torch.float32)
    log_decay = decay.double().log().mT
    heads = input.to(dtype).unflatten(-1, (decay.shape[-1], -1)).transpose(1, 2)
    return _states(log_decay, heads).transpose(1, 2).flatten(2).to(input.dtype)


def _states(log_decay: Tensor, input: Tensor) -> Tensor:
    """The recurrence along `log_decay (B, H, L)` of `input (B, H, L, W)`."""
    length = input.shape[2]
    if length <= CHUNK:
        return _attend(log_decay.cumsum(-1), input)
    padding = -length % CHUNK
    log_decay = F.pad(log_decay, (0, padding)).unflatten(2, (-1, CHUNK))
    input = F.pad(input, (0, 0, 0, padding)).unflatten(2, (-1, CHUNK))
    level = log_decay.cumsum(-1)
    own = _attend(level, input)  # as if every chunk began with 0
    ends = _states(level[..., -1], own[..., -1, :])
    begins = F.pad(ends, (0, 0, 1, -1))
    states = own + level.exp().to(own.dtype).unsqueeze(-1) * begins.unsqueeze(-2)
    return states.flatten(2, 3)[:, :, :length]


def _attend(level: Tensor, input: Tensor) -> Tensor:
    """`sum_{s <= t} exp(level_t - level_s) input_s` along `level (..., L)` of `input (..., L, W)`.

    The product takes the difference of the levels' whole parts first, which is exact.
    """
    whole = level.detach().round()
    rest, whole = (level - whole).to(input.dtype), whole.to(input.dtype)
    one = torch.ones_like(rest)
    query, key = torch.stack([whole, one, rest, one], -1), torch.stack([one, -whole, one, -rest], -1)
    query, key, value = (tensor.flatten(0, -3).unsqueeze(1) for tensor in (query, key, input))
    return mac_attention(query, key, value, activation="exp", scale=1.0, is_causal=True).view(input.shape)


def linear_attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = True) -> Tensor:
    """Katharopoulos et al. 2020 (arXiv 2006.16236): `sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j)`.

    `phi(x) = elu(x) + 1`. Causal, it equals their recurrent network `S_t = S_{t-1} + phi(k_t) v_t^T`, every step at
    once; the work grows with the square of the length. A column of ones among the values makes the totals.

    Args:
        query, key, value: `(B, H, L, E)`, `(B, H, L, E)`, `(B, H, L, Ev)`.

    Returns:
        `(B, H, L, Ev)`.
    """
    query, key = F.elu(query) + 1, F.elu(key) + 1
    value = F.pad(value, (0, 1), value=1.0)
    sums = mac_attention(query, key, value, activation="linear", scale=1.0, is_causal=is_causal)
    return sums[..., :-1] / sums[..., -1:].clamp(min=LEAST_TOTAL)
