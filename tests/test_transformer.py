"""The Transformer beside torch's own layers, and its cache beside the whole sentence at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnkern.nn import Global, Hard, LearnedPosition, Local, Transformer, greedy, hard_attentions, warm_up

WORDS, DIM, HEADS, LAYERS = 11, 16, 2, 2
END = 2
LENGTHS = (7, 1, 4)
KINDS = {
    "global": Global(),
    "local-m": Local(2),
    "local-p": Local(2, center="predicted"),
    "renormalised": Local(3, sigma=2.0, renormalize=True),
    "hard": Hard(),
    "hard window": Hard(straight_through=True, window=(2, 2)),
}


def new_model(kind=KINDS["global"], layers=LAYERS, **options) -> Transformer:
    torch.manual_seed(0)
    kinds = dict.fromkeys(("encoder_attention", "decoder_attention", "cross_attention"), kind)
    model = Transformer(WORDS, DIM, HEADS, layers, 2 * DIM, 0.1, **kinds, **options)
    return model.double().eval()


def sentences(lengths=LENGTHS, most=None) -> torch.Tensor:
    """Ids `(B, most)`, padded with 0."""
    torch.manual_seed(1)
    words = torch.randint(3, WORDS, (len(lengths), most or max(lengths)))
    return words.masked_fill(torch.arange(words.shape[1]) >= torch.tensor(lengths)[:, None], 0)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_equals_torchs_layers(pre_norm):
    model = new_model(pre_norm=pre_norm)
    shape = {"dim_feedforward": 2 * DIM, "dropout": 0.0, "batch_first": True, "norm_first": pre_norm}
    source, target = sentences(), sentences((5, 5, 5))
    hidden, causal = source == 0, nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)

    def norms(prefix, layer):
        return {
            f"{prefix}{n + 1}.{name}": p for n, norm in enumerate(layer.norms) for name, p in norm.named_parameters()
        }

    def dense(layer):
        parts = {"linear1": layer.feed_forward[0], "linear2": layer.feed_forward[3]}
        return {f"{at}.{name}": p for at, part in parts.items() for name, p in part.named_parameters()}

    def renamed(attention, prefix):
        return {f"{prefix}.{name}": p for name, p in attention.state_dict().items()}

    states, written = model.embed(source), model.embed(target)
    for layer in model.encoder:
        other = nn.TransformerEncoderLayer(DIM, HEADS, **shape, dtype=torch.float64)
        other.load_state_dict(norms("norm", layer) | dense(layer) | renamed(layer.attention, "self_attn"))
        states = other(states, src_key_padding_mask=hidden)
    memory = model.encoder_norm(states)
    for layer in model.decoder:
        other = nn.TransformerDecoderLayer(DIM, HEADS, **shape, dtype=torch.float64)
        weights = norms("norm", layer) | dense(layer) | renamed(layer.attention, "self_attn")
        other.load_state_dict(weights | renamed(layer.cross_attention, "multihead_attn"))
        written = other(written, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=hidden)
    expected = model.decoder_norm(written) @ model.embedding.weight.T
    torch.testing.assert_close(model(source, target), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_change_nothing(kind):
    """Each sentence alone and unpadded gives what it gives among others."""
    model, source, target = new_model(KINDS[kind]), sentences(most=9), sentences((6, 6, 6))
    together = model(source, target)
    for n, length in enumerate(LENGTHS):
        alone = model(source[n : n + 1, :length], target[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_whole_sentence(kind):
    """Word by word with a cache, also of sentences that stand at different words."""
    model, source, target = new_model(KINDS[kind]), sentences(), sentences((6, 6, 6))
    whole = model(source, target)
    state = model.encode(source, 8)
    state.cache.fill_(torch.nan)  # what is not written yet is not looked at
    logits = []
    for n in range(6):
        scores, state = model.step(target[:, n], state)
        logits.append(scores)
    torch.testing.assert_close(torch.stack(logits, 1), whole, rtol=0, atol=1e-12)
    back = torch.tensor([2, 0, 4])
    scores, _ = model.step(target[torch.arange(3), back], state._replace(position=back))
    torch.testing.assert_close(scores, whole[torch.arange(3), back], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind):
    """Dropout on; every attention sends a gradient back, and the padding's embedding gets none from being read."""
    model = new_model(KINDS[kind]).train()
    source, target = sentences(), sentences((6, 6, 6))
    loss = F.cross_entropy(model(source, target[:, :-1]).transpose(1, 2), target[:, 1:], label_smoothing=0.1)
    if isinstance(KINDS[kind], Hard):
        hards = hard_attentions(model)
        assert len(hards) == 3 * LAYERS
        loss = loss + sum(hard.score.mean() for hard in hards)
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.any() or name.endswith("in_proj_bias"), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_precisions(kind, dtype):
    model, source, target = new_model(KINDS[kind]).to(dtype), sentences(), sentences((6, 6, 6))
    logits = model(source, target)
    assert logits.dtype == dtype and logits.isfinite().all()
    scores, _ = model.step(target[:, 0], model.encode(source, 4))
    torch.testing.assert_close(scores, logits[:, 0], rtol=0, atol=1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("kind", ["global", "local-p", "hard"])
def test_one_graph(kind):
    model, source, target = new_model(KINDS[kind], layers=1), sentences(), sentences((6, 6, 6))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(source, target), model(source, target), rtol=0, atol=1e-12)
    step = torch.compile(model.step, fullgraph=True, backend="aot_eager")
    expected, state = model.encode(source, 4), model.encode(source, 4)
    for n in range(2):
        want, expected = model.step(target[:, n], expected)
        got, state = step(target[:, n], state)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_learned_positions_and_bad_input():
    model = new_model(position=LearnedPosition(6, DIM))
    source, target = sentences((5, 3)), sentences((6, 6))
    state = model.encode(source, 6)
    for n in range(6):
        scores, state = model.step(target[:, n], state)
    torch.testing.assert_close(scores, model(source, target)[:, -1], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"source must be word ids \(batch, words\), at least one, got \(3,\)"):
        model(source[0, :3], target)
    with pytest.raises(ValueError, match="positions below 6, got 0 to 6"):
        model(sentences((7,)), target[:1])


