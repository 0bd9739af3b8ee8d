"""`examples/classify.py` and `examples/extract_features.py`, as a user runs them."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attnkern.nn import BertForSequenceClassification, WordPiece

for library in ("matplotlib", "rich", "safetensors", "tokenizers"):
    pytest.importorskip(library)
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name: str, *arguments) -> str:
        """What it prints last."""
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.filterwarnings("ignore:1 of 41 lines skipped")
def test_classify_then_extract(tmp_path, run):
    rows = [f"{number % 3}\ttext of {'abc'[number % 3]} number {number}\tsecond" for number in range(40)]
    data = tmp_path / "data.tsv"
    data.write_text("\n".join([*rows, "no tab here", ""]), encoding="utf-8")
    options = (data, "--folder", tmp_path / "run", "--steps", 3)
    with pytest.raises(SystemExit, match=r"^classify: .*data.tsv:41: expected a label, a text .*, got 1 fields$"):
        run("classify", *options)
    printed = run("classify", *options, "--skip-bad")
    assert "% of 8 held-out examples right after 3 steps" in printed
    assert (tmp_path / "run" / "classify.png").stat().st_size > 5000

    folder = tmp_path / "run" / "model"
    model, wordpiece = BertForSequenceClassification.from_folder(folder), WordPiece.from_folder(folder)
    assert model.bert.config.id2label == {0: "0", 1: "1", 2: "2"}
    lines = ["text of a", "number 5 ||| second", ""]
    (tmp_path / "lines.txt").write_text("\n".join([*lines, ""]))
    with torch.inference_mode():
        batch = wordpiece(["text of a", "number 5", ""], [None, "second", None])
        hidden = model.bert(**batch).last_hidden_state
    lengths = batch["attention_mask"].sum(1)
    for name, *more in (("s.npz",), ("t.npz", "--tokens"), ("s.jsonl",), ("t.jsonl", "--tokens")):
        run("extract_features", tmp_path / "lines.txt", "--model", folder, "--out", tmp_path / name, *more)
    sentences, tokens = np.load(tmp_path / "s.npz"), np.load(tmp_path / "t.npz")
    expected = hidden.sum(1) / lengths[:, None]
    np.testing.assert_allclose(sentences["features"], expected, atol=1e-5)
    np.testing.assert_allclose(tokens["features"], hidden[batch["attention_mask"].bool()], atol=1e-5)
    assert tokens["cu_seq"].tolist() == [0, *lengths.cumsum(0).tolist()] and tokens["tokens"][-1] == "[SEP]"
    for name, features in (("s.jsonl", expected), ("t.jsonl", hidden[:, :2])):
        said = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [line["text"] for line in said] == lines
        np.testing.assert_allclose(np.array(said[2]["features"]), features[2], atol=1e-5)

    with pytest.raises(SystemExit, match=r"^extract_features: .*nothing.txt"):
        run("extract_features", tmp_path / "nothing.txt", "--model", folder)
    with pytest.raises(SystemExit, match="must hold tokenizer.json or vocab.txt$"):
        run("extract_features", data, "--model", tmp_path)
