"""What hard attention does only at the sampled keys: a gather forward, a gather and a scatter backward.

O(L * S * E), no dense product. Sums over draws are ordered (sorted by key), so the result does not
depend on scheduling. `embedding_bag` is exactly a weighted sum of gathered rows, fused, on every device.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from attnkern.packing import places
from attnkern.problem import Gradients, Inputs, Problem, new_output


def gather(inputs: Inputs, index: Tensor) -> Tensor:
    """The values at `index` `(S, B, H, Lq)`: `(S, B, H, Lq, Ev)`, 0 where index is -1."""
    value, draws, index = inputs.value, index.shape[0], _among_all(inputs, index)
    _, kv_heads, len_k, width = value.shape
    output = new_output(inputs.query, value, draws)
    if output.numel() == 0 or len_k == 0:
        return output.zero_()
    for r in range(draws):
        per_kv_head = index[r].unflatten(1, (kv_heads, -1)).flatten(2)
        rows = per_kv_head.clamp(min=0)[..., None].expand(-1, -1, -1, width)
        picked = value.gather(2, rows).masked_fill_((per_kv_head < 0)[..., None], 0)
        output[r] = picked.view(output.shape[1:])
    return output


def backward(
    problem: Problem,
    inputs: Inputs,
    index: Tensor,
    score: Tensor,
    grad_score: Tensor | None,
    grad_output: Tensor | None,
    needs_mask: bool,
) -> Gradients:
    """Gradients through the scores at the drawn keys, and of the gathered values."""
    draws = _Draws(inputs, _among_all(inputs, index))
    grad_query = grad_key = grad_value = grad_mask = None
    if grad_score is not None:
        weight = _without_constants(grad_score, index, score)
        if needs_mask:
            grad_mask = mask_gradient(inputs, index, score, grad_score)
        if problem.softcap:
            capped = score - _at_draws(inputs, index)
            weight = _without_constants(weight * (1 - (capped / problem.softcap) ** 2), index, score)
        weight = (weight * problem.scale).to(problem.compute_dtype)
        grad_query = draws.sum_per_query(inputs.key, weight)
        grad_key = draws.sum_per_key(inputs.query, weight)
    if grad_output is not None:
        grad_value = draws.sum_per_key(grad_output)
    return Gradients(grad_query, grad_key, grad_value, grad_mask)


class _Draws:
    """The draws `(S, B, H, Lq)`, seen from the queries and, sorted, from the keys."""

    def __init__(self, inputs: Inputs, index: Tensor):
        batch, heads = inputs.query.shape[:2]
        self.keys = batch, kv_heads, len_k = inputs.key.shape[:3]
        kv_head = torch.arange(batch * heads, device=index.device) // max(1, heads // max(1, kv_heads))
        base = (kv_head * len_k).view(batch, heads, 1)
        nowhere = batch * kv_heads * len_k  # past the last key: draws of empty rows
        self.key = torch.where(index >= 0, base + index, nowhere)  # (S, B, H, Lq)
        self.count = nowhere

    @cached_property
    def by_key(self) -> tuple[Tensor, Tensor]:
        """The draws in the order of their keys, and where each key's begin; last, those of empty rows."""
        key, order = torch.sort(self.key.flatten(), stable=True)
        return order, torch.searchsorted(key, torch.arange(self.count + 1, device=key.device))

    def sum_per_query(self, keys: Tensor, weight: Tensor) -> Tensor:
        """Sum over each query's draws of weight times the key drawn: `(B, H, Lq, E)`."""
        shape = self.key.shape[1:]
        if self.count == 0 or 0 in shape:
            return keys.new_zeros(*shape, keys.shape[-1])
        table = keys.to(weight.dtype).reshape(self.count, -1)
        where = self.key.clamp(max=self.count - 1).flatten(1).mT.contiguous()
        sums = _weighted_rows(table, where, weight.flatten(1).mT.contiguous()).view(*shape, -1)
        # either all of a query's draws are real or none is
        return torch.where((self.key[0] < self.count).unsqueeze(-1), sums, 0.0)

    def sum_per_key(self, rows: Tensor, weight: Tensor | None = None) -> Tensor:
        """Sum over each key's draws of the row `(S|none, B, H, Lq, E)` that drew it: `(B, Hkv, Lk, E)`."""
        width, per_sample = rows.shape[-1], rows.dim() == 5
        shape = (*self.keys, width)
        if self.count == 0 or self.key.numel() == 0:
            return rows.new_zeros(shape)
        order, begin = self.by_key
        source = order if per_sample else order % self.key[0].numel()
        table = rows.to(torch.promote_types(rows.dtype, torch.float32)).reshape(-1, width)
        weight = None if weight is None else weight.flatten()[order]
        return _weighted_rows(table, source, weight, begin)[: self.count].view(shape)


def _weighted_rows(table: Tensor, where: Tensor, weight: Tensor | None, begin: Tensor | None = None) -> Tensor:
    return F.embedding_bag(where, table, begin, mode="sum", per_sample_weights=weight)


def _among_all(inputs: Inputs, index: Tensor) -> Tensor:
    """Keys counted from the first of all packed ones, where they were from the first of the query's sequence."""
    if inputs.cu_seq_q is None:
        return index
    sequence, _ = places(inputs.cu_seq_q, index.shape[-1])
    return torch.where(index >= 0, index + inputs.cu_seq_k[sequence], index)


def _at_draws(inputs: Inputs, index: Tensor) -> Tensor | float:
    """A float mask's entries at the draws, 0 for others: `(S, B, H, Lq)`."""
    mask = inputs.attn_mask
    if mask is None or mask.dtype == torch.bool:
        return 0.0
    return torch.where(index >= 0, mask[_mask_places(inputs, index)], 0.0)


def mask_gradient(inputs: Inputs, index: Tensor, score: Tensor, grad_score: Tensor) -> Tensor:
    """Of a float mask, through the scores at the draws."""
    grad = torch.zeros(inputs.attn_mask.shape, dtype=score.dtype, device=score.device)
    if grad.numel() == 0:
        return grad
    weight = _without_constants(grad_score, index, score)
    return grad.index_put_(_mask_places(inputs, index), weight, accumulate=True)


def _without_constants(weight: Tensor, index: Tensor, score: Tensor) -> Tensor:
    """0 where an infinite score is one, and where nothing was drawn."""
    return torch.where((index < 0) | (score >= torch.finfo(score.dtype).max), 0.0, weight)


def _mask_places(inputs: Inputs, index: Tensor) -> tuple[Tensor, ...]:
    """Where in the (broadcast) mask each draw reads."""
    _, batch, heads, rows = index.shape
    device = index.device
    if inputs.cu_seq_q is None:
        batch, row = torch.arange(batch, device=device)[:, None, None], torch.arange(rows, device=device)
    else:
        batch, row = places(inputs.cu_seq_q, rows)
    entries = (batch, torch.arange(heads, device=device)[:, None], row, index.clamp(min=0))
    return tuple(
        (entry if size > 1 else torch.zeros_like(entry)).expand(index.shape)
        for entry, size in zip(entries, inputs.attn_mask.shape)
    )
