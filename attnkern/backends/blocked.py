"""Every operation in O(L) memory with torch alone, on any device and in any dtype.

The same tile walk serves the forward passes, the weights, the backward and the sampler.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from attnkern.backends import centered, online, sampler, sequences, sparse, unnormalised
from attnkern.backends.online import FAR
from attnkern.backends.tiles import NEG_INF, Block, Tile, blocks
from attnkern.problem import Gradients, Inputs, Problem, new_output

mac = unnormalised.forward
sparse_backward = sparse.backward


def refuses(problem: Problem) -> str | None:
    """Why this backend cannot run the problem; None if it can."""
    if problem.center and problem.weights:
        return "it has no attention weights around learned centres"
    if not problem.dtype.is_floating_point or problem.dtype.itemsize < 2:
        return f"dtype {problem.dtype} is not float16, bfloat16, float32 or float64"
    return None


def softmax(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`."""
    if problem.packed:
        return sequences.softmax(softmax, problem, inputs)
    output = new_output(inputs.query, inputs.value)
    lse = inputs.query.new_empty(output.shape[:-1], dtype=problem.compute_dtype)
    for block in _walk(problem, inputs):
        top = total = sums = None
        for keys in block.key_tiles():
            tile = block.tile(keys)
            weights, top, total, sums = online.step(tile.scores, top, total, sums)
            if (factor := tile.factor()) is not None:
                weights *= factor
            sums = torch.bmm(weights, tile.value()) if sums is None else sums.baddbmm_(weights, tile.value())
        if sums is None:  # nothing to look at
            top, total, sums = online.start(block, inputs.value.shape[-1])
        block.put_rows(output, sums.div_(online.nonzero(total)))
        block.put_rows(lse, online.lse(top, total))
    return output, lse


def weights(problem: Problem, inputs: Inputs, lse: Tensor) -> Tensor:
    """Attention weights after dropout: `(B, H, Lq, Lk)`, or their mean over heads `(B, Lq, Lk)`."""
    if problem.packed:
        return sequences.weights(weights, problem, inputs, lse)
    mean = problem.weights == "mean"
    shape = (problem.batch, 1 if mean else problem.heads, problem.len_q, problem.len_k)
    result = inputs.query.new_zeros(shape, dtype=problem.compute_dtype if mean else problem.dtype)
    for block in _walk(problem, inputs):
        tiles = list(block.key_tiles())
        sums = online.RowSums(block, tiles, _finite(block.take_rows(lse)))
        for keys in tiles if sums.rounded else ():
            sums.count(block.tile(keys))
        for keys in tiles:
            tile = block.tile(keys)
            part = sums.weights(tile)
            if (factor := tile.factor()) is not None:
                part *= factor
            part = block.as_heads(part)
            block.take_mask(result, keys).add_(part.sum(1, keepdim=True) / problem.heads if mean else part)
    return result.squeeze(1).to(problem.dtype) if mean else result


def backward(
    problem: Problem,
    inputs: Inputs,
    lse: Tensor | None = None,
    *,
    grad_output: Tensor | None = None,
    output: Tensor | None = None,
    grad_weights: Tensor | None = None,
    row: Tensor | None = None,
    entropy: Tensor | None = None,
    needs_mask: bool = False,
) -> Gradients:
    """Gradients of anything that reaches the scores through the softmax weights `p`.

    With `g = factor * (grad_output . value + grad_weights)`, absent terms being 0 and the factor dropout and Gaussian,
    `dS = p * (g - sum_j p_j g_j - row - entropy * (s - lse))`; `row` and `entropy` are `(B, H, Lq)`.
    With `z = (j - center) / sigma`, the gradients of center and sigma are the sums of t z / sigma and t z^2 / sigma,
    where t is p g, or dS if the Gaussian is inside of the softmax (renormalize); then z and z^2 are less those of the
    nearest key, as the exponents are, and so is `lse` (see gaussian.py).
    The value's gradient is None without `grad_output`; `output` is what `softmax` returned, if it ran.
    Without a softmax (see `mac`) there is `grad_output` alone, and dS is g times the activation's derivative.
    """
    if problem.packed:
        given = {"grad_output": grad_output, "output": output, "grad_weights": grad_weights, "row": row}
        return sequences.backward(backward, problem, inputs, lse, needs_mask, **given, entropy=entropy)
    dtype, device = problem.compute_dtype, inputs.key.device
    grad_query = torch.empty_like(inputs.query)
    grad_key = torch.zeros(inputs.key.shape, dtype=dtype, device=device)
    grad_value = torch.zeros(inputs.value.shape, dtype=dtype, device=device) if grad_output is not None else None
    grad_mask = torch.zeros(inputs.attn_mask.shape, dtype=dtype, device=device) if needs_mask else None
    grad_center, grad_sigma = (torch.zeros_like(lse) if problem.sigma else None for _ in range(2))
    for block in _walk(problem, inputs):
        tiles = list(block.key_tiles())
        if problem.kind == "mac":
            terms = unnormalised.RowTerms(block, grad_output)
        else:
            terms = _RowTerms(block, tiles, lse, output, grad_output, grad_weights, row, entropy)
        block_grad_query = None if tiles else torch.zeros_like(block.query)
        for keys in tiles:
            tile = block.tile(keys)
            weights, grad_score = terms.score_gradient(tile)
            if grad_output is not None:
                block.add_keys(grad_value, keys, weights, terms.grad_output)
            if needs_mask:
                block.add_mask(grad_mask, keys, block.as_heads(grad_score))
            if tile.slope is not None:
                grad_score = grad_score * tile.slope
            if block_grad_query is None:
                block_grad_query = torch.bmm(grad_score, tile.key)
            else:
                block_grad_query.baddbmm_(grad_score, tile.key)
            block.add_keys(grad_key, keys, grad_score, block.query, problem.scale)
        block.put_rows(grad_query, block_grad_query.mul_(problem.scale))
        if problem.sigma:
            block.put_rows(grad_center, terms.grad_center / block.sigma)
            block.put_rows(grad_sigma, terms.grad_sigma / block.sigma)
    return Gradients(grad_query, grad_key, grad_value, grad_mask, grad_center, grad_sigma)


