"""MultiheadAttention in the hands of others: parametrizations, LoRA, copies, TorchScript, torch's fast path."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from attnkern.nn import Global, Hard, Local, MultiheadAttention
from attnkern.swap import restore_attention, swap_attention

torch.set_num_threads(1)
EMBED, HEADS = 12, 2
SAME = {"embed_dim": EMBED, "num_heads": HEADS, "batch_first": True}
KINDS = (Global(), Local((1, 0)), Hard())


def self_attend(module, x, **options):
    return module(x, x, x, need_weights=False, **options)[0]


def spectral(module):
    torch.manual_seed(1)
    return parametrizations.spectral_norm(module, "in_proj_weight")


def normed(module):
    return parametrizations.weight_norm(module, "in_proj_weight")


def normed_by_hook(module):
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(module, "in_proj_weight")


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("norm", (normed, normed_by_hook, spectral))
def test_restore_keeps_a_parametrization(norm, kind):
    """What was put on after the swap stays, and nothing else of it is lost."""
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(**SAME).eval(), torch.randn(2, 5, EMBED)
    alone = norm(copy.deepcopy(module)).eval()
    swap_attention(module, kind)
    norm(module)
    self_attend(module, x)
    if kind == Global():
        torch.testing.assert_close(self_attend(module, x), self_attend(alone, x), rtol=1e-4, atol=1e-5)
    restore_attention(module)
    assert not isinstance(module, MultiheadAttention) and isinstance(module, nn.MultiheadAttention)
    assert type(module).__name__ == type(alone).__name__ and list(module.state_dict()) == list(alone.state_dict())
    torch.testing.assert_close(self_attend(module, x), self_attend(alone, x), rtol=1e-4, atol=1e-5)
    self_attend(module.train(), x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    if parametrize.is_parametrized(module):
        parametrize.remove_parametrizations(module, "in_proj_weight")
        assert type(module) is nn.MultiheadAttention
        assert vars(module).keys() == vars(nn.MultiheadAttention(**SAME)).keys()


def test_restoring_a_copy_leaves_the_other():
    module, x = nn.MultiheadAttention(**SAME).eval(), torch.randn(2, 5, EMBED)
    swap_attention(module, Local(1))
    normed(module)
    expected = self_attend(module, x)
    copied = copy.deepcopy(module)
    restore_attention(copied)
    assert isinstance(module, MultiheadAttention) and not isinstance(copied, MultiheadAttention)
    torch.testing.assert_close(self_attend(module, x), expected)


@pytest.mark.parametrize("norm", (None, normed, normed_by_hook))
@pytest.mark.parametrize("swapped", (False, True))
def test_hard_attention_that_has_run_is_copied_and_saved(norm, swapped):
    torch.manual_seed(0)
    if swapped:
        module = nn.MultiheadAttention(**SAME)
        swap_attention(module, Hard())
    else:
        module = MultiheadAttention(**SAME, attention=Hard())
    module, x = nn.Sequential(module), torch.randn(2, 5, EMBED)
    if norm is not None:
        norm(module[0])
    self_attend(module[0], x).sum().backward()
    assert module[0].hard is not None
    if norm is normed_by_hook:
        self_attend(
            module[0].eval().requires_grad_(False), x
        )  # what the hook computes is no leaf else, torch's own limit
    copies = [copy.deepcopy(module)]
    if norm is not normed:  # torch refuses to pickle what is parametrized
        copies.append(pickle.loads(pickle.dumps(module)))
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        copies.append(torch.load(buffer, weights_only=False))
    for copied in copies:
        assert copied[0].hard is None and module[0].hard is not None
        expected, found = self_attend(module.eval()[0], x), self_attend(copied.eval()[0], x)
        torch.testing.assert_close(found, expected)
        assert copied[0].hard.index.equal(module[0].hard.index)


class LoRA(nn.Module):
    """As adapters wrap nn.MultiheadAttention: they branch on its flags and compute with its weights."""

    def __init__(self, base, rank=2):
        super().__init__()
        if not base._qkv_same_embed_dim:
            raise ValueError("Only same embed for query/key/value is supported as of now for MultiheadAttention")
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.embed_dim))
        self.up = nn.Parameter(torch.zeros(3 * base.embed_dim, rank))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args, **kwargs):
        weight = self.base.in_proj_weight
        del self.base.in_proj_weight
        self.base.in_proj_weight = weight.detach() + self.up @ self.down
        try:
            return self.base(*args, **kwargs)
        finally:
            del self.base.in_proj_weight
            self.base.register_parameter("in_proj_weight", weight)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_lora_on_a_swapped_encoder(kind):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(EMBED, HEADS, 16, 0.0, batch_first=True), 2).eval()
    x = torch.randn(2, 6, EMBED)
    swap_attention(model, kind)
    with torch.no_grad():
        expected = model(x)
        for layer in model.layers:
            layer.self_attn = LoRA(layer.self_attn)
        torch.testing.assert_close(model(x), expected)  # torch's fast path would bypass the module inside
    model.train()
    for layer in model.layers:
        layer.self_attn.up.data.normal_()
    model(x).square().sum().backward()
    assert all(layer.self_attn.up.grad.any() and layer.self_attn.down.grad.any() for layer in model.layers)
    assert not torch.allclose(model(x), expected, atol=1e-3)


@pytest.mark.parametrize("options", ({}, {"kdim": EMBED, "vdim": 4}, {"kdim": EMBED, "vdim": EMBED}), ids=str)
def test_the_flag_is_torchs(options):
    theirs, ours = nn.MultiheadAttention(**SAME, **options), MultiheadAttention(**SAME, **options)
    swapped = copy.deepcopy(theirs)
    swap_attention(swapped, Local(1))
    assert theirs._qkv_same_embed_dim == ours._qkv_same_embed_dim == swapped._qkv_same_embed_dim
    assert list(theirs.state_dict()) == list(ours.state_dict()) == list(swapped.state_dict())
    for module in (swapped, copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        restore_attention(module)
        assert not module._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:enable_nested")
@pytest.mark.parametrize("built", ("swapped", "inside a layer", "copied", "pickled"))
@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_the_fast_path_never_bypasses_the_module(built, kind):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 16, 0.0, batch_first=True)
    if built == "swapped":
        swap_attention(layer, kind)
    else:
        layer.self_attn = MultiheadAttention(**SAME, attention=kind)
    if built == "copied":
        layer = copy.deepcopy(layer)
    if built == "pickled":
        layer = pickle.loads(pickle.dumps(layer))
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 6, EMBED)
    padding = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    expected = model(x, src_key_padding_mask=padding).detach()  # with gradients there is no fast path
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x.clone().requires_grad_()).detach())
        torch.testing.assert_close(model(x, src_key_padding_mask=padding)[~padding], expected[~padding])


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("around", (lambda m: m, nn.Sequential, lambda m: nn.ModuleDict({"a": nn.Sequential(m)})))
def test_scripting_says_what_to_do(around):
    with pytest.raises(RuntimeError, match="cannot be scripted: use torch.compile.*restore_attention") as error:
        torch.jit.script(around(MultiheadAttention(EMBED, HEADS)))
    assert "\n" not in str(error.value)
    model = nn.MultiheadAttention(EMBED, HEADS)
    swap_attention(model)
    with pytest.raises(RuntimeError, match="cannot be scripted"):
        torch.jit.script(model)
    restore_attention(model)
    torch.jit.script(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_tracing(kind):
    module, x = MultiheadAttention(**SAME, attention=kind).eval(), torch.randn(2, 5, EMBED)
    traced = torch.jit.trace(module, (x, x, x))
    for found, expected in zip(traced(x, x, x), module(x, x, x)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("given", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("which", ("attn_mask", "key_padding_mask", "both"))
@pytest.mark.parametrize("need_weights", (True, False))
def test_masks_of_another_dtype(dtype, given, which, need_weights):
    """As torch's with the same mask in the module's dtype."""
    theirs = nn.MultiheadAttention(**SAME, dtype=dtype)
    ours = MultiheadAttention(**SAME, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, EMBED, dtype=dtype)
    masks = {"attn_mask": torch.randn(5, 5), "key_padding_mask": torch.randn(2, 5)}
    masks = {name: mask.to(given) for name, mask in masks.items() if which in (name, "both")}
    found, weights = ours(x, x, x, need_weights=need_weights, **masks)
    exact = {name: mask.to(dtype) for name, mask in masks.items()}
    # the sum of two masks is torch's, in their own dtype
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if which == "both" else {"rtol": 1e-5, "atol": 1e-5}
    expected, expected_weights = theirs(x, x, x, need_weights=need_weights, **exact)
    torch.testing.assert_close(found, expected, **tolerance)
    if need_weights:
        torch.testing.assert_close(weights, expected_weights, **tolerance)


def test_a_mask_that_the_module_cannot_hold():
    x = torch.randn(2, 5, EMBED)
    for error in (TypeError, RuntimeError):
        with pytest.raises(error, match="attn_mask must be bool, float32 or torch.float32, got torch.float64"):
            MultiheadAttention(**SAME)(x, x, x, attn_mask=torch.zeros(5, 5).double())


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


X = zeros(2, 3, EMBED)
WRONG = {
    "4-d": ((zeros(1, 2, 3, EMBED), X, X), {}),
    "1-d": ((zeros(EMBED),) * 3, {}),
    "unbatched key": ((X, X[0], X[0]), {}),
    "embed_dim": ((zeros(2, 3, 6), X, X), {}),
    "embed_dim of key": ((X, zeros(2, 3, 6), zeros(2, 3, 6)), {}),
    "length of value": ((X, X, zeros(2, 4, EMBED)), {}),
    "batch": ((X, zeros(3, 3, EMBED), zeros(3, 3, EMBED)), {}),
    "attn_mask": ((X, X, X), {"attn_mask": zeros(3, 4)}),
    "attn_mask 3-d": ((X, X, X), {"attn_mask": zeros(3, 3, 3)}),
    "attn_mask 4-d": ((X, X, X), {"attn_mask": zeros(1, 1, 3, 3)}),
    "attn_mask int": ((X, X, X), {"attn_mask": zeros(3, 3, dtype=torch.int64)}),
    "attn_mask byte": ((X, X, X), {"attn_mask": zeros(3, 3, dtype=torch.uint8)}),
    "key_padding_mask": ((X, X, X), {"key_padding_mask": zeros(2, 4)}),
    "key_padding_mask bool": ((X, X, X), {"key_padding_mask": zeros(3, 3, dtype=torch.bool)}),
    "key_padding_mask int": ((X, X, X), {"key_padding_mask": zeros(2, 3, dtype=torch.int64)}),
    "key_padding_mask 1-d": ((X, X, X), {"key_padding_mask": zeros(3)}),
    "hint alone": ((X, X, X), {"is_causal": True}),
    "another dtype": ((X.double(),) * 3, {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", ({}, {"kdim": EMBED, "vdim": 6}), ids=("same", "other"))
@pytest.mark.parametrize("need_weights", (True, False))
@pytest.mark.parametrize("case", WRONG)
def test_torchs_exceptions(case, need_weights, options):
    inputs, masks = WRONG[case]
    for module in (nn.MultiheadAttention(**SAME, **options), MultiheadAttention(**SAME, **options)):
        try:
            module(*inputs, need_weights=need_weights, **masks)
        except Exception as error:
            caught = error
        else:
            pytest.fail(f"{type(module)} took {case}")
        if type(module) is nn.MultiheadAttention:
            expected = type(caught)
    assert isinstance(caught, expected)
