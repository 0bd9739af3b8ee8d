"""`torch.func.vmap` for the operations: the mapped dimension is folded into the batch.

Random choices are counted by batch element, and those of one slice must be what a call of its own makes with its
seed: such slices are computed one by one. `randomness="same"` gives them one seed, "different" each its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def fold_into_batch(name: str, batch_in: dict[str, int], batch_out: tuple[int, ...], mask_gradient: int | None = None):
    """Registers the rule of one operation.

    Args:
        batch_in: for each tensor argument that has one, which of its dimensions is the batch; the first, of which it
            is dimension 0, tells the batch size.
        batch_out: the same for each result.
        mask_gradient: which result, if any, is the gradient of `attn_mask`.
    """
    operation = getattr(torch.ops.attnkern, name)
    names = [argument.name for argument in operation.default._schema.arguments]
    first = next(iter(batch_in))

    def rule(info, in_dims, *args):
        given = dict(zip(names, args))
        if given.get("seed") is not None:
            return _one_by_one(operation, info.batch_size, in_dims, args)
        dims = dict(zip(names, in_dims))
        batch = _sizes(given[first], dims[first])[0]
        mask = given.get("attn_mask")
        mask_is_shared = mask is not None and _sizes(mask, dims["attn_mask"])[0] == 1
        folded = [
            _fold(value, dims[argument], batch_in[argument], info.batch_size, batch) if argument in batch_in else value
            for argument, value in given.items()
        ]
        if given.get("cu_seq_q") is not None:
            raise ValueError("packed sequences cannot be mapped over: pack them all, or pass them padded")
        results = operation(*folded)
        results = results if isinstance(results, tuple) else (results,)
        unfolded = []
        for place, (result, dim) in enumerate(zip(results, batch_out)):
            if result.shape == (0,):  # a gradient that was not asked for
                result = result.expand(info.batch_size, 0)
            else:
                result = result.unflatten(dim, (info.batch_size, -1)).movedim(dim, 0)
                if place == mask_gradient and mask_is_shared:
                    result = result.sum(1, keepdim=True)
            unfolded.append(result)
        return (tuple(unfolded), tuple([0] * len(unfolded))) if len(unfolded) > 1 else (unfolded[0], 0)

    torch.library.register_vmap(f"attnkern::{name}", rule)


def _one_by_one(operation: Callable, size: int, in_dims: tuple, args: tuple):
    """Each slice a call of its own."""
    results = []
    for number in range(size):
        results.append(operation(*(x if dim is None else x.select(dim, number) for x, dim in zip(args, in_dims))))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])


def _sizes(tensor: Tensor, mapped: int | None) -> list[int]:
    return [size for dim, size in enumerate(tensor.shape) if dim != mapped]


def _fold(tensor: Tensor | None, mapped: int | None, dim: int, size: int, batch: int) -> Tensor | None:
    """The tensor with `size * batch` where it had `batch` (or 1) at `dim`."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(dim) if mapped is None else tensor.movedim(mapped, dim)
    shape = list(tensor.shape)
    shape[dim], shape[dim + 1] = size, batch
    return tensor.expand(shape).flatten(dim, dim + 1)
