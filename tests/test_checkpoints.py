"""BERT from and to folders: Hugging Face's, and TensorFlow checkpoints with google-research/bert's names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attnkern import nn as ours
from attnkern.atomic import written
from attnkern.nn import (
    Bert,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    CheckpointError,
    Local,
)
from attnkern.nn.crc32c import crc32c
from attnkern.nn.tensor_bundle import BundleError, Entry, TensorBundle, write_bundle
from tests.test_bert import CONFIG, IDS, MASK, SIZES, TYPES, huggingface

safetensors = pytest.importorskip("safetensors.torch")
LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
HEADS = {
    "BertForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "BertForSequenceClassification": ("logits",),
    "BertForTokenClassification": ("logits",),
    "BertForQuestionAnswering": ("start_logits", "end_logits"),
}
DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def edit(folder: Path, change) -> None:
    """Passes a folder's tensors through `change`."""
    file = folder / "model.safetensors"
    safetensors.save_file(change(safetensors.load_file(file)), file)


def results(model) -> list[torch.Tensor]:
    output = model(IDS, MASK, TYPES)
    return [output] if isinstance(output, torch.Tensor) else [part for part in output if part is not None]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results(first), results(second), strict=True))


@pytest.mark.parametrize("name", HEADS)
def test_heads_from_and_to_huggingface(tmp_path, name):
    labels = {0: "begin", 1: "end"} if name == "BertForQuestionAnswering" else LABELS
    theirs = huggingface(tmp_path / "theirs", name, id2label=labels)
    model = getattr(ours, name).from_folder(tmp_path / "theirs")
    assert model.bert.config.id2label == labels and not model.training
    model.save_folder(tmp_path / "ours")
    back, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert back.config.id2label == labels and list(back.config.label2id) == list(labels.values())
    expected, again, actual = theirs(IDS, MASK, TYPES), back.double()(IDS, MASK, TYPES), results(model.double())
    begins = MASK[:, 0].bool()  # of the others, theirs pools padding
    real = MASK.bool() & begins[:, None]
    for part, tensor in zip(HEADS[name], actual, strict=True):
        where = real if tensor.shape[:2] == MASK.shape else begins
        torch.testing.assert_close(tensor[where], expected[part][where])
        torch.testing.assert_close(again[part], expected[part])


def test_old_names_and_leftovers(tmp_path):
    huggingface(tmp_path, "BertForPreTraining")
    expected = BertForPreTraining.from_folder(tmp_path)

    def older(tensors):
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        decoder = tensors["bert.embeddings.word_embeddings.weight"].clone()
        extra = {"bert.embeddings.position_ids": torch.arange(12), "cls.predictions.decoder.weight": decoder}
        return renamed | extra

    edit(tmp_path, older)
    assert same(BertForPreTraining.from_folder(tmp_path), expected)
    assert same(Bert.from_folder(tmp_path), expected.bert)  # its head is not needed
    edit(tmp_path, lambda tensors: tensors | {"cls.predictions.decoder.weight": torch.zeros(50, 32)})
    with pytest.raises(CheckpointError, match="decoder of its own: cls.predictions.decoder.weight"):
        BertForPreTraining.from_folder(tmp_path)


def test_fresh_head(tmp_path):
    encoder = Bert(CONFIG)
    encoder.save_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: classifier.weight, classifier.bias$"):
        BertForSequenceClassification.from_folder(tmp_path)
    options = {"id2label": LABELS, "attention": Local(2, center="predicted"), "hidden_dropout_prob": 0.4}
    model = BertForSequenceClassification.from_folder(tmp_path, fresh_head=True, **options)
    assert model.classifier.weight.shape == (3, 32) and model.dropout.p == 0.4
    assert torch.equal(model.bert.pooler.weight, encoder.pooler.weight)
    model.save_folder(tmp_path)
    local = {"attention": options["attention"]}
    assert same(BertForSequenceClassification.from_folder(tmp_path, **local), model)
    two = {"id2label": {0: "no", 1: "yes"}}  # another head than the folder's
    again = BertForSequenceClassification.from_folder(tmp_path, fresh_head=True, **two, **local)
    assert again.classifier.weight.shape == (2, 32)
    assert torch.equal(again.bert.layers[1].self_attn.center.score, model.bert.layers[1].self_attn.center.score)
    with pytest.raises(CheckpointError, match=r"extra: bert.encoder.layer.0.self_attn.center.proj.weight, "):
        Bert.from_folder(tmp_path)
    Bert(CONFIG, pooler=False).save_folder(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"missing: pooler.dense.weight, pooler.dense.bias$"):
        Bert.from_folder(tmp_path / "bare")
    Bert.from_folder(tmp_path / "bare", pooler=False)
    BertForSequenceClassification.from_folder(tmp_path / "bare", fresh_head=True)


