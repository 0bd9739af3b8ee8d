"""Medians of interleaved repeats: whatever slows the machine slows every contender alike."""

import statistics
import time
from collections.abc import Callable

import torch

SHORTEST = 0.005  # seconds; quicker calls are timed several at a time


def median_times(contenders: dict[str, Callable[[], object]], device: str, repeats: int) -> dict[str, float]:
    """Seconds per call of each contender."""
    calls = {}
    for name, function in contenders.items():
        function()  # warm up
        calls[name] = max(1, round(SHORTEST / _seconds(function, device, 1)))
    times = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            times[name].append(_seconds(function, device, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(function: Callable[[], object], device: str, calls: int) -> float:
    _synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronize(device)
    return (time.perf_counter() - begin) / calls


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
