"""`attnkern.nn.MultiheadAttention` against `torch.nn.MultiheadAttention`, option by option, in float64."""

import contextlib
import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnkern.nn import Global, Hard, Local, MultiheadAttention

torch.set_num_threads(1)
EMBED, HEADS, BATCH, LEN_Q, LEN_K = 12, 3, 2, 5, 7

OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "bias_kv zero_attn": {"add_bias_kv": True, "add_zero_attn": True, "bias": False},
    "kdim": {"kdim": 10},
    "kdim vdim": {"kdim": 10, "vdim": 9, "bias": False},
    "kdim vdim bias_kv zero_attn": {"kdim": 10, "vdim": 9, "add_bias_kv": True, "add_zero_attn": True},
}
LAYOUTS = ("sequence first", "batch first", "unbatched")
MASKS = ("none", "kpm", "float kpm", "2d", "float 2d", "3d", "float 3d", "kpm 2d", "kpm 3d", "float kpm 3d",
         "kpm float 2d", "causal", "kpm causal")  # fmt: skip
WEIGHTS = {
    "none": {"need_weights": False},
    "mean": {},
    "heads": {"average_attn_weights": False},
}


def pair(attention=None, seed=0, **options):
    """Torch's module and ours with the same random parameters, biases included."""
    torch.manual_seed(seed)
    theirs = nn.MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **options)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = MultiheadAttention(EMBED, HEADS, dtype=torch.float64, attention=attention or Global(), **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_inputs(layout, key_is_value=False, self_attention=False, kdim=None, vdim=None, **_):
    def draw(length, width):
        shape = {"sequence first": (length, BATCH), "batch first": (BATCH, length), "unbatched": (length,)}[layout]
        return torch.randn(*shape, width or EMBED, dtype=torch.float64, requires_grad=True)

    query = draw(LEN_Q, None)
    if self_attention:
        return query, query, query
    key = draw(LEN_K, kdim)
    return query, key, key if key_is_value else draw(LEN_K, vdim)


def make_masks(kind, layout, len_k=LEN_K):
    """`forward`'s mask arguments; every query sees key 0."""
    batch = 1 if layout == "unbatched" else BATCH
    masks = {}

    def draw(name, *shape):
        ignored = torch.rand(*shape) < 0.4
        ignored[..., 0] = False
        bias = torch.randn(*shape, dtype=torch.float64).masked_fill(ignored, float("-inf"))
        is_float = f"float {name}" in kind
        return bias.requires_grad_() if is_float else ignored

    if "kpm" in kind:
        padding = draw("kpm", batch, len_k)
        masks["key_padding_mask"] = padding.detach()[0] if layout == "unbatched" else padding.detach()
    if "2d" in kind:
        masks["attn_mask"] = draw("2d", LEN_Q, len_k)
    if "3d" in kind:
        masks["attn_mask"] = draw("3d", batch * HEADS, LEN_Q, len_k)
    if "causal" in kind:
        masks |= {"attn_mask": torch.ones(LEN_Q, len_k).triu(1).bool(), "is_causal": True}
    return masks


def run(module, inputs, **arguments):
    """Outputs, then the gradients of everything that has one."""
    leaves = {id(t): t for t in (*inputs, *arguments.values()) if isinstance(t, torch.Tensor) and t.requires_grad}
    results = [t for t in module(*inputs, **arguments) if t is not None]
    loss = sum((t * torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in results)
    wanted = [*leaves.values(), *module.parameters()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [*results, *(torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads))]


def assert_same(theirs, ours, inputs, **arguments):
    expected, actual = run(theirs, inputs, **arguments), run(ours, inputs, **arguments)
    assert len(expected) == len(actual)
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_as_torch(options, layout, masks):
    theirs, ours = pair(batch_first=layout == "batch first", **options)
    inputs, arguments = make_inputs(layout, **options), make_masks(masks, layout)
    for weights in WEIGHTS.values():
        assert_same(theirs, ours, inputs, **arguments, **weights)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sharing", ({"self_attention": True}, {"key_is_value": True}), ids=("self", "key is value"))
@pytest.mark.parametrize("bias", (True, False))
def test_shared_inputs(bias, sharing, layout, training, weights):
    theirs, ours = (module.train(training) for module in pair(batch_first=layout == "batch first", bias=bias))
    assert_same(theirs, ours, make_inputs(layout, **sharing), **weights)
    with torch.no_grad():
        inputs = make_inputs(layout, **sharing)
        for a, b in zip(ours(*inputs, **weights), theirs(*inputs, **weights)):
            assert (a is None and b is None) or a.shape == b.shape
            assert a is None or torch.allclose(a, b)


def test_causal_hint_replaces_the_mask_only_where_torch_does():
    theirs, ours = pair()
    inputs = make_inputs("sequence first")
    wrong = {"attn_mask": torch.zeros(LEN_Q, LEN_K, dtype=torch.float64), "is_causal": True}
    for arguments in (
        {"need_weights": False},
        {},
        {"need_weights": False, "key_padding_mask": no(BATCH, LEN_K, dtype=torch.float64)},
    ):
        assert_same(theirs, ours, inputs, **wrong, **arguments)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("batch_first", (True, False))
def test_dtypes(dtype, batch_first):
    theirs, ours = (module.to(dtype) for module in pair(batch_first=batch_first))
    query, key, value = (t.to(dtype) for t in make_inputs("batch first" if batch_first else "sequence first"))
    for a, b in zip(ours(query, key, value), theirs(query, key, value)):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=3e-2 if dtype == torch.bfloat16 else 4e-3)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_state_dict_both_ways(options):
    theirs, ours = pair(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    initial = []
    for cls in (nn.MultiheadAttention, MultiheadAttention):
        torch.manual_seed(1)
        initial.append(cls(EMBED, HEADS, **options).state_dict())
        assert repr(cls(EMBED, HEADS, **options).out_proj) == repr(theirs.out_proj)
    for name, tensor in initial[0].items():
        torch.testing.assert_close(initial[1][name], tensor, rtol=0, atol=0)


def no(*shape, dtype=torch.bool):
    """A mask that hides nothing."""
    return torch.zeros(shape, dtype=dtype)


# what is called, torch's exception, part of its message
ERRORS = {
    "causal without mask": (lambda m, q, k: m(q, k, k, is_causal=True), RuntimeError, "Need attn_mask"),
    "embedding": (lambda m, q, k: m(q[..., :-1], k, k), AssertionError, "embedding dimension"),
    "key and value": (lambda m, q, k: m(q, k, k[:-1]), AssertionError, "match value"),
    "query 4-d": (lambda m, q, k: m(q[None], k, k), AssertionError, "query"),
    "key 2-d": (lambda m, q, k: m(q, k[0], k[0]), AssertionError, "3-D"),
    "padding 1-d": (lambda m, q, k: m(q, k, k, no(LEN_K)), AssertionError, "key_padding_mask"),
    "padding length": (lambda m, q, k: m(q, k, k, no(BATCH, LEN_K + 1)), AssertionError, "Expected key_"),
    "padding batch": (lambda m, q, k: m(q, k, k, no(BATCH + 1, LEN_K)), AssertionError, "Expected key_"),
    "padding int": (lambda m, q, k: m(q, k, k, no(BATCH, LEN_K, dtype=torch.int)), AssertionError, "only bool"),
    "mask int": (lambda m, q, k: m(q, k, k, attn_mask=no(LEN_Q, LEN_K, dtype=torch.int)), AssertionError, "only bool"),
    "mask 2-d": (lambda m, q, k: m(q, k, k, attn_mask=no(LEN_K, LEN_Q)), RuntimeError, "2D attn_mask"),
    "mask 3-d": (lambda m, q, k: m(q, k, k, attn_mask=no(BATCH, LEN_Q, LEN_K)), RuntimeError, "3D attn_mask"),
    "mask 4-d": (lambda m, q, k: m(q, k, k, attn_mask=no(1, 1, LEN_Q, LEN_K)), AssertionError, "attn_mask"),
    "unbatched mask": (
        lambda m, q, k: m(q[:, 0], k[:, 0], k[:, 0], attn_mask=no(1, LEN_Q, LEN_K)),
        AssertionError,
        "shape to be",
    ),
}


@pytest.mark.parametrize("call, error, message", ERRORS.values(), ids=ERRORS)
def test_errors_as_torch(call, error, message):
    query, key, _ = make_inputs("sequence first")
    for module in pair():
        with pytest.raises(error, match=message):
            call(module, query, key)


def test_constructor_errors():
    for cls in (nn.MultiheadAttention, MultiheadAttention):
        with pytest.raises(AssertionError, match="divisible"):
            cls(10, 3)
        with pytest.raises(ValueError, match="greater than 0"):
            cls(0, 3)
    with pytest.raises(TypeError, match=r"attention must be Global\(\), Local\(window\) or Hard"):
        MultiheadAttention(12, 3, attention="local")
    for kind in (Local(2), Hard(window=2)):
        for option in ("add_bias_kv", "add_zero_attn"):
            with pytest.raises(ValueError, match=option):
                MultiheadAttention(12, 3, attention=kind, **{option: True})
    MultiheadAttention(12, 3, attention=Hard(), add_bias_kv=True, add_zero_attn=True)


def test_backend_is_obeyed():
    theirs, _ = pair()
    ours = MultiheadAttention(EMBED, HEADS, dtype=torch.float64, backend="reference")
    ours.load_state_dict(theirs.state_dict())
    assert_same(theirs, ours, make_inputs("sequence first"))
    with pytest.raises(ValueError, match="backend"):
        MultiheadAttention(EMBED, HEADS, backend="nothing")(*[torch.zeros(3, 1, EMBED)] * 3)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.zeros(3, EMBED), torch.zeros(2, EMBED)])
    with pytest.raises(AssertionError, match="enable_nested_tensor=False"):
        MultiheadAttention(EMBED, HEADS, batch_first=True).eval()(nested, nested, nested)