def test_warm_up_is_the_papers():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=(512 * 4000) ** -0.5)
    schedule = warm_up(optimizer, 4000)
    for step in (0, 1, 3999, 4000, 100_000):
        want = 512**-0.5 * min((step + 1) ** -0.5, (step + 1) * 4000**-1.5)
        assert optimizer.defaults["lr"] * schedule.lr_lambdas[0](step) == pytest.approx(want)


def test_learns_to_reverse():
    """Sentences of up to 5 words, backwards: 95% whole sentences right."""
    torch.manual_seed(0)
    model = Transformer(12, 32, 4, 1, 64, 0.0, pre_norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = warm_up(optimizer, 50)

    def batch(count):
        length = torch.randint(1, 6, (count, 1))
        source = torch.randint(3, 12, (count, 5))
        place = torch.arange(7)
        back = source.gather(1, (length - place).clamp(0, 4)).masked_fill(place > length, 0)
        target = back.scatter(1, length + 1, END)
        target[:, 0] = 1
        return source.masked_fill(place[:5] >= length, 0), target

    for _ in range(500):
        source, target = batch(64)
        loss = F.cross_entropy(model(source, target[:, :-1]).transpose(1, 2), target[:, 1:], ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    source, target = batch(200)
    words = greedy(model.step, model.encode(source, 6), torch.ones(200, dtype=torch.long), END, 6)
    want = target[:, 1 : 1 + words.shape[1]]
    right = ((words == want) | (want == 0)).all(1).float().mean()
    assert right >= 0.95
