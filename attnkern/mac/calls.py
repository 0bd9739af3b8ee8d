"""A call that a `Problem` describes, on random tensors: for profiles and for the chip's counters."""

from collections.abc import Callable

import torch
from torch import Tensor

import attnkern
from attnkern.problem import Problem


def call_of(
    problem: Problem, backward: bool = False, backend: str | None = None
) -> tuple[Callable[..., object], tuple[Tensor, ...]]:
    """A function of query, key and value that makes the call, and those; with `backward`, they have gradients."""
    like = {"dtype": problem.dtype, "device": problem.device}
    query = torch.randn(problem.batch, problem.heads, problem.len_q, problem.head_dim, **like)
    key = torch.randn(problem.batch, problem.kv_heads, problem.len_k, problem.head_dim, **like)
    value = torch.randn(problem.batch, problem.kv_heads, problem.len_k, problem.value_dim, **like)
    for tensor in (query, key, value):
        tensor.requires_grad_(backward)
    options = {
        "attn_mask": _mask(problem),
        "is_causal": problem.causal,
        "enable_gqa": True,
        "softcap": problem.softcap,
        "scale": problem.scale,
        "query_offset": problem.query_offset or 0,
        "backend": backend,
    }
    if problem.kind == "hard":
        options |= {"window": problem.window, "num_samples": problem.num_samples}
        return lambda *tensors: _reinforced(attnkern.hard_attention(*tensors, **options)), (query, key, value)
    options |= {"window": problem.window, "dropout_p": problem.dropout_p}
    return lambda *tensors: attnkern.local_attention(*tensors, **options), (query, key, value)


def _reinforced(hard: attnkern.HardAttention) -> tuple[Tensor, ...]:
    """What REINFORCE differentiates."""
    return hard.output, hard.score, hard.lse


def _mask(problem: Problem) -> Tensor | None:
    if problem.mask is None:
        return None
    mask = torch.zeros(problem.len_q, problem.len_k, dtype=problem.dtype, device=problem.device)
    return mask if problem.mask == "float" else mask == 0
