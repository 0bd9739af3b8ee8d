"""Blocks of queries whose windows lie around real positions, different for every query and head.

The queries of each head are taken in the order of their centres, so that a block's windows lie close together
however the centres scatter: it sees the keys from its first window to its last, gathered, and the cost follows
the windows. Every query head has its own order, so heads that share keys are no longer stacked.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from attnkern import philox
from attnkern.backends.tiles import KEYS, NEG_INF, ROWS, TILE_BYTES, TILE_BYTES_ELSEWHERE, Block
from attnkern.problem import UNLIMITED, Inputs, Problem

FARTHEST = 2**30  # positions beyond lie there


class Order(NamedTuple):
    """Of all queries of each head, by centre: their numbers, and where their windows are anchored; `(B, H, Lq)`."""

    rows: Tensor
    anchors: Tensor


class CenteredBlock(Block):
    """Some queries, neighbours by their centres, of some heads of some batch elements."""

    def __init__(self, problem: Problem, inputs: Inputs, batch: slice, heads: slice, rows: tuple[int, int], order):
        self.problem, self.inputs = problem, inputs
        self.batch, self.heads, self.rows = batch, heads, rows
        self._batch_index = torch.arange(batch.start, batch.stop, device=inputs.query.device)[:, None, None]
        self._head_index = torch.arange(heads.start, heads.stop, device=inputs.query.device)[:, None]
        part = (batch, heads, slice(*rows))
        self._row_index, anchors = order.rows[part], order.anchors[part]  # (batch, heads, rows)
        left, right = problem.window
        first, last = anchors[..., :1], anchors[..., -1:]
        begin = torch.zeros_like(first) if left == UNLIMITED else (first - left).clamp(0, problem.len_k)
        end = begin * 0 + problem.len_k if right == UNLIMITED else (last + right + 1).clamp(0, problem.len_k)
        self._begin = begin  # of the keys in sight, (batch, heads, 1)
        self._anchors = (anchors - begin).flatten(0, 1).unsqueeze(-1)
        self.keys = 0, max(0, int((end - begin).max()))
        self._bands = {}

    def take_rows(self, tensor: Tensor) -> Tensor:
        part = tensor[self._batch_index, self._head_index, self._row_index]
        return part.flatten(0, 1).to(self.problem.compute_dtype)

    def put_rows(self, tensor: Tensor, rows: Tensor) -> None:
        part = rows.view(*self._row_index.shape, *tensor.shape[3:]).to(tensor.dtype)
        tensor[self._batch_index, self._head_index, self._row_index] = part

    def take_keys(self, tensor: Tensor, keys: tuple[int, int]) -> Tensor:
        return tensor[self._places(keys)].flatten(0, 1).to(self.problem.compute_dtype)

    def add_keys(self, tensor: Tensor, keys: tuple[int, int], part: Tensor) -> None:
        batch, head, key = self._places(keys)
        flat = ((batch * self.problem.kv_heads + head) * self.problem.len_k + key).flatten()
        tensor.view(-1, tensor.shape[-1]).index_add_(0, flat, part.flatten(0, 1))

    def take_mask(self, tensor: Tensor, keys: tuple[int, int]) -> Tensor:
        return tensor[self._mask_places(tensor, keys)]

    def add_mask(self, tensor: Tensor, keys: tuple[int, int], part: Tensor) -> None:
        summed = [d for d in (2, 3) if tensor.shape[d] == 1]  # heads have their own rows and keys
        part = part.sum(summed, keepdim=True) if summed else part
        places = [place.expand(part.shape) for place in self._mask_places(tensor, keys)]
        tensor.index_put_(places, part, accumulate=True)

    def band(self, keys: tuple[int, int]) -> Tensor:
        """0 or -inf, `(n, rows, keys)`."""
        if keys not in self._bands:
            left, right = self.problem.window
            column = torch.arange(*keys, device=self._anchors.device)
            number = column + self._begin.flatten(0, 1).unsqueeze(-1)
            outside = (number >= self.problem.len_k).expand(-1, self._anchors.shape[1], -1)
            if left != UNLIMITED:
                outside = outside | (column < self._anchors - left)
            if right != UNLIMITED:
                outside = outside | (column > self._anchors + right)
            if self.problem.causal:
                outside = outside | (number > self._positions())
            band = torch.zeros(outside.shape, dtype=self.problem.compute_dtype, device=outside.device)
            self._bands[keys] = band.masked_fill_(outside, NEG_INF)
        return self._bands[keys]

    def reached(self, keys: tuple[int, int], bias: Tensor | None) -> Tensor:
        """Between scattered windows lie keys that nobody looks at."""
        band = self.as_heads(self.band(keys))
        reached = (band if bias is None else band + bias) > NEG_INF
        return reached.any(2).flatten(0, 1).unsqueeze(-1)

    def distance(self, keys: tuple[int, int]) -> Tensor:
        """From each query's centre to each key, `(n, rows, keys)`."""
        number = torch.arange(*keys, device=self._begin.device) + self._begin.flatten(0, 1).unsqueeze(-1)
        return number.to(self.problem.compute_dtype) - self.center

    def dropout_keep(self, keys: tuple[int, int]) -> Tensor:
        number = (torch.arange(*keys, device=self._begin.device) + self._begin)[:, :, None]
        batch_heads = self._batch_index * self.problem.heads + self._head_index
        keep = philox.dropout_keep_at(
            self.inputs.seed, self._row_index[..., None], batch_heads[..., None], number, self.problem.dropout_p
        )
        return keep.flatten(0, 1)

    @cached_property
    def center(self) -> Tensor:
        return self.take_rows(self.inputs.center).unsqueeze(-1)

    @cached_property
    def sigma(self) -> Tensor | None:
        return None if self.inputs.sigma is None else self.take_rows(self.inputs.sigma).unsqueeze(-1)

    def _positions(self) -> Tensor:
        """Where the queries stand for causality: `(n, rows, 1)`."""
        offset = self.problem.query_offset
        if self.inputs.offsets is not None:
            offset = self.inputs.offsets[self._batch_index]
        return (self._row_index + offset).flatten(0, 1).unsqueeze(-1)

    def _places(self, keys: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of batch elements, key heads and keys; past the end stands the last key."""
        number = torch.arange(*keys, device=self._begin.device) + self._begin
        return self._batch_index, self._head_index // self.problem.group, number.clamp(max=self.problem.len_k - 1)

    def _mask_places(self, tensor: Tensor, keys: tuple[int, int]) -> tuple[Tensor, ...]:
        batch, head = self._batch_index[..., None], self._head_index[..., None]
        places = batch, head, self._row_index[..., None], self._places(keys)[2][:, :, None]
        return tuple(place if size != 1 else place.new_zeros(1) for place, size in zip(places, tensor.shape))


def blocks(problem: Problem, inputs: Inputs) -> Iterator[CenteredBlock]:
    """Every block of the problem, sized so that a tile of scores fits the cache."""
    if 0 in (problem.batch, problem.heads, problem.len_q, problem.len_k):
        return
    order = _order(inputs.center)
    left, right = problem.window
    span = min(problem.len_k, KEYS if UNLIMITED in (left, right) else ROWS + left + right)
    size = torch.finfo(problem.compute_dtype).bits // 8
    budget = TILE_BYTES.get(problem.device, TILE_BYTES_ELSEWHERE)
    together = max(1, budget // max(1, size * min(ROWS, problem.len_q) * min(span, KEYS)))
    heads_at_once = min(together, problem.heads)
    batches_at_once = max(1, together // problem.heads)
    for b in range(0, problem.batch, batches_at_once):
        batch = slice(b, min(b + batches_at_once, problem.batch))
        for h in range(0, problem.heads, heads_at_once):
            heads = slice(h, min(h + heads_at_once, problem.heads))
            for row in range(0, problem.len_q, ROWS):
                rows = row, min(row + ROWS, problem.len_q)
                yield CenteredBlock(problem, inputs, batch, heads, rows, order)


def _order(center: Tensor) -> Order:
    anchors = center.floor().nan_to_num(FARTHEST).clamp(-FARTHEST, FARTHEST).long()
    anchors, rows = anchors.sort(dim=-1, stable=True)
    return Order(rows, anchors)