@pytest.mark.parametrize("need_weights", (True, False))
def test_fully_masked_rows_give_the_output_bias(need_weights):
    _, ours = pair()
    padding = torch.tensor([[True] * LEN_K, [False] * LEN_K])
    output, weights = ours(*make_inputs("sequence first"), padding, need_weights=need_weights)
    assert_close(output[:, 0], ours.out_proj.bias.expand(LEN_Q, -1))
    assert weights is None or weights[0].eq(0).all()


@pytest.mark.parametrize("kind", (Global(), Local(2)), ids=str)
def test_dropout(kind):
    _, ours = pair(attention=kind, dropout=0.3)
    inputs = make_inputs("sequence first")
    clean = ours.eval()(*inputs, average_attn_weights=False)
    torch.manual_seed(0)
    output, weights = ours.train()(*inputs, average_attn_weights=False)
    dropped = (weights == 0) & (clean[1] > 0)
    assert 0 < dropped.sum() < (clean[1] > 0).sum()
    assert_close(weights, torch.where(dropped, 0.0, clean[1] / 0.7))

    value = F.linear(inputs[2], ours.in_proj_weight[2 * EMBED :], ours.in_proj_bias[2 * EMBED :])
    value = value.transpose(0, 1).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    assert_close(output, ours.out_proj((weights @ value).permute(2, 0, 1, 3).flatten(-2)))
    torch.manual_seed(0)
    assert_close(ours(*inputs, need_weights=False)[0], output)


