"""Commands whose output cannot be written, or whose reader goes away: said at once, nothing half-written."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnkern import atomic
from attnkern.__main__ import COMMANDS, main
from attnkern.bench.problems import Row
from attnkern.bench.results import Result, to_json

OUTPUTS = {
    "profile --kind global --json": "figures.json",
    "profile --kind global --trace": "trace.json",
    "report {rows} --output": "page.html",
    "report {rows} -o": "picture.png",
    "bench --suite global --out": "rows.jsonl",
    "demo --quick --output": "demo.png",
}


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(to_json(Result(Row(kind="global"), "naive", error="slow")) + "\n")
    return file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def a_folder(path, monkeypatch):
    path.mkdir()
    return path


def under_a_file(path, monkeypatch):
    path.write_text("as it was")
    return path / path.name


def where_nobody_can(path, monkeypatch):
    return Path("/proc/self") / path.name


def on_a_full_disk(path, monkeypatch):
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", no_room)
    return path


def read_only(path, monkeypatch):
    path.write_text("as it was")
    monkeypatch.setattr(atomic.os, "access", lambda *_: False)
    return path


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize("place", [a_folder, under_a_file, where_nobody_can, on_a_full_disk, read_only])
def test_an_output_that_cannot_be_written(command, place, rows, folder, capsys, monkeypatch):
    """Refused before any work, in one line, and nothing changes."""

    def begun(*_, **__):
        raise AssertionError("begun before the output was checked")

    for work in ("attnkern.mac.roofs", "attnkern.mac.profile", "attnkern.commands.demo.accuracy.check"):
        monkeypatch.setattr(work, begun)
    path = place(folder / OUTPUTS[command], monkeypatch)
    before = {file: file.is_dir() or file.read_text() for file in folder.rglob("*")}
    assert main([*command.format(rows=rows).split(), str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"attnkern {command.split()[0]}: --o") or "profile: --" in line
    assert str(path) in line
    assert {file: file.is_dir() or file.read_text() for file in folder.rglob("*")} == before


def test_a_link_is_written_through(rows, folder):
    target, link = folder / "target.html", folder / "link.html"
    target.write_text("before")
    link.symlink_to(target)
    assert main(["report", str(rows), "-o", str(link)]) == 0
    assert link.is_symlink() and target.read_text().startswith("<!")


def test_a_name_as_long_as_names_may_be(rows, folder):
    page = folder / ("x" * 250 + ".html")
    assert main(["report", str(rows), "-o", str(page)]) == 0
    assert [*folder.iterdir()] == [page]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--json {out} --trace {out}", "--json and --trace name the same file"),
        ("--machine-code --json {out}", "--json goes with a profile"),
        ("--len-q 77 --dtype bfloat16", "--len-q describes one attention call: begin with --kind"),
        ("--machine-code .", "."),
    ],
)
def test_what_a_profile_would_leave_out(arguments, said, folder, capsys):
    assert main(["profile", *arguments.format(out=folder / "out.json").split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not [*folder.iterdir()]


@pytest.mark.parametrize("arguments", ["--suite ,", "--suite=", "--backends ,", "--seconds nan", "--seconds -1"])
def test_a_benchmark_of_nothing(arguments, folder, capsys):
    assert main(["bench", *arguments.split(" ", 1), "--out", str(folder / "rows.jsonl")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not [*folder.iterdir()]


def test_an_output_in_a_new_folder(rows, folder):
    page = folder / "new" / "page.html"
    assert main(["report", str(rows), "-o", str(page)]) == 0
    assert [*page.parent.iterdir()] == [page]


def test_a_picture_of_nothing(rows, folder, capsys):
    assert main(["report", str(rows), "-o", str(folder / "picture.png")]) == 2
    assert "none of these results has a time" in capsys.readouterr().err and not [*folder.iterdir()]


COMMAND = [sys.executable, "-m", "attnkern"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
@pytest.mark.parametrize(("arguments", "unbuffered"), [(["profile", "--help"], "1"), (["explain"], "")])
def test_what_is_printed_where_nobody_reads(arguments, unbuffered, monkeypatch):
    """`| head` is no error of ours, a full disk is: neither exits with 0."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")
    with open("/dev/full", "w") as full:
        run = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (1, "attnkern: [Errno 28] No space left on device\n")


def test_a_closed_standard_output():
    run = subprocess.run(["sh", "-c", '"$0" -m attnkern info >&-', sys.executable], stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (1, "attnkern: standard output is closed\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk here")
def test_results_on_a_full_device(capsys):
    assert main(["bench", "--suite", "global", "--out", "/dev/full"]) == 2
    assert capsys.readouterr().err == "attnkern bench: --out /dev/full: No space left on device\n"


BARE = """
import importlib.util, sys
from contextlib import suppress

sys.modules |= dict.fromkeys(("matplotlib", "rich", "transformers"))
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if sys.modules.get(name, 1) is None else found(name, *rest)

from attnkern.__main__ import COMMANDS, main
rows, out = sys.argv[1:]
for arguments in [[], *([name] for name in COMMANDS)]:
    with suppress(SystemExit):
        main([*arguments, "--help"])
codes = [main(["info"]), main(["explain"]), main(["report", rows, "-o", out + ".html"])]
codes += [main(["report", rows, "-o", out + ".png"]), main(["demo", "--output", out + ".png"])]
sys.exit(0 if codes == [0, 0, 0, 2, 2] else str(codes))
"""


def test_commands_without_optional_packages(rows, folder):
    run = subprocess.run([sys.executable, "-c", BARE, rows, folder / "out"], capture_output=True, text=True)
    picture, demo = run.stderr.splitlines()
    assert run.returncode == 0 and run.stdout.count("usage: attnkern") == 1 + len(COMMANDS)
    assert picture.startswith("attnkern report: a picture needs matplotlib: pip install")
    assert demo.startswith("attnkern demo: needs rich and matplotlib: pip install")
    assert [*folder.iterdir()] == [folder / "out.html"]
