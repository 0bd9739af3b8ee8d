"""The page and the picture: whole, self-contained, and drawn by a browser as they should be."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attnkern.__main__ import main
from attnkern.bench import report, results
from attnkern.bench.problems import SUITES
from attnkern.bench.results import Result, Roof

H200 = Path(__file__).parent.parent / "bench/results/h200/2026-11-22.jsonl"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for found in map(shutil.which, BROWSERS) if found), None)
PNG = b"\x89PNG\r\n\x1a\n"


class Tags(HTMLParser):
    """Counts tags, and complains of one that is not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.open = {}, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found[tag] = self.found.get(tag, 0) + 1
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.found[tag] = self.found.get(tag, 0) + 1


@pytest.fixture
def rows(tmp_path) -> Path:
    """Made-up results of every suite."""
    lines = []
    for number, row in enumerate(row for suite in SUITES.values() for row in suite("cpu")):
        for factor, (impl, role) in enumerate((("attnkern[blocked]", "ours"), ("naive", "peer"), ("<b>", "peer"))):
            median = 1.0 + number + factor
            ms = {"median": median, "p20": 0.9 * median, "p80": 1.2 * median} if impl != "<b>" else None
            roof = Roof(0.5, "matrix", 1e12, 1e11, 1e10)
            result = Result(
                row, impl, role, ms=ms, useful_macs=1 << 30, issued_macs=1 << 31, bytes=1 << 24, exps=1 << 20,
                roof=roof, memory=1 << 20, error=None if ms else "out of memory: <i>",
                machine={"device": "A & B", "run": "1"},
            )  # fmt: skip
            lines.append(results.to_json(result))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    return file


def test_page(rows, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(rows), str(H200), "-o", str(page)]) == 0
    text = page.read_text()
    tags = Tags(text).found
    found = results.read(rows)
    kept = results.latest(results.read(H200))
    assert tags["tr"] == len(found) + len(kept) + tags["table"]
    assert tags["h2"] == tags["table"] == 2 and tags["svg"] > 40
    for words in ("Speed against length", "Roofline, float32", "Useful against issued MACs", "Memory", "NVIDIA H200"):
        assert words in text
    assert "A &amp; B" in text and "&lt;i&gt;" in text and "<b>" not in text
    assert not re.search(r"https?:|//[a-z]|@import|url\(|[>\"]nan|\$", text)  # nothing from a network
    assert "prefers-color-scheme" in text and "width=device-width" in text
    assert sorted(tmp_path.iterdir()) == [page, rows]  # no temporary file left


def test_page_of_one_result(tmp_path):
    """A single point makes charts, too."""
    file = tmp_path / "one.jsonl"
    ms = {"median": 1.0, "p20": 1.0, "p80": 1.0}
    file.write_text(results.to_json(Result(SUITES["global"]("cpu")[0], "naive", ms=ms, useful_macs=5)))
    assert main(["report", str(file), "-o", str(tmp_path / "one.html")]) == 0
    Tags((tmp_path / "one.html").read_text())


def test_every_family_has_its_colour():
    page = Path(report.__file__).with_name("page.html").read_text()
    for number in report.COLOURS:
        assert page.count(f"--c{number}:") == 2  # light and dark


def test_picture(rows, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "rows.png"
    assert main(["report", str(rows), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(PNG)
    assert sorted(tmp_path.iterdir()) == [rows, picture]


def test_a_damaged_file_is_skipped(rows, tmp_path, capsys):
    other = tmp_path / "foreign.jsonl"
    other.write_text('{"kernel": "softmax"}\n')
    page = tmp_path / "page.html"
    assert main(["report", str(other), str(rows), "-o", str(page)]) == 0
    assert capsys.readouterr().err.startswith(f"{other}:1: not a result")
    page.write_text("as it was")
    assert main(["report", str(other), "-o", str(page)]) == 2
    assert page.read_text() == "as it was"


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["missing.jsonl"], "missing.jsonl"),
        (["{rows}", "-o", "page.pdf"], "must end in .html or .png"),
    ],
)
def test_report_refuses(arguments, named, rows, tmp_path, capsys):
    assert main(["report", *(text.format(rows=rows, folder=tmp_path) for text in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attnkern report: ") and named in line


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width, dark", [(1280, False), (1280, True), (390, False)])
def test_screenshot(width, dark, rows, tmp_path):
    """Drawn in full, on the right background, and no wider than the window."""
    image = pytest.importorskip("matplotlib.image")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    assert main(["report", str(rows), "-o", str(page)]) == 0
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path}/user", f"--window-size={max(width, 500)},2000", f"--screenshot={picture}"]
    if dark:
        command.append("--blink-settings=preferredColorScheme=0")
    if width < 500:  # the narrowest window there is: a frame stands for the phone
        frame = tmp_path / "phone.html"
        frame.write_text(f'<iframe src="{page.name}" style="width:{width}px;height:1900px;border:0"></iframe>')
        page = frame
    subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=120)
    pixels = image.imread(picture)[..., :3]
    assert pixels.shape[:2] == (2000, max(width, 500))
    background = pixels[30, 2 if width > 500 else 12].mean()
    assert background < 0.2 if dark else background > 0.9
    drawn = pixels[:, 20 : width - 20]
    assert (abs(drawn - pixels[30, 12]).max(-1) > 0.2).mean() > 0.01
    red = (drawn[..., 0] > 0.75) & (drawn[..., 1] < 0.5) & (drawn[..., 2] < 0.55)
    assert red.sum() > 500  # our own lines and bars
