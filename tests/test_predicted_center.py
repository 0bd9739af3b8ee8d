"""`Local(center="predicted")`, local-p of Luong et al. 2015 in a module, against the formula written out."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnkern.nn import Global, Local, MultiheadAttention, WindowAnnealing
from attnkern.swap import restore_attention, swap_attention

EMBED, HEADS, BATCH, LEN_Q, LEN_K = 12, 3, 2, 9, 33
PREDICTED = Local(4, center="predicted")
LAYOUTS = ("sequence first", "batch first", "unbatched")
PADDING = torch.zeros(BATCH, LEN_K, dtype=torch.bool)
PADDING[0, 20:] = PADDING[1, :5] = True  # behind the sentence, and before it


def make(kind=PREDICTED, **options):
    torch.manual_seed(0)
    module = MultiheadAttention(EMBED, HEADS, dtype=torch.float64, attention=kind, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def make_inputs(layout="batch first"):
    shapes = [(LEN_Q, EMBED), (LEN_K, EMBED), (LEN_K, EMBED)]
    if layout != "unbatched":
        shapes = [(BATCH, *s) if layout == "batch first" else (s[0], BATCH, s[1]) for s in shapes]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def by_hand(module, query, key, value, padding=None, causal=False):
    """Output and weights per head, from `(N, L, E)`, with plain torch."""
    kind, width = module.attention, EMBED // HEADS
    matrices, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    projected = (F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases))
    q, k, v = (x.unflatten(-1, (HEADS, width)).transpose(1, 2) for x in projected)
    real = torch.ones(len(query), LEN_K, dtype=torch.bool) if padding is None else ~padding
    first = torch.stack([row.nonzero()[0, 0] for row in real])

    rows = module.center.proj.weight.unflatten(0, (HEADS, width))  # each head's W
    hidden = torch.tanh(torch.einsum("hde,nle->nhld", rows, query))
    share = torch.sigmoid(torch.einsum("hd,nhld->nhl", module.center.score, hidden))
    center = first[:, None, None] + real.sum(1)[:, None, None] * share

    distance = torch.arange(LEN_K) - center[..., None]
    offset = torch.arange(LEN_K) - center[..., None].floor()
    left, right = (LEN_K if side < 0 else side for side in kind.window)
    seen = (offset >= -left) & (offset <= right) & real[:, None, None]
    if causal:
        seen &= torch.ones(LEN_Q, LEN_K).tril().bool()
    scores = (q @ k.mT / width**0.5).masked_fill(~seen, float("-inf"))
    sigma = kind.sigma or max(kind.window) / 2
    if kind.renormalize:
        weights = (scores - distance**2 / (2 * sigma**2)).softmax(-1)
    else:
        weights = scores.softmax(-1).nan_to_num() * torch.exp(-(distance**2) / (2 * sigma**2))
    weights = weights.nan_to_num()
    return module.out_proj((weights @ v).transpose(1, 2).flatten(-2)), weights


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


KINDS = {
    "default": Local(center="predicted"),
    "narrow": PREDICTED,
    "wide to the left": Local((7, 1), center="predicted"),
    "own sigma": Local((0, 0), center="predicted", sigma=0.3),
    "everywhere": Local(-1, center="predicted", sigma=3),
    "renormalized": Local(4, center="predicted", renormalize=True),
}


@pytest.mark.parametrize("padding", (None, PADDING), ids=("whole", "padded"))
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_definition(kind, padding):
    module, inputs = make(kind, batch_first=True), make_inputs()
    expected, weights = by_hand(module, *inputs, padding)
    wanted = *inputs, *module.parameters()
    right = gradients(expected.sin().sum(), *wanted)
    for options in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        output, found = module(*inputs, padding, **options)
        assert_close(output, expected)
        if found is not None:
            assert_close(found, weights if found.dim() == 4 else weights.mean(1))
        for grad, true in zip(gradients(output.sin().sum(), *wanted), right):
            assert_close(grad, true)
    assert module.center.proj.weight.grad is None
    named = dict(zip(dict(module.named_parameters()), right[3:]))
    assert named["center.proj.weight"].abs().max() > 1e-3 and named["center.score"].abs().min() > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_masks(layout):
    module = make(batch_first=layout == "batch first")
    inputs = make_inputs(layout)
    padding = PADDING if layout != "unbatched" else PADDING[0]
    batched = [t.unsqueeze(0) if layout == "unbatched" else t for t in inputs]
    batched = [t.transpose(0, 1) if layout == "sequence first" else t for t in batched]
    expected, weights = by_hand(module, *batched, PADDING[: len(batched[0])], causal=True)
    if layout == "unbatched":
        expected, weights = expected[0], weights[0]
    elif layout == "sequence first":
        expected = expected.transpose(0, 1)
    causal = torch.ones(LEN_Q, LEN_K).triu(1).bool()
    for hidden in ((padding, causal), (additive(padding), additive(causal))):
        masks = dict(zip(("key_padding_mask", "attn_mask"), hidden))
        output, found = module(*inputs, **masks, average_attn_weights=False)
        assert_close(output, expected)
        assert_close(found, weights)


def additive(mask):
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, float("-inf"))


def test_a_sentence_of_padding_alone():
    module, inputs = make(batch_first=True), make_inputs()
    padding = PADDING.clone()
    padding[0] = True
    output, weights = module(*inputs, padding)
    assert_close(output[0], module.out_proj.bias.expand(LEN_Q, -1))
    assert weights[0].eq(0).all() and all(g.isfinite().all() for g in gradients(output.sum(), *inputs))


def test_gaussian_around_aligned_centres():
    inputs = make_inputs()
    module = make(Local(4, sigma=1.5), batch_first=True)
    plain = make(Local(4), batch_first=True)
    distance = torch.arange(LEN_K) - torch.arange(LEN_Q)[:, None]
    expected = plain(*inputs)[1] * torch.exp(-(distance.double() ** 2) / 4.5)
    assert_close(module(*inputs)[1], expected)
    output, weights = module(*inputs, average_attn_weights=False)
    assert_close(module(*inputs, need_weights=False)[0], output)


def test_half_precision_centres_have_the_digits_of_float32():
    states = torch.randn(1, 5, EMBED)
    center = make().float().center
    half = copy.deepcopy(center).bfloat16()
    found, expected = half(states.bfloat16(), 10_000), center(states, 10_000)
    assert found.dtype == torch.float32
    assert (found % 32).ne(0).all()  # bfloat16 has 8 digits
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    module = MultiheadAttention(EMBED, HEADS, attention=PREDICTED)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(*[torch.randn(LEN_K, 1, EMBED)] * 3, need_weights=False)
    output.sum().backward()
    assert output.dtype == torch.bfloat16 and all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("need_weights", (True, False))
def test_compiles_whole(need_weights):
    torch._dynamo.reset()
    module = make(batch_first=True)
    inputs = [t.detach() for t in make_inputs()]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (module, compiled):
        module.zero_grad()
        output, weights = call(*inputs, PADDING, need_weights=need_weights)
        output.sin().sum().backward()
        results.append([output, weights, *(p.grad.clone() for p in module.parameters())])
    for a, b in zip(*results):
        assert (a is None and b is None) or torch.allclose(a, b)


def test_parameters_are_there_only_when_asked_for():
    plain = nn.MultiheadAttention(EMBED, HEADS)
    for kind in (Global(), Local(3), Local(3, sigma=2.0)):
        module = MultiheadAttention(EMBED, HEADS, attention=kind)
        assert list(module.state_dict()) == list(plain.state_dict()) and not hasattr(module, "center")
    module = MultiheadAttention(EMBED, HEADS, attention=PREDICTED)
    added = {"center.proj.weight": (EMBED, EMBED), "center.score": (HEADS, EMBED // HEADS)}
    assert {name: t.shape for name, t in module.state_dict().items() if name not in plain.state_dict()} == added
    missing, unexpected = module.load_state_dict(plain.state_dict(), strict=False)
    assert sorted(missing) == sorted(added) and not unexpected
    torch.manual_seed(3)
    first = MultiheadAttention(EMBED, HEADS, attention=PREDICTED).in_proj_weight
    torch.manual_seed(3)
    assert torch.equal(first, nn.MultiheadAttention(EMBED, HEADS).in_proj_weight)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.attention == PREDICTED and torch.equal(copied.center.score, module.center.score)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_swap_refuses_what_has_parameters_of_its_own():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(EMBED, HEADS, 16, batch_first=True), 1)
    report = swap_attention(model, PREDICTED)
    assert not report.swapped and "construct attnkern.nn.MultiheadAttention with it" in report.skipped[0][1]
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    model.layers[0].self_attn = make(batch_first=True).float()
    swap_attention(model, Global())
    assert model.layers[0].self_attn.attention == Global()
    restore_attention(model)
    source = torch.randn(BATCH, LEN_Q, EMBED)
    with torch.no_grad():  # and torch's layer really calls it
        a = model.eval()(source)
        model.layers[0].self_attn.center.score.neg_()
        assert not torch.allclose(a, model(source), atol=1e-3)


def test_window_annealing():
    model = nn.Sequential(make(Local((10, -1), center="predicted", sigma=2)), make(Local((20, 3))), make(Global()))
    model.append(make(Local(center="predicted")))
    annealing = WindowAnnealing(model, start=96, steps=1000)
    for step, windows in {
        0: [(96, -1), (96, 96), (96, 96)],
        500: [(53, -1), (58, 49), (53, 53)],
        1000: [(10, -1), (20, 3), (10, 10)],
        9000: [(10, -1), (20, 3), (10, 10)],
    }.items():
        annealing(step)
        assert [model[i].attention.window for i in (0, 1, 3)] == windows
        assert model[0].attention.width == 2 and model[3].attention.width == windows[2][0] / 2
    assert model[2].attention == Global() and model[3].attention == Local(center="predicted")
    WindowAnnealing(model[3], start=5, steps=10)(0)
    assert model[3].attention.window == (10, 10)  # wider already


def test_kinds_are_values():
    kind = Local(center="predicted")
    assert kind == Local(10, "predicted") and kind.window == (10, 10) and kind.width == 5 and kind.sigma is None
    assert str(Local(2)) == "Local(window=(2, 2))" and Local(2).width is None
    assert str(PREDICTED) == "Local(window=(4, 4), center='predicted')"


WRONG = [
    (lambda: Local(2, center="learned"), ValueError, "center must be 'aligned' or 'predicted', got 'learned'"),
    (lambda: Local(2, sigma="wide"), TypeError, "sigma must be a number or None, got 'wide'"),
    (lambda: Local(2, sigma=torch.ones(1)), TypeError, "sigma must be a number or None"),
    (lambda: Local(2, sigma=0), ValueError, "sigma must be positive and finite, got 0"),
    (lambda: Local(2, renormalize=True), ValueError, "renormalize=True needs sigma"),
    (lambda: Local(2, sigma=1.0, renormalize="yes"), TypeError, "renormalize must be a bool"),
    (lambda: Local(0, center="predicted"), ValueError, r"sigma must be given .* window \(0, 0\)"),
    (lambda: Local((5, -1), center="predicted"), ValueError, r"sigma must be given .* window \(5, -1\)"),
    (lambda: Local(center="aligned"), TypeError, "window must be an int or a pair"),
    (lambda: make(PREDICTED, add_zero_attn=True), ValueError, "add_zero_attn"),
    (lambda: WindowAnnealing(make(Global()), 9, 9), ValueError, "model must have .* Local attention"),
    (lambda: WindowAnnealing(make(), 0, 9), ValueError, "start must be at least 1, got 0"),
    (lambda: WindowAnnealing(make(), 9, 0), ValueError, "steps must be at least 1, got 0"),
]


@pytest.mark.parametrize("wrong, error, message", WRONG)
def test_bad_arguments(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
