"""The Triton kernels' host side: fills arguments, picks tiles, launches.

On a CPU the same kernels run through Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

import os

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # scale and subtract in one instruction

import torch
import triton
from torch import Tensor

from attnkern import philox
from attnkern.backends import sparse, tuning
from attnkern.backends.gaussian import Gaussians, gaussians
from attnkern.backends.memory import broadcastable, on_device_of
from attnkern.problem import UNLIMITED, Gradients, Inputs, Problem, new_output
from attnkern.triton_kernels import backward as backward_kernels
from attnkern.triton_kernels import backward_mask as mask_kernels
from attnkern.triton_kernels import sample as sample_kernels
from attnkern.triton_kernels import softmax as softmax_kernels
from attnkern.triton_kernels import weights as weights_kernels
from attnkern.triton_kernels.row_dot import row_dot
from attnkern.triton_kernels.scores import LOG2E

sparse_backward = sparse.backward

INTERPRETED = not isinstance(softmax_kernels.softmax_forward, triton.JITFunction)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256
FARTHEST_ROW = 1 << 22  # stride between rows from which a tensor is copied
WIDEST_SWIZZLE = 64  # features: 128 bytes of a row
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
    inputs = _unit_stride(inputs)
    output = new_output(inputs.query, inputs.value)
    lse = inputs.query.new_full(output.shape[:-1], float("-inf"), dtype=torch.float32)
    if _is_empty(problem):
        return output.zero_(), lse
    _launch(
        softmax_kernels.softmax_forward,
        lambda c: triton.cdiv(problem.len_q, c.block_m) * problem.batch * problem.heads,
        problem,
        _arguments(problem, inputs) | _strides(output, "ob", "oh", "om") | {"output": output, "lse": lse},
    )
    return output, lse


def mac(problem: Problem, inputs: Inputs) -> Tensor:
    """Output `(B, H, Lq, Ev)` of weights that are linear, relu or exp of their scores."""
    return softmax(problem, inputs)[0]


def weights(problem: Problem, inputs: Inputs, lse: Tensor) -> Tensor:
    """Attention weights after dropout: `(B, H, Lq, Lk)`, or their mean over heads `(B, Lq, Lk)`."""
    inputs = _unit_stride(inputs)
    mean = problem.weights == "mean"
    planes = problem.batch if mean else problem.batch * problem.heads
    shape = (problem.batch, problem.len_q, problem.len_k)
    result = inputs.query.new_empty(shape if mean else (shape[0], problem.heads, *shape[1:]))
    if _is_empty(problem):
        return result.zero_()
    _launch(
        weights_kernels.attention_weights,
        lambda c: triton.cdiv(problem.len_q, c.block_m) * triton.cdiv(problem.len_k, c.block_n) * planes,
        problem,
        _arguments(problem, inputs) | {"weights": result, "lse": lse.contiguous(), "MEAN": mean},
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
    inputs = _unit_stride(inputs)
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
    arguments = _arguments(problem, inputs) | _strides(do, "ob", "oh", "om") | _strides(dw, "gb", "gh", "gi", "gj")
    arguments |= {
        "lse": lse.contiguous(),
        "grad_output": do,
        "grad_weights": dw,
        "entropy": entropy.contiguous() if entropy is not None else lse,
        "HAS_OUTPUT": grad_output is not None,
        "HAS_WEIGHTS": grad_weights is not None,
        "HAS_ENTROPY": entropy is not None,
    }
    arguments |= _strides(grad_query, "dqb", "dqh", "dqm") | {"grad_query": grad_query}
    arguments |= {"grad_center": grad_center, "grad_sigma": grad_sigma}
    arguments["row"] = lse if problem.kind == "mac" else _row_terms(problem, arguments, output, row)
    _launch_query(problem, arguments, mean=False)
    dv = grad_value if grad_value is not None else absent
    _launch(
        backward_kernels.backward_key_value,
        lambda c: triton.cdiv(problem.len_k, c.block_n) * problem.batch * problem.kv_heads,
        problem,
        arguments
        | _strides(grad_key, "dkb", "dkh", "dkn")
        | _strides(dv, "dvb", "dvh", "dvn")
        | {"grad_key": grad_key, "grad_value": dv},
    )
    grad_mask = _mask_gradient(problem, inputs, arguments) if needs_mask else None
    return Gradients(grad_query, grad_key, grad_value, grad_mask, grad_center, grad_sigma)


def sample(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One pass over the keys: output, index, score (each `(S, B, H, Lq, ...)`), lse, entropy."""
    inputs = _unit_stride(inputs)
    query, draws = inputs.query, problem.num_samples
    shape = query.shape[:3]
    index = torch.full((draws, *shape), -1, dtype=torch.int64, device=query.device)
    score = query.new_zeros((draws, *shape), dtype=torch.float32)
    lse = query.new_full(shape, float("-inf"), dtype=torch.float32)
    entropy = torch.zeros_like(lse)
    if not _is_empty(problem):
        at_once = min(4, triton.next_power_of_2(draws))
        planes = problem.batch * problem.heads * triton.cdiv(draws, 4)
        _launch(
            sample_kernels.sample_forward,
            lambda c: triton.cdiv(problem.len_q, c.block_m) * planes,
            problem,
            _arguments(problem, inputs)
            | {"index": index, "score": score, "lse": lse, "entropy": entropy}
            | {"batch_heads": problem.batch * problem.heads, "num_samples": draws}
            | {"ARGMAX": problem.selector == "argmax", "SAMPLES": at_once},
        )
    return sparse.gather(inputs, index), index, score, lse, entropy


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
    _launch(
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
    with on_device_of(left):
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
    with on_device_of(mask):
        config = _config(kernel, problem)
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
        anchors = _anchors(problem, inputs.center)
        rows = torch.arange(problem.len_q, dtype=torch.int32, device=mask.device)
        arguments |= {"anchors": anchors, "order": rows.expand_as(anchors).contiguous()}
    _launch(kernel, lambda _: own * splits, problem, arguments)
    return partial.sum(0)


def _launch(kernel, programs, problem: Problem, arguments: dict) -> None:
    """Runs one kernel over `programs(config)` programs; takes from the arguments those it names."""
    arguments = {key: arguments[key] for key in kernel.arg_names if key in arguments}

    def run(config: tuning.Config) -> None:
        tiles = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
        tiles = {key: size for key, size in tiles.items() if key in kernel.arg_names}
        kernel[(programs(config),)](**arguments, **tiles, num_warps=config.num_warps, num_stages=config.num_stages)

    with on_device_of(arguments["query"]):
        run(_config(kernel, problem, run))


def _config(kernel, problem: Problem, run=None) -> tuning.Config:
    if INTERPRETED:
        return tuning.INTERPRETER

    def measure(config: tuning.Config) -> float:
        return triton.testing.do_bench(lambda: run(config), warmup=5, rep=20)

    major, minor = torch.cuda.get_device_capability()
    if run is None:
        return tuning.candidates(kernel.__name__, problem, 10 * major + minor)[0]
    return tuning.config(kernel.__name__, problem, torch.cuda.get_device_name(), 10 * major + minor, measure)


def _arguments(problem: Problem, inputs: Inputs) -> dict:
    """What every kernel may ask for: tensors, strides, sizes and compile-time choices."""
    query, key, value, mask, offsets, seed, center, _ = inputs
    left, right = problem.band
    stand_in = query  # for tensors that the compiled kernel never reads
    block_e, block_v = padded_widths(problem)
    mask_strides = dict.fromkeys(("stride_mask_b", "stride_mask_h", "stride_mask_i", "stride_mask_j"), 0)
    if mask is not None:
        mask = broadcastable(mask.view(torch.uint8) if mask.dtype == torch.bool else mask)
        mask_strides = dict(zip(mask_strides, mask.stride()))
    order = anchors = None
    if problem.center:
        anchors, order = _anchors(problem, center).sort(dim=-1, stable=True)
        order = order.int()
    around = dict.fromkeys(Gaussians._fields)
    if problem.sigma:
        around = {name: rows.contiguous() for name, rows in gaussians(problem, inputs)._asdict().items()}
    return {
        "query": query, "key": key, "value": value, "mask": stand_in if mask is None else mask,
        "offsets": stand_in if offsets is None else offsets, "seed": stand_in if seed is None else seed,
        **_strides(query, "qb", "qh", "qm"), **_strides(key, "kb", "kh", "kn"), **_strides(value, "vb", "vh", "vn"),
        **mask_strides, "order": order, "anchors": anchors, **around,
        "heads": problem.heads, "group": problem.group, "len_q": problem.len_q, "len_k": problem.len_k,
        "scale": problem.scale, "softcap": problem.softcap,
        "query_offset": problem.query_offset or 0, "left": left, "right": right,
        "dropout_threshold": philox.dropout_threshold(problem.dropout_p),
        "dropout_scale": philox.dropout_scale(problem.dropout_p),
        "HEAD_DIM": problem.head_dim, "VALUE_DIM": problem.value_dim,
        "BLOCK_E": block_e, "BLOCK_V": block_v,
        "MASK": problem.mask or "none", "OFFSETS": offsets is not None, "SOFTCAP": problem.softcap > 0,
        "LEFT": left != UNLIMITED, "RIGHT": right != UNLIMITED, "DROPOUT": problem.dropout_p > 0,
        "ACTIVATION": problem.selector if problem.kind == "mac" else "softmax",
        "CENTERED": problem.center, "CAUSAL": problem.center and problem.causal, "GAUSSIAN": _gaussian(problem),
        "PRECISION": precision(problem.dtype), "UNIT": _unit(problem),
    }  # fmt: skip


def _anchors(problem: Problem, center: Tensor) -> Tensor:
    """The keys that the windows lie around, int32 `(B, H, Lq)`; of windows that see no key, the nearest such one."""
    left, right = problem.window
    lowest, highest = -1 - max(right, 0), problem.len_k + max(left, 0)
    nowhere = highest if right == UNLIMITED else lowest
    return center.double().floor().nan_to_num(nowhere).clamp(lowest, highest).int()


def _gaussian(problem: Problem) -> str:
    if not problem.sigma:
        return "none"
    return "inside" if problem.renormalize else "after"


def _unit(problem: Problem) -> float:
    """What one nat of score counts in the kernels; see triton_kernels/__init__.py."""
    exact = problem.dtype == torch.float32 or problem.selector in ("linear", "relu")
    return 1.0 if exact else LOG2E.value


def precision(dtype: torch.dtype) -> str:
    """Float32 products follow `torch.set_float32_matmul_precision`, or torch's newer setting of the same."""
    if dtype != torch.float32:
        return "ieee"
    try:
        return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[torch.get_float32_matmul_precision()]
    except RuntimeError:  # the newer setting was used
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _strides(tensor: Tensor, *names: str) -> dict[str, int]:
    return {f"stride_{key}": stride for key, stride in zip(names, tensor.stride())}


def _unit_stride(inputs: Inputs) -> Inputs:
    query, key, value = (with_unit_stride(tensor) for tensor in inputs[:3])
    return inputs._replace(query=query, key=key, value=value)


def with_unit_stride(tensor: Tensor) -> Tensor:
    """Features side by side, and rows near enough for 32-bit offsets inside a tile."""
    return tensor if tensor.stride(-1) == 1 and tensor.stride(-2) < FARTHEST_ROW else tensor.contiguous()


def padded_widths(problem: Problem) -> tuple[int, int]:
    """Features of a tile of queries or keys, and of values."""
    block_e, block_v = padded(problem.head_dim), padded(problem.value_dim)
    # tiles swizzled alike: ptxas 12.8 (Triton 3.6) mixes up the wgmma descriptors of ones that differ
    return max(block_e, min(block_v, WIDEST_SWIZZLE)), max(block_v, min(block_e, WIDEST_SWIZZLE))


def padded(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _is_empty(problem: Problem) -> bool:
    return 0 in (problem.batch, problem.heads, problem.len_q, problem.len_k)
