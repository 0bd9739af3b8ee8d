"""Times calls in turns, so that clocks and heat treat every contender alike."""

import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice

import torch

REPEATS = (5, 15)  # at least and at most
SECONDS = {"cpu": 1.2, "cuda": 1.0}  # for the repeats of a row, where its calls are short enough
READING = {"cpu": 10.0, "cuda": 2.0}  # milliseconds that one takes at least: short kernels are not lost in its noise
MOST_CALLS = 200  # in one reading

Call = Callable[[], object]


def interleaved(contenders: dict[str, list[Call]], device: str) -> dict[str, list[float]]:
    """Milliseconds of one call of each contender, one reading for each repeat.

    Args:
        contenders: for each name the same call on one or more sets of inputs, taken in rotation.
    """
    rotations = {name: cycle(calls) for name, calls in contenders.items()}
    counts, estimate = {}, 0.0
    for name, rotation in rotations.items():
        one = _warm(rotation, device)
        counts[name] = max(1, min(round(READING[device] / one), MOST_CALLS))
        estimate += counts[name] * one / 1e3
    times = {name: [] for name in contenders}
    fewest, most = REPEATS
    for repeat in range(max(fewest, min(most, round(SECONDS[device] / estimate))) if contenders else 0):
        # there and back: nobody always follows the same neighbour
        for name in list(rotations) if repeat % 2 else reversed(rotations):
            calls = list(islice(rotations[name], counts[name]))
            times[name].append(milliseconds(calls, device) / len(calls))
    return times


def milliseconds(calls: list[Call], device: str) -> float:
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


def summary(times: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return {"median": statistics.median(times), "p20": fifths[0], "p80": fifths[3]}


def _warm(rotation, device: str) -> float:
    """Milliseconds of a call, once it has run; long ones run once only."""
    one = milliseconds(list(islice(rotation, 1)), device)
    if one < READING[device]:
        milliseconds(list(islice(rotation, 3)), device)
        one = milliseconds(list(islice(rotation, 3)), device) / 3
    return one