def sample(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One pass over the keys: output, index, score (each `(S, B, H, Lq, ...)`), lse, entropy."""
    if problem.packed:
        return sequences.sample(sample, problem, inputs)
    index, *rest = sampler.draw(problem, inputs, _walk(problem, inputs))
    return sparse.gather(inputs, index), index, *rest


class _RowTerms:
    """What the backward of one block needs of its rows, besides their queries."""

    def __init__(
        self, block: Block, tiles: list[tuple[int, int]], lse, output, grad_output, grad_weights, row, entropy
    ):
        def rows(tensor):
            return None if tensor is None else block.take_rows(tensor)

        self.block, self.lse = block, _finite(rows(lse))
        self.sums = online.RowSums(block, tiles, self.lse)
        self.grad_output = rows(grad_output)
        self.grad_weights = grad_weights
        self.row = 0.0 if row is None else rows(row).unsqueeze(-1)
        self.entropy = None if entropy is None else rows(entropy).unsqueeze(-1)
        through_output, through_weights = grad_output is not None, grad_weights is not None
        # the mean of `grad_output . value` is that of the output, unless it was rounded
        rounded = output is None or output.dtype != self.lse.dtype or self.sums.rounded
        if len(tiles) > 1 and (self.sums.rounded or through_weights or (through_output and rounded)):
            self._sum_rows(tiles)
        elif len(tiles) > 1 and through_output:
            self.row = self.row + torch.linalg.vecdot(self.grad_output, rows(output)).unsqueeze(-1)

        infinite = self.lse >= torch.finfo(self.lse.dtype).max  # counts as the largest number, a constant
        self.constant = infinite.unsqueeze(-1) if block.problem.device != "cpu" or infinite.any() else None
        self.grad_center = self.grad_sigma = 0.0  # times sigma

    def _sum_rows(self, tiles: list[tuple[int, int]]) -> None:
        """Adds up the rows' weights, and adds `sum_j p_j g_j` to what is subtracted from g."""
        mean = 0.0
        for keys in tiles:
            tile = self.block.tile(keys)
            gradient, _ = self._weight_gradient(tile)
            weights = self.sums.count(tile)
            if gradient is not None:
                mean = mean + torch.linalg.vecdot(weights, gradient).unsqueeze(-1)
        self.row = self.row + mean / online.nonzero(self.sums.total)

    def score_gradient(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Weights after dropout and Gaussian, and dS."""
        problem = tile.block.problem
        gradient, factor = self._weight_gradient(tile)
        surprise = None
        if self.entropy is None:
            weights = self.sums.weights(tile)
        else:
            weights, logarithms = self.sums.weights_and_logarithms(tile)
            surprise = logarithms.clamp_(min=FAR).mul_(self.entropy)
        final = weights if factor is None else weights * factor
        if gradient is None:  # and there is no value whose gradient needs the weights
            grad_score = weights.mul_(-self.row if surprise is None else surprise.neg_().sub_(self.row))
            return final, self._of_finite(grad_score)
        if self.sums.whole_row:
            self.row = self.row + torch.linalg.vecdot(weights, gradient).unsqueeze(-1)
        if problem.sigma and not problem.renormalize:
            self._add_to_gaussian(tile, weights * gradient)
        gradient -= self.row
        if surprise is not None:
            gradient -= surprise
        grad_score = self._of_finite(gradient.mul_(weights))
        if problem.renormalize:
            self._add_to_gaussian(tile, grad_score)
        return final, grad_score

    def _of_finite(self, grad_score: Tensor) -> Tensor:
        return grad_score if self.constant is None else grad_score.masked_fill_(self.constant, 0.0)

    def _add_to_gaussian(self, tile: Tile, part: Tensor) -> None:
        distance, square = tile.gaussian
        self.grad_center = self.grad_center + torch.linalg.vecdot(part, distance).unsqueeze(-1)
        self.grad_sigma = self.grad_sigma + torch.linalg.vecdot(part, square).unsqueeze(-1)

    def _weight_gradient(self, tile: Tile) -> tuple[Tensor | None, Tensor | None]:
        """`g`, the gradient to the softmax's weights, and what multiplies them; None if absent."""
        block, factor = tile.block, tile.factor()
        gradient = torch.bmm(self.grad_output, tile.value().mT) if self.grad_output is not None else None
        if self.grad_weights is not None:
            if gradient is None:
                gradient = torch.zeros_like(tile.scores)
            block.as_heads(gradient).add_(block.take_mask(self.grad_weights, tile.keys))
        if gradient is not None and factor is not None:
            gradient *= factor
        return gradient, factor


def _walk(problem: Problem, inputs: Inputs) -> Iterator[Block]:
    return centered.blocks(problem, inputs) if problem.center else blocks(problem, inputs)


def _finite(lse: Tensor) -> Tensor:
    """The weights of an empty row come out 0: its scores are all -inf."""
    return torch.where(lse == NEG_INF, 0.0, lse)
