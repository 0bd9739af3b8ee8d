"""Every operation in O(L) memory with torch alone, on any device; the default on a CPU.

The same tile walk serves the forward passes, the weights, the backward and the sampler. Global
attention goes to torch's own fused kernel where that computes the same thing.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from attnkern import philox
from attnkern.backends import sdpa, sparse
from attnkern.backends.tiles import LN2, LOG2E, NEG_INF, Block, Tile, blocks
from attnkern.problem import Gradients, Inputs, Problem, new_output

name = "blocked"
sparse_backward = sparse.backward


def refuses(problem: Problem) -> str | None:
    """Why this backend cannot run the problem; None if it can."""
    if problem.center or problem.sigma:
        return "learned centres and Gaussians run on the reference only"
    if not problem.dtype.is_floating_point or problem.dtype.itemsize < 2:
        return f"dtype {problem.dtype} is not float16, bfloat16, float32 or float64"
    return None


def softmax(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output `(B, H, Lq, Ev)` and lse `(B, H, Lq)`."""
    if sdpa.can_run(problem, inputs):
        output, lse = sdpa.forward(problem, inputs)
        if sdpa.is_sound(lse):
            return output, lse
    output = new_output(inputs.query, inputs.value)
    lse = inputs.query.new_empty(output.shape[:-1], dtype=problem.compute_dtype)
    for block in blocks(problem, inputs):
        top, total, sums = _online_state(block, inputs.value.shape[-1])
        for keys in block.key_tiles():
            tile = block.tile(keys)
            weights, top, total, sums = _online_step(tile.scores, top, total, sums)
            if (dropout := tile.dropout()) is not None:
                weights *= dropout
            sums.baddbmm_(weights, tile.value())
        block.put_rows(output, sums / _nonzero(total))
        block.put_rows(lse, _lse(top, total))
    return output, lse


def weights(problem: Problem, inputs: Inputs, lse: Tensor) -> Tensor:
    """Attention weights after dropout: `(B, H, Lq, Lk)`, or their mean over heads `(B, Lq, Lk)`."""
    mean = problem.weights == "mean"
    shape = (problem.batch, 1 if mean else problem.heads, problem.len_q, problem.len_k)
    result = inputs.query.new_zeros(shape, dtype=problem.compute_dtype if mean else problem.dtype)
    for tile, weights in _weight_tiles(problem, inputs, lse):
        part = tile.block.as_heads(weights)
        tile.block.take_mask(result, tile.keys).add_(part.sum(1, keepdim=True) / problem.heads if mean else part)
    return result.squeeze(1).to(problem.dtype) if mean else result


def weights_dot(problem: Problem, inputs: Inputs, lse: Tensor, grad_weights: Tensor) -> Tensor:
    """`sum_j weights_ij * grad_weights_ij`, `(B, H, Lq)`, with the latter `(B, 1 | H, Lq, Lk)`."""
    result = torch.zeros_like(lse)
    for tile, weights in _weight_tiles(problem, inputs, lse):
        block = tile.block
        product = block.as_heads(weights).mul_(block.take_mask(grad_weights, tile.keys))
        block.put_rows(result, block.take_rows(result) + product.sum(-1).view(weights.shape[:-1]))
    return result


