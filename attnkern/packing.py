"""Sequences of different lengths, one after another without padding.

`cu_seq` `(B + 1,)` says where each begins and where the last one ends, as in `torch.nn.attention.varlen_attn`. Behind
the API packed tensors are `(1, H, T, E)`, and what there is one of for each row `(1, H, T)`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attnkern.results import HardAttention


class Packing(NamedTuple):
    """Where the sequences of queries and those of keys lie, and the lengths of the longest."""

    cu_seq_q: Tensor
    cu_seq_k: Tensor
    max_q: int
    max_k: int


UNPACKED = Packing(None, None, None, None)  # of a caller who gave none of them


def places(cu_seq: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Of each token its sequence's number and its position in that: int64 `(T,)`."""
    token = torch.arange(tokens, device=cu_seq.device)
    sequence = torch.searchsorted(cu_seq[1:], token.to(cu_seq.dtype), right=True)
    return sequence, token - cu_seq[sequence]


def pad(tensor: Tensor, cu_seq: Tensor, longest: int, fill: float = 0.0) -> Tensor:
    """`(..., 1, H, T, E)` to `(..., B, H, longest, E)`."""
    tokens = tensor.squeeze(-4).movedim(-2, 0)  # (T, ..., H, E)
    padded = tensor.new_full((cu_seq.shape[0] - 1, longest, *tokens.shape[1:]), fill)
    return padded.index_put(places(cu_seq, len(tokens)), tokens).movedim((0, 1), (-4, -2))


def unpad(tensor: Tensor, cu_seq: Tensor, tokens: int) -> Tensor:
    """`(..., B, H, longest, E)` to `(..., 1, H, T, E)`."""
    return tensor.movedim((-4, -2), (0, 1))[places(cu_seq, tokens)].movedim(0, -2).unsqueeze(-4)


def padded(function: Callable, packing: Packing) -> Callable:
    """A function of padded sequences as one of packed ones: the definition of what packing computes."""
    cu_seq_q, cu_seq_k, max_q, max_k = packing
    by_row = {"center": 0.0, "sigma": 1.0, "index": -1}

    def run(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options):
        tokens = query.shape[2]
        inside = [
            torch.arange(longest, device=query.device) < cu_seq.diff()[:, None]
            for cu_seq, longest in ((cu_seq_q, max_q), (cu_seq_k, max_k))
        ]
        allowed = inside[0][:, None, :, None] & inside[1][:, None, None]
        if attn_mask is None:
            attn_mask = allowed
        elif attn_mask.dtype == torch.bool:
            attn_mask = attn_mask & allowed
        else:
            attn_mask = torch.where(allowed, attn_mask, float("-inf"))
        for name, fill in by_row.items():
            if isinstance(options.get(name), Tensor) and options[name].dim():
                rows = options[name].expand(*options[name].shape[:-3], 1, query.shape[1], tokens)
                options[name] = pad(rows.unsqueeze(-1), cu_seq_q, max_q, fill).squeeze(-1)

        def unpad_rows(rows: Tensor) -> Tensor:
            return unpad(rows.unsqueeze(-1), cu_seq_q, tokens).squeeze(-1)

        query = pad(query, cu_seq_q, max_q)
        key, value = (pad(tensor, cu_seq_k, max_k) for tensor in (key, value))
        result = function(query, key, value, attn_mask, **options)
        if isinstance(result, Tensor):
            return unpad(result, cu_seq_q, tokens)
        output, *others = result
        output = unpad(output, cu_seq_q, tokens)
        if isinstance(result, HardAttention):
            return HardAttention(output, *map(unpad_rows, others))
        lse, weights = others
        return output, unpad_rows(lse), weights

    return run


class Layout(NamedTuple):
    """How the caller stores sequences: packed, nested with the offsets of `nested`, or dense.

    leading: the dimensions of a dense query that stand for `(B, H)`: the last is the heads, those before it a batch.
    """

    packing: Packing | None = None
    nested: Tensor | None = None
    leading: tuple[int, ...] = ()

    def fold(self, tensor: Tensor, trailing: int) -> Tensor:
        """What broadcasts to `(*leading, ...)`, with `trailing` more dimensions, as `(B | 1, H | 1, ...)`.

        A view, where it can be one: not of a batch dimension of 1 beside one that is more.
        """
        missing = len(self.leading) + trailing - tensor.dim()
        tensor = tensor[(None,) * max(missing, 2 + trailing - tensor.dim(), 0)]
        *batch, heads = tensor.shape[: tensor.dim() - trailing]
        if len(batch) < 2:
            return tensor
        if any(size != 1 for size in batch):
            tensor = tensor.expand(*self.leading[:-1], *tensor.shape[-1 - trailing :])
        return tensor.reshape(math.prod(tensor.shape[: len(batch)]), heads, *tensor.shape[-trailing:])

    def output(self, tensor: Tensor) -> Tensor:
        """`([S,] B, H, Lq, Ev)` as the caller has it: packed `([S,] T, H, Ev)`, nested `(B, H, *, Ev)`."""
        if self.packing is None:
            return self._unfold(tensor, 2)
        return self._close(tensor.squeeze(-4).transpose(-3, -2))

    def rows(self, tensor: Tensor) -> Tensor:
        """`([S,] B, H, Lq)` as the caller has it: packed `([S,] H, T)`, nested `(B, H, *)`."""
        if self.packing is None:
            return self._unfold(tensor, 1)
        tensor = tensor.squeeze(-3)
        return tensor if self.nested is None else self._close(tensor.mT)

    def weights(self, tensor: Tensor) -> Tensor:
        """`(B, H, Lq, Lk)`, or their mean over heads `(B, Lq, Lk)`, as the caller has it; padded if packed."""
        if self.packing is not None:
            return tensor
        return self._unfold(tensor, 2) if tensor.dim() == 4 else tensor.view(*self.leading[:-1], *tensor.shape[1:])

    def _unfold(self, tensor: Tensor, trailing: int) -> Tensor:
        if len(self.leading) == 2:
            return tensor
        return tensor.view(*tensor.shape[: -2 - trailing], *self.leading, *tensor.shape[-trailing:])

    def _close(self, tensor: Tensor) -> Tensor:
        """Of `(T, H, ...)`."""
        if self.nested is None:
            return tensor
        nested = torch.nested.nested_tensor_from_jagged(tensor, self.nested.offsets(), max_seqlen=self.packing.max_q)
        return nested.transpose(1, 2)


def opened(query: Tensor, key: Tensor, value: Tensor, packing: Packing | None) -> tuple[Tensor, Tensor, Tensor, Layout]:
    """Checked tensors as `(B, H, L, E)` or `(1, H, T, E)`, and the way back."""
    if packing is not None:
        return *(tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value)), Layout(packing)
    if not query.is_nested:
        layout = Layout(leading=query.shape[:-2])
        if len(layout.leading) != 2:
            query, key, value = (layout.fold(tensor, 2) for tensor in (query, key, value))
        return query, key, value, layout
    tokens = [tensor.transpose(1, 2) for tensor in (query, key, value)]  # (B, *, H, E)
    lengths = [tensor._get_max_seqlen() for tensor in tokens[:2]]
    packing = Packing(*(tensor.offsets() for tensor in tokens[:2]), *lengths)
    dense = (tensor.values().transpose(0, 1).unsqueeze(0) for tensor in tokens)
    return *dense, Layout(packing, tokens[0])
