"""Torch's own fused CPU kernel, for global attention and for windows that leave little out."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from attnkern.problem import UNLIMITED, Gradients, Inputs, Problem, new_output

NEG_INF = float("-inf")
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


MASK_SIZE = 1 << 22  # entries of the largest mask made to hold a window
REMEMBERED = 1 << 17  # entries of the largest that is kept for the next call: it takes as long as a small product
LARGEST = 256.0  # lse from which torch's kernel can recompute weights: rounding it changes them by 1e-5
COVERAGE = 0.4  # share of the score matrix from which masking it beats walking its tiles


def can_run(problem: Problem, inputs: Inputs) -> bool:
    """Whether torch's kernel computes this problem, and without much waste."""
    return suits(problem) and (problem.mask != "float" or inputs.attn_mask.dtype == problem.dtype)


def suits(problem: Problem) -> bool:
    """The same, for a float mask of the query's dtype."""
    return has_kernel(problem) and (is_plain(problem) or _covers_most(problem))


def has_kernel(problem: Problem) -> bool:
    """Whether torch's kernel knows such tensors and scores, wherever a query may look."""
    return (
        problem.device == "cpu"
        and not problem.softcap
        and not problem.center
        and not problem.dropout_p
        and problem.group == 1
        and problem.head_dim == problem.value_dim
        and (problem.dtype.itemsize > 2 or not cannot_pack())
        and 0 not in (problem.batch, problem.heads, problem.len_q, problem.len_k, problem.head_dim)
    )


@lru_cache(maxsize=1)
def cannot_pack() -> bool:
    """Where `ATEN_CPU_CAPABILITY` asks for less than the CPU has: torch's kernel goes by the CPU, and raises."""
    has_avx512 = getattr(torch.cpu, "_is_avx512_supported", lambda: False)
    return has_avx512() and torch.backends.cpu.get_cpu_capability() != "AVX512"


def is_plain(problem: Problem) -> bool:
    """No window, or the causal one as torch's kernel has it."""
    causal = problem.query_offset == 0 and problem.mask is None
    return problem.window == (UNLIMITED, UNLIMITED) and (causal or not problem.causal)


def _covers_most(problem: Problem) -> bool:
    """The window leaves out so little that it may as well be a mask."""
    scores = problem.len_q * problem.len_k
    if problem.query_offset is None or scores * (problem.batch if problem.mask else 1) > MASK_SIZE:
        return False
    return problem.pairs() >= COVERAGE * scores * problem.batch * problem.heads


def tile(problem: Problem) -> tuple[int, int]:
    """Queries and keys of a tile of torch's kernel; it leaves out only tiles that `is_causal` hides."""
    return next(rows for least, rows in ((768, 256), (192, 64), (0, 32)) if problem.len_q >= least), 512


def is_sound(lse: Tensor, largest: float = math.inf) -> bool:
    """False where scores overflowed: torch's kernel leaves NaN there, or 0, the tile walk does not.

    largest: above it an lse is of no use; those of empty rows are.
    """
    return _is_between(lse, largest) or _is_between(lse.masked_fill(lse == NEG_INF, 1.0), largest)


def _is_between(lse: Tensor, largest: float) -> bool:
    """Whether all sizes lie between 0 and the largest, neither included; NaN does not."""
    smallest, greatest = lse.abs().aminmax()
    return smallest.item() > 0 and greatest.item() < largest


def forward(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    query, key, value, bias, empty = _prepared(problem, inputs)
    output, lse = flash(query, key, value, 0.0, problem.causal and bias is None, attn_mask=bias, scale=problem.scale)
    if not output.transpose(1, 2).is_contiguous():
        output = new_output(inputs.query, inputs.value).copy_(output)
    lse = lse.contiguous()
    return output, lse if empty is None else lse.masked_fill_(empty, NEG_INF)


def backward(problem: Problem, inputs: Inputs, output: Tensor, lse: Tensor, grad_output: Tensor) -> Gradients:
    query, key, value, bias, _ = _prepared(problem, inputs)
    lse = lse.masked_fill(lse == NEG_INF, 0.0)
    return Gradients(
        *flash_backward(
            grad_output,
            query,
            key,
            value,
            output,
            lse,
            0.0,
            problem.causal and bias is None,
            attn_mask=bias,
            scale=problem.scale,
        )
    )


def _prepared(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Inputs as the kernel wants them: an additive mask, unreachable keys cleared, empty rows found."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in inputs[:3])
    mask = inputs.attn_mask
    if mask is None:
        if is_plain(problem):
            return query, key, value, None, None
        window = problem.len_q, problem.len_k, problem.band, problem.query_offset
        bias, reachable, empty = of_window(*window, query.dtype)
    else:
        allowed = mask if mask.dtype == torch.bool else mask != NEG_INF
        if not is_plain(problem):
            allowed = allowed & _inside(problem.len_q, problem.len_k, problem.band, problem.query_offset)
        bias, reachable, empty = _bias(allowed, mask if problem.mask == "float" else None, query.dtype)
    if reachable is not None:
        key, value = torch.where(reachable, key, 0.0), torch.where(reachable, value, 0.0)
    return query, key, value, bias, empty


def _bias(allowed: Tensor, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What is added to the scores; where keys are in some query's sight, and which rows are empty, if not all and none.

    allowed: `(B|1, H|1, Lq|1, Lk|1)`.
    """
    bias = torch.zeros(allowed.shape, dtype=dtype, device="cpu")
    if mask is not None:
        bias = bias + mask
    bias = bias.masked_fill_(~allowed, NEG_INF)
    reachable, empty = allowed.any(2).unsqueeze(-1), ~allowed.any(-1)
    return bias, None if reachable.all() else reachable, empty if empty.any() else None


def of_window(
    len_q: int, len_k: int, band: tuple[int, int], offset: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_bias` of a window alone; not to be changed, as it may serve the next call too."""
    make = _remembered if len_q * len_k <= REMEMBERED else _remembered.__wrapped__
    return make(len_q, len_k, band, offset, dtype)


@lru_cache(maxsize=8)
def _remembered(len_q: int, len_k: int, band: tuple[int, int], offset: int, dtype: torch.dtype):
    return _bias(_inside(len_q, len_k, band, offset), None, dtype)


def _inside(len_q: int, len_k: int, band: tuple[int, int], offset: int) -> Tensor:
    """Where the window lets a query look: bool `(1, 1, Lq, Lk)`."""
    left, right = band
    inside = torch.ones(1, 1, len_q, len_k, dtype=torch.bool, device="cpu")
    if left != UNLIMITED:
        inside.triu_(offset - left)
    if right != UNLIMITED:
        inside.tril_(offset + right)
    return inside
