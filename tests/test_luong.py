"""Luong's seq2seq: the paper's formulas word by word in float64, ragged sources, and tasks learned in seconds."""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from attnkern import global_attention
from attnkern.estimators import MovingAverageBaseline, reinforce_loss
from attnkern.nn import Global, Hard, Local, LuongSeq2Seq, hard_attentions

SCORES = ["dot", "general", "concat", "location"]
KINDS = {"global": Global(), "local-m": Local((2, 1)), "local-p": Local(4, center="predicted"), "hard": Hard()}
LENGTHS, WRITTEN, HIDDEN, WORDS = [7, 1, 4], 5, 6, 11


def model_of(score="general", kind="global", **options) -> LuongSeq2Seq:
    torch.manual_seed(0)
    options = {"max_source": 9, "num_layers": 2, **options}
    return LuongSeq2Seq(WORDS, WORDS, HIDDEN, score=score, attention=KINDS[kind], **options).double()


def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randint(1, WORDS, (len(LENGTHS), max(LENGTHS)))
    for row, length in zip(source, LENGTHS):
        row[length:] = 0
    return source, torch.randint(1, WORDS, (len(LENGTHS), WRITTEN))


def lstm(cells, width) -> torch.nn.LSTM:
    """torch's, with the weights of a stack of cells; gradients flow to the cells."""
    theirs = torch.nn.LSTM(width, HIDDEN, len(cells)).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = {f"{name}_l{n}": getattr(cell, name) for n, cell in enumerate(cells) for name in names}
    return lambda input, state: torch.func.functional_call(theirs, weights, (input, state))


def naive(model, source, target, kind):
    """One sentence, `(S,)` without padding and `(T,)`: logits and weights as the paper writes them."""
    decoder, attend, size = model.decoder, model.decoder.attend, len(source)
    zero = torch.zeros(2, HIDDEN, dtype=torch.float64)
    memory, state = lstm(model.encoder, HIDDEN)(model.embedding(source), (zero, zero))
    recur, fed, logits, aligned = lstm(decoder.cells, decoder.cells[0].input_size), zero[:1], [], []
    for place, word in enumerate(target):
        input = decoder.embedding(word)[None]
        (h,), state = recur(torch.cat([input, fed], 1) if decoder.input_feeding else input, state)
        if attend.score == "dot":
            scores = [h @ e for e in memory]
        elif attend.score == "general":
            scores = [h @ attend.query.weight.T @ e for e in memory]
        elif attend.score == "concat":
            W = torch.cat([attend.query.weight, attend.key.weight], 1)
            scores = [attend.v.weight[0] @ torch.tanh(W @ torch.cat([h, e])) for e in memory]
        else:
            scores = list((attend.query.weight @ h)[:size])
        scores, at = torch.stack(scores), torch.arange(size)
        if kind == "local-m":
            scores = scores.masked_fill((at < place - 2) | (at > place + 1), -torch.inf)
        if kind == "local-p":
            center = size * torch.sigmoid(attend.center.score[0] @ torch.tanh(attend.center.proj.weight @ h))
            middle = center.floor()
            scores = scores.masked_fill((at < middle - 4) | (at > middle + 4), -torch.inf)
        weights = scores.softmax(0).nan_to_num()  # nothing to look at: 0
        if kind == "local-p":
            weights = weights * torch.exp(-((at - center) ** 2) / (2 * 2**2))
        if kind == "hard":
            weights = F.one_hot(weights.argmax(), size).double()
        fed = torch.tanh(attend.combine.weight @ torch.cat([weights @ memory, h]))[None]
        logits.append(decoder.output(fed[0]))
        aligned.append(weights)
    return torch.stack(logits), torch.stack(aligned)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas_and_their_gradients(score, kind):
    model = model_of(score, kind, input_feeding=score != "general").eval()
    source, target = sentences()
    logits, weights = model(source, target), model.align(source, target)
    naives = [naive(model, row[:length], words, kind) for row, length, words in zip(source, LENGTHS, target)]
    torch.testing.assert_close(logits, torch.stack([each for each, _ in naives]))
    for row, length, (_, expected) in zip(weights, LENGTHS, naives):
        torch.testing.assert_close(row[:, :length], expected.nan_to_num())
        assert not row[:, length:].any()

    upstream = torch.randn_like(logits)
    loss, expected = (logits * upstream).sum(), sum((a * b).sum() for (a, _), b in zip(naives, upstream))
    wanted = [(name, p) for name, p in model.named_parameters()]
    ours = torch.autograd.grad(loss, [p for _, p in wanted], allow_unused=True)
    theirs = torch.autograd.grad(expected, [p for _, p in wanted], allow_unused=True)
    for (name, _), a, b in zip(wanted, ours, theirs):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        assert (a - b).abs().max() < 1e-11, name


