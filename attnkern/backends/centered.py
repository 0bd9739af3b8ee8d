"""Blocks of queries whose windows lie around real positions, different for every query and head.

The queries of each head are taken in the order of their centres, so that a few neighbours' windows lie close together
however the centres scatter. Such a run of queries sees the keys from its first window to its last, gathered: the cost
follows the windows. Every query head has its own order, so heads that share keys are no longer stacked.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from attnkern import philox
from attnkern.backends.gaussian import Gaussians, gaussians
from attnkern.backends.tiles import KEYS, NEG_INF, ROWS, TILE_BYTES, TILE_BYTES_ELSEWHERE, Block
from attnkern.problem import UNLIMITED, Inputs, Problem
from attnkern.reference import FARTHEST_SIGMAS

FARTHEST = 2**30  # positions beyond lie there
FEWEST_ROWS = 32  # of a run


class Runs(NamedTuple):
    """Neighbours in the order of each head's queries by centre, a fixed number of them to a run; `(B, H, runs, rows)`.

    rows: the queries' numbers.
    first, last: the keys that each may look at, but for a mask; none if the last comes before the first.
    begin, end: the keys in sight of a whole run, `(B, H, runs, 1)`.
    gaps: whether some of those may be in no query's sight, `(B, H, runs)`.
    """

    rows: Tensor
    first: Tensor
    last: Tensor
    begin: Tensor
    end: Tensor
    gaps: Tensor

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs, rows: Tensor, anchors: Tensor, size: int) -> "Runs":
        """Of queries in order, and what their windows are anchored at: `(B, H, N)`."""
        rows, anchors = (tensor.unflatten(2, (-1, size)) for tensor in (rows, anchors))
        left, right = problem.window
        first, last = torch.zeros_like(anchors), torch.full_like(anchors, problem.len_k - 1)
        if left != UNLIMITED:
            first = (anchors - left).clamp_(0, problem.len_k)
        if right != UNLIMITED:
            last = (anchors + right).clamp_(-1, problem.len_k - 1)
        begin = first[..., :1]
        end = torch.maximum(begin, last[..., -1:] + 1)
        gaps = (begin >= end).squeeze(-1)
        if UNLIMITED not in (left, right):
            gaps |= (anchors.diff(dim=-1) > left + right + 1).any(-1)
        if problem.causal:
            offset = problem.query_offset if inputs.offsets is None else inputs.offsets.view(-1, 1, 1, 1)
            last = torch.minimum(last, rows + offset)
            gaps.fill_(True)
        return cls(rows, first, last, begin, end, gaps)

    def part(self, batch: slice, heads: slice, runs: slice) -> "Runs":
        return Runs(*(tensor[batch, heads, runs] for tensor in self))


class CenteredBlock(Block):
    """Runs of queries of some heads of some batch elements; a block's matrices are `(n, rows, ...)`, n runs in all."""

    def __init__(
        self,
        problem: Problem,
        inputs: Inputs,
        batch: slice,
        heads: slice,
        runs: Runs,
        gaussians: Gaussians | None,
    ):
        self.problem, self.inputs, self._runs, self._gaussians = problem, inputs, runs, gaussians
        device = inputs.query.device
        self._batch_index = torch.arange(batch.start, batch.stop, device=device).view(-1, 1, 1, 1)
        self._head_index = torch.arange(heads.start, heads.stop, device=device).view(-1, 1, 1)
        self._row_index = runs.rows  # (b, h, runs, rows)
        self.keys = 0, int((runs.end - runs.begin).max())
        # all runs take as many keys, from the first in sight or, near the end, from before it: (b, h, runs, 1)
        self._begin = runs.begin.clamp(max=problem.len_k - self.keys[1])
        self._has_gaps = bool(runs.gaps.any())
        self._bands, self._numbers_found, self._out_of_sight_found = {}, {}, {}

    def take_rows(self, tensor: Tensor) -> Tensor:
        index = self._batch_index, self._head_index, self._row_index
        return self._take(tensor, index, None).to(self.problem.compute_dtype)

    def put_rows(self, tensor: Tensor, rows: Tensor) -> None:
        index, part = (self._batch_index, self._head_index, self._row_index), rows.to(tensor.dtype)
        if (rows := _memory_rows(tensor)) is None:
            tensor[index] = part.view(*self._row_index.shape, *tensor.shape[3:])
        else:
            rows.index_copy_(0, self._row_numbers(tensor, index, None), part.view(-1, *tensor.shape[3:]))

    def take_keys(self, tensor: Tensor, keys: tuple[int, int]) -> Tensor:
        """A tile; keys out of their run's sight are 0."""
        batch, head, number = self._places(keys)
        if (rows := _memory_rows(tensor)) is None:
            taken = tensor[batch, head, number].flatten(0, 2)
        else:  # a run's keys lie at equal distances in memory: copied together
            count, width, step = number.shape[-1], rows.stride(0), tensor.stride(2)
            shape = len(rows) - (count - 1) * step // width, count, *rows.shape[1:]
            windows = rows.as_strided(shape, (width, step, *rows.stride()[1:]))
            taken = windows.index_select(0, self._row_numbers(tensor, (batch, head, number[..., :1]), keys[0]))
        taken.flatten(0, 1).index_fill_(0, self._out_of_sight(keys), 0.0)
        return taken.to(self.problem.compute_dtype)

    def add_keys(self, tensor: Tensor, keys: tuple[int, int], left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        rows, part = tensor.view(-1, tensor.shape[-1]), torch.bmm(left.mT, right)
        rows.index_add_(0, self._row_numbers(tensor, self._places(keys), keys), part.flatten(0, 1), alpha=scale)

    def as_heads(self, scores: Tensor) -> Tensor:
        """`(n, rows, keys)` viewed as `(batch, heads, runs, rows, keys)`."""
        return scores.view(*self._row_index.shape, -1)

    def take_mask(self, tensor: Tensor, keys: tuple[int, int]) -> Tensor:
        return tensor[self._mask_places(tensor, keys)]

    def add_mask(self, tensor: Tensor, keys: tuple[int, int], part: Tensor) -> None:
        summed = [d for d in (2, 3) if tensor.shape[d] == 1]  # heads have their own rows and keys
        part = part.sum([d + 1 for d in summed], keepdim=True) if summed else part
        places = [place.expand(part.shape) for place in self._mask_places(tensor, keys)]
        tensor.index_put_(places, part, accumulate=True)

    def band(self, keys: tuple[int, int]) -> Tensor:
        """0 or -inf, `(n, rows, keys)`."""
        if keys not in self._bands:
            dtype = self.problem.compute_dtype
            first, last = self._bounds
            # twice the distance from the middle of a row's window, less the window's width: even, and positive outside
            column = torch.arange(*keys, device=first.device, dtype=dtype)
            excess = (2 * column - (first + last)).abs_().sub_(last - first).clamp_(min=0)
            self._bands[keys] = excess.mul_(-torch.finfo(dtype).max)
        return self._bands[keys]

    def take_band(self, keys: tuple[int, int]) -> Tensor:
        return self._bands.pop(keys)

    def reached(self, keys: tuple[int, int], bias: Tensor | None) -> Tensor | None:
        if bias is None and not self._has_gaps:
            return None
        band = self.as_heads(self.band(keys))
        reached = (band if bias is None else band + bias) > NEG_INF
        return reached.any(-2).flatten(0, 2).unsqueeze(-1)

    def gaussian(self, keys: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Each key's distance from the nearest one, and the square that its exponent is -0.5 of; in sigmas."""
        column = torch.arange(*keys, device=self._begin.device, dtype=self.problem.compute_dtype)

        def distance(middle: Tensor) -> Tensor:
            middle = self.take_rows(middle).unsqueeze(-1) - self._begin.flatten(0, 2).unsqueeze(-1)
            return (column - middle).div_(self.sigma).clamp_(-FARTHEST_SIGMAS, FARTHEST_SIGMAS)

        from_nearest = distance(self._gaussians.nearest)
        if not self.problem.renormalize:
            return from_nearest, from_nearest * from_nearest
        return from_nearest, distance(self._gaussians.mirror).mul_(from_nearest)

    def dropout_keep(self, keys: tuple[int, int]) -> Tensor:
        batch = self._batch_index + self.inputs.first
        batch_heads = (batch * self.problem.heads + self._head_index).unsqueeze(-1)
        row, key = self._row_index.unsqueeze(-1), self._numbers(keys).unsqueeze(-2)
        keep = philox.dropout_keep_at(self.inputs.seed, row, batch_heads, key, self.problem.dropout_p)
        return keep.flatten(0, 2)

    @cached_property
    def sigma(self) -> Tensor:
        return self.take_rows(self._gaussians.sigma).unsqueeze(-1)

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        """The first and the last key that each query may look at, counted from its run's first: `(n, rows, 1)`."""
        first = (self._runs.first - self._begin).clamp_(max=self.keys[1])
        last = (self._runs.last - self._begin).clamp_(min=-1)
        return tuple(bound.to(self.problem.compute_dtype).flatten(0, 2).unsqueeze(-1) for bound in (first, last))

    def _numbers(self, keys: tuple[int, int]) -> Tensor:
        """Of a tile's keys: `(b, h, runs, keys)`."""
        return torch.arange(*keys, device=self._begin.device) + self._begin

    def _places(self, keys: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of batch elements, key heads and keys."""
        return self._batch_index, self._head_index // self.problem.group, self._numbers(keys)

    def _out_of_sight(self, keys: tuple[int, int]) -> Tensor:
        """Keys of a tile before the first or past the last of their run's: numbers among all runs' keys."""
        if keys not in self._out_of_sight_found:
            number = self._numbers(keys)
            outside = (number < self._runs.begin).logical_or_(number >= self._runs.end)
            self._out_of_sight_found[keys] = outside.flatten().nonzero().squeeze(1)
        return self._out_of_sight_found[keys]

    def _mask_places(self, tensor: Tensor, keys: tuple[int, int]) -> tuple[Tensor, ...]:
        batch, head = self._batch_index.unsqueeze(-1), self._head_index.unsqueeze(-1)
        places = batch, head, self._row_index.unsqueeze(-1), self._places(keys)[2].unsqueeze(-2)
        return tuple(place if size != 1 else place.new_zeros(1) for place, size in zip(places, tensor.shape))

    def _take(self, tensor: Tensor, index: tuple[Tensor, ...], keys: tuple[int, int] | None) -> Tensor:
        """`tensor[index]` of `(B, H, L, ...)`, as `(n, rows, ...)`; faster where whole rows of memory are taken."""
        if (rows := _memory_rows(tensor)) is None:
            return tensor[index].flatten(0, 2)
        taken = rows.index_select(0, self._row_numbers(tensor, index, keys))
        return taken.view(-1, index[2].shape[-1], *tensor.shape[3:])

    def _row_numbers(self, tensor: Tensor, index: tuple[Tensor, ...], keys: tuple[int, int] | int | None) -> Tensor:
        """Which of `_memory_rows` are those of `index`: the places of `keys`, of a tile's first key, or the queries."""
        width = tensor.shape[3:].numel()
        strides = [stride // width for stride in tensor.stride()[:3]]
        if (found := (keys, *strides)) not in self._numbers_found:
            batch, head, place = (part * stride for part, stride in zip(index, strides))
            self._numbers_found[found] = (batch + head + place).flatten()
        return self._numbers_found[found]


def blocks(problem: Problem, inputs: Inputs) -> Iterator[CenteredBlock]:
    """Every block of the problem, sized so that a tile of scores fits the cache."""
    if 0 in (problem.batch, problem.heads, problem.len_q):
        return
    left, right = problem.window
    bounded = UNLIMITED not in (left, right)
    size = min(problem.len_q, max(FEWEST_ROWS, min(ROWS, left + right)) if bounded else ROWS)
    rows, anchors = _order(inputs.center, size)
    whole = problem.len_q // size * size
    runs = Runs.of(problem, inputs, rows[..., :whole], anchors[..., :whole], size)
    found = gaussians(problem, inputs)

    span = max(1, min(KEYS, int((runs.end - runs.begin).median())))
    budget = TILE_BYTES.get(problem.device, TILE_BYTES_ELSEWHERE) // 2  # the other half is for the gathered keys
    together = max(1, budget // (problem.compute_dtype.itemsize * size * span))  # runs
    of_a_head = whole // size  # one head's lie close together in memory
    heads_at_once = min(max(1, together // of_a_head), problem.heads)
    batches_at_once = min(max(1, together // (problem.heads * of_a_head)), problem.batch)
    at_once = max(1, together // (heads_at_once * batches_at_once))
    at_once = -(-of_a_head // -(-of_a_head // at_once))  # alike many in every block
    for b in range(0, problem.batch, batches_at_once):
        batch = slice(b, min(b + batches_at_once, problem.batch))
        for h in range(0, problem.heads, heads_at_once):
            heads = slice(h, min(h + heads_at_once, problem.heads))
            for run in range(0, of_a_head, at_once):
                part = runs.part(batch, heads, slice(run, run + at_once))
                yield CenteredBlock(problem, inputs, batch, heads, part, found)
            if whole < problem.len_q:
                last = (tensor[batch, heads, whole:] for tensor in (rows, anchors))
                part = Runs.of(problem, inputs, *last, problem.len_q - whole)
                yield CenteredBlock(problem, inputs, batch, heads, part, found)


def _order(center: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of all queries of each head, by centre: their numbers, and where their windows are anchored; `(B, H, Lq)`.

    Whole runs of `size` queries come first, narrow ones before wide ones: those of a block see as many keys.
    """
    anchors = center.floor().nan_to_num(FARTHEST).clamp(-FARTHEST, FARTHEST).long()
    heads = torch.arange(anchors[..., 0].numel(), device=anchors.device).view(*anchors.shape[:2], 1)
    # one sort of all heads is several times as fast as one of each
    least, most = anchors.aminmax()
    apart = heads * (most - least + 1) - least
    anchors, rows = (anchors + apart).flatten().sort(stable=True)
    anchors, rows = anchors.view(center.shape) - apart, rows.view(center.shape) - heads * center.shape[-1]
    whole = center.shape[-1] // size * size
    runs = anchors[..., :whole].unflatten(-1, (-1, size))
    by_width = (runs[..., -1:] - runs[..., :1]).argsort(dim=-2, stable=True)
    for tensor in (rows, anchors):
        part = tensor[..., :whole].unflatten(-1, (-1, size))
        part.copy_(part.take_along_dim(by_width, -2))
    return rows, anchors


def _memory_rows(tensor: Tensor) -> Tensor | None:
    """The memory of `(B, H, L, ...)` as rows `(N, ...)`; None if rows do not lie whole in it."""
    shape, strides, width = tensor.shape[3:], tensor.stride()[:3], tensor.shape[3:].numel()
    if not width or any(stride % width for stride in strides) or not tensor[0, 0, 0].is_contiguous():
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides)) // width
    return tensor.as_strided((last + 1, *shape), (width, 1)[: 1 + len(shape)])
