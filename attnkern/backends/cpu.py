"""Native kernels for CPUs (csrc/cpu): every operation in O(L) memory, one parallel region a call."""

import os

import torch
from torch import Tensor

from attnkern import _cpu, philox
from attnkern.backends import sparse
from attnkern.backends.gaussian import gaussians
from attnkern.backends.memory import broadcastable
from attnkern.problem import UNLIMITED, Gradients, Inputs, Problem, new_output

INSTRUCTION_SETS = ("avx512", "avx2", "neon", "plain")  # best first; each machine has one of the last two
CAPABILITY = "ATTNKERN_CPU_CAPABILITY"  # the environment variable that names the best one to use
TILE_ROWS = 64  # queries of a tile, at most
WIDEST = 1 << 16  # heads
FEW = 4  # queries of a tile whose forward pass leaves no lane empty
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SELECTORS = ("softmax", "sample", "argmax", "linear", "relu", "exp")  # as csrc/cpu/call.h numbers them
BOOL, FLOAT = 1, 2  # masks
NONE, AFTER, INSIDE = range(3)  # the Gaussian
NOTHING = (0, (0, 0, 0, 0), 0)


def refuses(problem: Problem) -> str | None:
    """Why this backend cannot run the problem; None if it can."""
    if problem.device != "cpu":
        return f"it is for CPUs, not {problem.device}"
    if problem.dtype not in NUMBERS:
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
    allowed = (*INSTRUCTION_SETS[INSTRUCTION_SETS.index(instruction_set) :], usable()[-1])
    _cpu.choose(next(name for name in usable() if name in allowed))


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
    lse = inputs.query.new_empty(output.shape[:-1], dtype=torch.float32)
    _cpu.forward(_call(problem, inputs), described(output), lse.data_ptr())
    return output, lse


def mac(problem: Problem, inputs: Inputs) -> Tensor:
    """Output `(B, H, Lq, Ev)`."""
    output = new_output(inputs.query, inputs.value)
    _cpu.forward(_call(problem, inputs), described(output), 0)
    return output


def weights(problem: Problem, inputs: Inputs, lse: Tensor) -> Tensor:
    """Attention weights after dropout: `(B, H, Lq, Lk)`, or their mean over heads `(B, Lq, Lk)`."""
    mean = problem.weights == "mean"
    shape = (problem.batch, 1 if mean else problem.heads, problem.len_q, problem.len_k)
    result = inputs.query.new_zeros(shape, dtype=torch.float32 if mean else problem.dtype)
    _cpu.weights(_call(problem, inputs), lse.contiguous().data_ptr(), described(broadcastable(result)), mean)
    return result.squeeze(1).to(problem.dtype) if mean else result


def sample(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One pass over the keys: output, index, score (each `(S, B, H, Lq, ...)`), lse, entropy."""
    rows, draws = inputs.query.shape[:-1], problem.num_samples
    output = new_output(inputs.query, inputs.value, draws)
    index = inputs.query.new_empty(draws, *rows, dtype=torch.int64)
    score = inputs.query.new_empty(draws, *rows, dtype=torch.float32)
    lse, entropy = (torch.empty_like(score[0]) for _ in range(2))
    addresses = (tensor.data_ptr() for tensor in (index, score, lse, entropy))
    _cpu.sample(_call(problem, inputs), draws, described(output[0]), output.stride(0), *addresses)
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
    mask = inputs.attn_mask
    grad_query, grad_key = torch.empty_like(inputs.query), torch.empty_like(inputs.key)
    grad_value = None if grad_output is None else torch.empty_like(inputs.value)
    grad_mask = torch.zeros(mask.shape, dtype=torch.float32) if needs_mask else None
    grad_center, grad_sigma = (torch.empty_like(lse) if problem.sigma else None for _ in range(2))
    given = (output, grad_output, None if grad_weights is None else broadcastable(grad_weights))
    found = (grad_query, grad_key, grad_value, None if grad_mask is None else broadcastable(grad_mask))
    _cpu.backward(
        _call(problem, inputs), address(lse), *map(described, given), address(row), address(entropy),
        *map(described, found), tuple(mask.shape) if needs_mask else (0, 0, 0, 0), address(grad_center),
        address(grad_sigma),
    )  # fmt: skip
    if problem.sigma:
        grad_center, grad_sigma = grad_center / inputs.sigma, grad_sigma / inputs.sigma
    return Gradients(grad_query, grad_key, grad_value, grad_mask, grad_center, grad_sigma)


sparse_backward = sparse.backward


def _call(problem: Problem, inputs: Inputs) -> "_cpu.Call":
    query, key, value, mask, offsets, seed, cu_seq_q, cu_seq_k = inputs[:8]
    if (plain := problem.notes.get("cpu")) is None:
        plain = problem.notes["cpu"] = _plain_call(problem)
    call = plain.of(described(query), described(key), described(value), torch.get_num_threads())
    kept = []  # until the call is over
    if mask is not None:
        mask = broadcastable(mask)
        if mask.dtype == torch.bool:
            call.set_mask(BOOL, (mask.data_ptr(), mask.stride(), 0))
        else:
            call.set_mask(FLOAT, described(mask))
    if seed is not None:
        call.set_seed(seed.item())
    if offsets is not None:
        kept.append(offsets.long())
        call.set_offsets(kept[-1].data_ptr())
    if cu_seq_q is not None:
        kept += cu_seq_q.long(), cu_seq_k.long()
        call.set_sequences(kept[-2].data_ptr(), kept[-1].data_ptr(), query.shape[2], key.shape[2])
    if problem.center:
        gaussian, centers = _centers(problem, inputs)
        kept += centers
        call.set_centers(gaussian, *map(address, centers))
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


def _centers(problem: Problem, inputs: Inputs) -> tuple[int, list[Tensor | None]]:
    """What kind of Gaussian there is, and centres, nearest keys, their mirrors and 1 / sigma; each may be None."""
    found = [inputs.center, None, None, None]
    if problem.sigma:
        nearest, mirror, sigma = gaussians(problem, inputs)
        found[1:] = nearest, mirror, sigma.reciprocal().clamp(max=1e30)
    gaussian = NONE if not problem.sigma else INSIDE if problem.renormalize else AFTER
    return gaussian, [None if rows is None else rows.contiguous() for rows in found]


def described(tensor: Tensor | None) -> tuple[int, tuple[int, ...], int]:
    """What the module is told of a 4-d tensor."""
    if tensor is None:
        return NOTHING
    return tensor.data_ptr(), tensor.stride(), NUMBERS[tensor.dtype]


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


if limit := os.environ.get(CAPABILITY):
    use(limit)
