"""The online softmax of a block of queries (Milakov & Gimelshein 2018, arXiv 1805.02867): its state, a tile's step."""

import torch
from torch import Tensor

from attnkern.backends.tiles import NEG_INF, Block, Tile, exp_

FAR = -1e4  # its exponential is 0, and 0 * FAR is not NaN


def start(block: Block, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Running maximum (finite, so that differences are), running sum, running weighted values."""
    shape = block.query.shape[:-1]
    top = block.query.new_full((*shape, 1), torch.finfo(block.query.dtype).min)
    return top, torch.zeros_like(top), block.query.new_zeros(*shape, width)


def step(
    scores: Tensor, top: Tensor | None, total: Tensor | None, sums: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One tile of the online softmax: unnormalised weights (in the scores' memory) and the new state, None at first."""
    new_top = scores.amax(-1, keepdim=True)
    new_top = new_top.clamp_(min=torch.finfo(scores.dtype).min) if top is None else torch.maximum(top, new_top)
    weights = exp_(scores.sub_(new_top))
    tile_total = weights.sum(-1, keepdim=True)
    if top is None:
        return weights, new_top, tile_total, None
    decay = (top - new_top).exp_()
    return weights, new_top, total * decay + tile_total, sums.mul_(decay)


def nonzero(total: Tensor) -> Tensor:
    return torch.where(total == 0, 1.0, total)


def lse(top: Tensor, total: Tensor) -> Tensor:
    return torch.where(total == 0, NEG_INF, top + nonzero(total).log()).squeeze(-1)


class RowSums:
    """What the weights that an lse gives add up to in each row: not quite 1, as an lse is rounded.

    Where a row is one tile, its own weights tell. Else it takes a pass over the tiles, `count`, if `rounded` says so.
    """

    LARGE = 16.0  # float32 rounds it by 1e-6

    def __init__(self, block: Block, tiles: list[tuple[int, int]], lse: Tensor):
        self.lse, self.total = lse, None
        self.whole_row = len(tiles) == 1
        on_cpu = block.problem.device == "cpu"  # elsewhere nobody waits for numbers
        self.rounded = len(tiles) > 1 and not (on_cpu and lse.abs().amax() <= self.LARGE)

    def count(self, tile: Tile) -> Tensor:
        """Adds up the tile's weights, and returns them as they are."""
        weights = tile.weights(self.lse)
        total = weights.sum(-1, keepdim=True)
        self.total = total if self.total is None else self.total + total
        return weights

    def weights(self, tile: Tile) -> Tensor:
        """The tile's softmax weights, before dropout."""
        weights = tile.weights(self.lse)
        total = self._total(weights)
        return weights if total is None else weights.div_(total)

    def weights_and_logarithms(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """The weights, and their logarithms."""
        logarithms = tile.scores - self.lse.unsqueeze(-1)
        weights = tile.weights(self.lse)
        total = self._total(weights)
        return (weights, logarithms) if total is None else (weights.div_(total), logarithms.sub_(total.log()))

    def _total(self, weights: Tensor) -> Tensor | None:
        """What to divide a tile's weights by, if anything."""
        total = weights.sum(-1, keepdim=True) if self.whole_row else self.total
        return None if total is None else nonzero(total)
