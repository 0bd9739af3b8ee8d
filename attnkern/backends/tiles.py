"""The walk over a score matrix that is never stored: blocks of queries, tiles of keys.

Only tiles that the prior admits are visited, so the cost follows the window.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from attnkern import philox
from attnkern.problem import UNLIMITED, Inputs, Problem

LOG2E = math.log2(math.e)
NEG_INF = float("-inf")

ROWS = 128  # queries of one block
MOST_ROWS = 1024  # where few heads leave room in the cache
KEYS = 512  # keys of one tile, at most
TILE_BYTES = {"cpu": 2 << 20}  # a tile of scores stays in a core's cache
TILE_BYTES_ELSEWHERE = 128 << 20  # fewer, larger launches


class Block:
    """Some queries of some heads of some batch elements, and the keys they may look at.

    Heads are counted in key heads; the queries that share one are stacked: a block's matrices are
    `(n, group * rows, ...)` with `n` batch elements times key heads.
    """

    def __init__(
        self,
        problem: Problem,
        inputs: Inputs,
        batch: slice,
        heads: slice,
        rows: tuple[int, int],
        offset: int,
        bands: dict[tuple[int, int, int], Tensor],
    ):
        self.problem, self.inputs = problem, inputs
        self.batch, self.heads, self.rows = batch, heads, rows
        self.offset = offset  # key position of row 0
        self._bands = bands  # those made so far: interior tiles share one
        self.keys = problem.key_range(*rows, self.offset)

    def key_tiles(self, align: int = 1) -> Iterator[tuple[int, int]]:
        """Consecutive `[begin, end)` ranges over the block's keys, each from a multiple of `align`."""
        begin, end = self.keys
        if begin == end:
            return
        tiles = key_tiles(begin, end, align)
        for tile in tiles:
            yield tile, min(tile + tiles.step, end)

    def take_rows(self, tensor: Tensor) -> Tensor:
        """The block's part of `(B, H, Lq, ...)`, as `(n, group * rows, ...)` in the compute dtype."""
        grouped = tensor.unflatten(1, (self.problem.kv_heads, self.problem.group))
        part = grouped[self.batch, self.heads, :, slice(*self.rows)]
        return part.flatten(2, 3).flatten(0, 1).to(self.problem.compute_dtype)

    def put_rows(self, tensor: Tensor, rows: Tensor) -> None:
        """Writes `(n, group * rows, ...)` into the block's part of `(B, H, Lq, ...)`."""
        grouped = tensor.unflatten(1, (self.problem.kv_heads, self.problem.group))
        part = grouped[self.batch, self.heads, :, slice(*self.rows)]
        part.copy_(rows.view(part.shape))

    def take_keys(self, tensor: Tensor, keys: tuple[int, int]) -> Tensor:
        """A tile of `(B, Hkv, Lk, ...)`, as `(n, keys, ...)`; a view if the tensor is contiguous."""
        return tensor[self.batch, self.heads, slice(*keys)].flatten(0, 1).to(self.problem.compute_dtype)

    def add_keys(self, tensor: Tensor, keys: tuple[int, int], left: Tensor, right: Tensor, scale: float = 1.0) -> None:
        """Adds `scale left^T right`, `(n, keys, E)`, to a tile of a contiguous `(B, Hkv, Lk, E)`."""
        self.take_keys(tensor, keys).baddbmm_(left.mT, right, alpha=scale)

    def as_heads(self, scores: Tensor) -> Tensor:
        """`(n, group * rows, keys)` viewed as `(batch, heads, rows, keys)`."""
        batch = self.batch.stop - self.batch.start
        return scores.view(batch, -1, self.rows[1] - self.rows[0], scores.shape[-1])

    def take_mask(self, tensor: Tensor, keys: tuple[int, int]) -> Tensor:
        """The tile of `(B|1, H|1, Lq|1, Lk|1)`, a view whose size-1 dimensions stay 1."""
        group = self.problem.group
        heads = slice(self.heads.start * group, self.heads.stop * group)
        whole = slice(None)
        wanted = (self.batch, heads, slice(*self.rows), slice(*keys))
        return tensor[tuple(part if size != 1 else whole for part, size in zip(wanted, tensor.shape))]

    def add_mask(self, tensor: Tensor, keys: tuple[int, int], part: Tensor) -> None:
        """Adds `(batch, heads, rows, keys)` to the tile, summed over the dimensions in which it has size 1."""
        total = self.take_mask(tensor, keys)
        summed = [d for d in range(4) if total.shape[d] == 1 != part.shape[d]]
        total.add_(part.sum(summed, keepdim=True) if summed else part)

    def dropout_keep(self, keys: tuple[int, int]) -> Tensor:
        """Which weights of a tile dropout keeps: `(n, group * rows, keys)`."""
        rows = torch.arange(*self.rows, device=self.inputs.query.device)
        keep = philox.dropout_keep(self.inputs.seed, rows, self.batch_heads(), keys, self.problem.dropout_p)
        return keep.flatten(1, 2)

    def batch_heads(self) -> Tensor:
        """`batch * heads + head` of the block's query heads: `(n, group)`."""
        problem, device = self.problem, self.inputs.query.device
        heads = torch.arange(problem.heads, device=device).view(problem.kv_heads, problem.group)[self.heads]
        batch = torch.arange(self.batch.start, self.batch.stop, device=device).view(-1, 1, 1) + self.inputs.first
        return (batch * problem.heads + heads).flatten(0, 1)

    @cached_property
    def query(self) -> Tensor:
        return self.take_rows(self.inputs.query)

    def tile(self, keys: tuple[int, int]) -> "Tile":
        return Tile(self, keys)

    def band(self, keys: tuple[int, int]) -> Tensor | None:
        """What the window adds to the scores: 0 or -inf, `(group * rows, keys)`; None for all 0."""
        left, right = self.problem.band
        first, last = self.rows[0] + self.offset, self.rows[1] - 1 + self.offset
        inside_left = left == UNLIMITED or keys[0] >= last - left
        inside_right = right == UNLIMITED or keys[1] - 1 <= first + right
        if inside_left and inside_right:
            return None
        shape = (first - keys[0], last - first, keys[1] - keys[0])
        if shape not in self._bands:
            device = self.inputs.query.device
            distance = torch.arange(*keys, device=device) - torch.arange(first, last + 1, device=device)[:, None]
            outside = torch.zeros_like(distance, dtype=torch.bool)
            if left != UNLIMITED:
                outside |= distance < -left
            if right != UNLIMITED:
                outside |= distance > right
            band = torch.zeros(outside.shape, dtype=self.problem.compute_dtype, device=device)
            self._bands[shape] = band.masked_fill_(outside, NEG_INF).repeat(self.problem.group, 1)
        return self._bands[shape]

    def reached(self, keys: tuple[int, int], bias: Tensor | None) -> Tensor | None:
        """Keys of a tile that some query may look at: bool `(n, keys, 1)`; None for all."""
        if bias is None:
            return None
        band = self.band(keys)
        if band is not None:
            bias = bias + band[: self.rows[1] - self.rows[0]]
        return self._of_keys(bias > NEG_INF)

    def _of_keys(self, seen: Tensor) -> Tensor:
        """Of what some queries `(batch | 1, heads | 1, rows | 1, keys | 1)` see, what any of their key head's does."""
        group = self.problem.group
        batch, heads, keys = self.batch.stop - self.batch.start, self.heads.stop - self.heads.start, seen.shape[3]
        reached = seen.any(2).expand(batch, heads * group, keys)
        return reached.unflatten(1, (heads, group)).any(2).flatten(0, 1).unsqueeze(-1)


