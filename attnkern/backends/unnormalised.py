"""Weights that depend on their own scores alone (linear, relu, exp), tile by tile: no maximum, no sum, no lse."""

import torch
from torch import Tensor

from attnkern.backends.tiles import NEG_INF, Block, Tile, blocks, exp_
from attnkern.problem import Inputs, Problem, new_output


def forward(problem: Problem, inputs: Inputs) -> Tensor:
    """Output `(B, H, Lq, Ev)`."""
    output = new_output(inputs.query, inputs.value)
    for block in blocks(problem, inputs):
        sums = block.query.new_zeros(*block.query.shape[:-1], inputs.value.shape[-1])
        for keys in block.key_tiles():
            tile = block.tile(keys)
            sums.baddbmm_(_weights_(tile.scores, problem.selector), tile.value())
        block.put_rows(output, sums)
    return output


class RowTerms:
    """What the backward of one block needs of its rows, besides their queries."""

    def __init__(self, block: Block, grad_output: Tensor):
        self.selector = block.problem.selector
        self.grad_output = block.take_rows(grad_output)

    def score_gradient(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Weights, and dS: the gradient of the weights times the activation's derivative."""
        hidden = (tile.scores <= 0) if self.selector == "relu" else tile.scores == NEG_INF
        hidden |= tile.scores >= torch.finfo(tile.scores.dtype).max  # an infinite score is a constant
        weights = _weights_(tile.scores, self.selector)
        gradient = torch.bmm(self.grad_output, tile.value().mT)
        if self.selector == "exp":
            gradient *= weights
        return weights, gradient.masked_fill_(hidden, 0.0)


def _weights_(scores: Tensor, selector: str) -> Tensor:
    """In the scores' memory; 0 where a query may not look."""
    if selector == "exp":
        return exp_(scores)
    if selector == "relu":
        return scores.relu_()
    return scores.masked_fill_(scores == NEG_INF, 0.0)