def test_head_of_ones_own(tmp_path):
    class Tagger(BertForTokenClassification):
        def __init__(self, config, **options):
            super().__init__(config, **options)
            self.lstm, self.heat = torch.nn.LSTM(3, 3), torch.nn.Parameter(torch.tensor(2.0))

    model = Tagger(BertConfig(**SIZES, hidden_act="gelu_new", id2label=LABELS))
    for format in ("huggingface", "tensorflow"):
        model.save_folder(tmp_path / format, format)
        options = {"id2label": LABELS} if format == "tensorflow" else {}  # whose config knows none
        back = Tagger.from_folder(tmp_path / format, **options)
        assert all(torch.equal(*pair) for pair in zip(model.state_dict().values(), back.state_dict().values()))
        with pytest.raises(CheckpointError, match="extra: .*lstm"):
            BertForTokenClassification.from_folder(tmp_path / format, **options)


def googles(theirs) -> dict[str, np.ndarray]:
    """Hugging Face's model as google-research/bert's variables, by hand."""
    state = {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items()}
    variables = {}

    def put(variable, module, kernel=False):
        first, second = ("kernel", "bias") if kernel else ("gamma", "beta")
        weight = state[f"{module}.weight"]
        variables[f"{variable}/{first}"] = weight.T if kernel else weight
        variables[f"{variable}/{second}"] = state[f"{module}.bias"]

    for which in ("word", "position", "token_type"):
        variables[f"bert/embeddings/{which}_embeddings"] = state[f"bert.embeddings.{which}_embeddings.weight"]
    put("bert/embeddings/LayerNorm", "bert.embeddings.LayerNorm")
    for i in range(2):
        for part in ("query", "key", "value"):
            at = f"attention.self.{part}"
            put(f"bert/encoder/layer_{i}/{at.replace('.', '/')}", f"bert.encoder.layer.{i}.{at}", kernel=True)
        for at in ("attention.output", "intermediate", "output"):
            put(
                f"bert/encoder/layer_{i}/{at.replace('.', '/')}/dense",
                f"bert.encoder.layer.{i}.{at}.dense",
                kernel=True,
            )
        for at in ("attention.output", "output"):
            put(f"bert/encoder/layer_{i}/{at.replace('.', '/')}/LayerNorm", f"bert.encoder.layer.{i}.{at}.LayerNorm")
    put("bert/pooler/dense", "bert.pooler.dense", kernel=True)
    put("cls/predictions/transform/dense", "cls.predictions.transform.dense", kernel=True)
    put("cls/predictions/transform/LayerNorm", "cls.predictions.transform.LayerNorm")
    variables["cls/predictions/output_bias"] = state["cls.predictions.bias"]
    variables["cls/seq_relationship/output_weights"] = state["cls.seq_relationship.weight"]  # not transposed
    variables["cls/seq_relationship/output_bias"] = state["cls.seq_relationship.bias"]
    return variables


def test_tensorflow(tmp_path):
    theirs = huggingface(tmp_path / "theirs", "BertForPreTraining", hidden_act="gelu_new")
    variables = googles(theirs)
    adam = {f"{name}/adam_{moment}": np.zeros_like(array) for name, array in variables.items() for moment in "mv"}
    write_bundle(tmp_path / "bert_model.ckpt", variables | adam | {"global_step": np.array(7)})
    sizes = {name: SIZES[name] for name in SIZES if name != "initializer_range"}
    (tmp_path / "bert_config.json").write_text(json.dumps(sizes | {"hidden_act": "gelu", "directionality": "bidi"}))

    model = BertForPreTraining.from_folder(tmp_path)
    assert model.bert.config.hidden_act == "gelu_new"  # Google's gelu is the tanh form
    assert same(model, BertForPreTraining.from_folder(tmp_path / "theirs"))
    model.save_folder(tmp_path / "ours", format="tensorflow")
    written_by_us = TensorBundle(tmp_path / "ours" / "bert_model.ckpt")
    assert written_by_us.entries.keys() == variables.keys()
    for name, array in variables.items():
        np.testing.assert_array_equal(written_by_us.read(name), array)
    assert same(BertForPreTraining.from_folder(tmp_path / "ours"), model)
    assert same(Bert.from_folder(tmp_path / "ours"), model.bert)


