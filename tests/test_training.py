"""Runs that stop and go on, and data files with bad lines."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from attnkern.training import BadLine, ResumeError, Run, read_examples


def parts(width=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.5), nn.Linear(8, width))
    model.append(nn.Linear(width, 8)).append(nn.Linear(8, width))
    model[3].weight = model[0].weight  # tied weights stay tied
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return {"model": model, "optimizer": optimizer, "schedule": schedule}


def train(folder, until=None, steps=12, **options):
    torch.manual_seed(1)
    found = parts(**options)
    run = Run(folder, steps=steps, save_every=5, **found)
    for step in run:
        if step == until:
            return run
        x = torch.randn(16, 4)
        loss = (found["model"](x) - x).square().mean()
        found["optimizer"].zero_grad()
        loss.backward()
        found["optimizer"].step()
        found["schedule"].step()
        run.log(loss=loss)
    return run


def test_a_resumed_run_is_the_same_run(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", until=7)  # as good as killed: two steps after a checkpoint
    resumed = train(tmp_path / "parts")
    assert resumed.step == 12 and resumed.history == whole.history and len(whole.history["loss"]) == 12
    for left, right in zip(whole.stateful["model"].parameters(), resumed.stateful["model"].parameters()):
        assert torch.equal(left, right)
    again = train(tmp_path / "whole")
    assert again.history == whole.history  # nothing was left to do
    assert os.listdir(tmp_path / "whole") == ["checkpoint.safetensors"]


def test_another_models_checkpoint(tmp_path):
    train(tmp_path, steps=5)
    with pytest.raises(ResumeError, match="holds another model: choose another folder"):
        Run(tmp_path, steps=5, model=nn.Linear(3, 3))
    with pytest.raises(ResumeError, match="has no teacher"):
        Run(tmp_path, steps=5, teacher=nn.Linear(3, 3))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(ResumeError, match="is no checkpoint"):
        train(tmp_path)
    with pytest.raises(ValueError, match="save_every must be a positive int, got 0"):
        Run(tmp_path / "new", steps=5, save_every=0)


LOOP = """
import sys, time, torch
from attnkern.training import Run
for step in Run(sys.argv[1], steps=10**6, save_every=10**6, model=torch.nn.Linear(2, 2)):
    print("step", step, flush=True)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "step 3" not in process.stdout.readline():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    run = Run(tmp_path, steps=10**6, model=nn.Linear(2, 2))
    assert run.step >= 4 and f"stopped after step {run.step}; run the same command again to go on" in errors


def test_bad_lines(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_bytes(b"1\n2\r\nthree\n\xff\n5")
    with pytest.raises(BadLine, match=r"numbers.txt:3: invalid literal for int\(\) with base 10: 'three'"):
        read_examples(path, int)
    with pytest.warns(UserWarning, match=r"2 of 5 lines skipped: .*:3: .*:4: 'utf-8' codec"):
        assert read_examples(path, int, skip_bad=True) == [1, 2, 5]
