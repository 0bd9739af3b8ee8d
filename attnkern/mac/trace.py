"""What a trace of torch's profiler says: time of every operation and kernel, and memory over time."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field

import torch
from torch.autograd import DeviceType

from attnkern.mac.modules import RANGE, Modules

BACKWARD = "autograd::engine::evaluate_function: "
MEMORY = "[memory]"


@dataclass
class Spent:
    """On all calls of one operation in one module: seconds on the device, and by the kernels it launched."""

    seconds: float = 0.0
    kernels: dict[str, float] = field(default_factory=lambda: defaultdict(float))


def spent(
    prof: torch.profiler.profile, modules: Modules, operations: Container[str], device: str
) -> dict[tuple[str, str], Spent]:
    """Time by module and operation; what an operation calls is part of it."""
    found = defaultdict(Spent)
    for event in prof.events():
        if event.device_type != DeviceType.CPU or event.name not in operations:
            continue
        module, ancestor = None, event.cpu_parent
        while ancestor is not None and ancestor.name not in operations:
            if module is None:
                module = _owner(ancestor, modules)
            ancestor = ancestor.cpu_parent
        if ancestor is not None:
            continue
        entry = found[module or "", event.name]
        entry.seconds += (event.cpu_time_total if device == "cpu" else event.device_time_total) * 1e-6
        for kernel in _kernels(event):
            entry.kernels[kernel.name] += kernel.duration * 1e-6
    return dict(found)


def _owner(event, modules: Modules) -> str | None:
    if event.name.startswith(RANGE):
        return event.name.removeprefix(RANGE)
    if event.name.startswith(BACKWARD) and event.sequence_nr >= 0:
        return modules.of_node(event.sequence_nr)
    return None


def _kernels(event):
    yield from event.kernels
    for child in event.cpu_children:
        yield from _kernels(child)


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
