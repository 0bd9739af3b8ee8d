"""The benchmark prints no time without a right answer, and loses no result that it has."""

import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from attnkern import mac
from attnkern.__main__ import main
from attnkern.bench import measure, others, peers, problems, results, run, timing
from attnkern.bench.compare import differ
from attnkern.bench.problems import KINDS, SUITES, Row
from attnkern.bench.results import Result

OURS = f"attnkern[{run.BACKENDS['cpu'][0]}]"

ROOT = Path(__file__).parent.parent
SIZES = {"heads": 2, "kv_heads": 2, "len_q": 70, "len_k": 70, "head_dim": 16, "dtype": "float32"}
ROWS = [
    Row(kind="global", **SIZES),
    Row(kind="global", phase="backward", causal=True, **SIZES),
    Row(kind="global", phase="training", **SIZES | {"kv_heads": 1}),
    Row(kind="local", phase="training", window=(5, 3), **SIZES),
    Row(kind="hard", num_samples=2, **SIZES),
    Row(kind="hard", phase="training", loss="log_prob", **SIZES),
    Row(kind="hard", phase="backward", loss="score", num_samples=3, **SIZES),
    Row(kind="decode", causal=True, **SIZES | {"len_q": 1, "kv_heads": 1}),
    Row(kind="packed", phase="training", batch=3, **SIZES),
    Row(kind="module", phase="training", **SIZES),
    Row(kind="aoa", phase="training", batch=2, len_q=70, len_k=9, head_dim=16, dtype="float32"),
    Row(kind="learned", phase="training", window=(5, 3), **SIZES),
    Row(kind="matmul", **SIZES),
    Row(kind="global", phase="training", mask="bool", softcap=2.0, **SIZES),
    Row(kind="local", phase="training", mask="float", window=(20, 10), **SIZES),
    Row(kind="global", phase="training", dropout_p=0.3, **SIZES | {"kv_heads": 1}),
]
ROOFS = mac.Roofs("a test", {"float32": 1e14}, 1e13, 1e13)  # no machine's
TIMES = {"median": 2.0, "p20": 1.9, "p80": 2.2}


def measured(row: Row, who: str = "naive,sdpa,mha", roofs: mac.Roofs = ROOFS) -> dict[str, Result]:
    measurement = measure.Measurement(row, "cpu", ["blocked"], who.split(","))
    measurement.round()
    return {result.impl: result for result in measurement.results(roofs)}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Hardly any time for timing."""
    monkeypatch.setitem(timing.SECONDS, "cpu", 0.0)
    monkeypatch.setitem(timing.READING, "cpu", 0.0)
    monkeypatch.setattr(measure, "CACHE", 1 << 16)


@pytest.fixture
def quick(monkeypatch):
    """`attnkern bench` with two rows, whose roofs are known."""
    rows = ROWS[0], Row(kind="global", causal=True, **SIZES)
    monkeypatch.setattr(run, "SUITES", {"first": lambda _: rows[:1], "both": lambda _: list(rows)})
    monkeypatch.setattr(run.mac, "roofs", lambda *_, **__: ROOFS)
    monkeypatch.setattr(run, "_device", lambda _: "cpu")
    return rows


def fails(capsys, *arguments: str) -> str:
    """The one line on standard error of a command that exits with 2."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"attnkern {arguments[0]}: ")
    return line


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_right_answer_is_timed(row):
    """By every backend and every peer there is."""
    found = measured(row)
    assert len(found) > (row.kind != "matmul" and not row.dropout_p)
    for result in found.values():
        assert result.error is None, (result.impl, result.error)
        assert 0 < result.ms["p20"] <= result.ms["median"] <= result.ms["p80"]
        assert result.useful_macs > 0 and result.memory >= 0 and result.share_of_roof > 0


def test_what_is_faster_than_the_device_was_measured_wrongly():
    slow = mac.Roofs("a test", {"float32": 1.0}, 1.0, 1.0)
    for result in measured(ROWS[0], roofs=slow).values():
        assert result.ms is None and result.error.startswith("measured wrongly: ")
        assert result.error.endswith("% of what the device can do; measure again")


@pytest.mark.parametrize("kind", ["global", "hard"])
def test_a_wrong_kernel_is_reported_and_not_timed(kind, monkeypatch):
    name = {"global": "ours", "hard": "hard"}[kind]
    right = getattr(peers, name)

    def wrong(*arguments):
        function = right(*arguments)
        return lambda *tensors: {n: t if n == "index" else 1.05 * t for n, t in function(*tensors).items()}

    monkeypatch.setattr(peers, name, wrong)
    found = measured(Row(kind=kind, **SIZES))
    assert found["attnkern[blocked]"].ms is None and found["attnkern[blocked]"].macs_per_second is None
    assert "output" in found["attnkern[blocked]"].error
    assert found["naive"].ms


