"""Global attention through torch's own fused CPU kernel, where it computes what we define."""

import math

import torch
from torch import Tensor

from attnkern.problem import UNLIMITED, Gradients, Inputs, Problem, new_output

NEG_INF = float("-inf")
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def can_run(problem: Problem, inputs: Inputs) -> bool:
    """Whether torch's kernel covers this problem."""
    plain = problem.band == (UNLIMITED, UNLIMITED) or (
        problem.window == (UNLIMITED, UNLIMITED) and problem.query_offset == 0 and problem.mask is None
    )
    return (
        problem.device == "cpu"
        and plain
        and not problem.softcap
        and not problem.dropout_p
        and problem.group == 1
        and problem.head_dim == problem.value_dim
        and (problem.mask != "float" or inputs.attn_mask.dtype == problem.dtype)
        and 0 not in (problem.batch, problem.heads, problem.len_q, problem.len_k, problem.head_dim)
    )


def is_sound(lse: Tensor) -> bool:
    """False where a score overflowed: torch's kernel leaves NaN there, the tile walk does not."""
    return lse.amax().item() < math.inf  # NaN fails too


def forward(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    query, key, value, bias, empty = _prepared(problem, inputs)
    output, lse = _forward(query, key, value, 0.0, problem.causal, attn_mask=bias, scale=problem.scale)
    lse = lse.contiguous()
    wanted = new_output(inputs.query, inputs.value)
    output = output if output.stride() == wanted.stride() else wanted.copy_(output)
    return output, lse if empty is None else lse.masked_fill_(empty, NEG_INF)


def backward(problem: Problem, inputs: Inputs, output: Tensor, lse: Tensor, grad_output: Tensor) -> Gradients:
    query, key, value, bias, empty = _prepared(problem, inputs)
    lse = lse if empty is None else lse.masked_fill(empty, 0.0)
    return Gradients(
        *_backward(
            grad_output, query, key, value, output, lse, 0.0, problem.causal, attn_mask=bias, scale=problem.scale
        )
    )


def _prepared(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Inputs as the kernel wants them: an additive mask, unreachable keys cleared, empty rows found."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in inputs[:3])
    mask = inputs.attn_mask
    if mask is None:
        return query, key, value, None, None
    if mask.dtype == torch.bool:
        allowed, bias = mask, torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, NEG_INF)
    else:
        allowed, bias = mask != NEG_INF, mask.to(query.dtype)
    reachable = allowed.any(2).unsqueeze(-1)
    key, value = torch.where(reachable, key, 0.0), torch.where(reachable, value, 0.0)
    return query, key, value, bias, ~allowed.any(-1)
