"""examples/tag_ner.py: what a CRF is for, and what it says of bad data."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

torchcrf = pytest.importorskip("torchcrf")
pytest.importorskip("seqeval")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
import tag_ner  # noqa: E402

sys.path.remove(str(EXAMPLES))


def test_a_crf_beats_a_linear_head(tmp_path, capsys):
    """Far from its title a name's kind stands in the tag before alone."""
    given = ["--out", str(tmp_path), "--steps", "80", "--head", "linear", "crf"]
    found = tag_ner.compare(tag_ner.arguments(given))
    assert found["crf"] > found["linear"] + 0.05
    again = tag_ner.compare(tag_ner.arguments(given))  # nothing is left to train
    assert again == found and (tmp_path / "tag_ner.png").stat().st_size > 10_000
    model = tag_ner.Tagger.from_folder(tmp_path / "crf" / "model", head="crf")
    assert model.crf is not None and model.bert.config.id2label[0] == "B-LOC"


def test_conll_files(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("-DOCSTART- -X- O\n\nBerlin\tNNP\tB-LOC\nis O\n\n\nbig O\nX X-LOC\nalone\n")
    with pytest.raises(ValueError, match="data.txt:8: a tag must be O, B-kind or I-kind, got 'X-LOC'"):
        tag_ner.read(path, skip_bad=False)
    with pytest.warns(UserWarning, match="2 of 9 lines skipped: .*:8: .*:9: expected a word and a tag, got 'alone'"):
        sentences = tag_ner.read(path, skip_bad=True)
    assert sentences == [(["Berlin", "is"], ["B-LOC", "O"]), (["big"], ["O"])]
    run = subprocess.run(
        [sys.executable, EXAMPLES / "tag_ner.py", path, "--out", tmp_path / "out"], capture_output=True, text=True
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr and "data.txt:8: a tag must be" in run.stderr


def test_long_sentences_are_cut(tmp_path):
    sentences = [tag_ner.Sentence(["lake"] + ["arden"] * 200, ["B-LOC"] + ["I-LOC"] * 200)]
    wordpiece = tag_ner.WordPiece.train(["lake arden"], max_length=16)
    names = ["B-LOC", "I-LOC", "O"]
    with pytest.warns(UserWarning, match="cut to 16 tokens"):
        data = tag_ner.Data(sentences, wordpiece, names)
    config = tag_ner.BertConfig(wordpiece.tokenizer.get_vocab_size(), **tag_ner.SMALL, id2label=dict(enumerate(names)))
    (tags,) = tag_ner.tag(tag_ner.Tagger(config, "bilstm-crf"), data, names)
    assert len(tags) == 201 and set(tags[14:]) == {"O"}


@pytest.mark.parametrize("head", tag_ner.HEADS)
def test_words_without_tokens_shift_no_tag(head):
    """Such as a zero-width space, or a control character: they are O, and their neighbours are what they were."""
    bare = [["lake", "arden", "saw", "dean"], ["we"], ["mr", "esk"]]
    holes = [
        ["\u200b", "lake", "\x07", "arden", "saw", "dean"],
        ["we"],
        ["\u200b"],
        ["mr", "\u200b\u200d", "esk", "\x00"],
    ]
    names = ["B-LOC", "I-LOC", "O"]
    wordpiece = tag_ner.WordPiece.train([" ".join(words) for words in bare], max_length=16)
    of_words = {"lake": "B-LOC", "arden": "I-LOC", "mr": "B-LOC"}
    sentences = [
        [tag_ner.Sentence(words, [of_words.get(word, "O") for word in words]) for words in part]
        for part in (bare, holes)
    ]
    data = [tag_ner.Data(part, wordpiece, names) for part in sentences]
    assert [tags.tolist() for tags in data[1].tags if len(tags)] == [tags.tolist() for tags in data[0].tags]
    torch.manual_seed(0)
    config = tag_ner.BertConfig(wordpiece.tokenizer.get_vocab_size(), **tag_ner.SMALL, id2label=dict(enumerate(names)))
    model = tag_ner.Tagger(config, head)
    torch.nn.init.normal_(model.classifier.weight)
    wanted, found = (tag_ner.tag(model, part, names) for part in data)
    assert len({tag for tags in wanted for tag in tags}) > 1
    assert [len(tags) for tags in found] == [len(words) for words in holes]
    kept = [[tag for word, tag in zip(*row) if word.isalpha()] for row in zip(holes, found)]
    assert [tags for tags in kept if tags] == wanted
    assert all(tag == "O" for row in zip(holes, found) for word, tag in zip(*row) if not word.isalpha())


def test_trains_beside_sentences_without_tokens(tmp_path, capsys):
    path = tmp_path / "data.txt"
    path.write_text("\u200b O\n\n" + "\u200b O\nlake B-LOC\narden I-LOC\n\n" * 9, encoding="utf-8")
    tag_ner.compare(tag_ner.arguments([str(path), "--out", str(tmp_path / "out"), "--steps", "2"]))
    path.write_text("\u200b O\n\n" * 9, encoding="utf-8")
    with pytest.raises(ValueError, match="a word that has a token"):
        tag_ner.compare(tag_ner.arguments([str(path), "--out", str(tmp_path / "none"), "--steps", "2"]))
    assert not (tmp_path / "none").exists()
