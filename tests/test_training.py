"""A run that stops, however it stops, goes on as if it had not; bad lines and checkpoints are named."""

import os
import signal
import warnings

import pytest
import torch
from torch import nn

from attnkern.training import BadCheckpoint, BadLine, Run, read_examples
from attnkern.training import run as run_file


class Tied(nn.Module):
    """Two names for one weight, and chance in its forward."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(nn.functional.dropout(self.first(x).relu()))


def new_run(folder, seed=0, width=4, steps=12) -> tuple[Run, list]:
    torch.manual_seed(seed)
    model = Tied(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    run = Run(folder, steps=steps, save_every=5, model=model, optimizer=optimizer, schedule=schedule)
    return run, [model, optimizer, schedule]


def train(run, parts, after=lambda step: None) -> None:
    model, optimizer, schedule = parts
    for step in run:
        loss = model(torch.rand(3, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        run.log(loss=loss)
        after(step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, parts = new_run(tmp_path_factory.mktemp("whole"))
    train(run, parts)
    return run


def stops(at, how):
    def after(step):
        if step == at:
            how()

    return after


def test_resumed_after_ctrl_c(whole, tmp_path):
    """The step is finished and saved, although it is no fifth one."""
    run, parts = new_run(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match="^stopped after 4 of 12 steps; the same command goes on$"):
        train(run, parts, stops(3, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before
    run, parts = new_run(tmp_path, seed=1)
    torch.rand(5)  # what happens before the first step has no influence
    assert run.step == 4
    train(run, parts)
    assert run.history == whole.history and len(run.history["loss"]) == 12
    again, _ = new_run(tmp_path, seed=2)
    assert list(again) == [] and again.history == whole.history


def test_resumed_after_a_kill(whole, tmp_path, monkeypatch):
    """Killed while it writes its second checkpoint: the first one is there."""

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise MemoryError

    run, parts = new_run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        train(run, parts, stops(5, lambda: patch.setattr("safetensors.torch.save_file", half)))
    run, parts = new_run(tmp_path, seed=1)
    assert run.step == 5
    train(run, parts)
    assert run.history == whole.history
    assert [file.name for file in tmp_path.iterdir()] == [run_file.FILE]


def test_a_checkpoint_of_another_model(whole):
    with pytest.raises(BadCheckpoint, match="is of another model; .*size mismatch for first.weight") as error:
        new_run(whole.folder, width=5)
    assert "\n" not in str(error.value)
    with pytest.raises(BadCheckpoint, match="holds model, optimizer, schedule, not network"):
        Run(whole.folder, steps=12, network=Tied(4))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_no_checkpoint(content, tmp_path):
    file = tmp_path / run_file.FILE
    if content is None:
        from safetensors.torch import save_file

        save_file({"weight": torch.ones(2)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(BadCheckpoint, match="is no checkpoint of a run"):
        new_run(tmp_path)


def test_wrong_numbers(tmp_path):
    for name in ("steps", "save_every"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            Run(tmp_path, **{"steps": 3, name: 0})


def pair(line: str) -> tuple[str, str]:
    left, found, right = line.partition("\t")
    if not found:
        raise ValueError("expected a tab")
    return left, right


def test_lines(tmp_path):
    file = tmp_path / "data.tsv"
    file.write_bytes("\ufeffein\t1\r\ndeux\t2\u2028\n".encode())
    assert read_examples(file, pair) == [("ein", "1"), ("deux", "2\u2028")]
    with file.open("ab") as end:
        end.write(b"no tab\n\xff\t3\nthree\t3")
    with pytest.raises(BadLine, match=r"data.tsv:3: expected a tab$"):
        read_examples(file, pair)
    with pytest.warns(UserWarning, match=r"skipped 2 bad lines of .*; the first is .*data.tsv:3: expected a tab$"):
        assert read_examples(file, pair, skip_bad=True)[2:] == [("three", "3")]
    with warnings.catch_warnings(action="error"), pytest.raises(BadLine, match=":4: not UTF-8"):
        read_examples(file, str)


def test_no_good_line(tmp_path):
    file = tmp_path / "empty"
    file.write_text("")
    with pytest.raises(BadLine, match="empty: no examples$"):
        read_examples(file, pair)
    file.write_text("x\n")
    with pytest.raises(BadLine, match="no examples; the first bad line is .*empty:1"):
        read_examples(file, pair, skip_bad=True)