# --- the kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: Local(), TypeError),
        (lambda: Local(None), TypeError),
        (lambda: Local("2"), TypeError),
        (lambda: Local(True), TypeError),
        (lambda: Local(2.0), TypeError),
        (lambda: Local((1, 2, 3)), TypeError),
        (lambda: Local((1.0, 2)), TypeError),
        (lambda: Local(-2), ValueError),
        (lambda: Hard(0), ValueError),
        (lambda: Hard(1.5), TypeError),
        (lambda: Hard(True), TypeError),
        (lambda: Hard(straight_through=1), TypeError),
        (lambda: Hard(window=(-3, 1)), ValueError),
    ],
)
def test_kinds_are_validated(make, error):
    with pytest.raises(error):
        make()


def test_kinds_are_values():
    assert Local(3) == Local((3, 3)) == Local([3, 3]) and hash(Local(3)) == hash(Local((3, 3)))
    assert Hard(window=2).window == (2, 2) and Hard().window is None and Global() == Global()
    with pytest.raises(AttributeError):
        Local(3).window = (1, 1)


def band(len_q, len_k, left, right):
    """Torch's mask of a window: True outside."""
    distance = torch.arange(len_k) - torch.arange(len_q)[:, None]
    return (distance < -left) | (distance > right)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("left, right", ((1, 2), (0, 0), (3, 0)))
