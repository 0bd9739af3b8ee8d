"""What a trace of torch's profiler says: time of every operation and kernel, and memory over time."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import torch
from torch.autograd import DeviceType

from attnkern.mac.modules import RANGE, Modules

BACKWARD = "autograd::engine::evaluate_function: "
MEMORY = "[memory]"
REGIONS = ("Torch-Compiled Region", "CompiledFunctionBackward")  # as traces have them
COMPILED = "compiled code"


@dataclass
class Spent:
    """On all calls of one operation in one module: seconds on the device, and by the kernels it launched."""

    calls: int = 0
    seconds: float = 0.0
    kernels: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def spent(
    prof: torch.profiler.profile, modules: Modules, operations: Container[str], device: str
) -> dict[tuple[str, str], Spent]:
    """Time by module and operation; what an operation calls is part of it.

    What compiled regions do by themselves is one operation more, `COMPILED`: the operations inside are their own.
    """

    found = defaultdict(Spent)
    for event in prof.events():
        name = _name(event, operations)
        if event.device_type != DeviceType.CPU or name is None:
            continue
        above = list(_ancestors(event))
        named = [_name(ancestor, operations) for ancestor in above]
        if set(named) - {None, COMPILED}:
            continue
        entry, seconds = found[_module(above, modules), name], _seconds(event, device)
        entry.calls += 1
        entry.seconds += seconds
        for kernel in _kernels(event, operations if name == COMPILED else ()):
            entry.kernels[kernel.name] += kernel.duration * 1e-6
        if COMPILED in named:
            outside = above[named.index(COMPILED) + 1 :]
            found[_module(outside, modules), COMPILED].seconds -= seconds
    return dict(found)


def _name(event, operations: Container[str]) -> str | None:
    """Of an operation."""
    return COMPILED if event.name.startswith(REGIONS) else event.name if event.name in operations else None


def _ancestors(event) -> Iterator:
    while (event := event.cpu_parent) is not None:
        yield event


def _seconds(event, device: str) -> float:
    return (event.cpu_time_total if device == "cpu" else event.device_time_total) * 1e-6


def _module(above: list, modules: Modules) -> str:
    return next((found for found in (_owner(event, modules) for event in above) if found is not None), "")


def _owner(event, modules: Modules) -> str | None:
    if event.name.startswith(RANGE):
        return event.name.removeprefix(RANGE)
    if event.name.startswith(BACKWARD) and event.sequence_nr >= 0:
        return modules.of_node(event.sequence_nr)
    return None


def _kernels(event, apart: Container[str]):
    """Of the event and all it calls, but for operations that stand apart."""
    yield from event.kernels
    for child in event.cpu_children:
        if not apart or _name(child, apart) is None:
            yield from _kernels(child, apart)


def peak_memory(prof: torch.profiler.profile, device: str) -> dict[str, int]:
    """Bytes allocated above what there was before, at most: in each module's forward, and in all ("")."""
    raw = prof.profiler.kineto_results.events()
    wanted = DeviceType.CPU if device == "cpu" else DeviceType.CUDA
    changes = sorted((e.start_ns(), e.nbytes()) for e in raw if e.name() == MEMORY and e.device_type() == wanted)
    ranges = [(e.start_ns(), e.start_ns() + e.duration_ns(), e.name()) for e in raw if e.name().startswith(RANGE)]
    if changes:
        ranges.append((changes[0][0] - 1, changes[-1][0], RANGE))
    times, peaks = [when for when, _ in changes], defaultdict(int)
    for begin, end, name in ranges:
        level = peak = 0
        for _, change in changes[bisect_left(times, begin) : bisect_right(times, end)]:
            level += change
            peak = max(peak, level)
        module = name.removeprefix(RANGE)
        peaks[module] = max(peaks[module], peak)
    return dict(peaks)
