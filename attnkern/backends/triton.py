"""The Triton kernels' host side: one function for each operation; see launching.py for what all launches share.

On a CPU the same kernels run through Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

import torch
import triton
from torch import Tensor

from attnkern.backends import launching, sparse, tuning
from attnkern.backends.gaussian import anchors_of
from attnkern.backends.launching import (
    INTERPRETED,
    arguments_of,
    padded,
    strides,
    unit_stride,
    with_unit_stride,
)
from attnkern.backends.memory import broadcastable
from attnkern.packing import places
from attnkern.problem import UNLIMITED, Gradients, Inputs, Problem, new_output
from attnkern.triton_kernels import backward as backward_kernels
from attnkern.triton_kernels import backward_mask as mask_kernels
from attnkern.triton_kernels import sample as sample_kernels
from attnkern.triton_kernels import softmax as softmax_kernels
from attnkern.triton_kernels import weights as weights_kernels
from attnkern.triton_kernels.far_rows import far_rows
from attnkern.triton_kernels.row_dot import row_dot

sparse_backward = sparse.backward

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256
PROGRAMS_AT_ONCE = 264  # two for each multiprocessor of the largest chips
KEYS_OF_A_SPLIT, MOST_SPLITS = 256, 64  # fewest keys that are worth a program; most programs that share a row
MASK_PROGRAMS = 256  # of backward_mask: enough to fill a GPU


def refuses(problem: Problem) -> str | None:
    """Why this backend cannot run the problem; None if it can."""
    if problem.center and problem.weights:
        return "it has no attention weights around learned centres"
    if problem.dtype not in DTYPES:
        return f"dtype {problem.dtype} is not float16, bfloat16 or float32"
    if problem.kind != "aoa" and max(problem.head_dim, problem.value_dim) > LARGEST_HEAD:
        return f"head size {max(problem.head_dim, problem.value_dim)} is above {LARGEST_HEAD}"
    if problem.device == "cpu":
        interpreter = "TRITON_INTERPRET=1, set before the import, runs Triton's interpreter"
        return None if INTERPRETED else f"tensors are on a CPU ({interpreter})"
    if problem.device != "cuda":
        return f"device {problem.device} is not cuda"
    if INTERPRETED:
        return "TRITON_INTERPRET=1 is set"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def softmax(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`; without a softmax (see `mac`) the lse stays -inf."""
    # a backward recomputes the weights as one program makes them
    splits = 1 if inputs.requires_grad else key_splits(problem)
    inputs = unit_stride(inputs)
    output = new_output(inputs.query, inputs.value)
    lse = inputs.query.new_full(output.shape[:-1], float("-inf"), dtype=torch.float32)
    if _is_empty(problem):
        return output.zero_(), lse
    parts, parts_lse = output[None], lse[None]
    if splits > 1:
        parts, parts_lse = (lse.new_empty(splits, *tensor.shape) for tensor in (output, lse))
    arguments = arguments_of(problem, inputs) | strides(parts, "os", "ob", "oh", "om")
    arguments |= {"output": parts, "lse": parts_lse, "splits": splits, "SPLIT": splits > 1, "all_rows": lse.numel()}
    launching.launch(
        softmax_kernels.softmax_forward,
        lambda c: triton.cdiv(problem.len_q, c.block_m) * problem.batch * problem.heads * splits,
        problem,
        arguments,
    )
    if splits > 1:
        arguments |= {"parts": parts, "parts_lse": parts_lse, "output": output, "lse": lse}
        arguments |= strides(parts, "ps", "pb", "ph", "pm") | strides(output, "ob", "oh", "om")
        arguments["BLOCK_S"] = triton.next_power_of_2(splits)
        launching.launch(softmax_kernels.combine_splits, lambda _: lse.numel(), problem, arguments)
    return output, lse


