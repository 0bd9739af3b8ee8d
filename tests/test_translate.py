"""The example's plumbing: it trains each kind, goes on as if it had not stopped, reads files, and refuses in a line."""

import json
import os
import runpy
from pathlib import Path

import pytest

safe_open = pytest.importorskip("safetensors").safe_open

EXAMPLE = Path(__file__).parents[1] / "examples" / "translate.py"
SMALL = ("--dim", "16", "--layers", "1", "--batch", "4", "--vocabulary", "100", "--max-length", "12", "--beam", "2")


@pytest.fixture
def run(monkeypatch, tmp_path):
    from attnkern import training

    original = training.Run

    def command(*arguments, stop=None, out="out"):
        """With `stop`, as if killed after that many steps."""

        class Short(original):
            def __iter__(self):
                for step in super().__iter__():
                    if step == stop:
                        self.save()
                        raise SystemExit
                    yield step

        monkeypatch.setattr(training, "Run", Short)
        monkeypatch.setattr("sys.argv", [EXAMPLE.name, *SMALL, "--out", str(tmp_path / out), *arguments])
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    return command


@pytest.fixture
def files(tmp_path):
    """A source and its translation, of 30 lines; the seventh is as asked for."""

    def write(seventh="b a"):
        lines = [f"{'ab'[n % 2]} {'cde'[n % 3]} {n % 5}" for n in range(30)]
        (tmp_path / "source").write_text("\n".join(lines[:6] + [seventh] + lines[7:]) + "\n")
        (tmp_path / "target").write_text("\n".join(line[::-1] for line in lines) + "\n")
        return "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")

    return write


def losses(folder):
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        state = json.loads(file.metadata()["state"])
    return json.dumps(dict(state["dict"])["history"])


def test_stopped_and_resumed(run, files, tmp_path, capsys):
    arguments = (*files(), "--steps", "6", "--dropout", "0.1", "--attention", "global", "local", "hard")
    run(*arguments, out="whole")
    with pytest.raises(SystemExit):
        run(*arguments, stop=3)
    run(*arguments)
    for kind in ("global", "local", "hard"):
        assert losses(tmp_path / "out" / kind) == losses(tmp_path / "whole" / kind)
    out = capsys.readouterr().out
    assert out.count("greedy") == 6 and out.count("beam 2") == 6 and "BLEU" in out
    assert (tmp_path / "out" / "attention.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("task", "languages", "wanted"),
    [("numbers", "en fr", ("sept", "seven")), ("dates", "en de", ("Januar ", "January "))],
)
def test_generated_pairs(task, languages, wanted):
    page = runpy.run_path(str(EXAMPLE))
    pairs = page["GENERATORS"][task].__globals__
    pairs["GENERATED"] = 400
    pairs = page["GENERATORS"][task](languages.split())
    assert len({target for _, target in pairs}) == 400
    assert all(any(word in source for source, _ in pairs) for word in wanted)


def test_refusals(run, files, tmp_path, capsys, recwarn):
    def refusal(*arguments):
        with pytest.raises(SystemExit) as error:
            run("--steps", "1", *arguments)
        assert error.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    pair = files("")
    with open(tmp_path / "target", "r+b") as file:
        file.write(b"\xff")
    assert "target:1: 'utf-8' codec can't decode" in refusal(*pair)
    assert not (tmp_path / "out").exists()
    assert "source:7: empty (--skip-bad leaves such pairs out)" in refusal(*files(""))
    with open(tmp_path / "target", "r+b") as file:
        file.write(b"\xff")
    run("--steps", "1", *pair, "--skip-bad")
    assert any("2 of 30 pairs skipped, the first for " in str(warning.message) for warning in recwarn)
    assert "holds a run with other settings" in refusal("--task", "dates")
    pair = files()
    new = ("--out", str(tmp_path / "new"))
    assert "--vocabulary 3: sentencepiece cannot make it" in refusal(*pair, *new, "--vocabulary", "3")
    assert "--max-length 1: every pair has more pieces" in refusal(*pair, *new, "--max-length", "1")
    assert "--dim must be a multiple of its 4 heads, got 18" in refusal(*pair, *new, "--dim", "18")
    assert "--smoothing must be between 0 and 1, got 2.0" in refusal(*pair, *new, "--smoothing", "2")
    with open(tmp_path / "target", "a") as file:
        file.write("one more" + os.linesep)
    assert "must have as many lines as" in refusal(*pair, *new)
    assert "No such file" in refusal("--source", "nowhere", "--target", "nowhere", *new)
    assert "--source and --target go together" in refusal("--source", "nowhere")
    assert "--steps must be at least 1" in refusal("--steps", "0")
    assert "not all are known" in refusal("--languages", "xx", *new)
