"""`make gpu-check`, dry: what it would run exists and selects something, and no stage stops another."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from attnkern.__main__ import main as attnkern
from attnkern.bench import gpu_check, run
from attnkern.bench.gpu_check import Stage, main
from attnkern.bench.problems import SUITES

ROOT = Path(__file__).parent.parent
DEVICE = "cuda"


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """Of a machine with CUDA's tools, and without anything for pytest."""
    monkeypatch.setattr(gpu_check, "tool", lambda name: name)
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    return gpu_check.stages(tmp_path)


def after(command, option: str) -> str:
    return command[command.index(option) + 1]


def named(plan, word: str) -> list[tuple[str, ...]]:
    return [command for stage in plan.values() for command in stage.commands if word in command]


def test_a_dry_run_lists_stages_and_runs_nothing(tmp_path, capsys):
    assert main(["--dry-run", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for number, stage in gpu_check.stages(tmp_path).items():
        assert f"\n{number} {stage.name}, {stage.limit} s at most" in said
    assert list(tmp_path.iterdir()) == []


def test_stages_fit_their_machine(plan):
    """Ten minutes a command, and for the first four."""
    assert list(plan) == list(range(1, 10))
    assert all(stage.limit + gpu_check.GRACE <= 600 and stage.commands for stage in plan.values())
    assert sum(plan[number].limit for number in (2, 3, 4)) <= 600


def test_tests_are_there(plan):
    """Every file that a stage names, and every selection of tests, has tests."""
    files = [word for command in named(plan, "pytest") for word in command if word.startswith("tests/")]
    files += [
        word.removeprefix("--ignore=") for command in named(plan, "pytest") for word in command if "=tests/" in word
    ]
    assert files and all((ROOT / file).is_file() for file in files)
    for command in (plan[3].commands[0], plan[8].commands[-1]):
        options = command[command.index("pytest") :]
        done = subprocess.run(
            [sys.executable, "-m", *options, "--collect-only"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0 and done.stdout.count("::") >= 10, done.stdout[-2000:]


def test_rows_are_there(plan):
    """Those that matter most come first, and no peer is named that is absent."""
    first = {}
    for number, stage in plan.items():
        for command in (command for command in stage.commands if "bench" in command):
            suites = run.names("suite", after(command, "--suite"), SUITES)
            rows = dict.fromkeys(row for suite in suites for row in SUITES[suite](DEVICE))
            first[number] = run._matching(rows, after(command, "--rows"))
            assert run._peers(after(command, "--peers"))
            assert float(after(command, "--seconds")) < stage.limit
    rows = [row for row in first[5] if row.kind in ("global", "local")]
    assert rows[0].kind == "global" and any(row.kind == "local" for row in rows)
    assert {row.head_dim for row in rows} == {64, 128} and {row.phase for row in rows} == {"forward", "backward"}
    extras = [row for row in first[7] if row.kind == "global"]
    assert {row.mask for row in extras} == {None, "bool", "float"} and {row.head_dim for row in extras} == {
        64,
        128,
        256,
    }
    assert any(row.softcap for row in extras) and any(row.dropout_p for row in extras)
    assert any(row.kind == "learned" for row in first[7])


def test_absent_peers_are_left_out(plan, monkeypatch, tmp_path):
    monkeypatch.setattr(run.others, "importable", lambda name: name == "flash-attn-4")
    (command,) = gpu_check.stages(tmp_path)[5].commands
    assert after(command, "--peers") == "sdpa,flash-attn-4"


def test_commands_are_understood(plan, capsys, monkeypatch, tmp_path):
    """By what parses them; there is no GPU here, or it is not asked."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for command in named(plan, "profile"):
        assert attnkern(list(command[command.index("profile") :])) == 2
        assert "need a GPU" in capsys.readouterr().err
    (command,) = named(plan, "attnkern.bench.tune_triton")
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "--seconds" in done.stdout and "--out" in done.stdout
    sanitizers = [command for command in plan[8].commands if "compute-sanitizer" in command]
    assert [after(command, "--tool") for command in sanitizers] == ["memcheck", "synccheck", "initcheck"]


def test_no_stage_stops_another(monkeypatch, tmp_path, capsys):
    def python(code: str) -> tuple[str, ...]:
        return sys.executable, "-c", code

    late = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('what there is', flush=True)"
    made = {
        1: Stage("fails", 60, (python("print('sad'); raise SystemExit(3)"), python("print('still')"))),
        2: Stage("is late", 2, (python(late), python("print('never')"))),
        3: Stage("is missing", 60, (("no such program",),)),
        4: Stage("works", 60, (python("print('fine')"),)),
    }
    monkeypatch.setattr(gpu_check, "stages", lambda out: made)
    assert main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    logs = {number: (tmp_path / f"stage{number}.log").read_text() for number in made}
    assert "sad" in logs[1] and "still" in logs[1] and "[3]" in logs[1]
    assert "what there is" in logs[2] and "ran past 2 s" in logs[2] and "no time was left" in logs[2]
    assert "cannot be run" in logs[3] and "fine" in logs[4]
    assert said.endswith("gpu-check: failed: 1, 2, 3\n")
    assert main(["--out", str(tmp_path), "--stage", "4"]) == 0


@pytest.mark.parametrize(("text", "numbers"), [("3", [3]), ("1-4,8", [1, 2, 3, 4, 8]), (None, list(range(1, 10)))])
def test_stages_are_chosen(text, numbers):
    assert gpu_check.chosen(text, range(1, 10)) == numbers


@pytest.mark.parametrize("text", ["0", "3-10", "all", "", "1,,2"])
def test_no_such_stage(text, capsys):
    assert main(["--stage", text, "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("gpu-check: ")


def test_make_runs_it():
    command = ["make", "--no-print-directory", "--dry-run", "gpu-check", "STAGE=3", "PYTHON=python"]
    own = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # of a make that runs the tests
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own)
    assert shlex.split(done.stdout) == ["python", "-m", "attnkern.bench.gpu_check", "--out", "out", "--stage", "3"]
