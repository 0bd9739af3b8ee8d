"""Greedy and beam search beside every sentence there is, on models whose scores can be written down."""

import itertools

import pytest
import torch

from attnkern.nn import Transformer, beam_search, greedy

WORDS, BEGIN, END = 4, 0, 3


def table_model(seed: int, batch: int):
    """Logits that depend on the sentence, the word before, and how many were written; the state holds what it saw."""
    generator = torch.Generator().manual_seed(seed)
    table = 2 * torch.randn(batch, 6, WORDS, WORDS, generator=generator, dtype=torch.float64)

    def step(word, state):
        which, written = state
        return table[which, written, word], (which, written + 1)

    return table, step, (torch.arange(batch), 0)


def all_sentences(table, most):
    """Every sentence of one row and its log-probability."""
    for length in range(1, most + 1):
        for words in itertools.product(range(WORDS), repeat=length):
            if END in words[:-1] or (words[-1] != END and length < most):
                continue
            before = (BEGIN, *words[:-1])
            yield words, sum(table[n, b].log_softmax(-1)[w].item() for n, (b, w) in enumerate(zip(before, words)))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best(seed, alpha):
    most, batch, beam = 4, 3, 64
    table, step, state = table_model(seed, batch)
    words, scores = beam_search(step, state, torch.zeros(batch, dtype=torch.long), END, most, beam, alpha)
    for row in range(batch):
        every = [(p / ((5 + len(w)) / 6) ** alpha, w) for w, p in all_sentences(table[row], most)]
        every.sort(reverse=True)
        for (score, sentence), found, got in zip(every[:10], words[row], scores[row]):
            assert got.item() == pytest.approx(score, abs=1e-4)
            assert tuple(found[: len(sentence)].tolist()) == sentence and (found[len(sentence) :] == END).all()


def test_greedy_and_one_beam():
    """Greedy takes the best word each time; a single beam also keeps what ends on its way, so it finds no worse."""
    table, step, state = table_model(5, 8)
    first = torch.zeros(8, dtype=torch.long)
    found = greedy(step, state, first, END, 5)
    _, scores = beam_search(step, state, first, END, 5, beam=1, length_penalty=0.0)
    for row in range(8):
        word, sentence, score = BEGIN, [], 0.0
        while len(sentence) < 5 and word != END:
            best, word = table[row, len(sentence), word].log_softmax(-1).max(-1)
            word = word.item()
            sentence.append(word)
            score += best.item()
        assert found[row, : len(sentence)].tolist() == sentence and (found[row, len(sentence) :] == END).all()
        assert scores[row, 0] >= score - 1e-4


def test_a_batch_is_its_sentences():
    """The Transformer's cached search, of sources of any lengths, finds what it finds for each alone."""
    torch.manual_seed(3)
    model = Transformer(9, 16, 2, 1, 32, 0.0).double().eval()
    lengths = (6, 1, 3)
    source = torch.randint(3, 9, (3, 6)).masked_fill(torch.arange(6) >= torch.tensor(lengths)[:, None], 0)
    first = torch.ones(3, dtype=torch.long)
    words = greedy(model.step, model.encode(source, 12), first, 2, 12)
    found, scores = beam_search(model.step, model.encode(source, 12), first, 2, 12, beam=3)
    for row, length in enumerate(lengths):
        alone = source[row : row + 1, :length]
        written = first[:1, None]
        for _ in range(words.shape[1]):  # without a cache, everything anew for each word
            written = torch.cat([written, model(alone, written)[:, -1].argmax(-1, keepdim=True)], 1)
        sentence = written[0, 1:].tolist()
        sentence = sentence[: sentence.index(2) + 1] if 2 in sentence else sentence
        assert words[row, : len(sentence)].tolist() == sentence and (words[row, len(sentence) :] == 2).all()
        other, score = beam_search(model.step, model.encode(alone, 12), first[:1], 2, 12, beam=3)
        torch.testing.assert_close(score[0], scores[row])
        assert torch.equal(other[0], found[row, :, : other.shape[2]])
        assert (found[row, :, other.shape[2] :] == 2).all()


def test_bad_input():
    _, step, state = table_model(0, 2)
    first = torch.zeros(2, dtype=torch.long)
    for name, options in (("beam", {"beam": 0}), ("length_penalty", {"length_penalty": -1.0})):
        with pytest.raises(ValueError, match=name):
            beam_search(step, state, first, END, 4, **options)
    for search in (greedy, beam_search):
        with pytest.raises(ValueError, match=r"first must hold .* got \(2, 1\)"):
            search(step, state, first[:, None], END, 4)
        with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
            search(step, state, first, END, 0)
