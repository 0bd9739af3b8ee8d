"""Hugging Face models outside AttentionInterface: refused by name, skipped by a swap, for every architecture."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from attnkern import huggingface
from attnkern.architectures import goes_through
from attnkern.nn import Local
from attnkern.swap import restore_attention, swap_attention

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
NAMES = ("attnkern", "attnkern_local")
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
OUTSIDE = {
    "MPNet": SMALL,
    "MegatronBert": SMALL,
    "Bloom": {"vocab_size": 50, "hidden_size": 32, "n_layer": 1, "n_head": 4},
    "Mpt": {"vocab_size": 50, "d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 16},
    "XLNet": {"vocab_size": 50, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 40},
    "Deberta": SMALL,
    "RoFormer": SMALL,
    "RemBert": SMALL,
    "Canine": SMALL,
    "Tapas": SMALL,
    # these choose their class from a table of their own, where our name is a KeyError
    "Falcon": {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
    "GPTNeo": {**SMALL, "num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]},
}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def registered():
    huggingface.register()
    huggingface.register()
    torch.manual_seed(0)


def config_of(name):
    return getattr(transformers, f"{name}Config")(**OUTSIDE[name])


def vision_and(decoder):
    """An encoder that goes through the interface, and a decoder that may not."""
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    return transformers.VisionEncoderDecoderModel(config).eval()


def trocr():
    sizes = {"vocab_size": 50, "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 40}
    return vision_and(transformers.TrOCRConfig(**sizes))


@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("name", OUTSIDE)
def test_refused_by_name(name, implementation):
    pattern = f"{name}.*does not go through transformers' AttentionInterface: .*eager"
    with pytest.raises(ValueError, match=pattern) as error:
        transformers.AutoModel.from_config(config_of(name), attn_implementation=implementation)
    assert "\n" not in str(error.value)
    config = config_of(name)
    config._attn_implementation = implementation
    with pytest.raises(ValueError, match=pattern):
        transformers.AutoModel.from_config(config)
    transformers.AutoModel.from_config(config_of(name), attn_implementation="eager")


@pytest.mark.parametrize("implementation", NAMES)
def test_refused_when_a_saved_model_is_loaded(tmp_path, implementation):
    transformers.AutoModel.from_config(config_of("MPNet")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="MPNetModel does not go through"):
        transformers.AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)


@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("name", OUTSIDE)
def test_setting_the_name_later_changes_nothing(name, implementation):
    """transformers warns, as of "sdpa", or the refusal is raised; the model goes on as before."""
    model = transformers.AutoModel.from_config(config_of(name)).eval()
    former = model.config._attn_implementation
    try:
        model.set_attn_implementation(implementation)
    except ValueError as error:
        assert "does not go through" in str(error)
    assert model.config._attn_implementation == former


@pytest.mark.parametrize("kind", (None, Local(2)), ids=str)
@pytest.mark.parametrize("name", OUTSIDE)
def test_swap_skips_them(name, kind):
    model = transformers.AutoModel.from_config(config_of(name)).eval()
    former = model.config._attn_implementation
    report = swap_attention(model, kind)
    assert not report.swapped and model.config._attn_implementation == former
    assert report.skipped == [("", f"{type(model).__name__} does not go through transformers' AttentionInterface")]
    restore_attention(model)


def test_every_architecture_of_sdpa_goes_through_unless_it_has_a_table():
    """All classes of transformers: what "sdpa" serves we serve, what has no interface at all we refuse."""
    code = Path(transformers.models.__file__).parent
    served, refused = 0, set()
    for path in sorted(code.glob("*/modeling_*.py")):
        try:
            module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        except ImportError:  # what it needs is not installed
            continue
        text = path.read_text()
        for architecture in vars(module).values():
            is_model = isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)
            if not is_model or architecture.__module__ != module.__name__:
                continue
            if goes_through(architecture):
                served += 1
                assert "ALL_ATTENTION_FUNCTIONS" in text
            elif goes_through(architecture) is False:
                refused.add(architecture.__name__)
                has_table = "ATTENTION_CLASSES = {" in text
                assert not architecture._supports_sdpa or has_table, architecture
    assert served > 300 and {"BloomModel", "MPNetModel", "FalconModel", "GPTNeoModel", "TrOCRDecoder"} <= refused
    assert not {"BertModel", "LlamaModel", "T5Stack", "GptOssModel", "Gemma2Model", "GPT2Model"} & refused


class ToyAttention(nn.Module):
    def forward(self, hidden, mask):
        return ((hidden @ hidden.mT) + mask).softmax(-1) @ hidden


@pytest.mark.parametrize("flag", (False, True))
def test_models_of_users(flag):
    """What a model outside of transformers says of "sdpa" does not count: nobody has tried it."""

    class ToyModel(transformers.PreTrainedModel):
        config_class = transformers.BertConfig
        _supports_sdpa = flag

        def __init__(self, config):
            super().__init__(config)
            self.attention = ToyAttention()

    with pytest.raises(ValueError, match="ToyModel does not go through"):
        ToyModel._from_config(transformers.BertConfig(**SMALL), attn_implementation="attnkern")


@pytest.mark.parametrize("implementation", NAMES)
def test_a_part_that_does_not_go_through_refuses_the_whole(implementation):
    model = trocr()
    with pytest.raises(ValueError, match="TrOCRDecoder.* does not go through"):
        type(model)._from_config(model.config, attn_implementation=implementation)


@pytest.mark.parametrize("kind, name", [(None, "attnkern"), (Local(2), "attnkern_local")], ids=str)
def test_swap_takes_the_parts_that_do(kind, name):
    model, pixels, words = trocr(), torch.randn(2, 3, 8, 8), torch.randint(3, 50, (2, 5))
    implementations = [model.config.encoder._attn_implementation, model.config.decoder._attn_implementation]
    expected = model(pixel_values=pixels, decoder_input_ids=words).logits
    report = swap_attention(model, kind)
    assert [part for part, *_ in report.swapped] == ["encoder"]
    assert [part for part, _ in report.skipped] == ["decoder"] and "TrOCR" in report.skipped[0][1]
    assert model.encoder.config._attn_implementation == name
    assert model.decoder.config._attn_implementation == implementations[1]
    actual = model(pixel_values=pixels, decoder_input_ids=words).logits
    assert torch.allclose(actual, expected, atol=1e-4) == (kind is None)
    restore_attention(model)
    assert [model.config.encoder._attn_implementation, model.config.decoder._attn_implementation] == implementations
    assert not hasattr(model.encoder.config, "attnkern_window")
    torch.testing.assert_close(model(pixel_values=pixels, decoder_input_ids=words).logits, expected)


def test_a_model_without_attention_is_no_swap():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
    report = swap_attention(transformers.ResNetModel(transformers.ResNetConfig(**sizes)))
    assert not report.swapped and "does not go through" in report.skipped[0][1]


def test_without_our_names_nothing_is_refused():
    code = (
        "import transformers, attnkern.huggingface as h; h.register();"
        "c = transformers.MPNetConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8);"
        "assert transformers.MPNetModel(c).config._attn_implementation == 'eager';"
        "b = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8);"
        "assert transformers.BertModel(b).config._attn_implementation == 'sdpa'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