def test_a_wrong_gradient_is_reported(monkeypatch):
    right = peers.ours

    def wrong(*arguments):
        function = right(*arguments)
        return lambda query, key, value: function(query, key.detach() + 0.5 * (key - key.detach()), value)

    monkeypatch.setattr(peers, "ours", wrong)
    assert "grad_key" in measured(ROWS[1])["attnkern[blocked]"].error


def test_draws_that_are_not_the_distributions(monkeypatch):
    """A peer has its own random numbers; they must follow the weights all the same."""
    monkeypatch.setattr(torch, "softmax", lambda score, dim: torch.ones_like(score))
    assert "distribution" in measured(Row(kind="hard", **SIZES), "naive")["naive"].error


def test_what_does_not_fit_says_so(monkeypatch):
    monkeypatch.setitem(peers.MATRICES, "cpu", 1000)
    found = measured(ROWS[0])
    assert found["naive"].error.startswith("out of memory: needs") and found["naive"].ms is None
    assert found["attnkern[blocked]"].ms


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_suites(device):
    rows = [row for suite in SUITES.values() for row in suite(device)]
    assert {row.kind for row in rows} == set(KINDS)
    assert {row.phase for row in rows} == set(problems.PHASES)
    assert len({row.name for row in rows}) == len(set(rows))
    for row in rows:
        row.problem(device)


@pytest.mark.parametrize("name", ["flash-attn", "flash-attn-4", "xformers"])
def test_peers_that_may_be_installed(name, monkeypatch):
    """With stand-ins that take `(B, L, H, D)`, and the arguments that the packages document."""

    def attend(query, key, value, causal=False, window_size=None, attn_bias=None):
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value))).transpose(1, 2)

    module = types.SimpleNamespace(
        flash_attn_func=attend, memory_efficient_attention=attend,
        LocalAttentionFromBottomRightMask=None, LowerTriangularFromBottomRightMask=None,
    )  # fmt: skip
    for path in ("flash_attn", "flash_attn.cute", "xformers", "xformers.ops", "xformers.ops.fmha.attn_bias"):
        monkeypatch.setitem(sys.modules, path, module)
    assert measured(ROWS[0], name)[name].error is None


def test_local_attention_package():
    pytest.importorskip("local_attention")
    for row in (Row(kind="local", window=(10, 10), **SIZES), Row(kind="local", causal=True, window=(10, 0), **SIZES)):
        assert measured(row, "local-attention")["local-attention"].error is None
    assert measured(ROWS[3], "local-attention")["local-attention"].error.startswith("unsupported")
    assert not others.computes("local-attention", "global")


def test_results_survive_the_file(tmp_path):
    found = list(measured(ROWS[3]).values()) + [Result(ROWS[0], "xformers", error="unsupported", machine={"run": "1"})]
    for result in found:
        again = results.from_json(results.to_json(result))
        assert again.row == result.row and again.roof == result.roof and again.useful_macs == result.useful_macs
        assert (again.ms is None) == (result.ms is None)


def test_the_first_committed_rows_are_still_read():
    found = results.read(ROOT / "bench/results/h200/2026-11-22.jsonl")
    assert len(found) == 122
    last = [
        r for r in results.latest(found) if r.impl == "attnkern[cuda]" and r.row.name.startswith("global 16k B1 H16")
    ]
    assert [round(2e-12 * result.macs_per_second) for result in last] == [659, 559, 705, 561]


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '"', '{"kind": "soft"}', '{"ms": 3}'])
def test_damaged_lines_are_named_and_skipped(damage, tmp_path, capsys):
    good = results.to_json(Result(ROWS[0], "naive", ms=TIMES, machine={"run": "1"}))
    file = tmp_path / "rows.jsonl"
    cut = json.dumps(json.loads(good) | {"batch": -1})
    file.write_text("\n".join([good, damage, cut, good[:80]]))
    assert len(results.read(file)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{file}:2: not ") and "2 more lines" in line


ROOF = {"ms": 0.5, "limit": "matrix", "macs": 1e12, "bytes": 1e11, "exps": 1e10}
WRONG = [
    *({"ms": TIMES | {"p80": number}} for number in (float("nan"), float("inf"), "1.0", None, 10**400, 5e-324)),
    *({name: -1} for name in ("useful_macs", "issued_macs", "bytes", "exps", "memory")),
    *({name: float("nan")} for name in ("useful_macs", "bytes", "softcap", "memory")),
    *({"roof": ROOF | {name: number}} for name in ("ms", "macs", "bytes", "exps") for number in (0, None, 1e308)),
    {"ms": True}, {"impl": "half \ud800"},
    {"roof": ROOF | {"limit": "patience"}}, {"role": "<b>"}, {"loss": "x"}, {"len_k": None}, {"mask": []},
    {"softcap": 10**400}, {"dtype": "nn"}, {"window": "ab"}, {"impl": 3}, {"len_q": 2.5}, {"batch": True},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:40])
