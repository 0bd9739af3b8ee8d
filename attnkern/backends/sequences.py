"""Packed sequences one after another, each through what knows batches of one length."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from attnkern.problem import Gradients, Inputs, Problem, new_output


class Sequence(NamedTuple):
    """One of them as a batch of one, and where its rows and keys lie."""

    problem: Problem
    inputs: Inputs
    rows: slice
    keys: slice

    def of_mask(self, mask: Tensor) -> Tensor:
        """Its tile of a mask `(B|1, H|1, Lq|1, Lk|1)`."""
        return _tile(mask, self.inputs.first, self.problem.len_q, self.problem.len_k)


def sequences(problem: Problem, inputs: Inputs) -> Iterator[Sequence]:
    """All of them, empty ones too."""
    bounds = zip(*(pairwise(cu_seq.tolist()) for cu_seq in (inputs.cu_seq_q, inputs.cu_seq_k)))
    offsets = repeat(problem.query_offset) if inputs.offsets is None else inputs.offsets.tolist()
    for number, ((rows, keys), offset) in enumerate(zip(bounds, offsets)):
        rows, keys = slice(*rows), slice(*keys)
        len_q, len_k = (part.stop - part.start for part in (rows, keys))
        own = replace(problem, packed=False, batch=1, query_offset=offset, len_q=len_q, len_k=len_k)
        center, sigma = (None if t is None else t[:, :, rows] for t in (inputs.center, inputs.sigma))
        tensors = Inputs(
            inputs.query[:, :, rows],
            inputs.key[:, :, keys],
            inputs.value[:, :, keys],
            None if inputs.attn_mask is None else _tile(inputs.attn_mask, number, len_q, len_k),
            seed=inputs.seed,
            center=center,
            sigma=sigma,
            first=number,
        )
        yield Sequence(own, tensors, rows, keys)


def _tile(mask: Tensor, number: int, len_q: int, len_k: int) -> Tensor:
    own = (slice(number, number + 1), slice(None), slice(len_q), slice(len_k))
    return mask[tuple(part if size > 1 else slice(None) for part, size in zip(own, mask.shape))]


def softmax(run: Callable, problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    output = new_output(inputs.query, inputs.value)
    lse = inputs.query.new_empty(output.shape[:-1], dtype=problem.compute_dtype)
    for one in sequences(problem, inputs):
        output[:, :, one.rows], lse[:, :, one.rows] = run(one.problem, one.inputs)
    return output, lse


def sample(run: Callable, problem: Problem, inputs: Inputs) -> tuple[Tensor, ...]:
    draws, rows = (problem.num_samples,), inputs.query.shape[:-1]
    output = new_output(inputs.query, inputs.value, *draws)
    index = torch.empty(*draws, *rows, dtype=torch.int64, device=inputs.query.device)
    score, lse, entropy = (
        inputs.query.new_empty(shape, dtype=problem.compute_dtype) for shape in (draws + rows, rows, rows)
    )
    for one in sequences(problem, inputs):
        found = run(one.problem, one.inputs)
        output[..., one.rows, :] = found[0]
        for whole, part in zip((index, score, lse, entropy), found[1:]):
            whole[..., one.rows] = part
    return output, index, score, lse, entropy


def weights(run: Callable, problem: Problem, inputs: Inputs, lse: Tensor) -> Tensor:
    heads = () if problem.weights == "mean" else (problem.heads,)
    result = inputs.query.new_zeros(problem.batch, *heads, problem.len_q, problem.len_k)
    for number, one in enumerate(sequences(problem, inputs)):
        found = run(one.problem, one.inputs, lse[:, :, one.rows])
        result[number, ..., : one.problem.len_q, : one.problem.len_k] = found[0]
    return result


def backward(
    run: Callable, problem: Problem, inputs: Inputs, lse: Tensor | None, needs_mask: bool, **given
) -> Gradients:
    """given: what else the backward takes, one for each row, but for `grad_weights`, which is like a mask; or None."""
    grad_query, grad_key, grad_value = (torch.zeros_like(tensor) for tensor in inputs[:3])
    grad_mask = torch.zeros_like(inputs.attn_mask, dtype=problem.compute_dtype) if needs_mask else None
    grad_center, grad_sigma = (torch.zeros_like(lse) if problem.sigma else None for _ in range(2))
    for one in sequences(problem, inputs):
        own = {name: None if tensor is None else tensor[:, :, one.rows] for name, tensor in given.items()}
        if given.get("grad_weights") is not None:
            own["grad_weights"] = one.of_mask(given["grad_weights"])
        found = run(
            one.problem, one.inputs, None if lse is None else lse[:, :, one.rows], needs_mask=needs_mask, **own
        )  # fmt: skip
        grad_query[:, :, one.rows], grad_key[:, :, one.keys] = found.query, found.key
        if found.value is not None:
            grad_value[:, :, one.keys] = found.value
        if needs_mask:
            one.of_mask(grad_mask).add_(found.attn_mask)
        if problem.sigma:
            grad_center[:, :, one.rows], grad_sigma[:, :, one.rows] = found.center, found.sigma
    return Gradients(grad_query, grad_key, grad_value, grad_mask, grad_center, grad_sigma)
