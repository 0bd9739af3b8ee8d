"""Windows on a CPU by torch's own fused kernel: every block of queries is a small attention of its own.

All blocks whose windows lie within the keys have the same shape and the same mask, and their keys are views that
overlap: one call computes them all. The few queries before and after them are a problem each, for the tile walk.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attnkern.backends import sdpa
from attnkern.problem import Gradients, Inputs, Problem, new_output

ROWS = 64  # queries of a block
LEAST = 4  # blocks that are worth it
PART = 4 << 20  # bytes of the keys' gradients that are kept for each block, before they are added up
Softmax = Callable[[Problem, Inputs], tuple[Tensor, Tensor]]


def can_run(problem: Problem) -> bool:
    """Whether the window is one that torch's kernel can be given in this way."""
    return (
        sdpa.has_kernel(problem)
        and problem.selector == "softmax"
        and min(problem.band) >= 0
        and problem.mask is None
        and problem.query_offset is not None
        and len(range(*inner(problem))) >= LEAST * ROWS
    )


def inner(problem: Problem) -> tuple[int, int]:
    """Queries `[begin, end)` in whole blocks whose windows lie within the keys."""
    left, right = problem.band
    begin = max(0, left - problem.query_offset)
    end = min(problem.len_q, problem.len_k - right - problem.query_offset)
    return begin, begin + max(0, end - begin) // ROWS * ROWS


def outer(problem: Problem) -> Iterator[tuple[int, int]]:
    """The other queries `[begin, end)`."""
    begin, end = inner(problem)
    yield from (part for part in ((0, begin), (end, problem.len_q)) if part[0] < part[1])


def part(problem: Problem, begin: int, end: int) -> tuple[Problem, slice]:
    """Those queries as a problem, and the keys that it keeps."""
    first, last = problem.key_range(begin, end)
    offset = problem.query_offset + begin - first
    return replace(problem, len_q=end - begin, len_k=last - first, query_offset=offset), slice(first, last)


def forward(problem: Problem, inputs: Inputs, softmax: Softmax) -> tuple[Tensor, Tensor] | None:
    """Output `(B, H, Lq, E)` and lse `(B, H, Lq)`; None if a score overflowed. `softmax` computes the outer queries."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in inputs[:3])
    output = new_output(query, value)
    lse = query.new_empty(output.shape[:-1], dtype=problem.compute_dtype)
    begin, end = inner(problem)
    mask = _mask(problem, query)
    for one in range(problem.batch):
        queries = query[one, :, begin:end].unflatten(1, (-1, ROWS))
        keys, values = (_windows(problem, tensor[one], begin, end) for tensor in (key, value))
        found, found_lse = sdpa.flash(queries, keys, values, 0.0, False, attn_mask=mask, scale=problem.scale)
        output[one, :, begin:end] = found.flatten(1, 2)
        lse[one, :, begin:end] = found_lse.flatten(1, 2)
    if not sdpa.is_sound(lse[:, :, begin:end]):
        return None
    for first, last in outer(problem):
        smaller, keys = part(problem, first, last)
        if smaller.len_k == 0:
            output[:, :, first:last], lse[:, :, first:last] = 0.0, sdpa.NEG_INF
            continue
        found, found_lse = softmax(smaller, Inputs(query[:, :, first:last], key[:, :, keys], value[:, :, keys]))
        output[:, :, first:last], lse[:, :, first:last] = found, found_lse
    return output, lse


def backward(
    problem: Problem, inputs: Inputs, output: Tensor, lse: Tensor, grad_output: Tensor, walk: Callable[..., Gradients]
) -> Gradients:
    """Of query, key and value. `walk` is the backward of the outer queries."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in inputs[:3])
    grad_query = torch.zeros_like(query)
    grad_key, grad_value = (torch.zeros(t.shape, dtype=problem.compute_dtype) for t in (key, value))
    mask, (left, right), stop = _mask(problem, query), problem.band, inner(problem)[1]
    together = ROWS * max(1, PART // (problem.heads * (left + ROWS + right) * problem.head_dim * query.itemsize))
    starts = range(inner(problem)[0], stop, together)
    for one, begin in itertools.product(range(problem.batch), starts):
        end = min(begin + together, stop)
        rows = [t[one, :, begin:end].unflatten(1, (-1, ROWS)) for t in (grad_output, query, output, lse)]
        keys, values = (_windows(problem, tensor[one], begin, end) for tensor in (key, value))
        of_query, *others = sdpa.flash_backward(
            rows[0], rows[1], keys, values, rows[2], rows[3], 0.0, False, attn_mask=mask, scale=problem.scale
        )
        grad_query[one, :, begin:end] = of_query.flatten(1, 2)
        first = begin + problem.query_offset - left
        for total, found in zip((grad_key, grad_value), others):
            _add_windows(total[one, :, first:], found)
    for first, last in outer(problem):
        smaller, keys = part(problem, first, last)
        if smaller.len_k == 0:
            continue
        rows = slice(first, last)
        edge = Inputs(query[:, :, rows], key[:, :, keys], value[:, :, keys])
        found = walk(
            smaller, edge, lse[:, :, rows], grad_output=grad_output[:, :, rows], output=output[:, :, rows]
        )  # fmt: skip
        grad_query[:, :, rows] = found.query
        grad_key[:, :, keys] += found.key
        grad_value[:, :, keys] += found.value
    return Gradients(grad_query, grad_key, grad_value)


def _add_windows(total: Tensor, found: Tensor) -> None:
    """Adds each block's gradients `(H, blocks, keys of a block, E)` to those of the keys `(H, Lk, E)` that it saw."""
    blocks, span = found.shape[1:3]
    for shift in range(0, span, ROWS):  # between neighbours, so that no key is met twice at a time
        width = min(ROWS, span - shift)
        heads, row, one = total.stride()
        shape, strides = (len(total), blocks, width, total.shape[-1]), (heads, ROWS * row, row, one)
        total[:, shift:].as_strided(shape, strides).add_(found[:, :, shift : shift + width])


def _windows(problem: Problem, tensor: Tensor, begin: int, end: int) -> Tensor:
    """`(H, blocks, keys of a block, E)`, a view of keys or values `(H, Lk, E)`."""
    left, right = problem.band
    seen = tensor[:, begin + problem.query_offset - left :]
    heads, row, one = tensor.stride()
    shape = (tensor.shape[0], (end - begin) // ROWS, left + ROWS + right, tensor.shape[-1])
    return seen.as_strided(shape, (heads, ROWS * row, row, one))


def _mask(problem: Problem, query: Tensor) -> Tensor:
    """`(1, 1, ROWS, keys of a block)`: 0 where a query looks, -inf elsewhere."""
    left, right = problem.band
    return sdpa.of_window(ROWS, left + ROWS + right, problem.band, left, query.dtype)[0]