def test_numbers_that_none_can_be(wrong, tmp_path, capsys):
    """Such a line is skipped by name, and neither a page nor a comparison comes to grief or shows them."""
    good = results.to_json(Result(ROWS[0], "naive", ms=TIMES, useful_macs=9, roof=results.Roof(**ROOF)))
    file, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    file.write_text(f"{good}\n{json.dumps(json.loads(good) | wrong)}\n")
    for command in (["report", "-o", str(page), str(file)], ["bench", "--compare", str(file), str(file)]):
        assert main(command) == 0
        (line,) = capsys.readouterr().err.splitlines()[:1]
        assert line.startswith(f"{file}:2: not ") and line.endswith("; skipped")
    assert not re.search(r">[^<]*\b(nan|inf)\b", page.read_text().split("<body")[1])


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"kind": 1e999}'], ids=len)
def test_lines_that_no_parser_likes(text):
    with pytest.raises(ValueError, match="^not "):
        results.from_json(text)


def test_bench_appends(quick, tmp_path, capsys):
    file = tmp_path / "new" / "rows.jsonl"
    assert main(["bench", "--suite", "first", "--peers", "naive", "--out", str(file)]) == 0
    first = file.read_text()
    file.write_text(first + first[:50])  # as if cut off
    assert main(["bench", "--rows", "causal", "--peers", "", "--out", str(file)]) == 0
    assert file.read_text().startswith(first)
    assert [result.impl for result in results.read(file)] == [OURS, "naive", OURS]
    out = capsys.readouterr().out
    assert "times as fast as the best peer" in out and quick[0].name in out
    for name in results.MACHINE:
        assert results.read(file)[0].machine[name]


