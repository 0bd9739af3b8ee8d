"""Greedy and beam search against recomputing everything, and against trying every sentence."""

import itertools

import pytest
import torch

from attnkern.nn import LuongSeq2Seq, Transformer, beam_search, greedy

END, WORDS = 2, 4


def transformer():
    torch.manual_seed(10)  # its sentences end at places of their own
    model = Transformer(WORDS, 8, 2, 1, 16, 0.0, pre_norm=True).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.7)
    return model


def sources():
    torch.manual_seed(1)
    source = torch.randint(1, WORDS, (5, 6))
    for row, length in enumerate((6, 1, 3, 5, 2)):
        source[row, length:] = 0
    return source


def luong():
    torch.manual_seed(5)
    model = LuongSeq2Seq(WORDS, WORDS, 8).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return model


def begun(model, source, most):
    """How the model goes on, and from where."""
    if isinstance(model, Transformer):
        return model.step, model.encode(source, most)
    return model.decoder.step, model.encode(source)


def log_probability(model, source, words):
    """Of a sentence `(T,)` after the word 1, by one pass over all of it."""
    before = torch.tensor([[1, *words[:-1]]])
    return model(source[None], before)[0].log_softmax(-1).gather(1, torch.tensor(words)[:, None]).sum().item()


@pytest.mark.parametrize("make", (transformer, luong))
def test_greedy_is_what_recomputing_finds(make):
    model, source, most = make(), sources(), 12
    first = torch.ones(5, dtype=torch.int64)
    found = greedy(*begun(model, source, most), first, END, most)
    lengths = []
    for row, sentence in enumerate(source):
        words = [1]
        while len(words) <= most and (len(words) == 1 or words[-1] != END):
            words.append(model(sentence[None], torch.tensor([words]))[0, -1].argmax().item())
        words = words[1:]
        assert found[row].tolist() == words + [END] * (found.shape[1] - len(words))
        lengths.append(len(words))
    assert found.shape[1] == max(lengths) and min(lengths) < max(lengths)
    beams, _ = beam_search(*begun(model, source, most), first, END, most, beam=1, length_penalty=0)
    log_probabilities = [
        [log_probability(model, source[row], ended(words[row].tolist())) for row in range(5)]
        for words in (found, beams[:, 0])
    ]
    assert all(best >= one - 1e-9 for one, best in zip(*log_probabilities))


def ended(words):
    return words[: words.index(END) + 1] if END in words else words


@pytest.mark.parametrize("make", (transformer, luong))
@pytest.mark.parametrize("length_penalty", (0.0, 0.6, 2.0))
def test_a_wide_beam_finds_the_best_of_all_sentences(make, length_penalty):
    model, source, most = make(), sources(), 3
    first = torch.ones(5, dtype=torch.int64)
    found, scores = beam_search(*begun(model, source, most), first, END, most, 40, length_penalty)
    every = {tuple(ended(words)) for words in map(list, itertools.product(range(WORDS), repeat=most))}
    for row in range(5):
        score = {w: log_probability(model, source[row], list(w)) / ((5 + len(w)) / 6) ** length_penalty for w in every}
        wanted = sorted(every, key=score.get, reverse=True)
        assert [tuple(ended(words)) for words in found[row].tolist()][: len(wanted)] == wanted
        torch.testing.assert_close(
            scores[row, : len(wanted)].tolist(), [score[w] for w in wanted], rtol=1e-5, atol=1e-5
        )
        assert scores[row, len(wanted) :].eq(-torch.inf).all()


def test_a_narrow_beam_stops_early():
    calls = []

    def step(word, state):
        """The end is all but certain from the second word on."""
        calls.append(len(word))
        logits = torch.zeros(len(word), WORDS)
        logits[:, END if len(calls) > 1 else 3] = 20.0
        return logits, state

    found, scores = beam_search(step, (), torch.ones(2, dtype=torch.int64), END, 50, 3, 0.0)
    assert found[:, 0, :2].tolist() == [[3, END]] * 2 and calls == [6] * len(calls) and len(calls) < 6
    assert (scores.diff(dim=1) <= 0).all() and found.shape[2] == len(calls)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": torch.ones(2, 1)}, r"first must hold one word id for each sentence, \(batch,\), got \(2, 1\)"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"length_penalty": -1}, "length_penalty must not be negative, got -1"),
    ],
)
def test_bad_input(change, message):
    given = {"first": torch.ones(2).long(), "end": END, "max_length": 3} | change
    with pytest.raises(ValueError, match=message):
        beam_search(None, None, **given)
