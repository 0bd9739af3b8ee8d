"""examples/translate.py on a few sentences: every kind, stopped and resumed; and on what it must refuse."""

import runpy
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

EXAMPLE = Path(__file__).parents[1] / "examples" / "translate.py"
WORDS = "zero one two three four five six seven eight nine".split()


@pytest.fixture
def files(tmp_path):
    """All numbers of three digits, in words and in digits; the fifth line is no text, the ninth is empty."""
    source, target = tmp_path / "words.txt", tmp_path / "digits.txt"
    numbers = [f"{n:03}" for n in range(0, 1000, 5)]
    source.write_text("".join(" ".join(WORDS[int(digit)] for digit in number) + "\n" for number in numbers))
    target.write_text("".join(f"{number}\n" for number in numbers))
    return source, target


def translate(monkeypatch, *arguments) -> None:
    small = ("--batch", 8, "--dim", 16, "--layers", 1, "--vocabulary", 60, "--max-length", 16, "--warm-up", 5)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(str, small + arguments)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def history(folder: Path) -> str:
    """The checkpoint's, as it stands there."""
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        return file.metadata()["state"].split('"history"')[1]


def test_every_kind_stopped_and_resumed(monkeypatch, capsys, tmp_path, files):
    data = ("--source", files[0], "--target", files[1])
    kinds = ("--attention", "global", "local", "hard")
    translate(monkeypatch, *data, *kinds, "--steps", 4, "--out", tmp_path / "whole")
    rows = capsys.readouterr().out
    assert rows.count("greedy ") == rows.count("beam 4 ") == 3 and "BLEU" in rows
    assert (tmp_path / "whole" / "attention.png").stat().st_size > 20_000
    for steps in (2, 4):
        translate(monkeypatch, *data, *kinds, "--steps", steps, "--out", tmp_path / "parts")
    for kind in kinds[1:]:
        assert history(tmp_path / "whole" / kind) == history(tmp_path / "parts" / kind)
    with pytest.raises(SystemExit):
        translate(monkeypatch, *data, "--lr", 0.1, "--out", tmp_path / "parts")
    assert "holds a run with other settings" in capsys.readouterr().err


def test_bad_lines(monkeypatch, capsys, tmp_path, files):
    lines = files[1].read_bytes().split(b"\n")
    lines[4], lines[8] = b"\xff", b""
    files[1].write_bytes(b"\n".join(lines))
    command = ("--source", files[0], "--target", files[1], "--steps", 1, "--out", tmp_path / "out")
    with pytest.raises(SystemExit):
        translate(monkeypatch, *command)
    assert "digits.txt:5: 'utf-8' codec can't decode" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match="2 of 200 pairs skipped, the first for .*digits.txt:5"):
        translate(monkeypatch, *command, "--skip-bad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", EXAMPLE), "must have as many lines as"),
        (("--dim", 18), "--dim must be a multiple of its 4 heads, got 18"),
        (("--smoothing", 2), "--smoothing must be between 0 and 1, got 2.0"),
        (("--steps", 0), "--steps must be at least 1, got 0"),
        (("--vocabulary", 3), "--vocabulary 3: sentencepiece cannot make it"),
        (("--max-length", 2), "--max-length 2: every pair has more pieces"),
        (("--source", "missing"), "No such file"),
    ],
)
def test_refused(options, message, monkeypatch, capsys, tmp_path, files):
    with pytest.raises(SystemExit):
        translate(monkeypatch, "--source", files[0], "--target", files[1], "--out", tmp_path / "out", *options)
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert message in last


def test_generated_pairs():
    example = runpy.run_path(str(EXAMPLE))
    languages = ["en", "de", "fr"]
    numbers, dates = example["numbers"](languages), example["dates"](languages)
    assert len(set(numbers)) == len(numbers) == len(dates) == example["GENERATED"]
    digits = dict(numbers)
    assert all(target.isdigit() for target in digits.values())
    assert len({target for _, target in numbers}) == len(numbers)  # what is held out was not seen, in any language
    for day, iso in dates[:50]:
        assert len(iso) == 10 and str(int(iso[8:])) in day