SLOTS = [
    "adam_m adam_v",
    "Adam Adam_1",
    "BERTAdam BERTAdam_1",
    "Momentum",
    "LAMB LAMB_1",
    "vr vc",
    "Adafactor Adafactor_1",
    "ExponentialMovingAverage",
    ".OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE",
]
COUNTED = ["global_step", "beta1_power", "beta2_power", "train/beta1_power", "save_counter", "loss_scale", "lr"]


@pytest.mark.parametrize("slots", SLOTS)
def test_what_a_training_leaves_behind(tmp_path, slots):
    """Whatever the optimizer's name: slots are a variable's name and more, in a scope or not; the rest are numbers."""
    model = BertForPreTraining(BertConfig(**SIZES, hidden_act="gelu_new")).eval()
    model.save_folder(tmp_path, format="tensorflow")
    bundle = TensorBundle(tmp_path / "bert_model.ckpt")
    weights = {name: bundle.read(name) for name in bundle.entries}
    left = {f"{name}/{slot}": array + 1 for name, array in weights.items() for slot in slots.split()}
    left |= {f"training/{name}": array for name, array in left.items()}
    left |= {"bert/pooler/dense/kernel/Adafactor_2": np.zeros(1, np.float32)}
    left |= {name: np.array(0.9, np.float32) for name in COUNTED}
    left |= {"bert/count": np.array(3), "bert/beta1_power": np.array(0.9, np.float32)}
    left |= {"save_counter/.ATTRIBUTES/VARIABLE_VALUE": np.array(3)}
    write_bundle(bundle.prefix, weights | left)
    assert same(BertForPreTraining.from_folder(tmp_path), model)
    unknown = {
        "bert/encoder/layer_7/output/dense/kernel": weights["bert/pooler/dense/kernel"],
        "teacher/bert/pooler/dense/kernel": weights["bert/pooler/dense/kernel"],
        "adam_m": np.zeros(2, np.float32),
        "bert/temperature": np.array(1.0, np.float32),
        "lstm/beta": np.zeros(3, np.float32),
    }
    write_bundle(bundle.prefix, weights | left | unknown)
    with pytest.raises(CheckpointError) as caught:
        BertForPreTraining.from_folder(tmp_path)
    extra = str(caught.value).partition("extra: ")[2].split("\n")[0].split(", ")
    assert sorted(extra) == sorted(unknown)


def test_strings_are_no_weights(tmp_path, monkeypatch):
    """Such as `_CHECKPOINTABLE_OBJECT_GRAPH`."""
    model = BertForPreTraining(BertConfig(**SIZES, hidden_act="gelu_new")).eval()
    model.save_folder(tmp_path, format="tensorflow")
    entry, string = TensorBundle.__init__, Entry(7, (), 0, 0, 9, 0, False)

    def init(self, prefix):
        entry(self, prefix)
        self.entries["_CHECKPOINTABLE_OBJECT_GRAPH"] = string

    monkeypatch.setattr(TensorBundle, "__init__", init)
    assert same(BertForPreTraining.from_folder(tmp_path), model)


def test_tensorflow_heads(tmp_path):
    for name, label in (("BertForSequenceClassification", ""), ("BertForQuestionAnswering", "cls/squad/")):
        model = getattr(ours, name)(BertConfig(**SIZES, hidden_act="gelu_new")).eval()
        model.save_folder(tmp_path, format="tensorflow")
        assert f"{label}output_weights" in TensorBundle(tmp_path / "bert_model.ckpt").entries
        assert same(type(model).from_folder(tmp_path), model)
    with pytest.warns(UserWarning, match="tanh"):
        Bert(CONFIG).save_folder(tmp_path, format="tensorflow")


def test_written_by_tensorflow():
    """Two shards, and keys that share prefixes: TensorFlow 2.21's SaveV2 and MergeV2Checkpoints."""
    bundle = TensorBundle(DATA / "tensorflow.ckpt")
    assert bundle.shards == 2 and len(bundle.entries) == 49
    names = [f"bert/encoder/layer_{i}/attention/self/{part}" for i in range(12) for part in ("query", "key")]
    for number, name in enumerate(names):
        np.testing.assert_array_equal(bundle.read(f"{name}/kernel"), np.arange(6).reshape(2, 3) + 20 * number)
        np.testing.assert_array_equal(bundle.read(f"{name}/bias"), [2 * number + 1] * 3)
    assert bundle.read("global_step") == 20000


