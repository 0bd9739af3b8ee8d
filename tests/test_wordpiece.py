"""WordPiece against Hugging Face's tokenizer of the same vocabulary."""

import json
import subprocess
import sys
import warnings

import pytest

from attnkern.nn import Bert, WordPiece
from tests.test_bert import CONFIG

LAZY = {"transformers", "tokenizers", "safetensors", "rich", "matplotlib"}
pytest.importorskip("tokenizers")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
LOWER = [*SPECIAL, *LETTERS, "hello", "world", "##ing", "我", "爱", "北", "京", ",", "!", "é"]
CASED = [*SPECIAL, *LETTERS, "Hello", "World", "École", "B", "##E", "我", "爱", ",", "!"]
TEXTS = [
    "Hello, Wörld! 我爱北京天安门",
    "ÉCOLE École e\u0301cole naïve\u00a0x\ty\u200b",
    "hello[MASK]ing [SEP] [unused]",
    "",
    "a" * 101,
    "ß İ 🤗 ﬁ ＡＢ hel\x00lo\ufffd",
]


def folder(tmp_path, vocabulary, **config):
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_imports_nothing_early():
    code = f"import sys, attnkern.nn; assert not {LAZY!r} & sys.modules.keys(), sys.modules.keys() & {LAZY!r}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("vocabulary, lower_case", ((LOWER, True), (CASED, False)), ids=("lower", "cased"))
def test_as_huggingface(tmp_path, vocabulary, lower_case):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)}, do_lower_case=lower_case
    )
    ours = WordPiece.from_folder(folder(tmp_path, vocabulary))  # which sees by itself what letters there are
    for text in TEXTS:
        (encoding,), expected = ours.encode([text]), theirs(text)
        assert encoding.ids == expected["input_ids"], text
    pairs = ours(TEXTS[:3], TEXTS[1:4])
    expected = theirs(TEXTS[:3], TEXTS[1:4], padding=True, return_tensors="pt")
    for name, tensor in pairs.items():
        assert tensor.equal(expected[name]), name
    ours.save_folder(tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    again = WordPiece.from_folder(tmp_path / "saved")
    for text in TEXTS:
        assert again.encode([text])[0].ids == ours.encode([text])[0].ids


def test_said_case_goes_before_the_looks(tmp_path):
    path = folder(tmp_path, LOWER, do_lower_case=False)
    assert WordPiece.from_folder(path).encode(["hello Hello"])[0].tokens[1:-1] == ["hello", "[UNK]"]
    assert WordPiece.from_folder(path, lower_case=True).encode(["Hello"])[0].tokens[1:-1] == ["hello"]


def test_words():
    (encoding,) = WordPiece(LOWER).encode([["hello", "cab", "京北"]])
    assert encoding.tokens == ["[CLS]", "hello", "c", "##a", "##b", "京", "北", "[SEP]"]
    assert encoding.word_ids == [None, 0, 1, 1, 1, 2, 2, None]


def test_learned_vocabulary():
    wordpiece = WordPiece.train(["hello hello helmet", "我爱 Hello"] * 9, size=40, max_length=9)
    assert wordpiece.tokenizer.get_vocab_size() <= 40 and wordpiece.padding == 0
    assert wordpiece.encode(["HELLO 爱q"])[0].tokens == ["[CLS]", "hello", "爱", "[UNK]", "[SEP]"]


def test_too_long():
    wordpiece = WordPiece(LOWER, max_length=8)
    with pytest.warns(UserWarning, match="1 of 2 texts are cut to 8 tokens"):
        batch = wordpiece(["hello " * 20, "world"])
    assert batch["input_ids"].shape == (2, 8) and batch["input_ids"][0, -1] == LOWER.index("[SEP]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(wordpiece.encode(["hello " * 6])[0]) == 8
        with pytest.raises(ValueError, match="text 1 must have at most 5 tokens, got 6"):
            wordpiece.encode(["a", "a b c d"], max_length=5, truncate=False)
    with pytest.warns(UserWarning):
        (pair,) = wordpiece.encode(["a b"], ["a b c d e f"])
    assert pair.tokens == ["[CLS]", "a", "b", "[SEP]", "a", "b", "c", "[SEP]"]


def test_refuses(tmp_path):
    for message, call in {
        r"lacks \[CLS\]": lambda: WordPiece([token for token in LOWER if token != "[CLS]"]),
        "every token once, got 1 twice": lambda: WordPiece([*LOWER, "a"]),
        "max_length must be 3 to 512, got 513": lambda: WordPiece(LOWER).encode(["a"], max_length=513),
        "pairs must be as many as texts, 1, got 2": lambda: WordPiece(LOWER).encode(["a"], ["b", "c"]),
        r"vocab.txt: vocabulary must hold": lambda: WordPiece.from_folder(folder(tmp_path, ["a"])),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="got one str"):
        WordPiece(LOWER)("hello")
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json or vocab.txt"):
        WordPiece.from_folder(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer"):
        WordPiece.from_folder(tmp_path)


def test_belongs_to_its_model(tmp_path):
    Bert(CONFIG).save_folder(tmp_path)
    assert WordPiece.from_folder(folder(tmp_path, LOWER[:40])).max_length == 12
    with pytest.raises(ValueError, match="a tokenizer of 67 words, and a model of 50"):
        WordPiece.from_folder(folder(tmp_path, LOWER))
    assert Bert(CONFIG)(**WordPiece(LOWER[:40])(["cab", "a"])).last_hidden_state.shape == (2, 5, 32)
