"""Attention-over-Attention with one exponential for both softmaxes, where all rows and columns reach about as high.

With `X = exp(M - top)`, M's softmax over a column is X over the column's sum, and over a row X over the row's sum: all
that the two need besides X are its products with vectors, and the gradient of M is X times a matrix of rank four.
Where a sum leaves what float32 knows to the last bit, `False` says so: nothing that was made counts then.
"""

import torch
from torch import Tensor

LEAST, MOST = 2.0**-80, 2.0**80  # sum of a row or column of X


def forward(pair, attention: Tensor, row_lse: Tensor, column_lse: Tensor, beta: Tensor) -> bool:
    """Fills the pair's part of what `aoa_blocked.forward` returns."""
    top, total, sums = pair.top(), pair.hidden_columns.clone(), pair.new_columns(0.0)
    for words in pair.tiles:
        masses = pair.exponentials(words, top)
        row_total = masses.sum(2, keepdim=True) + pair.hidden_rows[:, slice(*words)]
        if not _is_known(row_total):
            return False
        pair.put(row_lse, row_total.log() + top, words)
        total += masses.sum(1, keepdim=True)
        # products with 1 / row_total would round at every word, and a product adds up less exactly than a sum
        sums += torch.div(masses, row_total, out=pair.tile(1, words)).sum(1, keepdim=True)
    if not _is_known(total):
        return False
    sums /= pair.count
    pair.put(column_lse, (total.log() + top).mT)
    pair.put(beta, sums.mT)
    weights = (sums / total).mT
    for words in pair.tiles:
        if not pair.is_one_tile:
            masses = pair.exponentials(words, top if pair.kept is None else None)
        pair.put(attention, masses @ weights, words)
    return True


def backward(pair, grad_document: Tensor, grad_question: Tensor, grad: Tensor, beta: Tensor) -> bool:
    """Fills the pair's part of both gradients; see `aoa_blocked.backward`."""
    top, grad = pair.top() if pair.kept is None else None, pair.take(grad)
    total, grad_columns = pair.hidden_columns.clone(), pair.new_columns(0.0)  # g
    for words in pair.tiles:
        masses = pair.exponentials(words, top)
        total += masses.sum(1, keepdim=True)
        grad_columns.baddbmm_(grad[:, slice(*words)].mT, masses)
    if not _is_known(total):
        return False
    grad_columns /= total
    weights = pair.take(beta).mT / total
    right = torch.cat((weights, -weights * grad_columns, grad_columns, torch.ones_like(total)), 1)
    sums = torch.zeros_like(pair.question)
    for words in pair.tiles:
        if not pair.is_one_tile:
            masses = pair.exponentials(words, top)
        row_total = masses.sum(2, keepdim=True) + pair.hidden_rows[:, slice(*words)]
        if not _is_known(row_total):
            return False
        scale = 1 / (row_total * pair.count)
        mean = masses @ grad_columns.mT / row_total  # h
        left = torch.cat((grad[:, slice(*words)], torch.ones_like(scale), scale, -scale * mean), 2)
        grad_scores = torch.bmm(left, right, out=pair.tile(1, words)).mul_(masses)
        pair.put_product(grad_document, grad_scores, pair.question, words)
        sums.baddbmm_(grad_scores.mT, pair.document(words))
    pair.put(grad_question, sums)
    return True


def _is_known(total: Tensor) -> bool:
    least, most = total.aminmax()
    return least.item() > LEAST and most.item() < MOST
