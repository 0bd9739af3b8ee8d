"""Medians of interleaved repeats: whatever slows the machine slows every contender alike."""

import statistics
import time
from collections.abc import Callable

import torch

SHORTEST = 0.005  # seconds; quicker calls are timed several at a time
REPEATS = (3, 25)  # at least and at most


def median_times(contenders: dict[str, Callable[[], object]], device: str, seconds: float) -> dict[str, float]:
    """Seconds per call of each contender, from as many rounds as `seconds` allow."""
    calls, estimate = {}, 0.0
    for name, function in contenders.items():
        once = _seconds(function, device, 1)  # and warm up
        if once < SHORTEST:
            once = _seconds(function, device, 1)
        calls[name] = max(1, round(SHORTEST / once))
        estimate += calls[name] * once
    times = {name: [] for name in contenders}
    for _ in range(min(max(round(seconds / estimate), REPEATS[0]), REPEATS[1])):
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
