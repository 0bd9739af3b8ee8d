"""Times calls in turns, so that clocks and heat treat every contender alike."""

import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice

import torch

REPEATS = 12
ROUND = 2.0  # milliseconds that one reading takes at least, so that short kernels are not lost in its noise
MOST_CALLS = 200  # in one reading

Call = Callable[[], object]


def interleaved(contenders: dict[str, list[Call]], device: str) -> dict[str, dict[str, float]]:
    """Milliseconds of one call of each contender: median, 20th and 80th percentile.

    Args:
        contenders: for each name the same call on one or more sets of inputs, taken in rotation.
    """
    rotations = {name: cycle(calls) for name, calls in contenders.items()}
    counts = {name: _calls_per_reading(rotation, device) for name, rotation in rotations.items()}
    times = {name: [] for name in contenders}
    for _ in range(REPEATS):
        for name, rotation in rotations.items():
            calls = list(islice(rotation, counts[name]))
            times[name].append(_milliseconds(calls, device) / len(calls))
    return {name: _summary(found) for name, found in times.items()}


def _calls_per_reading(rotation, device: str) -> int:
    _milliseconds(list(islice(rotation, 3)), device)  # warms up
    one = _milliseconds(list(islice(rotation, 3)), device) / 3
    return max(1, min(round(ROUND / one), MOST_CALLS))


def _milliseconds(calls: list[Call], device: str) -> float:
    """Time of all calls together, on the GPU's own clock where there is one."""
    if device == "cpu":
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _summary(times: list[float]) -> dict[str, float]:
    fifths = statistics.quantiles(times, n=5)
    return {"median": statistics.median(times), "p20": fifths[0], "p80": fifths[3]}
