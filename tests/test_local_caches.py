""" "attnkern_local" with caches: whatever keeps the keys, a query stands at its position, in cross-attention too."""

import pytest
import torch

from attnkern import huggingface

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
WORDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
BART = {
    **WORDS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "init_std": 0.5,
    "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    **WORDS, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1,
    "initializer_factor": 3.0,
}  # fmt: skip
BERT = {
    **WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "initializer_range": 0.3,
}  # fmt: skip
GEMMA = {**BERT, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
GPT2 = {**WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
INPUTS = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(0))
RIGHT = torch.tensor([[1] * 6 + [0] * 3, [1] * 7 + [0] * 2, [1] * 9])
CACHES = ({}, {"cache_implementation": "static", "disable_compile": True})


def encoder_decoder(encoder, decoder):
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=1, pad_token_id=0
    )
    model = transformers.EncoderDecoderModel(config)
    model.generation_config.eos_token_id = None
    return model


def bert(**options):
    return transformers.BertConfig(**BERT, **options)


def of(name, options):
    return getattr(transformers, f"{name}ForConditionalGeneration")(getattr(transformers, f"{name}Config")(**options))


CROSS = {
    "bart": lambda: of("Bart", BART),
    "marian": lambda: transformers.MarianMTModel(transformers.MarianConfig(**BART)),
    "m2m": lambda: of("M2M100", BART),
    "t5": lambda: of("T5", T5),
    "whisper": lambda: of("Whisper", {**BART, "num_mel_bins": 8, "max_source_positions": 10}),
    "bert2bert": lambda: encoder_decoder(bert(), bert(is_decoder=True, add_cross_attention=True)),
    "bert2gpt2": lambda: encoder_decoder(bert(), transformers.GPT2Config(**GPT2, add_cross_attention=True)),
    "t5gemma": lambda: of("T5Gemma", {"encoder": GEMMA, "decoder": GEMMA}),
}


def local(build, window):
    huggingface.register()
    torch.manual_seed(0)
    model = build().eval()
    model.set_attn_implementation("attnkern_local")
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.attnkern_window = window
    return model


def agree(model, inputs, caches, **options):
    def generate(**cache):
        return model.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, output_logits=True,
            return_dict_in_generate=True, **cache, **options,
        )  # fmt: skip

    expected = generate(use_cache=False)
    for cache in caches:
        actual = generate(**cache)
        assert actual.sequences.equal(expected.sequences)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-3, atol=1e-3)
    return expected


@pytest.mark.parametrize("length", (9, 1))
@pytest.mark.parametrize("name", CROSS)
def test_cross_attention(name, length):
    model = local(CROSS[name], (2, 1))
    inputs = {"inputs": INPUTS[:, :length], "attention_mask": RIGHT[:, :length]}
    if name == "whisper":
        inputs = {"input_features": torch.randn(3, 8, 20)}
    found = agree(model, inputs, CACHES)
    agree(model, inputs, CACHES[:1], num_beams=2)
    agree(model, inputs, CACHES)  # what the last forward left behind is forgotten
    if length > 1:
        for module in model.modules():
            if hasattr(module, "config"):
                module.config.attnkern_window = (0, -1)
        assert not torch.allclose(found.logits[0], agree(model, inputs, ()).logits[0], atol=1e-2)


def test_the_window_of_bart_s_cross_attention():
    """At step `t` the decoder looks at keys `[t - 1, t]` of the encoder: the others may be anything."""
    model = local(CROSS["bart"], (1, 0))
    words = INPUTS[:, :5]
    states = torch.randn(3, 9, 32)
    expected = model.model.decoder(input_ids=words, encoder_hidden_states=states, use_cache=False).last_hidden_state
    cache = None
    for step in range(5):
        seen = torch.full_like(states, float("nan"))
        seen[:, : step + 1] = states[:, : step + 1]
        # keys are cached at the first step, so every step of its own begins there
        output = model.model.decoder(input_ids=words[:, : step + 1], encoder_hidden_states=seen, use_cache=False)
        torch.testing.assert_close(output.last_hidden_state[:, step], expected[:, step], rtol=1e-4, atol=1e-4)
        cached = model.model.decoder(
            input_ids=words[:, step : step + 1], encoder_hidden_states=states, use_cache=True, cache=cache
        )
        cache = cached.cache
        torch.testing.assert_close(cached.last_hidden_state[:, 0], expected[:, step], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", ((2, 0), (6, 0), (3, -1)), ids=str)
@pytest.mark.parametrize("padding", ("whole", "left"))
@pytest.mark.parametrize("name", ("Mistral", "Gemma2", "GPT2"))
def test_sliding_windows_and_padding_on_the_left(name, padding, window):
    options, head = {"Mistral": GEMMA, "Gemma2": GEMMA, "GPT2": GPT2}[name], {"GPT2": "LMHeadModel"}
    architecture = getattr(transformers, name + head.get(name, "ForCausalLM"))
    model = local(lambda: architecture(getattr(transformers, f"{name}Config")(**options)), window)
    mask = torch.ones_like(INPUTS) if padding == "whole" else RIGHT.flip(1)
    inputs = {"inputs": INPUTS, "attention_mask": mask}
    agree(model, inputs, (*CACHES, {"prefill_chunk_size": 4}))
    agree(model, inputs, CACHES[:1], num_beams=2)


def test_cached_cross_attention_compiles():
    model = local(CROSS["bart"], (2, 1))
    states, words = torch.randn(3, 9, 32), INPUTS[:, :1]
    decoder = torch.compile(model.model.decoder, backend="eager")
    caches = [transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache()) for _ in "ab"]
    with torch.no_grad():
        for _ in range(3):
            found, expected = (
                one(input_ids=words, encoder_hidden_states=states, use_cache=True, cache=cache).last_hidden_state
                for one, cache in zip((decoder, model.model.decoder), caches)
            )
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
