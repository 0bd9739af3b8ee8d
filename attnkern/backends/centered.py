"""Blocks of queries whose windows lie around real positions, different for every query and head.

The queries of each head are put in the order of their centres, so that a few neighbours' windows lie close together
however the centres scatter. Such a run of queries sees the keys from its first window to its last, gathered: the cost
follows the windows. Every query head has its own order, so heads that share keys are no longer stacked.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from attnkern import philox
from attnkern.backends.gaussian import Gaussians, anchors_of, gaussians, windows_around
from attnkern.backends.tiles import KEYS, NEG_INF, ROWS, TILE_BYTES, TILE_BYTES_ELSEWHERE, Block
from attnkern.problem import UNLIMITED, Inputs, Problem
from attnkern.reference import FARTHEST_SIGMAS

FEWEST_ROWS = 32  # of a run
PARTS = 4  # that a head's runs are taken in, where there are heads enough


class Runs(NamedTuple):
    """Neighbours in the order of each head's queries by centre, a fixed number of them to a run; `(B, H, runs, rows)`.

    rows: the queries' numbers.
    first, stop: the keys `[first, stop)` that each may look at, but for a mask; none if that is empty or backwards.
    begin, end: the keys in sight of a whole run, `(B, H, runs, 1)`.
    gaps: whether some of those may be in no query's sight, `(B, H, runs)`.
    gaussian: what the queries' Gaussians are, if any.
    """

    rows: Tensor
    first: Tensor
    stop: Tensor
    begin: Tensor
    end: Tensor
    gaps: Tensor
    gaussian: Gaussians | None

    @classmethod
    def of(cls, problem: Problem, offsets: Tensor | None, size: int, *in_order: Tensor) -> "Runs":
        """Of queries in order, what their windows are anchored at, and their Gaussians if any: `(B, H, N)`."""
        rows, anchors, *gaussian = (tensor.unflatten(2, (-1, size)) for tensor in in_order)
        left, right = problem.window
        first, stop = windows_around(problem, anchors)
        begin = first[..., :1]
        end = torch.maximum(begin, stop[..., -1:])
        gaps = (begin >= end).squeeze(-1)
        if UNLIMITED not in (left, right):
            gaps |= (anchors.diff(dim=-1) > left + right + 1).any(-1)
        if problem.causal:
            offset = problem.query_offset if offsets is None else offsets.view(-1, 1, 1, 1)
            stop = torch.minimum(stop, rows + offset + 1)
            gaps.fill_(True)
        return cls(rows, first, stop, begin, end, gaps, Gaussians(*gaussian) if gaussian else None)

    def part(self, *part: slice) -> "Runs":
        """Some runs of some heads of some batch elements."""
        gaussian = None if self.gaussian is None else Gaussians(*(tensor[part] for tensor in self.gaussian))
        return Runs(*(tensor[part] for tensor in self[:-1]), gaussian)


class Results:
    """Of some heads' queries, kept until all are there, to be put in their own order at once.

    That is several times as fast as to put each where it belongs.
    """

    def __init__(self, batch: slice, heads: slice, order: Tensor):
        self._heads, self._shape = (batch, heads), order.shape
        places = torch.arange(order.numel(), device=order.device).view(order.shape)
        self._places = torch.empty_like(order).scatter_(2, order, places).flatten()  # of each query in the order
        self._parts = {}

    def put(self, tensor: Tensor, part: Tensor) -> None:
        """The next `(b, h, rows, ...)` of a result `(B, H, Lq, ...)`, in the order."""
        parts = self._parts.setdefault(id(tensor), [])
        parts.append(part)
        if sum(part.shape[2] for part in parts) == self._shape[2]:
            in_order = torch.cat(self._parts.pop(id(tensor)), 2).flatten(0, 2)
            tensor[self._heads] = in_order.index_select(0, self._places).view(*self._shape, *tensor.shape[3:])


class CenteredBlock(Block):
    """Runs of queries of some heads of some batch elements; a block's matrices are `(n, rows, ...)`, n runs in all."""

    def __init__(
        self,
        problem: Problem,
        inputs: Inputs,
        batch: slice,
        heads: slice,
        runs: Runs,
        results: Results,
    ):
        self.problem, self.inputs, self._runs, self._results = problem, inputs, runs, results
        device = inputs.query.device
        self._batch_index = torch.arange(batch.start, batch.stop, device=device).view(-1, 1, 1, 1)
        self._head_index = torch.arange(heads.start, heads.stop, device=device).view(-1, 1, 1)
        self.keys = 0, int((runs.end - runs.begin).max())
        # all runs take as many keys, from the first in sight or, near the end, from before it: (b, h, runs, 1)
        self._begin = runs.begin.clamp(max=problem.len_k - self.keys[1])
        self._has_gaps = bool(runs.gaps.any())
        self._bands, self._numbers_found, self._out_of_sight_found = {}, {}, {}

    def take_rows(self, tensor: Tensor) -> Tensor:
        if _has_whole_rows(tensor):
            taken = _memory_rows(tensor).index_select(0, self._row_numbers(tensor))
        else:
            taken = tensor[self._batch_index, self._head_index, self._runs.rows]
        return taken.view(-1, self._runs.rows.shape[3], *tensor.shape[3:]).to(self.problem.compute_dtype)

    def put_rows(self, tensor: Tensor, rows: Tensor) -> None:
        self._results.put(tensor, rows.view(*self._runs.rows.shape, *tensor.shape[3:]).flatten(2, 3))

    def take_keys(self, tensor: Tensor, keys: tuple[int, int]) -> Tensor:
        """A tile; keys out of their run's sight are 0."""
        rows, count, (*_, step) = _memory_rows(tensor), keys[1] - keys[0], _steps(tensor)
        # a run's keys lie at equal distances in memory: copied together
        windows = rows.as_strided(
            (len(rows) - (count - 1) * step, count, rows.shape[1]), (rows.stride(0), tensor.stride(2), 1)
        )
        taken = windows.index_select(0, self._row_numbers(tensor, keys[0]))
        taken.flatten(0, 1).index_fill_(0, self._out_of_sight(keys), 0.0)
        return taken.to(self.problem.compute_dtype)

    def add_keys(self, tensor: Tensor, keys: tuple[int, int], left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        part = left.new_empty(len(left), left.shape[2], right.shape[2]).baddbmm_(left.mT, right, beta=0, alpha=scale)
        tensor.view(-1, tensor.shape[3]).index_add_(0, self._row_numbers(tensor, keys), part.flatten(0, 1))

    def as_heads(self, scores: Tensor) -> Tensor:
        """`(n, rows, keys)` viewed as `(batch, heads, runs, rows, keys)`."""
        return scores.view(*self._runs.rows.shape, -1)

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
            count, origin = keys[1] - keys[0], self._begin + keys[0]
            hidden = torch.full((count,), NEG_INF, dtype=self.problem.compute_dtype, device=origin.device)
            shown = torch.zeros_like(hidden)

            def rows(ends: tuple[Tensor, Tensor], place: Tensor) -> Tensor:
                """`ends[0]` for the columns before a row's place, `ends[1]` from there on."""
                table = torch.cat(ends).as_strided((count + 1, count), (1, 1))  # a row for each place, the last first
                return table.index_select(0, (count - (place - origin).clamp_(0, count)).flatten())

            band = rows((hidden, shown), self._runs.first).add_(rows((shown, hidden), self._runs.stop))
            self._bands[keys] = band.unflatten(0, (-1, self._runs.rows.shape[3]))
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
            middle = (middle - self._begin).flatten(0, 2).unsqueeze(-1)
            return (column - middle).div_(self.sigma).clamp_(-FARTHEST_SIGMAS, FARTHEST_SIGMAS)

        from_nearest = distance(self._runs.gaussian.nearest)
        if not self.problem.renormalize:
            return from_nearest, from_nearest * from_nearest
        return from_nearest, distance(self._runs.gaussian.mirror).mul_(from_nearest)

    def dropout_keep(self, keys: tuple[int, int]) -> Tensor:
        batch = self._batch_index + self.inputs.first
        batch_heads = (batch * self.problem.heads + self._head_index).unsqueeze(-1)
        row, key = self._runs.rows.unsqueeze(-1), self._numbers(keys).unsqueeze(-2)
        keep = philox.dropout_keep_at(self.inputs.seed, row, batch_heads, key, self.problem.dropout_p)
        return keep.flatten(0, 2)

    @cached_property
    def sigma(self) -> Tensor:
        return self._runs.gaussian.sigma.flatten(0, 2).unsqueeze(-1)

    def _numbers(self, keys: tuple[int, int]) -> Tensor:
        """Of a tile's keys: `(b, h, runs, keys)`."""
        return torch.arange(*keys, device=self._begin.device) + self._begin

    def _out_of_sight(self, keys: tuple[int, int]) -> Tensor:
        """Keys of a tile before the first or past the last of their run's: numbers among all runs' keys."""
        if keys not in self._out_of_sight_found:
            number = self._numbers(keys)
            outside = (number < self._runs.begin).logical_or_(number >= self._runs.end)
            self._out_of_sight_found[keys] = outside.flatten().nonzero().squeeze(1)
        return self._out_of_sight_found[keys]

    def _mask_places(self, tensor: Tensor, keys: tuple[int, int]) -> tuple[Tensor, ...]:
        batch, head = self._batch_index.unsqueeze(-1), self._head_index.unsqueeze(-1)
        places = batch, head, self._runs.rows.unsqueeze(-1), self._numbers(keys).unsqueeze(-2)
        return tuple(place if size != 1 else place.new_zeros(1) for place, size in zip(places, tensor.shape))

    def _row_numbers(self, tensor: Tensor, keys: tuple[int, int] | int | None = None) -> Tensor:
        """Which of `_memory_rows` are those of the queries; of a tile's keys, or of one, counted from a run's first."""
        batch, head, step = steps = _steps(tensor)
        if (found := (keys, *steps)) not in self._numbers_found:
            if keys is None:
                head_index, place = self._head_index, self._runs.rows
            else:
                head_index = self._head_index // self.problem.group
                place = self._begin + keys if isinstance(keys, int) else self._numbers(keys)
            self._numbers_found[found] = (self._batch_index * batch + head_index * head + place * step).flatten()
        return self._numbers_found[found]


def blocks(problem: Problem, inputs: Inputs) -> Iterator[CenteredBlock]:
    """Every block of the problem, its queries in order, sized so that a tile of scores fits the cache."""
    if 0 in (problem.batch, problem.heads, problem.len_q):
        return
    size = _run_size(problem)
    order, anchors = _order(anchors_of(problem, inputs.center).long(), size)
    in_order = order, anchors, *(rows.take_along_dim(order, 2) for rows in gaussians(problem, inputs) or ())
    inputs = inputs._replace(key=_as_rows(inputs.key), value=_as_rows(inputs.value))
    whole = problem.len_q // size * size
    runs = Runs.of(problem, inputs.offsets, size, *(rows[..., :whole] for rows in in_order))

    span = max(1, min(KEYS, int((runs.end - runs.begin).median())))
    budget = TILE_BYTES.get(problem.device, TILE_BYTES_ELSEWHERE) // 2  # the other half is for the gathered keys
    together = max(1, budget // (problem.compute_dtype.itemsize * size * span))  # runs
    of_a_head = whole // size
    # one head's lie close together in memory; in some parts, narrow runs need not be padded as wide ones are
    heads_at_once = min(max(1, together * PARTS // of_a_head), problem.heads)
    batches_at_once = min(max(1, together // (problem.heads * of_a_head)), problem.batch)
    at_once = max(1, together // (heads_at_once * batches_at_once))
    at_once = -(-of_a_head // -(-of_a_head // at_once))  # alike many in every block
    for b in range(0, problem.batch, batches_at_once):
        batch = slice(b, min(b + batches_at_once, problem.batch))
        for h in range(0, problem.heads, heads_at_once):
            heads = slice(h, min(h + heads_at_once, problem.heads))
            results = Results(batch, heads, order[batch, heads])
            for run in range(0, of_a_head, at_once):
                part = runs.part(batch, heads, slice(run, run + at_once))
                yield CenteredBlock(problem, inputs, batch, heads, part, results)
            if whole < problem.len_q:
                offsets = None if inputs.offsets is None else inputs.offsets[batch]
                rest = (rows[batch, heads, whole:] for rows in in_order)
                last = Runs.of(problem, offsets, problem.len_q - whole, *rest)
                yield CenteredBlock(problem, inputs, batch, heads, last, results)


def _run_size(problem: Problem) -> int:
    """Queries of a run."""
    left, right = problem.window
    bounded = UNLIMITED not in (left, right)
    return min(problem.len_q, max(FEWEST_ROWS, min(ROWS, left + right)) if bounded else ROWS)


def _order(anchors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of all queries of each head, by what their windows are anchored at: their numbers, and that; `(B, H, Lq)`.

    Whole runs of `size` queries come first, narrow ones before wide ones: those of a block see as many keys.
    """
    shape = anchors.shape
    heads = torch.arange(anchors[..., 0].numel(), device=anchors.device).view(*anchors.shape[:2], 1)
    # one sort of all heads is several times as fast as one of each
    least, most = anchors.aminmax()
    apart = heads * (most - least + 1) - least
    anchors, rows = (anchors + apart).flatten().sort(stable=True)
    anchors, rows = anchors.view(shape) - apart, rows.view(shape) - heads * shape[-1]
    whole = shape[-1] // size * size
    runs = anchors[..., :whole].unflatten(-1, (-1, size))
    by_width = (runs[..., -1:] - runs[..., :1]).argsort(dim=-2, stable=True)
    for tensor in (rows, anchors):
        part = tensor[..., :whole].unflatten(-1, (-1, size))
        part.copy_(part.take_along_dim(by_width, -2))
    return rows, anchors


def _has_whole_rows(tensor: Tensor) -> bool:
    """Whether rows of `(B, H, L, ...)` lie whole in memory, at distances that are multiples of their size."""
    width = max(1, tensor.shape[3:].numel())
    return tensor[0, 0, 0].is_contiguous() and not any(stride % width for stride in tensor.stride()[:3])


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor if 0 in tensor.shape or _has_whole_rows(tensor) else tensor.contiguous()


def _steps(tensor: Tensor) -> tuple[int, int, int]:
    """From one batch element, head and row of `(B, H, L, ...)` to the next: rows of memory."""
    width = max(1, tensor.shape[3:].numel())
    return tuple(stride // width for stride in tensor.stride()[:3])


def _memory_rows(tensor: Tensor) -> Tensor:
    """The memory of `(B, H, L, ...)`, whose rows lie whole in it, as rows `(N, ...)`."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, _steps(tensor)))
    shape = tensor.shape[3:]
    return tensor.as_strided((last + 1, *shape), (shape.numel(), 1)[: 1 + len(shape)])
