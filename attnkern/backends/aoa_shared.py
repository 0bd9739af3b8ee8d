"""Attention-over-Attention with one exponential for both softmaxes, where no score lies too far below the largest.

With `X = exp(M) / 2 ** top`, M's softmax over a column is X over the column's sum, and over a row X over the row's
sum: all that the two need besides X are its products with vectors, and the gradient of M is X times a matrix of rank
four. `top` is an integer, which rounds nothing. Where a whole row or column lies so far below it that X loses it,
`False` says so: nothing that was made counts then.
"""

import torch
from torch import Tensor

from attnkern.backends.tiles import LOG2E

LEAST = 2.0**-80  # sum of a row or column of X that float32 still knows to the last bit
FARTHEST = 78.0  # the same as a distance from `top`, with room for what rounds it up
ROWS = 1024  # whose factors are made at a time


def forward(pair, attention: Tensor, row_lse: Tensor, column_lse: Tensor, beta: Tensor) -> bool:
    """Fills the pair's part of what `aoa_blocked.forward` returns."""
    seen = pair.seen
    top = pair.question.new_full((len(seen), 1, 1), torch.finfo(seen.dtype).min)
    total, sums = pair.new_columns(0.0), pair.new_columns(0.0)
    for words in pair.tiles:
        hidden, scores = pair.hidden(words), pair.products(words)
        old_top, top = top, torch.maximum(top, _rounded_up(scores.amax((1, 2), keepdim=True)))
        mass = _exponential(scores, top, hidden)
        row_total = mass @ seen.mT + hidden
        if not row_total.amin() > LEAST:
            return False
        pair.put(row_lse, (top / LOG2E + row_total.log()) * (1 - hidden), words)
        total = total * (old_top - top).exp2_() + mass.sum(1, keepdim=True)
        sums += mass.div_(row_total).sum(1, keepdim=True)  # a product with 1 / row_total would round at every word
    if not total.amin() > LEAST:
        return False
    sums *= seen / pair.count
    pair.put(column_lse, ((top / LOG2E + total.log()) * seen).mT)
    pair.put(beta, sums.mT)
    weights = (sums / total).mT
    if pair.is_one_tile:
        pair.put(attention, mass @ weights * row_total)
        return True
    for words in pair.tiles:
        mass = _exponential(pair.products(words), top, pair.hidden(words))
        pair.put(attention, mass @ weights, words)
    return True


def backward(
    pair, grad_document: Tensor, grad_question: Tensor, grad: Tensor, row_lse: Tensor, column_lse: Tensor, beta: Tensor
) -> bool:
    """Fills the pair's part of both gradients; see `aoa_blocked.backward`."""
    seen, columns, rows = pair.seen, pair.take(column_lse), pair.take(row_lse)
    top = _rounded_up(columns.amax(1, keepdim=True))  # no score exceeds its column's lse; of hidden words both are 0
    if not torch.minimum(columns.amin(), rows.amin()) * LOG2E > top.amax() - FARTHEST:
        return False
    total, grad_columns = pair.new_columns(0.0), pair.new_columns(0.0)  # g
    for words in pair.tiles:
        mass = _exponential(pair.products(words), top, pair.hidden(words))
        total += mass.sum(1, keepdim=True)
        grad_columns += pair.take(grad, words).mT @ mass
    if not total.amin() > LEAST:
        return False
    grad_columns /= total
    weights = pair.take(beta).mT / total
    right = torch.cat((weights, -weights * grad_columns, grad_columns * seen, seen), 1)
    sums = torch.zeros_like(pair.question)
    for words in pair.tiles:
        hidden = pair.hidden(words)
        if not pair.is_one_tile:
            mass = _exponential(pair.products(words), top, hidden)
        row_total = mass @ seen.mT + hidden
        if not row_total.amin() > LEAST:
            return False
        scale = 1 / (row_total * pair.count)
        mean = mass @ right[:, 2:3].mT / row_total  # h
        left = torch.cat((pair.take(grad, words), torch.ones_like(scale), scale, -scale * mean), 2)
        for part, factors in zip(mass.split(ROWS, 1), left.split(ROWS, 1)):
            part *= factors @ right
        pair.put_product(grad_document, mass, pair.question, words)
        sums.baddbmm_(mass.mT, pair.document(words))
    pair.put(grad_question, sums)
    return True


def _rounded_up(scores: Tensor) -> Tensor:
    """In units of log2."""
    return (scores * LOG2E).ceil_()


def _exponential(scores: Tensor, top: Tensor, hidden: Tensor) -> Tensor:
    """X, in the scores' memory; 0 for hidden words of the document."""
    mass = torch.add(-top, scores, alpha=LOG2E, out=scores).exp2_()
    return mass.mul_(1 - hidden) if hidden.numel() > 1 else mass
