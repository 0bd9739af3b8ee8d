"""`swap_attention` and `restore_attention` on torch's own models; Hugging Face's are in test_huggingface.py."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

import attnkern
from attnkern.nn import Global, Hard, Local, MultiheadAttention
from attnkern.swap import SwapReport, restore_attention, swap_attention

torch.set_num_threads(1)
EMBED, HEADS = 12, 2


def encoder(**options):
    layer = nn.TransformerEncoderLayer(EMBED, HEADS, 16, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, **options)


def outside(length, left, right):
    """Torch's mask of a window: True outside."""
    distance = torch.arange(length) - torch.arange(length)[:, None]
    return (distance < -left) | (distance > right)


def snapshot(model):
    """What a swap might change: classes and attributes of every module."""
    hidden = {"_parameters", "_buffers", "_modules"}
    return [
        (name, type(module), {k: v for k, v in vars(module).items() if k not in hidden})
        for name, module in model.named_modules()
    ]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_global_computes_the_same(training):
    model = encoder().train(training)
    source, padding = torch.randn(2, 6, EMBED), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    with torch.no_grad():
        expected = model(source, src_key_padding_mask=padding)
        swap_attention(model)
        actual = model(source, src_key_padding_mask=padding)
    torch.testing.assert_close(actual[~padding], expected[~padding])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_local_is_computed_on_the_fast_path_of_torch():
    model, calls = encoder().eval(), []
    source, padding = torch.randn(2, 6, EMBED), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    with torch.no_grad():
        unswapped = model(source)
        expected = model(source, mask=outside(6, 1, 0))
        swap_attention(model, Local((1, 0)))
        forward = MultiheadAttention.forward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MultiheadAttention, "forward", lambda *a, **k: calls.append(a) or forward(*a, **k))
            actual = model(source)
        model(source, src_key_padding_mask=padding)  # no nested tensor reaches the module
    assert len(calls) == 2
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(actual, unswapped, atol=1e-3)


def test_everything_stays_in_place():
    model = encoder()
    optimizer = torch.optim.Adam(model.parameters())
    seen = []
    model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append("hook"))
    before = [id(t) for t in (*model.modules(), *model.parameters())], list(model.state_dict())
    swap_attention(model, Local(2))
    assert before == ([id(t) for t in (*model.modules(), *model.parameters())], list(model.state_dict()))
    first = model.layers[0].self_attn.in_proj_weight.clone()
    model(torch.randn(2, 5, EMBED)).square().sum().backward()
    optimizer.step()
    assert seen == ["hook"] and not torch.equal(first, model.layers[0].self_attn.in_proj_weight)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("kinds", ([Global()], [Local(2)], [Hard(2)], [Local(2), Hard(), Global()]), ids=str)
@pytest.mark.parametrize(
    "build",
    [
        encoder,
        lambda: encoder(enable_nested_tensor=False),
        lambda: nn.Transformer(EMBED, HEADS, 1, 1, 16, batch_first=True),
        lambda: nn.MultiheadAttention(EMBED, HEADS, batch_first=True),
        lambda: nn.MultiheadAttention(EMBED, HEADS, kdim=EMBED, vdim=4, batch_first=True),
        lambda: nn.Sequential(MultiheadAttention(EMBED, HEADS, attention=Local(1), backend="blocked")),
    ],
    ids=("encoder", "not nested", "transformer", "root", "kdim", "ours"),
)
def test_restore_undoes_every_swap(build, kinds):
    model = build()
    before = snapshot(model)
    for kind in kinds:
        swap_attention(model, kind)
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                assert type(module) is MultiheadAttention and module.attention == kind and module.hard is None
                if module.in_proj_weight is not None:
                    module(*[torch.randn(2, 3, EMBED)] * 3)
    restore_attention(model)
    assert snapshot(model) == before
    restore_attention(model)
    assert snapshot(model) == before


def test_restored_models_take_the_fast_path_again():
    model = encoder().eval()
    source = torch.randn(2, 5, EMBED)
    with torch.no_grad():
        expected = model(source)
        swap_attention(model, Local(0))
        restore_attention(model)
        assert all(layer.self_attn._qkv_same_embed_dim for layer in model.layers) and model.use_nested_tensor
        torch.testing.assert_close(model(source), expected, rtol=0, atol=0)


def test_a_part_can_be_restored_alone():
    model = nn.Transformer(EMBED, HEADS, 1, 1, 16, batch_first=True)
    swap_attention(model)
    restore_attention(model.decoder)
    assert type(model.encoder.layers[0].self_attn) is MultiheadAttention
    assert type(model.decoder.layers[0].multihead_attn) is nn.MultiheadAttention


def test_swapped_models_copy_pickle_and_restore():
    model = encoder().eval()
    source = torch.randn(2, 5, EMBED)
    plain = model(source)
    swap_attention(model, Local(1))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(source), model(source))
        restore_attention(copied)
        assert type(copied.layers[0].self_attn) is nn.MultiheadAttention and copied.use_nested_tensor
        torch.testing.assert_close(copied(source), plain)