def key_splits(problem: Problem) -> int:
    """Among how many programs the keys of a tile of queries are divided: 1 unless queries are too few for the chip.

    A step of decoding has one query a head: what counts is that the whole chip reads keys and values.
    """
    if problem.len_q > tuning.FEWEST_ROWS or problem.kind == "mac" or problem.center:
        return 1
    left, right = problem.band
    keys = problem.len_k if UNLIMITED in (left, right) else min(problem.len_k, left + problem.len_q + right)
    idle = PROGRAMS_AT_ONCE // max(1, problem.batch * problem.heads)
    return max(1, min(idle, keys // KEYS_OF_A_SPLIT, MOST_SPLITS))


def mac(problem: Problem, inputs: Inputs) -> Tensor:
    """Output `(B, H, Lq, Ev)` of weights that are linear, relu or exp of their scores."""
    return softmax(problem, inputs)[0]


def weights(problem: Problem, inputs: Inputs, lse: Tensor) -> Tensor:
    """Attention weights after dropout: `(B, H, Lq, Lk)`, or their mean over heads `(B, Lq, Lk)`."""
    inputs = unit_stride(inputs)
    mean = problem.weights == "mean"
    planes = problem.batch if mean else problem.batch * problem.heads
    shape = (problem.batch, problem.len_q, problem.len_k)
    result = inputs.query.new_empty(shape if mean else (shape[0], problem.heads, *shape[1:]))
    if _is_empty(problem):
        return result.zero_()
    arguments = arguments_of(problem, inputs)
    launching.launch(
        weights_kernels.attention_weights,
        lambda c: triton.cdiv(problem.len_q, c.block_m) * triton.cdiv(problem.len_k, c.block_n) * planes,
        problem,
        arguments | _lse_in_parts(problem, arguments, lse) | {"weights": result, "MEAN": mean},
    )
    return result


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
    """Gradients of anything that reaches the scores through the weights; see triton_kernels/backward.py.

    lse: None where the weights are no softmax.
    """
    inputs = unit_stride(inputs)
    grad_query = torch.empty_like(inputs.query)
    grad_key = torch.empty_like(inputs.key)
    grad_value = torch.empty_like(inputs.value) if grad_output is not None else None
    grad_center, grad_sigma = (torch.zeros_like(lse) if problem.sigma else None for _ in range(2))
    if _is_empty(problem):
        grad_mask = torch.zeros_like(inputs.attn_mask) if needs_mask else None
        value = None if grad_value is None else grad_value.zero_()
        return Gradients(grad_query.zero_(), grad_key.zero_(), value, grad_mask, grad_center, grad_sigma)

    absent = inputs.query  # stands for any tensor that the compiled kernel never reads
    lse = inputs.query.new_empty(inputs.query.shape[:3], dtype=torch.float32) if lse is None else lse
    do = with_unit_stride(grad_output) if grad_output is not None else absent
    dw = broadcastable(grad_weights) if grad_weights is not None else absent
    arguments = arguments_of(problem, inputs) | strides(do, "ob", "oh", "om") | strides(dw, "gb", "gh", "gi", "gj")
    arguments |= _lse_in_parts(problem, arguments, lse)
    arguments |= {
        "grad_output": do,
        "grad_weights": dw,
        "entropy": entropy.contiguous() if entropy is not None else lse,
        "HAS_OUTPUT": grad_output is not None,
        "HAS_WEIGHTS": grad_weights is not None,
        "HAS_ENTROPY": entropy is not None,
    }
    arguments |= strides(grad_query, "dqb", "dqh", "dqm") | {"grad_query": grad_query}
    arguments |= {"grad_center": grad_center, "grad_sigma": grad_sigma}
    arguments["row"] = lse if problem.kind == "mac" else _row_terms(problem, arguments, output, row)
    _launch_query(problem, arguments, mean=False)
    dv = grad_value if grad_value is not None else absent
    launching.launch(
        backward_kernels.backward_key_value,
        lambda c: triton.cdiv(problem.len_k, c.block_n) * problem.batch * problem.kv_heads,
        problem,
        arguments
        | strides(grad_key, "dkb", "dkh", "dkn")
        | strides(dv, "dvb", "dvh", "dvn")
        | {"grad_key": grad_key, "grad_value": dv},
    )
    grad_mask = _mask_gradient(problem, inputs, arguments) if needs_mask else None
    return Gradients(grad_query, grad_key, grad_value, grad_mask, grad_center, grad_sigma)


def sample(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One pass over the keys: output, index, score (each `(S, B, H, Lq, ...)`), lse, entropy."""
    inputs = unit_stride(inputs)
    query, draws = inputs.query, problem.num_samples
    shape = query.shape[:3]
    index = torch.full((draws, *shape), -1, dtype=torch.int64, device=query.device)
    score = query.new_zeros((draws, *shape), dtype=torch.float32)
    lse = query.new_full(shape, float("-inf"), dtype=torch.float32)
    entropy = torch.zeros_like(lse)
    if not _is_empty(problem):
        at_once = min(4, triton.next_power_of_2(draws))
        planes = problem.batch * problem.heads * triton.cdiv(draws, 4)
        launching.launch(
            sample_kernels.sample_forward,
            lambda c: triton.cdiv(problem.len_q, c.block_m) * planes,
            problem,
            arguments_of(problem, inputs)
            | {"index": index, "score": score, "lse": lse, "entropy": entropy}
            | {"batch_heads": problem.batch * problem.heads, "all_rows": lse.numel(), "num_samples": draws}
            | {"ARGMAX": problem.selector == "argmax", "SAMPLES": at_once},
        )
    return sparse.gather(inputs, index), index, score, lse, entropy


def _lse_in_parts(problem: Problem, arguments: dict, lse: Tensor) -> dict:
    """As kernels read it that recompute the weights; see triton_kernels/far_rows.py."""
    lse = lse.contiguous()
    biased = problem.kind != "mac" and problem.mask == "float"
    parts = {"lse": lse, "rest": lse, "BIASED": biased}
    if biased:
        parts |= {"lse": torch.empty_like(lse), "rest": torch.empty_like(lse)}
        launching.launch(
            far_rows,
            lambda c: triton.cdiv(problem.len_q, c.block_m) * problem.batch * problem.heads,
            problem,
            arguments | {"lse": lse, "base": parts["lse"], "rest": parts["rest"]},
        )
    return parts


def _row_terms(problem: Problem, arguments: dict, output: Tensor | None, row: Tensor | None) -> Tensor:
    """What is subtracted from every gradient of a row: `(B, H, Lq)`."""
    if not (arguments["HAS_OUTPUT"] or arguments["HAS_WEIGHTS"]):
        return torch.zeros_like(arguments["lse"]) if row is None else row.contiguous()
    if output is not None and problem.dtype.itemsize == 2:
        mean = _row_dot(arguments["grad_output"], output)
    else:
        mean = torch.empty_like(arguments["lse"])
        _launch_query(problem, arguments | {"row": mean}, mean=True)
    return mean if row is None else mean.add_(row)


def _launch_query(problem: Problem, arguments: dict, mean: bool) -> None:
    launching.launch(
        backward_kernels.backward_query,
        lambda c: triton.cdiv(problem.len_q, c.block_m) * problem.batch * problem.heads,
        problem,
        arguments | {"MEAN": mean},
    )


def _row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of rows in float32: `(B, H, L, E) -> (B, H, L)`."""
    batch, heads, rows, width = left.shape
    right = with_unit_stride(right)
    result = left.new_empty(batch, heads, rows, dtype=torch.float32)
    block_m = 64
    row_dot[(triton.cdiv(rows, block_m) * batch * heads,)](
        left, right, result, *left.stride()[:3], *right.stride()[:3], heads, rows,
        WIDTH=width, BLOCK=padded(width), BLOCK_M=block_m,
    )  # fmt: skip
    return result


def _mask_gradient(problem: Problem, inputs: Inputs, arguments: dict) -> Tensor:
    """dS summed over the mask's broadcast dimensions, in a fixed order."""
    mask = inputs.attn_mask
    mask_batches, mask_heads, mask_rows, mask_keys = mask.shape
    sum_rows, sum_keys = mask_rows == 1 != problem.len_q, mask_keys == 1 != problem.len_k
    kernel = mask_kernels.backward_mask
    config = launching.config_of(kernel, problem)
    tiles_m, tiles_n = triton.cdiv(problem.len_q, config.block_m), triton.cdiv(problem.len_k, config.block_n)
    own = mask_batches * mask_heads * (1 if sum_rows else tiles_m) * (1 if sum_keys else tiles_n)
    all_tiles = problem.batch * problem.heads * tiles_m * tiles_n
    splits = max(1, min(all_tiles // own, MASK_PROGRAMS // own))
    partial = torch.empty(splits, *mask.shape, dtype=torch.float32, device=mask.device)
    arguments = arguments | {
        "grad_mask": partial, "batches": problem.batch, "splits": splits, "SUM_ROWS": sum_rows, "SUM_KEYS": sum_keys,
        "mask_batches": mask_batches, "mask_heads": mask_heads, "mask_rows": mask_rows, "mask_keys": mask_keys,
    }  # fmt: skip
    if problem.center and not sum_rows:  # rows stay where the mask has them
        anchors = anchors_of(problem, inputs.center)
        rows = torch.arange(anchors.shape[-1], dtype=torch.int32, device=mask.device)
        if problem.packed:
            rows = places(inputs.cu_seq_q, len(rows))[1].int()
        arguments |= {"anchors": anchors, "order": rows.expand_as(anchors).contiguous()}
    launching.launch(kernel, lambda _: own * splits, problem, arguments)
    return partial.sum(0)


def _is_empty(problem: Problem) -> bool:
    return 0 in (problem.batch, problem.heads, problem.len_q, problem.len_k)
