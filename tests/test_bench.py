"""The benchmark prints no time without a right answer."""

import pytest

from bench import peers
from bench.problems import Row
from bench.run import measure

SIZES = {"heads": 2, "kv_heads": 2, "len_q": 70, "len_k": 70, "head_dim": 16, "dtype": "float32"}
ROWS = [
    Row(name="global forward", kind="global", **SIZES),
    Row(name="causal backward", kind="global", phase="backward", causal=True, **SIZES),
    Row(name="local training", kind="local", phase="training", window=(5, 3), **SIZES),
    Row(name="hard forward", kind="hard", num_samples=2, **SIZES),
]


def ours(row: Row) -> dict:
    return next(line for line in measure(row, "cpu", ["blocked"]) if line["impl"] == "attnkern[blocked]")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_right_answer_is_timed(row):
    line = ours(row)
    assert line["error"] is None
    assert 0 < line["ms"]["p20"] <= line["ms"]["median"] <= line["ms"]["p80"]


def test_a_wrong_answer_is_not_timed(monkeypatch):
    right = peers.ours

    def wrong(row, backend):
        function = right(row, backend)
        return lambda *tensors: {name: 1.05 * result for name, result in function(*tensors).items()}

    monkeypatch.setattr(peers, "ours", wrong)
    line = ours(ROWS[0])
    assert line["ms"] is None and line["tflops"] is None
    assert "output" in line["error"]