class Tile:
    """One rectangle of the score matrix: `scores`, and what its gradient needs.

    key: `(n, keys, E)`. Keys that none of the block's queries may look at are 0: they have no
        influence, whatever they hold.
    slope: the derivative of the soft cap at each score; None without one.
    """

    def __init__(self, block: Block, keys: tuple[int, int]):
        problem = block.problem
        self.block, self.keys = block, keys
        self.key = block.take_keys(block.inputs.key, keys)
        bias = self._bias()
        self._reachable = block.reached(keys, bias)
        if self._reachable is not None:
            self.key = torch.where(self._reachable, self.key, 0.0)

        band = block.band(keys)
        # a float mask may hold anything there
        hidden = band == NEG_INF if band is not None and problem.mask == "float" else None
        query, key = block.query, self.key.mT
        self.slope = None
        if problem.softcap:
            product = torch.bmm(query, key).mul_(problem.scale / problem.softcap).tanh_()
            self.slope = (1 - product * product) if problem.requires_grad else None
            self.scores = product.mul_(problem.softcap)
            if band is not None:
                self.scores += band
        elif band is None:  # the product scales at no cost
            space = query.new_empty(query.shape[0], query.shape[1], key.shape[2])
            self.scores = space.baddbmm_(query, key, beta=0, alpha=problem.scale)
        else:  # the product adds the band at no cost
            self.scores = torch.baddbmm(band, query, key, alpha=problem.scale)
        if bias is not None:
            block.as_heads(self.scores).add_(bias)
        if hidden is not None:
            self.scores.masked_fill_(hidden, NEG_INF)
        if problem.renormalize:
            self.scores.add_(self.gaussian[1], alpha=-0.5)
        self.scores.clamp_(max=torch.finfo(self.scores.dtype).max)

    def value(self) -> Tensor:
        """`(n, keys, Ev)`, 0 where nobody looks."""
        value = self.block.take_keys(self.block.inputs.value, self.keys)
        return value if self._reachable is None else torch.where(self._reachable, value, 0.0)

    def factor(self) -> Tensor | None:
        """What multiplies the weights after the softmax, dropout and a Gaussian; None for neither."""
        problem, factor = self.block.problem, None
        if problem.dropout_p:
            kept = philox.dropout_scale(problem.dropout_p)
            factor = self.block.dropout_keep(self.keys).to(problem.compute_dtype).mul_(kept)
        if problem.sigma and not problem.renormalize:
            gaussian = torch.mul(self.gaussian[1], -0.5 * LOG2E).exp2_()
            factor = gaussian if factor is None else factor.mul_(gaussian)
        return factor

    @cached_property
    def gaussian(self) -> tuple[Tensor, Tensor]:
        """See `CenteredBlock.gaussian`."""
        return self.block.gaussian(self.keys)

    def weights(self, lse: Tensor) -> Tensor:
        """Softmax weights given the rows' (finite) lse, before dropout; reuses the scores' memory."""
        # no weight exceeds 1, however the rounding of a huge score falls
        return exp_(self.scores.sub_(lse.unsqueeze(-1)).clamp_(max=0))

    def _bias(self) -> Tensor | None:
        """The attention mask, additive, unexpanded."""
        mask = self.block.inputs.attn_mask
        if mask is None:
            return None
        mask = self.block.take_mask(mask, self.keys)
        dtype = self.block.problem.compute_dtype
        if mask.dtype == torch.bool:
            return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, NEG_INF)
        return mask.to(dtype)


