"""Native kernels for CPUs (csrc/cpu): every operation in O(L) memory, one parallel region a call."""

import os

import torch
from torch import Tensor

from attnkern import _cpu, philox
from attnkern.backends import sparse
from attnkern.problem import UNLIMITED, Gradients, Inputs, Problem, new_output

INSTRUCTION_SETS = (
    "amx",
    "avx512_bf16",
    "avx512",
    "avx2",
    "neon",
    "plain",
)  # best first; each machine has one of the last two
CAPABILITY = "ATTNKERN_CPU_CAPABILITY"  # the environment variable that names the best one to use
TILE_ROWS = 64  # queries of a tile, at most
WIDEST = 1 << 16  # heads
FEW = 4  # queries of a tile whose forward pass leaves no lane empty
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNITS = ("float32", "bfloat16", "float16", "float64", "exp")  # as csrc/cpu/call.h numbers them
SELECTORS = ("softmax", "sample", "argmax", "linear", "relu", "exp")  # as csrc/cpu/call.h numbers them


def refuses(problem: Problem) -> str | None:
    """Why this backend cannot run the problem; None if it can."""
    if problem.device != "cpu":
        return f"it is for CPUs, not {problem.device}"
    if problem.dtype not in DTYPES:
        return f"dtype {problem.dtype} is not float32, bfloat16 or float16"
    if problem.center and problem.weights:
        return "it has no attention weights around learned centres"
    if max(problem.len_q, problem.len_k) >= 2**31:
        return "lengths must be below 2**31"
    if max(problem.head_dim, problem.value_dim) > WIDEST:
        return f"heads must not be wider than {WIDEST}"
    return None


def usable() -> list[str]:
    """Instruction sets that there are kernels for and that this machine has, best first."""
    return _cpu.usable()


def in_use() -> str:
    """The one whose kernels run."""
    return _cpu.chosen()


def lanes() -> int:
    """Queries that one of its vectors holds."""
    return _cpu.lanes()


def use(instruction_set: str) -> None:
    """Lets the kernels use no better instructions than these.

    Raises:
        ValueError: there are no instructions of that name.
    """
    if instruction_set not in INSTRUCTION_SETS:
        names = ", ".join(INSTRUCTION_SETS)
        raise ValueError(f"{CAPABILITY} must be one of {names}, got {instruction_set!r}")
    there = usable()
    no_better = INSTRUCTION_SETS[INSTRUCTION_SETS.index(instruction_set) :]
    _cpu.choose(next((name for name in no_better if name in there), there[-1]))


def spin(unit: str, rounds: int) -> int:
    """Multiply-accumulates of a dtype, or exponentials ("exp"), of numbers in registers; returns how many were made."""
    return _cpu.spin(UNITS.index(unit), rounds, torch.get_num_threads())


def tile_rows(problem: Problem) -> int:
    """Queries of a tile: few where windows are narrow, as a tile needs the keys of all its queries."""
    left, right = problem.window if problem.center else problem.band
    if UNLIMITED in (left, right):
        return TILE_ROWS
    span = left + right + 1
    return TILE_ROWS if span > 192 else TILE_ROWS // 2


