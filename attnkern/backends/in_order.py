"""Learned centres for the CUDA C++ kernels: queries in the order of their centres, and where each of them looks.

Every query head has its own order, so that no heads share keys. Keys that nobody sees become 0: what is multiplied by
a weight of 0 must be finite.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from attnkern.backends.gaussian import anchors_of, gaussians, windows_around
from attnkern.problem import Gradients, Inputs, Problem

CENTER = 8  # words of csrc/core/centers.h's Center
NONE, AFTER, INSIDE = range(3)  # its Gaussian


class Centers(NamedTuple):
    """What the kernels are told; `order` holds the queries' numbers, `(B, H, Lq)`.

    rows: int32 `(B, H, Lq, CENTER)`, as in csrc/core/centers.h.
    first, stop: int64 `(B, H, Lq)`, ascending: keys `[first, stop)` lie in the window around the query's centre.
    """

    gaussian: int
    order: Tensor
    rows: Tensor
    first: Tensor
    stop: Tensor

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs) -> "Centers":
        anchors, order = anchors_of(problem, inputs.center).long().sort(dim=2, stable=True)
        first, stop = windows_around(problem, anchors)
        end = torch.minimum(stop, order + problem.query_offset + 1) if problem.causal else stop
        rows = torch.zeros(*order.shape, CENTER, dtype=torch.int32, device=order.device)
        rows[..., 0], rows[..., 1] = first, torch.maximum(first, end)
        kind = NONE
        if (found := gaussians(problem, inputs)) is not None:
            kind = INSIDE if problem.renormalize else AFTER
            per_sigma = found.sigma.reciprocal().clamp(max=1e30)
            for place, of_rows in enumerate((found.nearest, found.mirror, per_sigma), start=2):
                rows.view(torch.float32)[..., place] = of_rows.float().take_along_dim(order, 2)
        return cls(kind, order, rows, first, stop)

    def in_order(self, problem: Problem, inputs: Inputs) -> tuple[Problem, Inputs]:
        """The same with the queries in order, and keys for each of their heads."""
        heads = (tensor.repeat_interleave(problem.group, 1) for tensor in (inputs.key, inputs.value))
        hidden = self._hidden(problem.len_k)
        key, value = (tensor.masked_fill_(hidden, 0) for tensor in heads)
        inputs = inputs._replace(query=self.take(inputs.query), key=key, value=value)
        return replace(problem, kv_heads=problem.heads), inputs

    def gradients(self, problem: Problem, inputs: Inputs, found: Gradients) -> Gradients:
        """Of the original tensors, from those of `in_order`; of centre and sigma the kernels' sums."""
        groups = (heads.unflatten(1, (problem.kv_heads, problem.group)) for heads in (found.key, found.value))
        key, value = (heads.sum(2, dtype=torch.float32) for heads in groups)
        sums = (found.center, found.sigma) if problem.sigma else ()
        gaussian = (self.put_back(total) / inputs.sigma for total in sums)
        return Gradients(self.put_back(found.query), key, value, None, *gaussian)

    def take(self, tensor: Tensor) -> Tensor:
        """`(B, H, Lq, ...)`, its rows in order."""
        return tensor.take_along_dim(self._index(tensor), 2)

    def put_back(self, tensor: Tensor) -> Tensor:
        """Each row of what came in order, where it belongs; laid out likewise."""
        return torch.empty_like(tensor).scatter_(2, self._index(tensor), tensor)

    def _hidden(self, len_k: int) -> Tensor:
        """The keys that no query of a head looks at: bool `(B, H, Lk, 1)`."""
        begin, end = (self.rows[..., place].long() for place in range(2))
        steps = torch.zeros(*begin.shape[:2], len_k + 1, dtype=torch.int32, device=begin.device)
        one = torch.ones_like(begin, dtype=torch.int32)
        lookers = steps.scatter_add_(2, begin, one).scatter_add_(2, end, -one).cumsum(2)
        return (lookers[..., :-1] == 0).unsqueeze(-1)

    def key_blocks(self, rows: int, keys: int) -> Tensor:
        """Blocks of `keys` keys that each tile of `rows` queries meets: int32 `(B, H, tiles, 2)`."""
        tiles = -(-self.order.shape[2] // rows)
        padding = (0, tiles * rows - self.order.shape[2])
        begin, end = self.rows[..., 0], self.rows[..., 1]
        begin = torch.nn.functional.pad(begin, padding, value=torch.iinfo(torch.int32).max)
        end = torch.nn.functional.pad(end, padding)
        return _blocks(begin.unflatten(2, (-1, rows)).amin(-1), end.unflatten(2, (-1, rows)).amax(-1), keys)

    def query_blocks(self, rows: int, keys: int, len_k: int) -> Tensor:
        """Blocks of `rows` queries that each tile of `keys` keys meets: int32 `(B, H, tiles, 2)`."""
        starts = torch.arange(0, len_k, keys, device=self.order.device).expand(*self.order.shape[:2], -1).contiguous()
        begin = torch.searchsorted(self.stop, starts, right=True)
        end = torch.searchsorted(self.first, starts + keys)
        return _blocks(begin, end, rows)

    def _index(self, tensor: Tensor) -> Tensor:
        return self.order.view(*self.order.shape, *[1] * (tensor.dim() - 3)).expand_as(tensor)


def _blocks(begin: Tensor, end: Tensor, size: int) -> Tensor:
    """Those of `size` that `[begin, end)` touches, one at least."""
    some = begin < end
    return torch.stack((torch.where(some, begin // size, 0), torch.where(some, -(-end // size), 1)), -1).int()