def test_local_is_a_band(left, right, layout, weights):
    theirs, ours = pair(attention=Local((left, right)), batch_first=layout == "batch first")
    inputs = make_inputs(layout)
    outside = band(LEN_Q, LEN_K, left, right)
    expected = run(theirs, inputs, attn_mask=outside, **weights)
    for a, b in zip(run(ours, inputs, **weights), expected):
        assert_close(a, b)
    causal = {"attn_mask": torch.ones(LEN_Q, LEN_K).triu(1).bool(), "is_causal": True}
    expected = theirs(*inputs, attn_mask=outside | causal["attn_mask"], need_weights=False)[0]
    assert_close(ours(*inputs, **causal, need_weights=False)[0], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", (None, (1, 2)))
def test_hard_in_evaluation_takes_the_best_key(layout, window):
    theirs, ours = (m.eval() for m in pair(attention=Hard(4, window=window), batch_first=layout == "batch first"))
    inputs = make_inputs(layout)
    outside = band(LEN_Q, LEN_K, *window) if window else None
    soft = theirs(*inputs, attn_mask=outside, average_attn_weights=False)[1]
    output, weights = ours(*inputs, average_attn_weights=False)
    assert_close(weights, F.one_hot(soft.argmax(-1), LEN_K).double())
    assert_close(ours(*inputs)[1], weights.mean(-3))
    assert ours.hard.index.shape == (1 if layout == "unbatched" else BATCH, HEADS, LEN_Q)

    # the same output with the weights put in by force
    expected = theirs(*inputs, attn_mask=torch.where(weights > 0, 0.0, float("-inf")).view(-1, LEN_Q, LEN_K).double())
    assert_close(output, expected[0])


@pytest.mark.parametrize("num_samples", (None, 1, 5))
@pytest.mark.parametrize("backend", (None, "reference"))
def test_hard_in_training_averages_its_draws(num_samples, backend):
    ours = MultiheadAttention(EMBED, HEADS, dtype=torch.float64, attention=Hard(num_samples), backend=backend)
    inputs = make_inputs("sequence first")
    torch.manual_seed(3)
    output, weights = ours(*inputs, average_attn_weights=False)
    index = ours.hard.index if num_samples else ours.hard.index[None]
    assert_close(weights, F.one_hot(index, LEN_K).double().mean(0))
    merged = (ours.hard.output.mean(0) if num_samples else ours.hard.output).permute(2, 0, 1, 3).flatten(-2)
    assert_close(output, ours.out_proj(merged))
    torch.manual_seed(3)
    assert_close(ours(*inputs)[1], weights.mean(1))
    log_prob = ours.hard.log_prob.sum()
    assert torch.autograd.grad(log_prob, inputs[0])[0].abs().sum() > 0


def test_hard_passes_gradients_straight_through_on_request():
    inputs = make_inputs("sequence first")
    for straight_through in (False, True):
        ours = MultiheadAttention(EMBED, HEADS, dtype=torch.float64, attention=Hard(straight_through=straight_through))
        output, _ = ours(*inputs, need_weights=False)
        grad = torch.autograd.grad(output.square().sum(), inputs[0])[0]
        assert grad.any() == straight_through


def test_hard_with_nothing_to_look_at():
    ours = MultiheadAttention(EMBED, HEADS, dtype=torch.float64, attention=Hard(2))
    padding = torch.tensor([[True] * LEN_K, [False] * LEN_K])
    output, weights = ours(*make_inputs("sequence first"), padding)
    assert weights[0].eq(0).all() and weights[1].sum(-1).allclose(torch.ones(LEN_Q, dtype=torch.float64))
    assert_close(output[:, 0], ours.out_proj.bias.expand(LEN_Q, -1))


# --- how it is computed ----------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Names and arguments of the operations that ran."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func.name().split("::")[1], args))
        return func(*args, **(kwargs or {}))

    def count(self, *names):
        return sum(name.split(".")[0] in names for name, _ in self.calls)

    def arguments(self, name):
        return next(args for called, args in self.calls if called.startswith(name))


def recorded(module, *args, **kwargs):
    with Recorder() as recorder, torch.no_grad():
        module(*args, **kwargs)
    return recorder


def test_weights_are_made_only_on_request_and_averaged_at_the_source():
    _, ours = pair()
    inputs = make_inputs("sequence first")
    assert recorded(ours, *inputs, need_weights=False).count("attention_weights") == 0
    for average in (True, False):
        arguments = recorded(ours, *inputs, average_attn_weights=average).arguments("attention_weights")
        assert arguments[-2] is average  # the schema's `mean`


def test_masks_are_not_expanded():
    _, ours = pair()
    inputs = make_inputs("sequence first")
    padding, square = torch.zeros(BATCH, LEN_K).bool(), torch.zeros(LEN_Q, LEN_K)
    for arguments, shape in (
        ({"key_padding_mask": padding}, (BATCH, 1, 1, LEN_K)),
        ({"attn_mask": square.bool()}, (1, 1, LEN_Q, LEN_K)),
        ({"attn_mask": square.bool(), "key_padding_mask": padding}, (BATCH, 1, LEN_Q, LEN_K)),
    ):
        mask = recorded(ours, *inputs, **arguments).arguments("softmax_attention")[3]
        assert mask.shape == shape and mask.dtype == torch.bool
    causal = {"attn_mask": square.bool(), "is_causal": True, "need_weights": False}
    assert recorded(ours, *inputs, **causal).arguments("softmax_attention")[3] is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_inputs_share_a_product(layout):
    _, ours = pair(batch_first=layout == "batch first")
    for sharing, products in (({"self_attention": True}, 2), ({"key_is_value": True}, 3), ({}, 4)):
        recorder = recorded(ours, *make_inputs(layout, **sharing), need_weights=False)
        assert recorder.count("addmm", "mm", "bmm", "linear", "baddbmm") == products


# --- living in torch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", (Global(), Local(2), Hard(2)), ids=str)
def test_copies_and_pickles(kind):
    _, ours = pair(attention=kind)
    inputs = make_inputs("sequence first")
    ours(*inputs)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied.attention == kind and copied.hard is None and (ours.hard is not None) == isinstance(kind, Hard)
        assert_close(copied.eval()(*inputs)[0], ours.eval()(*inputs)[0])
        ours.train()
    assert str(kind) in repr(ours) and "hard" not in ours.state_dict()


@pytest.mark.parametrize("kind", (Global(), Local(2), Hard(2)), ids=str)
@pytest.mark.parametrize("training", (True, False))
def test_compiles_whole(kind, training):
    torch._dynamo.reset()
    ours = MultiheadAttention(EMBED, HEADS, dropout=0.0, attention=kind).train(training)
    inputs = [t.detach().float() for t in make_inputs("sequence first")]
    mask = {"key_padding_mask": torch.zeros(BATCH, LEN_K).bool()}
    torch.manual_seed(0)
    expected, expected_index = ours(*inputs, **mask), ours.hard and ours.hard.index
    torch.manual_seed(0)
    actual = torch.compile(ours, fullgraph=True, backend="aot_eager")(*inputs, **mask)
    actual[0].sum().backward()
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b)
    assert (ours.hard is None) or ours.hard.index.equal(expected_index)


