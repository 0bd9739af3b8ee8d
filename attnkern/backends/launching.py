"""From a `Problem` and its tensors to a Triton launch: a kernel's arguments, its tiles, its programs."""

import contextlib
import os
from collections.abc import Callable

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # scale and subtract in one instruction

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from attnkern import philox
from attnkern.backends import tuning
from attnkern.backends.gaussian import Gaussians, anchors_of, gaussians
from attnkern.backends.memory import broadcastable
from attnkern.packing import places
from attnkern.problem import UNLIMITED, Inputs, Problem
from attnkern.triton_kernels import softmax as softmax_kernels
from attnkern.triton_kernels.scores import LOG2E

INTERPRETED = not isinstance(softmax_kernels.softmax_forward, triton.JITFunction)
FARTHEST_ROW = 1 << 22  # stride between rows from which a tensor is copied
WIDEST_SWIZZLE = 64  # features: 128 bytes of a row


def launch(kernel, programs, problem: Problem, arguments: dict) -> None:
    """Runs one kernel over `programs(config)` programs; takes from the arguments those it names."""
    arguments = {key: arguments[key] for key in kernel.arg_names if key in arguments}

    def run(config: tuning.Config) -> None:
        tiles = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
        tiles = {key: size for key, size in tiles.items() if key in kernel.arg_names}
        kernel[(programs(config),)](**arguments, **tiles, num_warps=config.num_warps, num_stages=config.num_stages)

    config = config_of(kernel, problem, run)
    try:
        run(config)
    except OutOfResources:
        if not _runs_otherwise(kernel, problem, config, run):
            raise


def config_of(kernel, problem: Problem, run=None) -> tuning.Config:
    if INTERPRETED:
        return tuning.INTERPRETER

    def measure(config: tuning.Config) -> float:
        return triton.testing.do_bench(lambda: run(config), warmup=5, rep=20)

    name, capability = _gpu()
    if run is None:
        return tuning.candidates(kernel.__name__, problem, capability)[0]
    return tuning.config(kernel.__name__, problem, name, capability, measure)


def _runs_otherwise(kernel, problem: Problem, config: tuning.Config, run: Callable[[tuning.Config], None]) -> bool:
    """Whether the kernel ran with another config of its row, where one does not fit a multiprocessor; that is kept."""
    name, capability = _gpu()
    for other in tuning.candidates(kernel.__name__, problem, capability):
        if other != config:
            with contextlib.suppress(OutOfResources):
                run(other)
                tuning.keep(kernel.__name__, problem, name, other)
                return True
    return False


def _gpu() -> tuple[str, int]:
    """Name and compute capability: 80, 90, 100, ..."""
    major, minor = torch.cuda.get_device_capability()
    return torch.cuda.get_device_name(), 10 * major + minor


def arguments_of(problem: Problem, inputs: Inputs) -> dict:
    """What every kernel may ask for: tensors, strides, sizes and compile-time choices."""
    query, key, value, mask, offsets, seed, cu_seq_q, cu_seq_k, *_ = inputs
    left, right = problem.band
    stand_in = query  # for tensors that the compiled kernel never reads
    block_e, block_v = padded_widths(problem)
    mask_strides = dict.fromkeys(("stride_mask_b", "stride_mask_h", "stride_mask_i", "stride_mask_j"), 0)
    if mask is not None:
        mask = broadcastable(mask.view(torch.uint8) if mask.dtype == torch.bool else mask)
        mask_strides = dict(zip(mask_strides, mask.stride()))
    anchors, order = _visiting_order(problem, inputs) if problem.center else (None, None)
    around = dict.fromkeys(Gaussians._fields)
    if problem.sigma:
        around = {name: rows.contiguous() for name, rows in gaussians(problem, inputs)._asdict().items()}
    return {
        "query": query, "key": key, "value": value, "mask": stand_in if mask is None else mask,
        "offsets": stand_in if offsets is None else offsets,
        "cu_seq_q": stand_in if cu_seq_q is None else cu_seq_q, "cu_seq_k": stand_in if cu_seq_k is None else cu_seq_k,
        "tokens": query.shape[2], "PACKED": problem.packed, "seed": stand_in if seed is None else seed,
        **strides(query, "qb", "qh", "qm"), **strides(key, "kb", "kh", "kn"), **strides(value, "vb", "vh", "vn"),
        **mask_strides,
        "order": order, "anchors": anchors, **around,
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


def _visiting_order(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Anchors of each head's (packed: each sequence's) rows, ascending, and those rows' numbers: int32 `(B, H, Lq)`."""
    anchors = anchors_of(problem, inputs.center)
    if not problem.packed:
        anchors, order = anchors.sort(dim=-1, stable=True)
        return anchors, order.int()
    sequence, _ = places(inputs.cu_seq_q, anchors.shape[-1])
    order = (anchors + (sequence << 32)).argsort(dim=-1, stable=True)
    return anchors.gather(-1, order), (order - inputs.cu_seq_q[sequence]).int()


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


def strides(tensor: Tensor, *names: str) -> dict[str, int]:
    """Of dimensions of size 1 it is 0: packed sequences are told apart by where they begin."""
    sizes = zip(names, tensor.shape, tensor.stride())
    return {f"stride_{name}": stride if size > 1 else 0 for name, size, stride in sizes}


def unit_stride(inputs: Inputs) -> Inputs:
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