def exp_(x: Tensor) -> Tensor:
    """In place; `exp2` is several times faster than `exp` on a CPU."""
    return x.mul_(LOG2E).exp2_()


def block_sizes(problem: Problem) -> tuple[int, int, int]:
    """Batch elements, key heads and queries of one block, such that a tile of scores fits the cache."""
    left, right = problem.band
    span = min(problem.len_k, KEYS if UNLIMITED in (left, right) else ROWS + left + right)
    rows = min(ROWS, problem.len_q)
    size = torch.finfo(problem.compute_dtype).bits // 8
    budget = TILE_BYTES.get(problem.device, TILE_BYTES_ELSEWHERE)
    together = max(1, budget // max(1, size * problem.group * rows * min(span, KEYS)))

    batches = 1 if problem.query_offset is None else max(1, together // problem.kv_heads)
    heads = min(together, problem.kv_heads)
    if UNLIMITED in (left, right):  # a window's rows stay few, for its tiles to stay narrow
        spare = together // (heads * min(batches, problem.batch))
        rows = min(rows * max(1, spare), MOST_ROWS, problem.len_q)
    return batches, heads, rows


def key_tiles(begin: int, end: int, align: int = 1) -> range:
    """Where each tile of the keys `[begin, end)` begins, a multiple of `align`; the step is their size."""
    begin = begin // align * align
    tiles = max(1, -(-(end - begin) // KEYS))
    return range(begin, end, max(1, -(-(end - begin) // (tiles * align))) * align)


def blocks(problem: Problem, inputs: Inputs, make: Callable[..., Block] = Block) -> Iterator[Block]:
    """Every block of the problem."""
    if 0 in (problem.batch, problem.heads, problem.len_q):
        return
    batches, heads_at_once, rows = block_sizes(problem)
    bands: dict = {}
    offsets = None if inputs.offsets is None else inputs.offsets.tolist()
    for b in range(0, problem.batch, batches):
        batch = slice(b, min(b + batches, problem.batch))
        for h in range(0, problem.kv_heads, heads_at_once):
            heads = slice(h, min(h + heads_at_once, problem.kv_heads))
            offset = problem.query_offset if offsets is None else offsets[b]
            for row in range(0, problem.len_q, rows):
                own = row, min(row + rows, problem.len_q)
                yield make(problem, inputs, batch, heads, own, offset, bands)
