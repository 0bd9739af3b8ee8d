"""WordPiece against Hugging Face's tokenizer of the same vocabulary."""

import json
import subprocess
import sys
import threading
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
    (tmp_path / "saved" / "vocab.txt").unlink()
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
    (tmp_path / "vocab.txt").write_text("\n".join(LOWER[:50]), encoding="utf-8")  # the last line has no end
    assert WordPiece.from_folder(tmp_path).tokenizer.get_vocab_size() == 50
    with pytest.raises(ValueError, match="a tokenizer of 67 words, and a model of 50"):
        WordPiece.from_folder(folder(tmp_path, LOWER))
    assert Bert(CONFIG)(**WordPiece(LOWER[:40])(["cab", "a"])).last_hidden_state.shape == (2, 5, 32)


SAID = [
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "strip_accents": None, "never_split": None, "do_basic_tokenize": True},
    {"do_lower_case": True, "tokenize_chinese_chars": False},
    {"do_lower_case": True, "unk_token": "a", "cls_token": "[BEG]"},
    {"do_lower_case": True, "sep_token": {"content": "[BEG]", "lstrip": False, "__type": "AddedToken"}},
    {"do_lower_case": True, "mask_token": {"content": "[MASK]", "lstrip": True, "__type": "AddedToken"}},
    {"do_lower_case": False, "additional_special_tokens": ["[BEG]", "<X>"]},
    {"do_lower_case": True, "added_tokens_decoder": {"68": {"content": "<X>", "special": True}}},
    {"do_lower_case": True, "tokenizer_class": "BertTokenizerFast", "pad_token": "[BEG]"},
]


@pytest.mark.parametrize("whole", (False, True), ids=("vocab.txt", "tokenizer.json"))
@pytest.mark.parametrize("said", SAID, ids=str)
def test_what_the_folder_says(tmp_path, said, whole):
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path, [*LOWER, "[BEG]"], **said)
    if whole:  # which says all else, and less
        WordPiece([*LOWER, "[BEG]"], True).tokenizer.save(str(path / "tokenizer.json"))
    theirs, ours = transformers.BertTokenizerFast.from_pretrained(path), WordPiece.from_folder(path)
    texts = [*TEXTS, "Éh我爱 <X>é[BEG]", "[UNK] ☃ [MASK] x", "cafe\u0301 Ångström"]
    for text in texts if not (whole and {"unk_token", "cls_token", "sep_token"} & said.keys()) else ():
        assert ours.encode([text])[0].ids == theirs(text)["input_ids"], text
    assert ours.padding == theirs.pad_token_id and ours.special["cls_token"] == theirs.cls_token
    ours.save_folder(tmp_path / "saved")
    again = WordPiece.from_folder(tmp_path / "saved")
    assert again.padding == ours.padding and again.special == ours.special and again.max_length == ours.max_length
    assert [e.ids for e in again.encode(texts)] == [e.ids for e in ours.encode(texts)]


def test_saved_for_transformers(tmp_path):
    """Whose own default is lower case."""
    transformers = pytest.importorskip("transformers")
    ours = WordPiece(CASED, strip_accents=True)
    ours.save_folder(tmp_path)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode([text])[0].ids == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    "said, message",
    (
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "is of a Japanese tokenizer"),
        ({"word_tokenizer_type": "mecab"}, "is of a Japanese tokenizer"),
        ({"tokenizer_class": "BertweetTokenizer"}, "is of a BertweetTokenizer, which WordPiece is not"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize=False is not supported beside a vocab.txt"),
        ({"never_split": ["hello"]}, r"never_split=\['hello'\] is not supported"),
        ({"strip_accents": "no"}, "strip_accents must be true, false or null, got 'no'"),
        ({"model_max_length": -1}, "model_max_length must be a number from 3 on, got -1"),
        ({"pad_token": "<pad>"}, "lacks <pad>"),
        ({"cls_token": {"lstrip": True}}, "a special or added token is malformed: 'content'"),
        ({"added_tokens_decoder": {"90": {"content": "<X>"}}}, "the added token <X> must be number 67, got 90"),
    ),
)
def test_another_tokenizers_folder(tmp_path, said, message):
    with pytest.raises(ValueError, match=message):
        WordPiece.from_folder(folder(tmp_path, LOWER, **said))


