"""The CUDA C++ kernels' host side: says what they can do, fills calls, launches.

The same code serves the kernels on a GPU (`cuda`) and their emulated twin on a CPU (`emulated`).
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from attnkern import philox
from attnkern.backends import sparse
from attnkern.backends.in_order import Centers
from attnkern.backends.memory import broadcastable
from attnkern.problem import Gradients, Inputs, Problem, new_output

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
WIDTHS = (64, 128, 256)  # of kernels; smaller heads are padded with zeros on their way in

# tiles of the kernels, as csrc/instances chooses them: (queries, keys), by width
FORWARD_TILE = {64: (192, 128), 128: (128, 128), 256: (128, 64)}
DENSE_FORWARD_TILE = {64: (192, 128), 128: (128, 160), 256: (128, 80)}  # no window
EXTRAS_FORWARD_TILE = {64: (128, 128), 128: (128, 128), 256: (128, 64)}  # mask, soft cap or dropout
SAMPLE_TILE = {64: (192, 128), 128: (192, 128), 256: (128, 128)}  # one sample
SAMPLES_TILE = dict.fromkeys(WIDTHS, (128, 128))  # up to four at once
SAMPLES_AT_ONCE = 4
BACKWARD_TILE = {64: (128, 128), 128: (64, 128)}
BACKWARD_BY_COLUMNS_TILE = {64: (128, 64), 128: (128, 64), 256: (64, 64)}  # extras, and wider heads

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
        head = max(problem.head_dim, problem.value_dim)
        hard = problem.kind == "hard"
        if problem.kind == "aoa":
            return "it has no Attention-over-Attention"
        if problem.device != self._device:
            return f"device {problem.device} is not {self._device}"
        if problem.dtype not in DTYPES:
            return f"dtype {problem.dtype} is not float16 or bfloat16"
        if head > WIDTHS[-1] or any(size == 0 or size % 8 for size in (problem.head_dim, problem.value_dim)):
            return f"head sizes {problem.head_dim}/{problem.value_dim} are not multiples of 8 up to {WIDTHS[-1]}"
        if 0 in (problem.batch, problem.heads, problem.len_q, problem.len_k):
            return "sizes of 0"
        if not problem.scale > 0:
            return f"scale {problem.scale} is not positive"
        if problem.sigma and not problem.center:
            return "it has no Gaussians but around learned centres"
        if problem.center and (problem.mask or problem.dropout_p):
            return "around learned centres it has neither mask nor dropout"
        if problem.query_offset is None:
            return "it has no offsets that differ in a batch"
        if problem.packed:
            return "it has no packed sequences"
        if problem.weights:
            return "it has no kernel that writes attention weights"
        if problem.selector not in ("softmax", "sample"):
            return f"it has no {problem.selector}"
        if hard and (problem.mask or problem.softcap):
            return "its sampler has neither mask nor softcap"
        if problem.dropout_p and keys_in_sight(problem).start % 4:
            return "dropout needs the first key in sight to be a multiple of 4"
        if problem.requires_grad:
            if problem.straight_through:
                return "it has no straight-through gradient"
            if torch.are_deterministic_algorithms_enabled():
                return "its gradients are summed in no fixed order, and torch.use_deterministic_algorithms is on"
        return self._unavailable()

    def softmax(self, problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`."""
        if not problem.center:
            return self._softmax(problem, inputs)
        centers = Centers.of(problem, inputs)
        output, lse = self._softmax(*centers.in_order(problem, inputs), centers)
        return centers.put_back(output), centers.put_back(lse)

    def _softmax(self, problem: Problem, inputs: Inputs, centers: Centers | None = None) -> tuple[Tensor, Tensor]:
        query, key, value = _operands(problem, inputs)
        output = new_output(query, value)
        lse = query.new_empty(output.shape[:-1], dtype=torch.float32)
        seen = keys_in_sight(problem)
        if seen.start == seen.stop:
            return output.zero_(), lse.fill_(float("-inf"))
        counter = query.new_empty(1, dtype=torch.int32)
        blocks = centers and centers.key_blocks(*EXTRAS_FORWARD_TILE[width_of(problem)])
        self._module.softmax_forward(
            DTYPES[problem.dtype],
            *map(_described, (query, key[:, :, seen], value[:, :, seen], output)),
            lse.data_ptr(),
            counter.data_ptr(),
            self._scores(problem, seen.start),
            self._extras(problem, inputs, None),
            self._centers(centers, blocks),
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
        needs_mask: bool = False,
        **_,
    ) -> Gradients:
        """Gradients of query, key and, where the softmax made an output, value; of learned centres and their sigmas.

        `row` is what is subtracted from every gradient of a row, besides; `entropy` the gradient of the entropies.
        """
        if not problem.center:
            return self._backward(problem, inputs, lse, grad_output, output, row, entropy, needs_mask)
        centers = Centers.of(problem, inputs)
        rows = (None if rows is None else centers.take(rows) for rows in (lse, grad_output, output, row))
        found = self._backward(*centers.in_order(problem, inputs), *rows, None, False, centers)
        return centers.gradients(problem, inputs, found)

    def _backward(
        self, problem: Problem, inputs: Inputs, lse: Tensor, grad_output: Tensor | None, output: Tensor | None,
        row: Tensor | None, entropy: Tensor | None, needs_mask: bool, centers: Centers | None = None,
    ) -> Gradients:  # fmt: skip
        query, key, value = _operands(problem, inputs)
        has_output, seen = problem.selector == "softmax", keys_in_sight(problem)
        grad_query = torch.empty_like(query)
        grad_key = _unseen_zero(key, seen)
        grad_value = _unseen_zero(value, seen) if has_output else None
        grad_mask = inputs.attn_mask.new_zeros(inputs.attn_mask.shape, dtype=torch.float32) if needs_mask else None
        sums = [torch.zeros_like(lse) if problem.sigma else None for _ in range(2)]
        gradients = Gradients(grad_query, grad_key, grad_value, grad_mask, *sums)
        if seen.start == seen.stop:
            grad_query.zero_()
            return gradients

        rows = problem.batch * problem.heads * (-(-problem.len_q // QUERY_TILE) * QUERY_TILE)
        counter = query.new_empty(1, dtype=torch.int32)
        row_space = query.new_empty(3 * rows, dtype=torch.float32)
        query_space = query.new_zeros(rows * width_of(problem), dtype=torch.float32)
        lse, row, entropy = (None if tensor is None else tensor.contiguous() for tensor in (lse, row, entropy))
        spaces = [_address(tensor) for tensor in (counter, row_space, query_space)]
        scores, stream = self._scores(problem, seen.start), _stream(query)
        if has_output:
            output = _copyable(output)
            grad_output = torch.zeros_like(output) if grad_output is None else _copyable(grad_output)
            tensors = (query, key[:, :, seen], value[:, :, seen], output, grad_output)
            tensors += (grad_query, grad_key[:, :, seen], grad_value[:, :, seen])
            extras = self._extras(problem, inputs, grad_mask)
            blocks = centers and centers.query_blocks(*BACKWARD_BY_COLUMNS_TILE[width_of(problem)], problem.len_k)
            around = self._centers(centers, blocks, *sums)
            numbers = (_address(lse), _address(row), *spaces, scores, extras, around, stream)
            self._module.softmax_backward(DTYPES[problem.dtype], *map(_described, tensors), *numbers)
        else:
            tensors = (query, key[:, :, seen], grad_query, grad_key[:, :, seen])
            numbers = (_address(lse), _address(row), _address(entropy), *spaces, scores, stream)
            self._module.distribution_backward(DTYPES[problem.dtype], *map(_described, tensors), *numbers)
        return gradients

    def _scores(self, problem: Problem, first_key: int):
        """Where queries may look, counted from the first key that any of them may look at."""
        left, right = problem.band
        return self._module.ScoreOptions(problem.scale, left, right, problem.query_offset - first_key)

    def _extras(self, problem: Problem, inputs: Inputs, grad_mask: Tensor | None):
        if not (problem.mask or problem.softcap or problem.dropout_p):
            return self._module.ExtraOptions()
        seen, mask = keys_in_sight(problem), inputs.attn_mask
        return self._module.ExtraOptions(
            problem.softcap,
            _broadcast(mask, seen),
            mask.element_size() if mask is not None else 1,
            _broadcast(grad_mask, seen),
            _address(inputs.seed),
            philox.dropout_threshold(problem.dropout_p),
            philox.dropout_scale(problem.dropout_p),
            seen.start,
        )

    def _centers(
        self, centers: Centers | None, blocks: Tensor | None, grad_center: Tensor | None = None,
        grad_sigma: Tensor | None = None,
    ):  # fmt: skip
        if centers is None:
            return self._module.CenterOptions()
        addresses = map(_address, (centers.rows, blocks, grad_center, grad_sigma))
        return self._module.CenterOptions(centers.gaussian, *addresses)


def _operands(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value for the copy engine, keys that the mask hides from every query set to 0.

    They are multiplied by weights of 0, which would leave a NaN. Keys outside of every window are cut off instead.
    """
    query, key, value = inputs[:3]
    mask = inputs.attn_mask
    if mask is not None and mask.shape[3] > 1:
        shown = (mask if mask.dtype == torch.bool else mask > float("-inf")).any(2)
        if shown.shape[1] > 1:
            shown = shown.unflatten(1, (problem.kv_heads, problem.group)).any(2)
        key, value = (tensor.masked_fill(~shown[..., None], 0) for tensor in (key, value))
    return _copyable(query), _copyable(key), _copyable(value)


def keys_in_sight(problem: Problem) -> slice:
    """The keys that any query may look at by its window."""
    return slice(*problem.key_range(0, problem.len_q))


def width_of(problem: Problem) -> int:
    """Of the kernel."""
    return next(width for width in WIDTHS if max(problem.head_dim, problem.value_dim) <= width)


def _unseen_zero(tensor: Tensor, seen: slice) -> Tensor:
    """A new tensor like it; rows that no query looks at are 0."""
    result = torch.empty_like(tensor)
    result[:, :, : seen.start] = 0
    result[:, :, seen.stop :] = 0
    return result


def _copyable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that the copy engine can read: aligned, features side by side."""
    unit = ALIGNMENT // tensor.element_size()
    strides = [stride for stride, size in zip(tensor.stride()[:-1], tensor.shape) if size > 1]
    fits = tensor.stride(-1) == 1 and all(stride > 0 and stride % unit == 0 for stride in strides)
    in_place = fits and tensor.data_ptr() % ALIGNMENT == 0
    return tensor if in_place else tensor.clone(memory_format=torch.contiguous_format)


def _described(tensor: Tensor) -> tuple[int, tuple[int, ...], list[int]]:
    """Address, sizes, strides; where a size is 1 the stride is any legal one."""
    unit = ALIGNMENT // tensor.element_size()
    strides = [unit if size == 1 else stride for stride, size in zip(tensor.stride()[:-1], tensor.shape)]
    return tensor.data_ptr(), tuple(tensor.shape), [*strides, 1]


def _broadcast(tensor: Tensor | None, keys: slice) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """A mask's address, sizes and strides, 0 where it is broadcast; address 0 for none."""
    if tensor is None:
        return 0, (0,) * 4, (0,) * 4
    if tensor.shape[3] > 1:
        tensor = tensor[..., keys]
    return tensor.data_ptr(), tuple(tensor.shape), broadcastable(tensor).stride()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
