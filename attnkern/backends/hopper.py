"""The CUDA C++ kernels' host side: says what they can do, fills calls, launches.

The same code serves the kernels on a GPU (`cuda`) and their emulated twin on a CPU (`emulated`).
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from attnkern.backends import sparse
from attnkern.problem import Gradients, Inputs, Problem, new_output

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
WIDTHS = (64, 128, 256)  # of kernels; smaller heads are padded with zeros on their way in
WIDEST_BACKWARD = 128
QUERY_TILE = 128  # rows that the backward's workspaces are padded to
ALIGNMENT = 16  # bytes, of addresses and strides that the copy engine takes


class Kernels:
    """A backend, made of one compiled module.

    Args:
        module: name of the compiled module.
        device: type of device whose memory the module's kernels reach.
        unavailable: why they cannot run here, or None.
    """

    def __init__(self, module: str, device: str, unavailable: Callable[[], str | None]):
        self._name = module
        self._device = device
        self._unavailable = unavailable

    @property
    def _module(self) -> ModuleType:
        return importlib.import_module(self._name)

    def refuses(self, problem: Problem) -> str | None:
        """Why this backend cannot run the problem; None if it can."""
        if problem.device != self._device:
            return f"device {problem.device} is not {self._device}"
        reasons = {
            f"dtype {problem.dtype} is not float16 or bfloat16": problem.dtype not in DTYPES,
            f"head sizes {problem.head_dim}/{problem.value_dim} are not multiples of 8 up to {WIDTHS[-1]}": any(
                size % 8 or not 0 < size <= WIDTHS[-1] for size in (problem.head_dim, problem.value_dim)
            ),
            f"head sizes above {WIDEST_BACKWARD} have no backward": (
                problem.requires_grad and max(problem.head_dim, problem.value_dim) > WIDEST_BACKWARD
            ),
            "learned centres and Gaussians run on the reference only": problem.center or problem.sigma,
            "it has no argmax": problem.selector == "argmax",
            "it has no straight-through gradient": problem.straight_through and problem.requires_grad,
            "it has no kernel that writes attention weights": problem.weights,
            "it has no mask tensor": problem.mask,
            "it has no softcap": problem.softcap > 0,
            "it has no dropout": problem.dropout_p > 0,
            f"scale {problem.scale} is not positive": not problem.scale > 0,
            "sizes of 0": 0 in (problem.batch, problem.heads, problem.len_q, problem.len_k),
            "it has no offsets that differ in a batch": problem.query_offset is None,
            "its gradients are summed in no fixed order, and torch.use_deterministic_algorithms is on": (
                problem.requires_grad and torch.are_deterministic_algorithms_enabled()
            ),
        }
        return next((reason for reason, holds in reasons.items() if holds), None) or self._unavailable()

    def softmax(self, problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`."""
        query, key, value = (_copyable(tensor) for tensor in inputs[:3])
        output = new_output(query, value)
        lse = query.new_empty(output.shape[:-1], dtype=torch.float32)
        begin, end = problem.key_range(0, problem.len_q)
        if begin == end:
            return output.zero_(), lse.fill_(float("-inf"))
        counter = query.new_empty(1, dtype=torch.int32)
        with _on(query):
            self._module.softmax_forward(
                DTYPES[problem.dtype],
                *(_described(tensor) for tensor in (query, key[:, :, begin:end], value[:, :, begin:end], output)),
                lse.data_ptr(),
                counter.data_ptr(),
                self._scores(problem, begin),
                _stream(query),
            )
        return output, lse

    def sample(self, problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One pass over the keys: output, index, score (each `(S, B, H, Lq, ...)`), lse, entropy."""
        query, key = _copyable(inputs.query), _copyable(inputs.key)
        rows, draws = query.shape[:3], problem.num_samples
        index = query.new_empty(draws, *rows, dtype=torch.int64)
        score = query.new_empty(draws, *rows, dtype=torch.float32)
        lse, entropy = (query.new_empty(rows, dtype=torch.float32) for _ in range(2))
        counter = query.new_empty(1, dtype=torch.int32)
        with _on(query):
            self._module.sample_forward(
                DTYPES[problem.dtype],
                _described(query),
                _described(key),
                *(tensor.data_ptr() for tensor in (inputs.seed, index, score, lse, entropy, counter)),
                draws,
                self._scores(problem, 0),  # samples are drawn by the keys' own numbers
                _stream(query),
            )
        return sparse.gather(inputs, index), index, score, lse, entropy

    sparse_backward = staticmethod(sparse.backward)

    def backward(
        self,
        problem: Problem,
        inputs: Inputs,
        lse: Tensor,
        *,
        grad_output: Tensor | None = None,
        output: Tensor | None = None,
        row: Tensor | None = None,
        entropy: Tensor | None = None,
        **_,
    ) -> Gradients:
        """Gradients of query, key and, where the softmax made an output, value.

        `row` is what is subtracted from every gradient of a row, besides; `entropy` the gradient of the entropies.
        """
        query, key = _copyable(inputs.query), _copyable(inputs.key)
        begin, end = problem.key_range(0, problem.len_q)
        rows = problem.batch * problem.heads * (-(-problem.len_q // QUERY_TILE) * QUERY_TILE)
        counter = query.new_empty(1, dtype=torch.int32)
        row_space = query.new_empty(3 * rows, dtype=torch.float32)
        query_space = query.new_zeros(rows * _width(problem), dtype=torch.float32)
        grad_query, grad_key = torch.empty_like(query), _unseen_zero(key, begin, end)
        numbers = [lse.contiguous(), *(None if t is None else t.contiguous() for t in (row, entropy))]
        lse, row, entropy = (0 if tensor is None else tensor.data_ptr() for tensor in numbers)
        spaces = [tensor.data_ptr() for tensor in (counter, row_space, query_space)]
        rest = (*spaces, self._scores(problem, begin), _stream(query))
        seen = slice(begin, end)
        with _on(query):
            if problem.selector != "softmax":
                tensors = (query, key[:, :, seen], grad_query, grad_key[:, :, seen])
                if begin < end:
                    arguments = (*map(_described, tensors), lse, row, entropy, *rest)
                    self._module.distribution_backward(DTYPES[problem.dtype], *arguments)
                return Gradients(grad_query if begin < end else grad_query.zero_(), grad_key)
            value, output = _copyable(inputs.value), _copyable(output)
            grad_output = torch.zeros_like(output) if grad_output is None else _copyable(grad_output)
            grad_value = _unseen_zero(value, begin, end)
            if begin == end:
                return Gradients(grad_query.zero_(), grad_key, grad_value)
            tensors = (query, key[:, :, seen], value[:, :, seen], output, grad_output)
            tensors += (grad_query, grad_key[:, :, seen], grad_value[:, :, seen])
            self._module.softmax_backward(DTYPES[problem.dtype], *map(_described, tensors), lse, row, *rest)
        return Gradients(grad_query, grad_key, grad_value)

    def _scores(self, problem: Problem, first_key: int):
        """Where queries may look, counted from the first key that any of them may look at.

        Keys outside of that are cut off: a kernel multiplies whatever lies in a tile by 0, also NaN.
        """
        left, right = problem.band
        return self._module.ScoreOptions(problem.scale, left, right, problem.query_offset - first_key)


def _width(problem: Problem) -> int:
    """Of the kernel."""
    return next(width for width in WIDTHS if max(problem.head_dim, problem.value_dim) <= width)


def _unseen_zero(tensor: Tensor, begin: int, end: int) -> Tensor:
    """A new tensor like it, whose rows outside `[begin, end)`, which no query looks at, are 0."""
    result = torch.empty_like(tensor)
    result[:, :, :begin] = 0
    result[:, :, end:] = 0
    return result


def _copyable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that the copy engine can read: aligned, features side by side."""
    unit = ALIGNMENT // tensor.element_size()
    strides = [stride for stride, size in zip(tensor.stride()[:-1], tensor.shape) if size > 1]
    fits = tensor.stride(-1) == 1 and all(stride > 0 and stride % unit == 0 for stride in strides)
    return tensor if fits and tensor.data_ptr() % ALIGNMENT == 0 else tensor.contiguous()


def _described(tensor: Tensor) -> tuple[int, tuple[int, ...], list[int]]:
    """Address, sizes, strides; where a size is 1 the stride is any legal one."""
    unit = ALIGNMENT // tensor.element_size()
    strides = [unit if size == 1 else stride for stride, size in zip(tensor.stride()[:-1], tensor.shape)]
    return tensor.data_ptr(), tuple(tensor.shape), [*strides, 1]


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _on(tensor: Tensor):
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