def test_files_beside_the_vocabulary(tmp_path):
    path = folder(tmp_path, [*LOWER, "[BEG]"], model_max_length=7)
    (path / "special_tokens_map.json").write_text(json.dumps({"cls_token": "[BEG]"}))
    (path / "added_tokens.json").write_text(json.dumps({"[new]": 68}))
    wordpiece = WordPiece.from_folder(path)
    assert wordpiece.max_length == 7 and wordpiece.encode(["[new]"])[0].tokens == ["[BEG]", "[new]", "[SEP]"]
    (path / "config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer", "vocab_size": 69}))
    with pytest.raises(ValueError, match="Japanese"):
        WordPiece.from_folder(path)
    (path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json is no JSON"):
        WordPiece.from_folder(path)


@pytest.mark.parametrize("word", ("Москва", "Αθήνα", "Éa", "##Я", "Ա", "ǅ", "Ⅳ"))
def test_capitals_of_any_script(word):
    wordpiece = WordPiece([*SPECIAL, *LETTERS, word, word.lower() + "x"])
    assert wordpiece.tokenizer.normalizer.lowercase is False
    lower = WordPiece([*SPECIAL, "<S>", "[CAPITALS]", "москва", "我", "ß", "1", "ª"])
    assert lower.tokenizer.normalizer.lowercase is True


def test_cutting_as_the_library(tmp_path):
    """The settings that all threads share stay as they are, and the encodings are what they would be."""
    wordpiece = WordPiece(LOWER)
    settings = wordpiece.tokenizer.to_str()
    library = WordPiece(LOWER).tokenizer
    texts = ["a b c d e f g h", "a b", "", "a b c d", "hello"]
    pairs = [None, "a b c d e f g h i", "a b c d e f g h i j", "a b c d", "a b"]
    for length in range(3, 14):
        library.enable_truncation(length)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = wordpiece.encode(texts, pairs, max_length=length)
            words = wordpiece.encode([text.split() for text in texts], max_length=length)
        for ours, text, pair in zip(found, texts, pairs):
            theirs = library.encode(text, pair)
            for field in ("ids", "type_ids", "offsets", "word_ids", "attention_mask", "special_tokens_mask"):
                assert getattr(ours, field) == getattr(theirs, field), (length, text, field)
        assert [e.ids for e in words] == [library.encode(text.split(), is_pretokenized=True).ids for text in texts]
    assert wordpiece.tokenizer.to_str() == settings


def test_threads_do_not_disturb_each_other():
    wordpiece = WordPiece(LOWER)
    whole, wrong = "hello " * 200, []

    def cut():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(100):
                wordpiece.encode([whole] * 4, max_length=5)

    def read():
        for _ in range(200):
            wrong.extend(e for e in wordpiece.encode([whole]) if len(e) != 202)

    threads = [threading.Thread(target=target) for target in (cut, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


LEARN = """
import random
from attnkern.nn import WordPiece
chance = random.Random(0)
words = ["".join(chance.choices("abcdefghijklmé我", k=chance.randint(2, 8))) for _ in range(1000)]
wordpiece = WordPiece.train([" ".join(chance.choices(words, k=10)) for _ in range(200)], 300)
ids = wordpiece.tokenizer.get_vocab()
print(*sorted(ids, key=ids.get))
"""


def test_the_same_texts_give_the_same_vocabulary():
    found = {subprocess.check_output([sys.executable, "-c", LEARN]) for _ in range(3)}
    assert len(found) == 1 and len(found.pop().split()) == 300
