"""Blocks of queries whose windows lie around real positions, different for every query and head.

A block sees the keys from its first window to its last: the cost follows the windows where neighbours' lie together.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from attnkern.backends import tiles
from attnkern.backends.gaussian import Gaussians, anchors_of, gaussians, windows_around
from attnkern.backends.tiles import NEG_INF, Block
from attnkern.problem import Inputs, Problem
from attnkern.reference import FARTHEST_SIGMAS


class CenteredBlock(Block):
    """One whose queries see the keys `[first, stop)`, each its own; `(n, group * rows, 1)`."""

    def __init__(self, problem: Problem, inputs: Inputs, *place, gaussians: Gaussians | None):
        super().__init__(problem, inputs, *place)
        first, stop = windows_around(problem, anchors_of(problem, self.take_rows(inputs.center)))
        if problem.causal:
            position = torch.arange(*self.rows, device=stop.device) + self.offset
            stop = torch.minimum(stop, position.repeat(problem.group) + 1)
        self._first, self._stop = first.unsqueeze(-1), stop.unsqueeze(-1)
        self._gaussians = None if gaussians is None else Gaussians(*(self._column(rows) for rows in gaussians))
        some = first < stop
        self.keys = (int(first[some].min()), int(stop[some].max())) if some.any() else (0, 0)

    @property
    def sigma(self) -> Tensor:
        return self._gaussians.sigma

    def band(self, keys: tuple[int, int]) -> Tensor:
        """0 or -inf, `(n, group * rows, keys)`."""
        key = torch.arange(*keys, device=self._first.device)
        inside = (self._first <= key) & (key < self._stop)
        return torch.zeros(inside.shape, dtype=self.query.dtype, device=key.device).masked_fill_(~inside, NEG_INF)

    def reached(self, keys: tuple[int, int], bias: Tensor | None) -> Tensor:
        band = self.as_heads(self.band(keys))
        return self._of_keys((band if bias is None else band + bias) > NEG_INF)

    def gaussian(self, keys: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Each key's distance from the nearest one, and the square that its exponent is -0.5 of; in sigmas."""
        key = torch.arange(*keys, device=self._first.device, dtype=self.query.dtype)

        def distance(middle: Tensor) -> Tensor:
            return (key - middle).div_(self.sigma).clamp_(-FARTHEST_SIGMAS, FARTHEST_SIGMAS)

        from_nearest = distance(self._gaussians.nearest)
        if not self.problem.renormalize:
            return from_nearest, from_nearest * from_nearest
        return from_nearest, distance(self._gaussians.mirror).mul_(from_nearest)

    def _column(self, rows: Tensor) -> Tensor:
        return self.take_rows(rows).unsqueeze(-1)


def blocks(problem: Problem, inputs: Inputs) -> Iterator[CenteredBlock]:
    """Every block of the problem."""
    return tiles.blocks(problem, inputs, partial(CenteredBlock, gaussians=gaussians(problem, inputs)))