@pytest.mark.parametrize("feeding", [True, False])
def test_word_by_word_and_a_longer_batch_change_nothing(feeding):
    model = model_of(kind="local-p", input_feeding=feeding)
    source, target = sentences()
    expected = model(source, target)
    state, parts = model.encode(source), []
    for word in target.split(1, 1):
        logits, state, _ = model.decoder(word, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    torch.testing.assert_close(model(F.pad(source, (0, 2)), target), expected)
    with torch.no_grad():
        model.embedding.weight[0] = torch.nan  # padding is never read
    torch.testing.assert_close(model(source, target), expected)


def test_without_input_feeding_the_core_is_called_once():
    for feeding, expected in ((True, WRITTEN), (False, 1)):
        with mock.patch("attnkern.nn.luong.global_attention", wraps=global_attention) as core:
            model_of(input_feeding=feeding)(*sentences())
        assert core.call_count == expected


def test_a_step_compiles_once_for_every_position():
    model = model_of("location", "local-m", num_layers=1)
    source, target = sentences()
    compiled = torch.compile(model.decoder, fullgraph=True, backend="eager")
    state = expected = model.encode(source)
    for place, word in enumerate(target.split(1, 1)):
        with torch.compiler.set_stance("fail_on_recompile" if place > 2 else "default"):
            logits, state, _ = compiled(word, state)
        wanted, expected, _ = model.decoder(word, expected)
        torch.testing.assert_close(logits, wanted)


def test_it_compiles_whole():
    model = model_of("concat", "local-p", num_layers=1)
    source, target = (words[:, :3] for words in sentences())
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(source, target), model(source, target))


def learn(model, steps, reverse, loss_of=None):
    """Trains on sentences of 1 to 6 words; returns the share of words right on new ones."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def batch(count):
        lengths = torch.randint(1, 7, (count,))
        source = torch.randint(1, WORDS, (count, 6)) * (torch.arange(6) < lengths[:, None])
        target = source
        if reverse:
            target = source.gather(1, (lengths[:, None] - 1 - torch.arange(6)).clamp(min=0))
            target = target * (source != 0)
        return source, F.pad(target, (1, 0)), target

    for _ in range(steps):
        source, before, target = batch(64)
        optimizer.zero_grad()
        losses = F.cross_entropy(model(source, before[:, :-1]).transpose(1, 2), target, reduction="none")
        (losses.mean() if loss_of is None else loss_of(losses)).backward()
        optimizer.step()
    source, before, target = batch(500)
    right = model.eval()(source, before[:, :-1]).argmax(-1) == target
    return right[target != 0].double().mean().item()


@pytest.mark.parametrize("options", [{"score": "dot"}, {"score": "location", "attention": Local(2), "max_source": 6}])
def test_it_learns(options):
    torch.manual_seed(0)
    reverse = "attention" not in options
    assert learn(LuongSeq2Seq(WORDS, WORDS, 48, **options), 150, reverse) > 0.97


def test_hard_attention_learns_through_the_draws_of_every_word():
    torch.manual_seed(0)
    model, baseline = LuongSeq2Seq(WORDS, WORDS, 48, attention=Hard(soft_mixture=0.5)), MovingAverageBaseline()

    def loss_of(losses):
        reward = -losses[:, None]  # of each word: (B, 1, T), as the scores are
        (hard,) = hard_attentions(model)
        assert hard.score.shape == reward.shape
        return losses.mean() + reinforce_loss(hard, reward, baseline, entropy_weight=0.002)

    assert learn(model, 150, True, loss_of) > 0.8
    copy.deepcopy(model)  # without the graph of its last draws


@pytest.mark.parametrize(
    "options, message",
    [
        ({"score": "cosine"}, "score must be one of dot, general, concat, location, got 'cosine'"),
        ({"score": "location"}, "max_source must be given for the location score, got None"),
        ({"source": (2, 0)}, r"source must be word ids .* got \(2, 0\)"),
        ({"score": "location", "max_source": 3, "source": (2, 4)}, "source must have at most 3 words, got 4"),
    ],
)
def test_bad_input(options, message):
    shape = options.pop("source", (2, 3))
    with pytest.raises(ValueError, match=message):
        LuongSeq2Seq(WORDS, WORDS, HIDDEN, **options)(torch.ones(shape, dtype=torch.int64), torch.ones(2, 1).long())
