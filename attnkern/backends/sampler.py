"""Exact samples from the attention distribution, or the key of the largest weight; tile by tile, nothing is stored."""

from collections.abc import Iterator

import torch
from torch import Tensor

from attnkern import philox
from attnkern.backends import online
from attnkern.backends.online import FAR
from attnkern.backends.tiles import NEG_INF, Block, exp_
from attnkern.problem import Inputs, Problem


def draw(problem: Problem, inputs: Inputs, blocks: Iterator[Block]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One pass over the keys: index and score `(S, B, H, Lq)`, lse and entropy `(B, H, Lq)`."""
    rows, draws = inputs.query.shape[:-1], problem.num_samples
    index = inputs.query.new_empty(draws, *rows, dtype=torch.int64)
    score = inputs.query.new_empty(draws, *rows, dtype=problem.compute_dtype)
    lse, entropy = (torch.empty_like(score[0]) for _ in range(2))
    for block in blocks:
        top, total, _ = online.start(block, 0)
        surprise = torch.zeros_like(total)  # sum of e^(s - top) * (s - top)
        picks = _Picks(block, draws, like=total)
        for keys in block.key_tiles(align=philox.SAMPLE_BLOCK):
            scores = block.tile(keys).scores
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            drop = (top - new_top).clamp_(min=FAR)
            decay = drop.exp()
            distance = (scores - new_top).clamp_(min=FAR)
            mass = exp_(distance.clone())
            surprise = decay * (surprise + drop * total) + distance.mul_(mass).sum(-1, keepdim=True)
            before = total * decay
            total = before + mass.sum(-1, keepdim=True)
            top = new_top
            if problem.selector == "argmax":
                picks.take_highest(scores, keys)
            else:
                picks.take_sampled(scores, mass, before, keys)
        row_lse = online.lse(top, total)
        block.put_rows(lse, row_lse)
        block.put_rows(entropy, (online.nonzero(total).log() - surprise / online.nonzero(total)).squeeze(-1))
        for r in range(draws):
            block.put_rows(index[r], picks.index[r])
            block.put_rows(score[r], picks.score[r])
    return index, score, lse, entropy


class _Picks:
    """The keys each query of a block has drawn so far: `(S, n, rows)`."""

    def __init__(self, block: Block, draws: int, like: Tensor):
        shape = (draws, *like.shape[:-1])
        self.block, self.draws = block, draws
        self.index = torch.full(shape, -1, dtype=torch.int64, device=like.device)
        self.score = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def take_highest(self, scores: Tensor, keys: tuple[int, int]) -> None:
        top, column = scores.amax(-1), scores.argmax(-1)
        better = (top > self.score) | ((self.index < 0) & (top > NEG_INF))
        self.index = torch.where(better, column + keys[0], self.index)
        self.score = torch.where(better, top, self.score)

    def take_sampled(self, scores: Tensor, mass: Tensor, before: Tensor, keys: tuple[int, int]) -> None:
        """Draws from the blocks of 64 keys of one tile, all at once.

        before: the mass of all earlier keys, `(n, rows, 1)`, on the tile's own scale.
        """
        size = philox.SAMPLE_BLOCK
        padding = -mass.shape[-1] % size
        mass = torch.nn.functional.pad(mass, (0, padding)).unflatten(-1, (-1, size))
        block_mass = mass.sum(-1)
        target = self._uniforms(keys) * (before + philox.running_sum(block_mass))
        filled = block_mass > 0
        first = filled & (filled.cumsum(-1) == 1) & (self.index < 0).unsqueeze(-1)
        taken = (filled & (target < block_mass)) | first
        # the last block taken is where the sample stays; most rows take none
        number = torch.arange(1, block_mass.shape[-1] + 1, device=mass.device)
        winner = (taken * number).amax(-1)
        draw, n, row = winner.nonzero(as_tuple=True)
        if len(draw) == 0:
            return
        column = winner[draw, n, row] - 1
        inside = mass[n, row, column]
        reached = (philox.running_sum(inside) <= target[draw, n, row, column].unsqueeze(-1)).sum(-1)
        last = torch.where(inside > 0, torch.arange(size, device=mass.device), -1).amax(-1)
        column = column * size + torch.minimum(reached, last)
        self.index[draw, n, row] = column + keys[0]
        self.score[draw, n, row] = scores[n, row, column]

    def _uniforms(self, keys: tuple[int, int]) -> Tensor:
        problem, block = self.block.problem, self.block
        device = block.inputs.query.device
        size = philox.SAMPLE_BLOCK
        numbers = torch.arange(keys[0] // size, -(-keys[1] // size), device=device)
        u = philox.sample_uniforms(
            block.inputs.seed, torch.arange(*block.rows, device=device), block.batch_heads(), numbers, self.draws
        )
        return u.flatten(2, 3).to(problem.compute_dtype)