def _weight_tiles(problem: Problem, inputs: Inputs, lse: Tensor) -> Iterator[tuple[Tile, Tensor]]:
    for block in blocks(problem, inputs):
        row_lse = _log2_lse(block.take_rows(lse))
        for keys in block.key_tiles():
            tile = block.tile(keys)
            weights = tile.weights(row_lse)
            if (dropout := tile.dropout()) is not None:
                weights *= dropout
            yield tile, weights


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of rows, summed in at least float32: `(..., E) -> (...)`."""
    dtype = torch.promote_types(left.dtype, torch.float32)
    return torch.linalg.vecdot(left.to(dtype), right.to(dtype))


def softmax_backward(
    problem: Problem,
    inputs: Inputs,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    needs_mask: bool,
) -> Gradients:
    """Gradients of `softmax`."""
    if grad_lse is None and not needs_mask and sdpa.can_run(problem, inputs) and sdpa.is_sound(lse):
        return sdpa.backward(problem, inputs, output, lse, grad_output)
    row = row_dot(grad_output, output)
    row = row if grad_lse is None else row - grad_lse
    return backward(problem, inputs, lse, grad_output=grad_output, row=row, needs_mask=needs_mask)


def backward(
    problem: Problem,
    inputs: Inputs,
    lse: Tensor,
    *,
    grad_output: Tensor | None = None,
    grad_weights: Tensor | None = None,
    row: Tensor | None = None,
    entropy: Tensor | None = None,
    needs_mask: bool = False,
) -> Gradients:
    """Gradients of anything that reaches the scores through the softmax weights `p`.

    `dS = p * (dropout * (grad_output . value + grad_weights) - row - entropy * (s - lse))`, where
    `row` and `entropy` are `(B, H, Lq)` and an absent term is 0. The value's gradient is None
    without `grad_output`.
    """
    dtype = problem.compute_dtype
    grad_query = torch.zeros_like(inputs.query)
    grad_key = torch.zeros(inputs.key.shape, dtype=dtype, device=inputs.key.device)
    grad_value = None
    if grad_output is not None:
        grad_value = torch.zeros(inputs.value.shape, dtype=dtype, device=inputs.value.device)
    grad_mask = torch.zeros(inputs.attn_mask.shape, dtype=dtype, device=inputs.key.device) if needs_mask else None

    for block in blocks(problem, inputs):
        row_lse = _log2_lse(block.take_rows(lse))
        block_row = block.take_rows(row).unsqueeze(-1) if row is not None else None
        block_entropy = block.take_rows(entropy).unsqueeze(-1) if entropy is not None else None
        block_grad = block.take_rows(grad_output) if grad_output is not None else None
        block_grad_query = torch.zeros_like(block.query)
        for keys in block.key_tiles():
            tile = block.tile(keys)
            surprise = None
            if block_entropy is not None:
                surprise = (tile.scores - row_lse.unsqueeze(-1)).clamp_(min=-1e4).mul_(block_entropy).mul_(LN2)
            probability = tile.weights(row_lse)
            grad = _weight_gradient(tile, block_grad, grad_weights)
            dropout = tile.dropout()
            if block_grad is not None:
                dropped = probability if dropout is None else probability * dropout
                block.take_keys(grad_value, keys).baddbmm_(dropped.mT, block_grad)
            if dropout is not None and grad is not None:
                grad *= dropout
            grad = _subtract(_subtract(grad, block_row), surprise)
            if grad is None:
                continue
            grad_score = probability.mul_(grad)
            if needs_mask:
                _accumulate(block.take_mask(grad_mask, keys), block.as_heads(grad_score))
            if tile.slope is not None:
                grad_score = grad_score * tile.slope
            block_grad_query.baddbmm_(grad_score, tile.key, alpha=problem.scale)
            block.take_keys(grad_key, keys).baddbmm_(grad_score.mT, block.query, alpha=problem.scale)
        block.put_rows(grad_query, block_grad_query)
    return Gradients(grad_query, grad_key, grad_value, grad_mask)


def sample(problem: Problem, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One pass over the keys: output, index, score (each `(S, B, H, Lq, ...)`), lse, entropy."""
    shape = inputs.query.shape[:-1]
    draws = problem.num_samples
    kwargs = {"dtype": problem.compute_dtype, "device": inputs.query.device}
    index = torch.empty(draws, *shape, dtype=torch.int64, device=inputs.query.device)
    score, lse, entropy = torch.empty(draws, *shape, **kwargs), torch.empty(shape, **kwargs), torch.empty(shape, **kwargs)
    for block in blocks(problem, inputs):
        top, total, _ = _online_state(block, 0)
        surprise = torch.zeros_like(total)  # sum of e^(s - top) * (s - top), log2 units
        picks = _Picks(block, draws, like=total)
        for keys in block.key_tiles(align=philox.SAMPLE_BLOCK):
            scores = block.tile(keys).scores
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            drop = top - new_top
            decay = drop.exp2()
            distance = (scores - new_top).clamp_(min=-1e4)  # -inf * 0 below would be NaN
            mass = distance.exp2()
            surprise = decay * (surprise + drop * total) + distance.mul_(mass).sum(-1, keepdim=True)
            before = total * decay
            total = before + mass.sum(-1, keepdim=True)
            top = new_top
            if problem.selector == "argmax":
                picks.take_highest(scores, keys)
            else:
                picks.take_sampled(scores, mass, before, keys)
        row_lse = _lse(top, total)
        block.put_rows(lse, row_lse)
        block.put_rows(entropy, (_nonzero(total).log() - surprise / _nonzero(total) * LN2).squeeze(-1))
        for r in range(draws):
            block.put_rows(index[r], picks.index[r])
            block.put_rows(score[r], picks.score[r] * LN2)
    return sparse.gather(inputs, index), index, score, lse, entropy


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
        target = self._uniforms(keys) * (before + block_mass.cumsum(-1))
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
        reached = (inside.cumsum(-1) <= target[draw, n, row, column].unsqueeze(-1)).sum(-1)
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


def _online_state(block: Block, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Running maximum (finite, so that differences are), running sum, running weighted values."""
    shape = block.query.shape[:-1]
    top = block.query.new_full((*shape, 1), torch.finfo(block.query.dtype).min)
    return top, torch.zeros_like(top), block.query.new_zeros(*shape, width)


def _online_step(scores: Tensor, top: Tensor, total: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One tile of the online softmax: unnormalised weights (in the scores' memory) and the new state."""
    new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
    decay = (top - new_top).exp2_()
    weights = scores.sub_(new_top).exp2_()
    return weights, new_top, total * decay + weights.sum(-1, keepdim=True), sums.mul_(decay)


def _weight_gradient(tile: Tile, block_grad: Tensor | None, grad_weights: Tensor | None) -> Tensor | None:
    """Gradient to the weights after dropout."""
    grad = torch.bmm(block_grad, tile.value().mT) if block_grad is not None else None
    if grad_weights is None:
        return grad
    block = tile.block
    part = block.take_mask(grad_weights, tile.keys).to(block.problem.compute_dtype)
    if grad is None:
        grad = torch.zeros_like(tile.scores)
    block.as_heads(grad).add_(part)
    return grad


def _subtract(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if right is None:
        return left
    return -right if left is None else left.sub_(right)


def _accumulate(total: Tensor, part: Tensor) -> None:
    """Adds `part`, summed over the dimensions in which `total` has size 1."""
    total.add_(part.sum([d for d in range(4) if total.shape[d] == 1 != part.shape[d]], keepdim=True))


def _nonzero(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, 1.0)


def _lse(top: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, (top + _nonzero(total).log2()) * LN2, NEG_INF).squeeze(-1)


def _log2_lse(lse: Tensor) -> Tensor:
    """In log2 units, and finite: the weights of an empty row come out 0."""
    return torch.where(lse == NEG_INF, 0.0, lse * LOG2E)