@pytest.mark.parametrize("kind", (Global(), Local(2), Hard(2)), ids=str)
@pytest.mark.parametrize("options", (OPTIONS["plain"], OPTIONS["bias_kv zero_attn"]), ids=("plain", "appended keys"))
def test_autocast(kind, options):
    if isinstance(kind, Local) and options:
        pytest.skip("refused by the constructor")
    ours = MultiheadAttention(EMBED, HEADS, attention=kind, **options)
    inputs = [t.detach().float() for t in make_inputs("sequence first")]
    expected = ours.eval()(*inputs, need_weights=False)[0]
    with torch.autocast("cpu", torch.bfloat16):
        for weights in WEIGHTS.values():
            output, _ = ours(*inputs, torch.zeros(BATCH, LEN_K), **weights)
            assert output.dtype == torch.bfloat16
            if not isinstance(kind, Hard):  # two near ties may fall differently
                torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
        ours.train()(*inputs)[0].sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def with_ours(model, attention):
    """The same model with our modules, constructed afresh, in place of torch's."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.MultiheadAttention:
                ours = MultiheadAttention(
                    EMBED, HEADS, child.dropout, batch_first=child.batch_first, attention=attention
                )
                ours.load_state_dict(child.state_dict())
                setattr(parent, name, ours)
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False
    return model


STACKS = {
    "encoder": lambda **o: nn.TransformerEncoder(nn.TransformerEncoderLayer(EMBED, HEADS, 16, 0.0, **o), 2),
    "decoder": lambda **o: nn.TransformerDecoder(nn.TransformerDecoderLayer(EMBED, HEADS, 16, 0.0, **o), 2),
    "transformer": lambda **o: nn.Transformer(EMBED, HEADS, 1, 2, 16, 0.0, **o),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested", "ignore:Support for mis")
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("norm_first", (True, False))
@pytest.mark.parametrize("batch_first", (True, False))
@pytest.mark.parametrize("stack", STACKS)
def test_transformer_stacks(stack, batch_first, norm_first, training):
    torch.manual_seed(0)
    theirs = STACKS[stack](batch_first=batch_first, norm_first=norm_first).train(training)
    ours = with_ours(theirs, Global())
    source, target = torch.randn(BATCH, 6, EMBED), torch.randn(BATCH, 5, EMBED)
    if not batch_first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    arguments = {
        "encoder": ((source,), {"src_key_padding_mask": padding}),
        "decoder": ((target, source), {"memory_key_padding_mask": padding, "tgt_mask": causal, "tgt_is_causal": True}),
        "transformer": (
            (source, target),
            {"src_key_padding_mask": padding, "memory_key_padding_mask": padding, "tgt_mask": causal},
        ),
    }
    args, kwargs = arguments[stack]
    for context in (contextlib.nullcontext(), torch.no_grad()):
        with context:
            expected, actual = theirs(*args, **kwargs), ours(*args, **kwargs)
        if stack == "encoder":  # torch's fast path zeroes the padding
            real = ~padding if batch_first else ~padding.T
            expected, actual = expected[real], actual[real]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("batch_first", (True, False))
def test_encoder_in_evaluation_really_computes_local(batch_first):
    layer = nn.TransformerEncoderLayer(EMBED, 2, 16, 0.1, batch_first=batch_first)
    layer.self_attn = MultiheadAttention(EMBED, 2, batch_first=batch_first, attention=Local((1, 0)))
    ours = nn.TransformerEncoder(layer, 2).eval()
    theirs = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(EMBED, 2, 16, 0.1, batch_first=batch_first), 2, enable_nested_tensor=False
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    source = torch.randn(BATCH, 6, EMBED) if batch_first else torch.randn(6, BATCH, EMBED)
    with torch.no_grad():
        recorder = recorded(ours, source)
        torch.testing.assert_close(ours(source), theirs(source, mask=band(6, 6, 1, 0)))
        assert not torch.allclose(ours(source), theirs(source), atol=1e-3)
        # where torch's encoder packs a padded batch into a nested tensor
        padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
        found = ours(source, src_key_padding_mask=padding)
        found, source = (found, source) if batch_first else (found.transpose(0, 1), source.transpose(0, 1))
        for sentence, words, length in zip(found, source, (6, 4)):
            alone = words[None, :length] if batch_first else words[:length, None]
            expected = theirs(alone, mask=band(length, length, 1, 0)).view(length, EMBED)
            torch.testing.assert_close(sentence[:length], expected)
    assert recorder.count("softmax_attention") == 2
    assert recorder.arguments("softmax_attention")[11:13] == (1, 0)


def test_signatures_match_torch():
    theirs = inspect.signature(nn.MultiheadAttention.__init__).parameters
    ours = inspect.signature(MultiheadAttention.__init__).parameters
    assert list(ours)[: len(theirs)] == list(theirs) and list(ours)[len(theirs) :] == ["attention", "backend"]
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert ours["attention"].default == Global()
    forward = inspect.signature(MultiheadAttention.forward).parameters
    assert {n: p.default for n, p in forward.items()} == {
        n: p.default for n, p in inspect.signature(nn.MultiheadAttention.forward).parameters.items()
    }
    assert issubclass(MultiheadAttention, nn.MultiheadAttention)