@pytest.mark.parametrize("visit, expected", [(1, 0), (2, 2), (4, 4), (7, 4)])
def test_interrupted_bench_keeps_what_is_done(visit, expected, quick, tmp_path, capsys, monkeypatch):
    """Ctrl-C, or a kill, in the first or in a later round."""
    right, visits = measure.Measurement.round, []

    def interrupted(measurement):
        visits.append(measurement.row)
        if len(visits) == visit:
            if visit % 2 == 0:  # a process in the background may not hear SIGINT
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        right(measurement)

    monkeypatch.setattr(measure.Measurement, "round", interrupted)
    file = tmp_path / "rows.jsonl"
    assert main(["bench", "--suite", "both", "--peers", "naive", "--out", str(file)]) == 130
    assert visits == [*quick, *quick, *quick, *quick][:visit]
    assert [result.impl for result in results.read(file)] == [OURS, "naive"] * (expected // 2)
    assert all(result.ms for result in results.read(file))
    assert "interrupted" in capsys.readouterr().err


def test_a_broken_gpu_ends_the_run_and_loses_nothing(quick, tmp_path, capsys, monkeypatch):
    def broken(device):
        if len(recovered := [*recoveries, 1]) == 5:
            raise measure.Broken("no context")
        recoveries[:] = recovered

    recoveries = []
    monkeypatch.setattr(measure, "_recover", broken)
    file = tmp_path / "rows.jsonl"
    assert main(["bench", "--suite", "both", "--peers", "naive", "--out", str(file)]) == 3
    first, second, last = results.read(file)
    assert first.ms and second.ms and last.error == "broke the GPU's context" and last.row == quick[1]
    assert f"stopped at {quick[1].name}: no context" in capsys.readouterr().err


def test_rounds(quick, tmp_path, monkeypatch):
    """Checked once, timed in each; times of a contender that fails in a later one do not count."""
    checks, right = [], measure.check
    monkeypatch.setattr(measure, "check", lambda *of: checks.append(of) or right(*of))
    measurement = measure.Measurement(ROWS[1], "cpu", ["blocked"], ["naive"])
    for number in range(timing.ROUNDS["cpu"]):
        measurement.round()
        readings = measurement._turns.times["naive"]
        assert len(checks) == 2 and len(readings) == number + 1
    assert [result.error for result in measurement.results()] == [None, None]
    calls = measure.calls

    def fails_once(row, contender, *rest):
        if contender.name == "naive":
            raise MemoryError
        return calls(row, contender, *rest)

    monkeypatch.setattr(measure, "calls", fails_once)
    measurement.round()
    monkeypatch.undo()
    measurement.round()
    ours, naive = measurement.results()
    assert ours.ms and naive.ms is None and naive.error.startswith("out of memory")


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--suite globl", "unknown suite 'globl': choose from first, both"),
        ("--peers nobody", "unknown peer 'nobody': choose from naive, sdpa"),
        ("--peers xformers", "peer 'xformers' is not installed: choose from naive"),
        ("--backends quick", "unknown backend 'quick': choose from"),
        ("--rows nothing", "no row matches --rows 'nothing'"),
        ("--rows (", "--rows '(' is not a regular expression"),
        ("--seconds 0", "--seconds must be positive"),
        ("--out .", "--out ."),
    ],
)
def test_bench_refuses(flags, named, quick, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(others, "importable", lambda name: False)
    assert named in fails(capsys, "bench", *flags.split())
    assert not list(tmp_path.iterdir())


def test_bench_knows_the_devices_that_are_here(capsys):
    assert "unknown device 'tpu': choose from cpu" in fails(capsys, "bench", "--device", "tpu")


def test_bench_does_not_write_into_other_files(quick, capsys, tmp_path):
    file = tmp_path / "README.md"
    file.write_text("words\n")
    assert main(["bench", "--out", str(file)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert file.read_text() == "words\n"


def written(path: Path, device: str = "X", **medians: float) -> str:
    """A file of one result for each implementation."""
    lines = []
    for impl, median in medians.items():
        ms = {"median": median, "p20": 0.9 * median, "p80": 1.1 * median} if median else None
        role, error = "ours" if "attnkern" in impl else "peer", None if median else "out of memory"
        result = Result(ROWS[0], impl, role, ms=ms, error=error, machine={"device": device, "run": "1"})
        lines.append(results.to_json(result))
    path.write_text("\n".join(lines))
    return str(path)


def test_compare_shows_what_changed_beyond_noise(tmp_path, capsys):
    before = written(tmp_path / "a.jsonl", naive=2.0, sdpa=1.0, flex=1.0, gone=1.0)
    after = written(tmp_path / "b.jsonl", naive=4.0, sdpa=1.1, flex=0)
    assert main(["bench", "--compare", before, after]) == 0
    out = capsys.readouterr().out
    assert "2.00 (1.80-2.20) -> 4.00 (3.60-4.40) ms, +100.0%" in out.replace(" ms ->", " ->")
    assert "out of memory" in out and "sdpa" not in out
    assert "2 changed, 1 alike within noise, 1 only before, 0 only after" in out


def test_compare_takes_out_what_the_machine_changed(tmp_path, capsys):
    """As the peers tell: one of ours that took as much longer as they did has not changed."""
    peers = [f"peer {number}" for number in range(9)]
    before = written(tmp_path / "a.jsonl", **dict.fromkeys(peers, 1.0), **{"attnkern[a]": 1.0, "attnkern[b]": 1.0})
    times = dict.fromkeys(peers, 1.5) | {"peer 3": 1.6, "peer 4": 1.4, "attnkern[a]": 1.5, "attnkern[b]": 1.0}
    after = written(tmp_path / "b.jsonl", **times)
    assert main(["bench", "--compare", before, after]) == 0
    out = capsys.readouterr().out
    assert "peers took 1.50 times as long" in out and "attnkern[b]" in out and "-33.3%" in out
    assert "1 changed, 10 alike within noise" in out
    other = written(tmp_path / "c.jsonl", device="Y", **times)
    assert main(["bench", "--compare", before, other]) == 0
    out = capsys.readouterr().out
    assert "the devices differ" in out and "peers took" not in out and "10 changed, 1 alike" in out


def test_compare_without_a_file(tmp_path, capsys):
    there = written(tmp_path / "a.jsonl", naive=1.0)
    line = fails(capsys, "bench", "--compare", there, str(tmp_path / "b.jsonl"))
    assert "b.jsonl" in line and f"there are {there}" in line.replace(f"{os.sep}.{os.sep}", os.sep)


def test_alike_means_overlapping():
    one = Result(ROWS[0], "naive", ms=TIMES)
    assert not differ(one, Result(ROWS[0], "naive", ms={"median": 2.3, "p20": 2.1, "p80": 2.4}))
    assert differ(one, Result(ROWS[0], "naive", ms={"median": 2.4, "p20": 2.3, "p80": 2.5}))


def test_pytest_benchmark_suite():
    """`pytest bench`, one row of it."""
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "forward and naive and 128"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    report = ROOT / "out" / f"{os.getpid()}.json"
    report.parent.mkdir(exist_ok=True)
    try:
        command += [f"--benchmark-json={report}"]
        done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (case,) = json.loads(report.read_text())["benchmarks"]
    finally:
        report.unlink(missing_ok=True)
    assert case["extra_info"]["useful_macs"] > 0 and case["extra_info"]["share_of_roof"] > 0