def test_report():
    model = nn.ModuleDict({"encoder": encoder(), "cross": nn.MultiheadAttention(EMBED, HEADS, add_bias_kv=True)})
    report = swap_attention(model, Local((2, 0)))
    assert report.swapped == [
        (f"encoder.layers.{i}.self_attn", "torch.nn.MultiheadAttention", "Local(window=(2, 0))") for i in range(2)
    ]
    ((name, reason),) = report.skipped
    assert name == "cross" and "add_bias_kv" in reason and type(model["cross"]) is nn.MultiheadAttention
    assert str(report).splitlines() == [
        "encoder.layers.0.self_attn  torch.nn.MultiheadAttention -> Local(window=(2, 0))",
        "encoder.layers.1.self_attn  torch.nn.MultiheadAttention -> Local(window=(2, 0))",
        f"cross                       not swapped: {reason}",
    ]

    report = swap_attention(model)
    assert report.swapped[0] == ("encoder.layers.0.self_attn", "Local(window=(2, 0))", "Global()")
    assert report.swapped[2] == ("cross", "torch.nn.MultiheadAttention", "Global()") and not report.skipped
    refused = swap_attention(model, Hard(window=2))
    assert [name for name, _ in refused.skipped] == ["cross"] and model["cross"].attention == Global()
    assert str(swap_attention(nn.Linear(2, 2))) == "no attention found" == str(SwapReport())
    assert str(swap_attention(nn.MultiheadAttention(4, 2))).startswith("(the model)  torch.nn")


def test_subclasses_and_strangers_are_skipped():
    class OwnMultihead(nn.MultiheadAttention):
        def forward(self, *inputs, **options):
            return super().forward(*inputs, **options)

    class LinearAttention(nn.Module):
        pass

    class AttentionBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(EMBED, HEADS)
            self.strange = LinearAttention()

    parametrized = nn.MultiheadAttention(EMBED, HEADS)
    parametrize.register_parametrization(parametrized, "in_proj_weight", nn.Identity())
    quantizable = torch.ao.nn.quantizable.MultiheadAttention(EMBED, HEADS)
    model = nn.ModuleDict(
        {"own": OwnMultihead(EMBED, HEADS), "p": parametrized, "q": quantizable, "block": AttentionBlock()}
    )
    report = swap_attention(model)
    assert [name for name, *_ in report.swapped] == ["block.inner"]
    assert dict(report.skipped).keys() == {"own", "p", "q", "block.strange"}
    assert "OwnMultihead is a subclass" in dict(report.skipped)["own"]
    assert "LinearAttention is unknown" in dict(report.skipped)["block.strange"]
    assert type(model["own"]) is OwnMultihead


@pytest.mark.parametrize("kind", [Local(2), Hard()])
def test_our_own_models(kind):
    """Their attention, a subclass of ours, computes another kind, as if they had been built with it."""
    torch.manual_seed(0)
    words = torch.randint(1, 20, (2, 9))
    config = attnkern.nn.BertConfig(20, EMBED, 2, HEADS, 2 * EMBED)
    sizes = {"words": 20, "dim": EMBED, "num_heads": HEADS, "num_layers": 1, "hidden": EMBED}
    kinds = dict.fromkeys(("encoder_attention", "decoder_attention", "cross_attention"), kind)
    for model, built, inputs in (
        (attnkern.nn.Bert(config), attnkern.nn.Bert(config, attention=kind), (words,)),
        (attnkern.nn.Transformer(**sizes), attnkern.nn.Transformer(**sizes, **kinds), (words, words)),
    ):
        built.load_state_dict(model.state_dict())
        before, types = model.eval()(*inputs), [type(module) for module in model.modules()]
        report = swap_attention(model, kind)
        assert {to for _, _, to in report.swapped} == {str(kind)} and not report.skipped
        for found, expected in zip(*(pytree.tree_leaves(one(*inputs)) for one in (model, built.eval()))):
            torch.testing.assert_close(found, expected)
        assert [type(module) for module in model.modules()] == types
        restore_attention(model)
        for found, expected in zip(*map(pytree.tree_leaves, (model(*inputs), before))):
            torch.testing.assert_close(found, expected)


def test_packed_sentences_are_not_mixed():
    bert = attnkern.nn.Bert(attnkern.nn.BertConfig(20, EMBED, 1, HEADS, EMBED))
    (reason,) = dict(swap_attention(bert, Hard(soft_mixture=0.5)).skipped).values()
    assert "soft_mixture" in reason


def test_shared_modules_are_handled_once():
    shared = nn.MultiheadAttention(EMBED, HEADS)
    model = nn.ModuleList([shared, nn.Sequential(shared)])
    assert len(swap_attention(model, Local(1)).swapped) == 1 and type(model[1][0]) is MultiheadAttention
    restore_attention(model)
    assert type(shared) is nn.MultiheadAttention


def test_draws_of_a_former_kind_are_forgotten():
    module = MultiheadAttention(EMBED, HEADS, attention=Hard())
    module(*[torch.randn(3, 1, EMBED)] * 3)
    assert module.hard is not None
    swap_attention(module)
    assert module.hard is None


@pytest.mark.parametrize("call", (swap_attention, restore_attention))
@pytest.mark.parametrize("model", (None, "bert", nn.Linear, [nn.Linear(2, 2)]))
def test_only_modules_are_taken(call, model):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        call(model)


def test_only_kinds_are_taken():
    with pytest.raises(TypeError, match="attention must be"):
        swap_attention(nn.Linear(2, 2), "local")
