"""Attention-over-Attention in torch alone, on any device: tiles of document words by the whole question.

Two sweeps over the tiles forward and two backward, each making its scores anew; where a document and its
question fit one tile, one.
"""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from attnkern.backends import aoa_shared
from attnkern.backends.tiles import LOG2E, NEG_INF, TILE_BYTES, TILE_BYTES_ELSEWHERE, exp_

FEWEST_WORDS = 16  # of the document in a tile
Words = tuple[int, int]  # `[begin, end)`


def keeps(width: int, features: int, dtype: torch.dtype, device: str) -> bool:
    """Whether exponentials take no more memory than the document: a backward then need not make its scores anew."""
    size = torch.promote_types(dtype, torch.float32).itemsize
    return device == "cpu" and width * size <= features * dtype.itemsize


def forward(
    document: Tensor,
    question: Tensor,
    document_mask: Tensor | None,
    question_mask: Tensor | None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The attention `(B, Ld)`, the lse of rows `(B, Ld)` and columns `(B, Lq)`, and beta `(B, Lq)`.

    The lse is some finite number where there is nothing to sum. Fills `kept`, `(B, Ld, Lq)`, with the exponentials of
    scores that `backward` may be given: 0 where they are of no use.
    """
    dtype = torch.promote_types(document.dtype, torch.float32)
    attention = document.new_empty(document.shape[:2])
    row_lse = torch.empty_like(attention, dtype=dtype)
    column_lse = question.new_empty(question.shape[:2], dtype=dtype)
    beta = torch.empty_like(column_lse)
    for pair in _pairs(document, question, document_mask, question_mask, kept):
        if pair.may_ask and aoa_shared.forward(pair, attention, row_lse, column_lse, beta):
            continue
        if pair.kept is not None:
            pair.kept.zero_()
        top = pair.new_columns(torch.finfo(dtype).min)
        total, sums = pair.new_columns(0.0), pair.new_columns(0.0)
        for words in pair.tiles:
            scores = pair.scores(words)
            old_top, top = top, torch.maximum(top, scores.amax(1, keepdim=True))
            mass = exp_(torch.sub(scores, top, out=pair.tile(1, words)))
            total = total * (old_top - top).exp_() + mass.sum(1, keepdim=True)
            row_top = scores.amax(2, keepdim=True).clamp_(min=torch.finfo(dtype).min)
            by_row = exp_(scores.sub_(row_top))
            row_total = by_row.sum(2, keepdim=True)
            pair.put(row_lse, _lse(row_top, row_total), words)
            sums += by_row.div_(_nonzero(row_total)).sum(1, keepdim=True)  # a product would round at every word
        sums /= pair.count
        pair.put(column_lse, _lse(top, total).mT)
        pair.put(beta, sums.mT)
        weights = (sums / _nonzero(total)).mT
        for words in pair.tiles:
            if not pair.is_one_tile:
                mass = _exponential(pair.scores(words), top, pair.tile(1, words))
            pair.put(attention, mass @ weights, words)
    return attention, row_lse, column_lse, beta


def backward(
    grad: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    beta: Tensor,
    document: Tensor,
    question: Tensor,
    document_mask: Tensor | None,
    question_mask: Tensor | None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of document and question, through that of the scores M.

    With A and B the softmax of M's columns and rows, `g = A^T grad` and `h = B g`:
    `dM = A * beta * (grad - g) + B * (g - h) / n`, n the number of document words.
    """
    grad_document, grad_question = torch.empty_like(document), torch.empty_like(question)
    for pair in _pairs(document, question, document_mask, question_mask, kept):
        if pair.may_ask and aoa_shared.backward(pair, grad_document, grad_question, grad, beta):
            continue
        grad_columns, total = pair.new_columns(0.0), pair.new_columns(0.0)  # g
        columns, weights = pair.take(column_lse).mT, pair.take(beta).mT
        for words in pair.tiles:
            scores = pair.scores(words)
            by_column = _exponential(scores, columns, pair.tile(1, words))
            grad_columns += pair.take(grad, words).mT @ by_column
            total += by_column.sum(1, keepdim=True)
        # the lse was rounded: its softmax adds up to not quite 1, and neither does a row's
        grad_columns /= _nonzero(total)
        weights = weights / _nonzero(total)
        mean, product = grad_columns / pair.count, -grad_columns * weights
        sums = torch.zeros_like(pair.question)
        for words in pair.tiles:
            if not pair.is_one_tile:
                scores = pair.scores(words)
                by_column = _exponential(scores, columns, pair.tile(1, words))
            by_row = _exponential(scores, pair.take(row_lse, words), out=scores)
            by_row /= _nonzero(by_row.sum(2, keepdim=True))
            work = pair.tile(2, words)
            by_row *= torch.sub(mean, by_row @ mean.mT, out=work)
            grad_scores = by_row.addcmul_(by_column, torch.addcmul(product, pair.take(grad, words), weights, out=work))
            pair.put_product(grad_document, grad_scores, pair.question, words)
            sums.baddbmm_(grad_scores.mT, pair.document(words))
        pair.put(grad_question, sums)
    return grad_document, grad_question


class _Pair:
    """`n` documents and their questions, in the compute dtype."""

    def __init__(
        self,
        batch: slice,
        longest: int,
        space: Callable[[int], Tensor],
        document: Tensor,
        question: Tensor,
        document_mask: Tensor | None,
        question_mask: Tensor | None,
        kept: Tensor | None,
    ):
        self.batch = batch
        self._space, self._document = space, document
        self.kept = None if kept is None else kept[batch]
        self.dtype = torch.promote_types(document.dtype, torch.float32)
        self.question = question[batch].to(self.dtype)
        length = document.shape[1]
        self.tiles = [(begin, min(begin + longest, length)) for begin in range(0, length, longest)]
        self.is_one_tile = len(self.tiles) == 1
        self.may_ask = document.is_cpu  # what numbers are like; a GPU would be stopped for it
        self._hidden = self._bias = None
        self._is_finite = False  # then hidden words need not become 0
        self.count = length  # words of a document, at least 1; of each, `(n, 1, 1)`, with a mask
        self.hidden_rows, self.hidden_columns = self.question.new_zeros(1, length, 1), self.new_columns(0.0)  # 1 there
        if document_mask is not None:
            self._hidden = ~document_mask[batch, :, None]
            self._is_finite = self.may_ask and bool(document[batch].sum(dtype=self.dtype).isfinite())
            self.count = document_mask[batch].sum(1).clamp(min=1)[:, None, None]
            self.hidden_rows = self._hidden.to(self.dtype)
        if question_mask is not None:
            hidden = ~question_mask[batch, None]
            self.question = self.question.masked_fill(hidden.mT, 0.0)
            self.hidden_columns = hidden.to(self.dtype)
            self._bias = self.new_columns(0.0).masked_fill_(hidden, NEG_INF)

    def document(self, words: Words) -> Tensor:
        """A tile of the documents, `(n, words, E)`; hidden words are finite, whatever they hold."""
        tile = self._document[self.batch, slice(*words)].to(self.dtype)
        if self._hidden is None or self._is_finite:
            return tile
        return tile.masked_fill(self._hidden[:, slice(*words)], 0.0)

    def top(self) -> Tensor:
        """About as high as scores reach, `(n, 1, 1)`: the largest of the first word seen."""
        words = self._document[self.batch]
        first = words[:, :1] if self._hidden is None else words.take_along_dim(self._hidden.int().argmin(1, True), 1)
        return (first.to(self.dtype) @ self.question.mT).amax(2, keepdim=True)

    def exponentials(self, words: Words, top: Tensor | None) -> Tensor:
        """`exp(scores - top)`, `(n, words, Lq)`, 0 for hidden words; those kept if `top` is None. Never changed."""
        masses = self.tile(0, words) if self.kept is None else self.kept[:, slice(*words)]
        if top is None:
            return masses
        bias = top * -LOG2E if self._bias is None else top * -LOG2E + self._bias
        torch.bmm(self.document(words), self.question.mT, out=masses)
        torch.add(bias, masses, alpha=LOG2E, out=masses).exp2_()
        return masses if self._hidden is None else masses.masked_fill_(self._hidden[:, slice(*words)], 0.0)

    def scores(self, words: Words) -> Tensor:
        """`(n, words, Lq)`, in memory of its own; -inf at hidden words."""
        document, question, scores = self.document(words), self.question.mT, self.tile(0, words)
        if self._bias is None:
            torch.bmm(document, question, out=scores)
        else:  # the product adds the bias at no cost
            torch.baddbmm(self._bias, document, question, out=scores)
        if self._hidden is not None:
            scores.masked_fill_(self._hidden[:, slice(*words)], NEG_INF)
        return scores.clamp_(max=torch.finfo(scores.dtype).max)

    def tile(self, number: int, words: Words) -> Tensor:
        """One of three places for a tile `(n, words, Lq)`: fresh memory costs as much as a sweep over it."""
        shape = (self.question.shape[0], words[1] - words[0], self.question.shape[1])
        return self._space(number)[: shape[0] * shape[1] * shape[2]].view(shape)

    def new_columns(self, value: float) -> Tensor:
        """`(n, 1, Lq)`."""
        count, length, _ = self.question.shape
        return self.question.new_full((count, 1, length), value)

    def take(self, tensor: Tensor, words: Words = (0, None)) -> Tensor:
        """The pair's part of `(B, L)`, `(n, words, 1)`."""
        return tensor[self.batch, slice(*words), None].to(self.dtype)

    def put(self, tensor: Tensor, part: Tensor, words: Words = (0, None)) -> None:
        """Writes the pair's part of `(B, L, ...)`."""
        place = tensor[self.batch, slice(*words)]
        place.copy_(part.view(place.shape))

    def put_product(self, tensor: Tensor, left: Tensor, right: Tensor, words: Words) -> None:
        """Writes `left @ right`, without a copy where the dtypes agree."""
        place = tensor[self.batch, slice(*words)]
        if place.dtype == left.dtype:
            torch.bmm(left, right, out=place)
        else:
            place.copy_(left @ right)


def tile(length: int, width: int, dtype: torch.dtype, device: str) -> tuple[int, int]:
    """Words of a document, and documents, of one tile against questions of `width`: it stays in a core's cache."""
    scores = TILE_BYTES.get(device, TILE_BYTES_ELSEWHERE) // torch.promote_types(dtype, torch.float32).itemsize
    words = min(max(FEWEST_WORDS, scores // width), length)
    return words, max(1, scores // (width * words))


def _pairs(document: Tensor, question: Tensor, *rest: Tensor | None) -> Iterator[_Pair]:
    """The whole batch, as many at a time as fit a tile; `rest` are both masks and what is kept."""
    batch, length, _ = document.shape
    width = question.shape[1]
    longest, together = tile(length, width, document.dtype, document.device.type)
    together = max(1, min(together, batch))
    dtype = torch.promote_types(document.dtype, torch.float32)
    space = cache(lambda number: question.new_empty(together * longest * width, dtype=dtype))
    for begin in range(0, batch, together):
        yield _Pair(slice(begin, min(begin + together, batch)), longest, space, document, question, *rest)


def _exponential(scores: Tensor, lse: Tensor, out: Tensor) -> Tensor:
    # no weight exceeds 1, however the rounding of a huge score falls
    return exp_(torch.sub(scores, lse, out=out).clamp_(max=0))


def _lse(top: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, top + _nonzero(total).log(), 0.0)


def _nonzero(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, 1.0)
