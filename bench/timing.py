"""Times calls in turns, so that clocks and heat treat every contender alike."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice

import torch

ROUNDS = {"cpu": 4, "cuda": 1}  # of a run: a CPU's speed drifts within minutes, and what it drifts is noise
READINGS = (4, 16)  # of each contender, in all rounds: at least and at most
SECONDS = {"cpu": 1.0, "cuda": 1.0}  # for all readings of a row, where its calls are short enough
READING = {"cpu": 10.0, "cuda": 2.0}  # milliseconds that one takes at least: short kernels are not lost in its noise
MOST_CALLS = 200  # in one reading

Call = Callable[[], object]


class Turns:
    """Times of contenders that take turns, in one or more rounds.

    Attributes:
        times: milliseconds of one call of each contender, one for each reading.
    """

    def __init__(self, device: str, rounds: int = 1):
        self.times: dict[str, list[float]] = {}
        self._device, self._rounds = device, rounds
        self._calls: dict[str, int] = {}  # in a reading of each
        self._readings = 0  # in a round

    def round(self, contenders: dict[str, list[Call]]) -> None:
        """A few readings of each; those of a round that does not end are lost.

        Args:
            contenders: for each name the same call on one or more sets of inputs, taken in rotation.
        """
        rotations = {name: cycle(calls) for name, calls in contenders.items()}
        if not self._calls and rotations:
            self._plan(rotations)
        found = {name: [] for name in contenders}
        for reading in range(self._readings):
            # there and back: nobody always follows the same neighbour
            for name in list(rotations) if reading % 2 else reversed(rotations):
                calls = list(islice(rotations[name], self._calls[name]))
                found[name].append(milliseconds(calls, self._device) / len(calls))
        for name, times in found.items():
            self.times.setdefault(name, []).extend(times)

    def _plan(self, rotations: dict[str, Iterator[Call]]) -> None:
        estimate = 0.0  # seconds of a reading of everyone
        for name, rotation in rotations.items():
            one = _warm(rotation, self._device)
            self._calls[name] = max(1, min(round(READING[self._device] / one), MOST_CALLS))
            estimate += self._calls[name] * one / 1e3
        fewest, most = (math.ceil(readings / self._rounds) for readings in READINGS)
        self._readings = max(fewest, min(most, round(SECONDS[self._device] / self._rounds / estimate)))


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
    fifths = statistics.quantiles(times if len(times) > 1 else 2 * times, n=5, method="inclusive")
    return {"median": statistics.median(times), "p20": fifths[0], "p80": fifths[3]}


def _warm(rotation, device: str) -> float:
    """Milliseconds of a call, once it has run; long ones run once only."""
    one = milliseconds(list(islice(rotation, 1)), device)
    if one < READING[device]:
        milliseconds(list(islice(rotation, 3)), device)
        one = milliseconds(list(islice(rotation, 3)), device) / 3
    return one
