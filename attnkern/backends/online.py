"""The online softmax of a block of queries (Milakov & Gimelshein 2018, arXiv 1805.02867): its state, a tile's step."""

import torch
from torch import Tensor

from attnkern.backends.tiles import NEG_INF, Block, exp_

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
    return torch.where(total > 0, total, 1.0)


def lse(top: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, top + nonzero(total).log(), NEG_INF).squeeze(-1)
