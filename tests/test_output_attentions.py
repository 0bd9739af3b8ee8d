"""Weights of Hugging Face models on "attnkern", however a model asks for them; masks that a model reads itself."""

import pytest
import torch

from attnkern import huggingface

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
BERT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
BART = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 4}
INPUTS = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(0))
PADDING = torch.tensor([[1] * 6 + [0] * 3, [1] * 7 + [0] * 2, [1] * 9])


def both(architecture, config, **inputs):
    huggingface.register()
    torch.manual_seed(0)
    model = architecture(config).eval()
    for name in ("eager", "attnkern"):
        model.set_attn_implementation(name)
        torch.manual_seed(0)
        yield model(**inputs)


@pytest.mark.parametrize(
    ("name", "options", "decoder"),
    [
        ("GPT2", GPT2, {}),
        ("GPT2", {**GPT2, "add_cross_attention": True}, {"encoder_hidden_states": torch.randn(3, 5, 32)}),
        ("Bert", BERT, {}),
        ("GPTNeoX", {**BERT, "rotary_pct": 0.5}, {}),
        ("Llama", BERT, {}),
        ("Bart", BART, {"decoder_input_ids": INPUTS[:, :4]}),
        ("T5", T5, {"decoder_input_ids": INPUTS[:, :4]}),
    ],
    ids=("gpt2", "gpt2 cross", "bert", "gpt_neox", "llama", "bart", "t5"),
)
@pytest.mark.parametrize("asked", ("argument", "config"))
def test_as_many_weights_as_eager(name, options, decoder, asked):
    config = getattr(transformers, f"{name}Config")(**options)
    inputs = {"input_ids": INPUTS, "attention_mask": PADDING, **decoder}
    if asked == "config":
        config._attn_implementation = "eager"  # transformers refuses the flag else
        config.output_attentions = True
    else:
        inputs["output_attentions"] = True
    expected, actual = both(getattr(transformers, f"{name}Model"), config, **inputs)
    keys = [key for key in expected if key.endswith("attentions")]
    assert any(expected[key] for key in keys)
    for key in keys:
        assert len(actual[key]) == len(expected[key])
        for found, right in zip(actual[key], expected[key]):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_no_weights_are_made_that_nobody_asks_for():
    query = torch.randn(1, 2, 3, 4)
    assert huggingface.attention(torch.nn.Identity(), query, query, query, None)[1] is None
    _, output = both(transformers.GPT2Model, transformers.GPT2Config(**GPT2), input_ids=INPUTS)
    assert output.attentions is None


def test_sinks_of_each_query():
    query, sinks = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 1)
    options = {"is_causal": False, "scaling": 0.5, "sinks": sinks, "output_attentions": True}
    output, weights = huggingface.attention(torch.nn.Identity(), query, query, query, None, **options)
    expected = torch.cat([query @ query.mT * 0.5, sinks], -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, (expected @ query).transpose(1, 2))


@pytest.mark.parametrize("name", ("indices", "block_indices"))
def test_keys_that_a_model_chose_are_not_ignored(name):
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match=f"cannot read {name}, the keys that Identity chose"):
        huggingface.attention(torch.nn.Identity(), query, query, query, None, **{name: torch.zeros(1, 3, 2)})
    assert huggingface.attention(torch.nn.Identity(), query, query, query, None, **{name: None})[1] is None


def test_a_router_that_reads_the_mask():
    """NLLB's experts take from the attention mask which words are padding: 0 is none, as in eager attention."""
    config = transformers.NllbMoeConfig(
        **BART, num_experts=2, encoder_sparse_step=1, decoder_sparse_step=1, init_std=0.3, expert_capacity=8
    )
    inputs = {"input_ids": INPUTS, "attention_mask": PADDING, "decoder_input_ids": INPUTS[:, :5]}
    expected, actual = both(transformers.NllbMoeModel, config, **inputs)
    real = PADDING.bool()
    assert not torch.allclose(expected[0], torch.zeros(()))
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-4)
    found, right = actual.encoder_last_hidden_state, expected.encoder_last_hidden_state
    torch.testing.assert_close(found[real], right[real], rtol=1e-4, atol=1e-4)
