"""Writing sentences word by word, by any model that says what comes next.

Such a model is a function and a state: `step(word, state) -> (logits, state)` takes the words `(B,)` written last and
gives the scores `(B, words)` of the next ones, and the state after them. A state is made of tuples, of tensors that
lead with the batch, and of anything that is the same for all sentences, as the int of how many words were written.

    state = model.encode(source, max_length)
    words = greedy(model.step, state, source.new_full((len(source),), BEGIN), END, max_length)
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")
Step = Callable[[Tensor, State], tuple[Tensor, State]]


@torch.no_grad()
def greedy(step: Step, state: State, first: Tensor, end: int, max_length: int) -> Tensor:
    """The best next word, again and again.

    Args:
        step, state: the model and what it knows; see the module.
        first: ids `(B,)` of the words that sentences begin with, which are not in the result.
        end: id of the word that ends a sentence.
        max_length: words that a sentence has at most, with `end`.

    Returns:
        Ids `(B, T)`, of as many words as the longest sentence has, `end` included and repeated where one is shorter.
    """
    _check(first, max_length)
    word, ended, words = first, torch.zeros_like(first, dtype=torch.bool), []
    while len(words) < max_length and not ended.all():
        logits, state = step(word, state)
        word = logits.argmax(-1).masked_fill(ended, end)
        ended = ended | (word == end)
        words.append(word)
    return torch.stack(words, 1)


@torch.no_grad()
def beam_search(
    step: Step, state: State, first: Tensor, end: int, max_length: int, beam: int = 4, length_penalty: float = 0.6
) -> tuple[Tensor, Tensor]:
    """The sentences of the highest score found while `beam` unfinished ones are kept at a time.

    A score is the log-probability over `((5 + words) / 6) ** length_penalty` (Wu et al. 2016, arXiv 1609.08144), words
    counted with `end`. The search ends when no unfinished sentence can come to a higher score than the finished ones.

    Args:
        beam: sentences kept, and found.
        length_penalty: alpha, 0 for log-probabilities as they are.
        Others as `greedy`'s.

    Returns:
        Ids `(B, beam, T)`, best first, ended as `greedy`'s, and scores `(B, beam)`. Sentences cut off at `max_length`
        take part; a score of -inf says that there were no more sentences.
    """
    _check(first, max_length)
    if beam < 1:
        raise ValueError(f"beam must be at least 1, got {beam}")
    if length_penalty < 0:
        raise ValueError(f"length_penalty must not be negative, got {length_penalty}")
    batch, device = len(first), first.device
    sentence = torch.arange(batch, device=device).unsqueeze(1)
    state, word = pick(state, sentence.expand(-1, beam).flatten()), first.repeat_interleave(beam)
    words = first.new_full((batch, beam, max_length), end)  # of the unfinished
    total = torch.full((batch, beam), -torch.inf, device=device)  # their log-probabilities
    total[:, 0] = 0  # all beams begin alike: one of them counts
    found, scores = words.clone(), torch.full_like(total, -torch.inf)

    def penalty(length: int) -> float:
        return ((5 + length) / 6) ** length_penalty

    for written in range(max_length):
        logits, state = step(word, state)
        size = logits.shape[-1]
        candidates = total.unsqueeze(-1) + logits.float().log_softmax(-1).view(batch, beam, size)
        # each beam can end in one way only: of twice as many candidates, enough go on
        best, index = candidates.flatten(1).topk(min(2 * beam, beam * size))
        origin, chosen = index // size, index % size
        grown = words[sentence, origin]
        grown[:, :, written] = chosen

        ends = (chosen == end) | (written + 1 == max_length)
        finished = torch.where(ends, best / penalty(written + 1), -torch.inf)
        scores, kept = torch.cat([scores, finished], 1).topk(beam)
        found = torch.cat([found, grown], 1)[sentence, kept]

        total, kept = best.masked_fill(ends, -torch.inf).topk(beam)
        if (scores[:, -1] >= total[:, 0] / penalty(max_length)).all():
            break
        words, origin, word = grown[sentence, kept], origin.gather(1, kept), chosen.gather(1, kept).flatten()
        state = pick(state, (sentence * beam + origin).flatten())
    return found[:, :, : written + 1], scores


def pick(state: Any, rows: Tensor) -> Any:
    """A state of these of its sentences, `(rows,)`, in this order."""
    if isinstance(state, Tensor):
        return state[rows]
    if isinstance(state, tuple):
        parts = [pick(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _check(first: Tensor, max_length: int) -> None:
    if first.dim() != 1 or not len(first):
        raise ValueError(f"first must hold one word id for each sentence, (batch,), got {tuple(first.shape)}")
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
