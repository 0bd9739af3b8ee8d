"""Memory grows with the length, not with its square: measured in fresh processes at three lengths."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch, attnkern
torch.set_num_threads(1)
kind, length, train = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "train"
query, key, value = (torch.randn(1, 4, length, 64).requires_grad_(train) for _ in range(3))
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if kind == "local":
    loss = attnkern.local_attention(query, key, value, window=(128, 128)).sum()
elif kind == "softcap":
    loss = attnkern.global_attention(query, key, value, softcap=10.0).sum()
else:
    hard = attnkern.hard_attention(query, key, value, num_samples=2)
    loss = hard.score.sum() + hard.output.sum()
if train:
    loss.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def growth(kind: str, length: int, mode: str) -> float:
    """Kilobytes above what the inputs take."""
    command = [sys.executable, "-c", SCRIPT, kind, str(length), mode]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}  # a GPU's driver would take memory of its own
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.parametrize(("kind", "mode"), [("local", "train"), ("softcap", "forward"), ("hard", "train")])
def test_memory_is_linear(kind, mode):
    lengths = (2048, 4096, 8192)
    small, middle, large = (growth(kind, length, mode) for length in lengths)
    scores = 4 * lengths[2] ** 2 * 4 / 1024  # what the whole score matrix would take
    assert large < scores / 4
    # a fixed part, plus one that at most doubles; a quadratic one would quadruple
    assert large - middle < 2.9 * max(middle - small, 4096)


def test_hard_attention_at_8192_takes_less_than_a_gigabyte():
    assert growth("hard", 8192, "train") < 1 << 20