def softmax(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`."""
    output = new_output(inputs.query, inputs.value)
    lse = _new_rows(inputs.query)
    _cpu.forward(_call(problem, inputs), output, lse)
    return output, lse


def mac(problem: Problem, inputs: Inputs) -> Tensor:
    """Output `(B, H, Lq, Ev)`."""
    output = new_output(inputs.query, inputs.value)
    _cpu.forward(_call(problem, inputs), output, None)
    return output


def weights(problem: Problem, inputs: Inputs, lse: Tensor) -> Tensor:
    """Attention weights after dropout: `(B, H, Lq, Lk)`, or their mean over heads `(B, Lq, Lk)`."""
    mean = problem.weights == "mean"
    shape = (problem.batch, 1 if mean else problem.heads, problem.len_q, problem.len_k)
    result = inputs.query.new_zeros(shape, dtype=torch.float32 if mean else problem.dtype)
    _cpu.weights(_call(problem, inputs), lse.contiguous(), result, mean)
    return result.squeeze(1).to(problem.dtype) if mean else result


def sample(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One pass over the keys: output, index, score (each `(S, B, H, Lq, ...)`), lse, entropy."""
    query, draws = inputs.query, problem.num_samples
    output = new_output(query, inputs.value, draws)
    index, score = _new_rows(query, draws, dtype=torch.int64), _new_rows(query, draws)
    lse, entropy = _new_rows(query), _new_rows(query)
    _cpu.sample(_call(problem, inputs), draws, output[0], output.stride(0), index, score, lse, entropy)
    return output, index, score, lse, entropy


def backward(
    problem: Problem,
    inputs: Inputs,
    lse: Tensor | None = None,
    *,
    grad_output: Tensor | None = None,
    output: Tensor | None = None,
    grad_weights: Tensor | None = None,
    row: Tensor | None = None,
    entropy: Tensor | None = None,
    needs_mask: bool = False,
) -> Gradients:
    """As `blocked.backward` says."""
    lse, row, entropy = (None if rows is None else rows.contiguous() for rows in (lse, row, entropy))
    gradients = Gradients(
        torch.empty_like(inputs.query),
        torch.empty_like(inputs.key),
        None if grad_output is None else torch.empty_like(inputs.value),
        torch.zeros_like(inputs.attn_mask, dtype=torch.float32) if needs_mask else None,
        *(torch.empty_like(lse) if problem.sigma else None for _ in range(2)),
    )
    _cpu.backward(_call(problem, inputs), lse, output, grad_output, grad_weights, row, entropy, *gradients)
    return gradients


def sparse_backward(
    problem: Problem,
    inputs: Inputs,
    index: Tensor,
    score: Tensor,
    grad_score: Tensor | None,
    grad_output: Tensor | None,
    needs_mask: bool,
) -> Gradients:
    """As `sparse.backward` says."""
    scores, values = grad_score is not None, grad_output is not None
    gradients = Gradients(
        torch.empty_like(inputs.query) if scores else None,
        torch.empty_like(inputs.key) if scores else None,
        torch.empty_like(inputs.value) if values else None,
        sparse.mask_gradient(inputs, index, score, grad_score) if needs_mask and scores else None,
    )
    first, step = (grad_output[0], grad_output.stride(0)) if values else (None, 0)
    rows = index.contiguous(), score.contiguous(), grad_score.contiguous() if scores else None
    _cpu.sparse_backward(_call(problem, inputs), problem.num_samples, *rows, first, step, *gradients[:3])
    return gradients


def _new_rows(query: Tensor, *draws: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`(*draws, B, H, Lq)`, in the operation that takes least time."""
    batch, heads, len_q, _ = query.shape
    strides = (batch * heads * len_q, heads * len_q, len_q, 1)[-3 - len(draws) :]
    return query.new_empty_strided((*draws, batch, heads, len_q), strides, dtype=dtype)


def _call(problem: Problem, inputs: Inputs) -> "_cpu.Call":
    query, key, value, mask, offsets, seed, cu_seq_q, cu_seq_k, center, sigma, _ = inputs
    if (plain := problem.notes.get("cpu")) is None:
        plain = problem.notes["cpu"] = _plain_call(problem)
    call = plain.of(query, key, value, torch.get_num_threads())
    if mask is not None:
        call.set_mask(mask)
    if seed is not None:
        call.set_seed(seed.item())
    kept = []  # until the call is over
    if offsets is not None:
        kept.append(offsets.long().contiguous())
        call.set_offsets(kept[-1])
    if cu_seq_q is not None:
        kept += cu_seq_q.long().contiguous(), cu_seq_k.long().contiguous()
        call.set_sequences(*kept[-2:], query.shape[2], key.shape[2])
    if center is not None:
        kept += center.contiguous(), None if sigma is None else sigma.contiguous()
        call.set_centers(*kept[-2:], problem.renormalize)
    call.kept = kept
    return call


def _plain_call(problem: Problem) -> "_cpu.Call":
    """All that a call has besides tensors."""
    sizes = (
        problem.batch, problem.heads, problem.kv_heads, problem.len_q, problem.len_k, problem.head_dim,
        problem.value_dim,
    )  # fmt: skip
    return _cpu.Call(
        sizes, problem.scale, problem.softcap, problem.causal, *problem.window, problem.query_offset or 0,
        SELECTORS.index(problem.selector), philox.dropout_threshold(problem.dropout_p),
        philox.dropout_scale(problem.dropout_p), tile_rows(problem),
    )  # fmt: skip


if limit := os.environ.get(CAPABILITY):
    use(limit)
