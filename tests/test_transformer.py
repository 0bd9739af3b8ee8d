"""The Transformer: torch's own on the same weights, one word at a time, padding, compiled, and what it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.nn import Global, Hard, LearnedPosition, Local, Transformer, greedy, hard_attentions, warm_up

LENGTHS = (9, 1, 4, 6)
KINDS = {
    "global": (Global(), Global(), Global()),
    "local": (Local(2), Local((3, 0)), Local(3, center="predicted")),
    "centers": (Local(2, center="predicted"), Local(3, center="predicted"), Local(4)),
    "hard": (Hard(), Hard(straight_through=True), Hard(window=4, num_samples=2)),
}


def build(kind: str = "global", pre_norm: bool = False, **options) -> Transformer:
    torch.manual_seed(0)
    names = ("encoder_attention", "decoder_attention", "cross_attention")
    return Transformer(20, 16, 2, 2, 32, 0.0, pre_norm=pre_norm, **dict(zip(names, KINDS[kind])), **options)


def sentences() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    source, target = torch.randint(1, 20, (4, 9)), torch.randint(1, 20, (4, 7))
    for row, length in enumerate(LENGTHS):
        source[row, length:] = 0
    return source, target


@pytest.mark.parametrize("position", (None, "relative"))
@pytest.mark.parametrize("pre_norm", (False, True))
def test_the_same_as_torchs(pre_norm, position):
    ours, (source, target) = build(pre_norm=pre_norm, position=position).double(), sentences()
    theirs = nn.Transformer(16, 2, 2, 2, 32, 0.0, batch_first=True, norm_first=pre_norm).double()
    names = {"cross_attention": "multihead_attn", "attention": "self_attn", "feed_forward.0": "linear1"}
    names |= {"feed_forward.3": "linear2", "norms.0": "norm1", "norms.1": "norm2", "norms.2": "norm3"}
    state = {}
    for name, tensor in ours.state_dict().items():
        side, _, rest = name.partition(".")
        if side in ("encoder", "decoder"):
            number, rest = rest.split(".", 1)
            old = next(old for old in names if rest.startswith(old + "."))
            state[f"{side}.layers.{number}.{names[old]}{rest.removeprefix(old)}"] = tensor
        elif side.endswith("_norm"):
            state[f"{side[:7]}.norm.{rest}"] = tensor
    if not pre_norm:
        theirs.encoder.norm = theirs.decoder.norm = None
    theirs.load_state_dict(state)
    padding = source == 0
    causal = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    masks = {"src_mask": None, "tgt_mask": causal}
    if position == "relative":
        for bias in (ours.encoder_bias, ours.decoder_bias):
            nn.init.normal_(bias.table)
        masks = {"src_mask": ours.encoder_bias(9, 9), "tgt_mask": causal + ours.decoder_bias(7, 7)}
        masks = {name: mask.expand(4, -1, -1, -1).flatten(0, 1) for name, mask in masks.items()}
        padding = torch.zeros(padding.shape, dtype=torch.float64).masked_fill(padding, float("-inf"))
    states = theirs(
        ours.embed(source), ours.embed(target), src_key_padding_mask=padding, memory_key_padding_mask=padding, **masks
    )
    torch.testing.assert_close(ours(source, target), states @ ours.embedding.weight.T)


@pytest.mark.parametrize("kind", (*KINDS, "relative"))
def test_word_by_word(kind):
    """A step says what the whole sentence says, in a batch of any lengths as alone, whatever padding is embedded as."""
    model, (source, target) = build("local", position="relative"), sentences()
    if kind == "relative":
        nn.init.normal_(model.decoder_bias.table)
    else:
        model = build(kind, position=LearnedPosition(9, 16))
    model.double().eval()
    whole = model(source, target)
    with torch.no_grad():
        model.embedding.weight[0] = 1e3
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(model(source[row : row + 1, :length], target[row : row + 1])[0], whole[row])
    state = model.encode(source, 7)
    state.cache.fill_(1e3)  # what nobody wrote is not looked at
    for word, logits in zip(target.unbind(1), whole.unbind(1)):
        found, state = model.step(word, state)
        torch.testing.assert_close(found, logits)
    assert state.position.tolist() == [7] * 4


def test_sentences_at_positions_of_their_own():
    model, (source, target) = build("local").double().eval(), sentences()
    whole, state = model(source, target), model.encode(source, 8)
    for moved in range(5):  # the last two sentences wait at first
        word = target[torch.arange(4), state.position]
        found, after = model.step(word, state)
        torch.testing.assert_close(found, whole[torch.arange(4), state.position])
        state = after._replace(position=after.position - torch.tensor([0, 0, moved < 2, moved < 2]).long())
    assert state.position.tolist() == [5, 5, 3, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    model, (source, target) = build(kind), sentences()
    loss = model(source, target).log_softmax(-1)[..., 3].mean()
    if kind == "hard":
        results = hard_attentions(model)
        assert len(results) == 6
        loss = loss + sum(result.log_prob.mean() for result in results)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "bias" not in name)
    weights = model.align(source, target)
    assert weights.shape == (4, 2, 2, 7, 9) and not weights[1, ..., 1:].any()
    if kind == "global":
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2, 2, 7))


@pytest.mark.parametrize("kind", ("global", "local", "hard", "relative"))
def test_compiled_whole(kind):
    model, (source, target) = build("global", position="relative") if kind == "relative" else build(kind), sentences()
    torch.manual_seed(0)
    expected = model(source, target)
    torch.manual_seed(0)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(source, target), expected)
    model.eval()
    whole, state = model(source, target), model.encode(source, 7)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = torch.compile(model.step, fullgraph=True, backend=graphs)
    for word, logits in zip(target.unbind(1), whole.unbind(1)):
        found, state = step(word, state)
        torch.testing.assert_close(found, logits)
    assert graphs.frame_count == 1


def test_bfloat16():
    model, (source, target) = build(), sentences()
    exact = model(source, target)
    assert (model.bfloat16()(source, target) - exact).abs().max() < 0.1 * exact.abs().max()


def test_warm_up():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=(512 * 100) ** -0.5)
    schedule, rates = warm_up(optimizer, 100), []
    for _ in range(400):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    steps = torch.arange(1, 401, dtype=torch.float64)
    wanted = 512**-0.5 * torch.minimum(steps**-0.5, steps * 100**-1.5)  # Vaswani et al., equation 3
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), wanted)


@pytest.mark.parametrize("source", (torch.ones(3), torch.ones(2, 0)))
def test_no_source(source):
    with pytest.raises(ValueError, match=r"source must be word ids \(batch, words\)"):
        build()(source.long(), torch.ones(2, 3).long())


def test_no_such_position():
    with pytest.raises(ValueError, match='position must be "relative"'):
        build(position="absolute")


def test_it_learns_to_copy():
    torch.manual_seed(0)
    model = Transformer(16, 64, 4, 1, 128, 0.0, pre_norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = warm_up(optimizer, 50)

    def batch(count):
        words = torch.randint(3, 16, (count, 10))
        return words, F.pad(F.pad(words, (1, 0), value=1), (0, 1), value=2)

    for _ in range(300):
        source, target = batch(32)
        loss = F.cross_entropy(model(source, target[:, :-1]).transpose(1, 2), target[:, 1:], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    source, target = batch(100)
    written = greedy(model.step, model.encode(source, 11), target[:, 0], 2, 11)
    assert written.shape[1] == 11 and (written == target[:, 1:]).all(1).float().mean() >= 0.95