@pytest.mark.parametrize("format", ("huggingface", "tensorflow"))
def test_all_that_does_not_fit_is_named(tmp_path, format):
    model = Bert(BertConfig(**SIZES, hidden_act="gelu_new"))
    model.save_folder(tmp_path, format)
    norm = "bert/embeddings/LayerNorm/gamma"
    key, pooler, table = {
        "huggingface": ("encoder.layer.1.attention.self.key", "pooler.dense.weight", "embeddings.LayerNorm.weight"),
        "tensorflow": ("bert/encoder/layer_1/attention/self/key", "bert/pooler/dense/kernel", norm),
    }[format]
    key += ".bias" if format == "huggingface" else "/bias"

    def spoil(tensors):
        del tensors[key], tensors[pooler]
        return tensors | {table: tensors[table][:5], "mine": tensors[table], "lstm/kernel": tensors[table]}

    if format == "huggingface":
        edit(tmp_path, lambda tensors: {name: t.clone() for name, t in spoil(tensors).items()})
    else:
        bundle = TensorBundle(tmp_path / "bert_model.ckpt")
        write_bundle(bundle.prefix, spoil({name: bundle.read(name) for name in bundle.entries}))
    with pytest.raises(CheckpointError) as caught:
        Bert.from_folder(tmp_path)
    for part in (
        f"missing: {key}, {pooler}",
        "mine",
        "lstm/kernel",
        f"{table}: torch.float32 (5,), not floats (32,)",
    ):
        assert part in str(caught.value)


def test_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Bert.from_folder(tmp_path / "none")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"must hold config.json and model.safetensors, or .* it has notes.txt"):
        Bert.from_folder(tmp_path)
    model = Bert(BertConfig(**SIZES, hidden_act="gelu_new"))
    model.save_folder(tmp_path / "tf", format="tensorflow")
    data, index = (tmp_path / "tf" / f"bert_model.ckpt.{end}" for end in ("data-00000-of-00001", "index"))
    sound = data.read_bytes()
    data.write_bytes(sound[:5000] + b"?" + sound[5001:])
    with pytest.raises(CheckpointError, match="damaged or cut short: bert/"):
        Bert.from_folder(tmp_path / "tf")
    data.unlink()
    with pytest.raises(FileNotFoundError, match="data-00000-of-00001"):
        Bert.from_folder(tmp_path / "tf")
    sound = index.read_bytes()
    for spoiled in (b"", sound[:-9], sound[:60] + b"?" + sound[61:]):
        index.write_bytes(spoiled)
        with pytest.raises(CheckpointError, match=r"bert_model.ckpt.index.* (damaged|cut short)"):
            Bert.from_folder(tmp_path / "tf")
    index.with_name("other.ckpt.index").write_bytes(index.read_bytes())
    index.rename(index.with_name("one.ckpt.index"))
    with pytest.raises(FileNotFoundError, match="2 checkpoints: one.ckpt, other.ckpt"):
        Bert.from_folder(tmp_path / "tf")

    model.save_folder(tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        Bert.from_folder(tmp_path / "hf")
    model.save_folder(tmp_path / "hf")
    for text, message in (("{", "is no JSON"), ("[]", "JSON object"), ('{"model_type": "roberta"}', "roberta")):
        (tmp_path / "hf" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Bert.from_folder(tmp_path / "hf")
    with pytest.raises(ValueError, match="format must be"):
        model.save_folder(tmp_path, format="onnx")


def test_bundle_refuses_slices_and_strings(tmp_path):
    write_bundle(tmp_path / "a", {"one": np.zeros(3, np.float32)})
    bundle = TensorBundle(tmp_path / "a")
    for spoiled in ({"sliced": True}, {"dtype": 7}):
        bundle.entries["one"] = bundle.entries["one"]._replace(**{"sliced": False, "dtype": 1} | spoiled)
        with pytest.raises(BundleError, match="one .* not supported"):
            bundle.read("one")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with written(path) as draft:
        draft.write_text("first")
    with pytest.raises(KeyboardInterrupt), written(path) as draft:
        draft.write_text("half of the sec")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_crc32c():
    """RFC 3720, B.4; and pieces longer than are joined at a time."""
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(bytes(range(32))) == 0x46DD794E
    data, state = np.random.default_rng(0).bytes((1 << 18) + 13), 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ 0x82F63B78 * (state & 1)
    assert crc32c(data) == state ^ 0xFFFFFFFF
