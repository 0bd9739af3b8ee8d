"""What a device can do at best, measured on it: multiply-accumulates, copies, exponentials.

A busy machine measures too little, never too much: the highest that was ever measured counts.
"""

import dataclasses
import functools
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from attnkern import cache
from attnkern.backends.choose import load
from attnkern.mac.counting import Count

FILE = "roofs.json"
DAYS = 30  # that a measurement is believed
DTYPES = {"cpu": ("float64", "float32", "bfloat16", "float16"), "cuda": ("float64", "float32", "bfloat16", "float16")}
SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of matrices, until one product takes long enough
LONG_ENOUGH = 0.05  # seconds
BUDGET = {"cpu": 0.5, "cuda": 0.3}  # seconds for one roof
ALLOCATIONS = 3  # where pages lie decides how fast a copy is
SPINS = 1 << 15  # rounds of a loop on registers: a call of a millisecond
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes read, and as many written: more than a cache holds
EXPONENTS = {"cpu": 1 << 16, "cuda": 1 << 25}  # at once; on a CPU few enough to stay in the cache


class Floor(NamedTuple):
    """The time below which work cannot be done, and what sets it."""

    seconds: float
    limit: Literal["matrix", "memory", "exp"]


@dataclasses.dataclass(frozen=True)
class Roofs:
    """A device's measured best.

    Attributes:
        device: its name and what else the measurement depends on.
        matmul: multiply-accumulates per second, of a large product or (on a CPU) of numbers in registers, by name of
            dtype; 1 MAC is 2 FLOPs.
        bandwidth: bytes per second of a copy, read and written together.
        exp: exponentials per second, in float32.
    """

    device: str
    matmul: dict[str, float]
    bandwidth: float
    exp: float

    def floor(self, count: Count, dtype: torch.dtype | str) -> Floor:
        """The least time for the useful work of a count, all three units at full speed at once.

        Raises:
            ValueError: the product of this dtype was not measured.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in self.matmul:
            raise ValueError(f"dtype must be one of {', '.join(self.matmul)}, got {name}")
        times = {
            "matrix": count.useful_macs / self.matmul[name],
            "memory": count.bytes / self.bandwidth,
            "exp": count.exps / self.exp,
        }
        limit = max(times, key=times.get)
        return Floor(times[limit], limit)


def roofs(
    device: torch.device | str | None = None,
    *,
    fresh: bool = False,
    progress: Callable[[list], Iterator] = iter,
) -> Roofs:
    """The device's roofs, measured in a few seconds and then read from a file for 30 days.

    Never below what was measured there before.

    Args:
        device: "cpu" or "cuda", with or without an index; by default the GPU, where there is one.
        fresh: measure again.
        progress: wraps the list of things to measure while they are measured, such as a progress bar.

    Raises:
        ValueError: there is no such device, or it is neither a CPU nor a CUDA GPU.
    """
    device = _checked(device)
    place = _described(device)
    known, young = _known(place)
    if known is not None and young and not fresh:
        return known
    names = ["copy", "exp", *DTYPES[device.type]]
    found = {name: _measured(name, device) for name in progress(names)}
    bandwidth, exp = found.pop("copy"), found.pop("exp")
    result = Roofs(place, {name: rate for name, rate in found.items() if rate is not None}, bandwidth, exp)
    result = result if known is None else _highest(known, result)
    cache.add(FILE, place, {"when": time.time(), **dataclasses.asdict(result)})
    return result


def _highest(one: Roofs, other: Roofs) -> Roofs:
    dtypes = one.matmul | other.matmul
    matmul = {name: max(roofs.matmul.get(name, 0.0) for roofs in (one, other)) for name in dtypes}
    return Roofs(one.device, matmul, max(one.bandwidth, other.bandwidth), max(one.exp, other.exp))


def _known(place: str) -> tuple[Roofs | None, bool]:
    """From the file, unless it is not there or not what `roofs` wrote; and whether it is young enough."""
    try:
        entry = dict(cache.read(FILE)[place])
        young = 0 <= time.time() - entry.pop("when") < DAYS * 24 * 3600
        found = Roofs(**entry)
        rates = (*found.matmul.values(), found.bandwidth, found.exp)
        return (found, young) if found.matmul and all(0 < rate < math.inf for rate in rates) else (None, False)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None, False


def _checked(device: torch.device | str | None) -> torch.device:
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}") from None
    if device.type not in DTYPES:
        raise ValueError(f"device must be 'cpu' or 'cuda', got '{device}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be one of this machine's {torch.cuda.device_count()} GPUs, got '{device}'")
    return device


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()} ({capability}), threads: {torch.get_num_threads()}, torch {torch.__version__}"


@functools.cache
def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _measured(name: str, device: torch.device) -> float | None:
    """Units per second; None for a dtype that the device does not multiply."""
    if name == "copy":
        return _copy_rate(device)
    if name == "exp":
        return _exp_rate(device)
    try:
        product = _product_rate(getattr(torch, name), device)
    except RuntimeError:
        return None
    return max(product, _spin_rate(name, device))


def _copy_rate(device: torch.device) -> float:
    size, threads, best = COPIED[device.type], torch.get_num_threads(), math.inf
    counts = {1, threads} if device.type == "cpu" else {threads}
    try:
        for _ in range(ALLOCATIONS):
            source = torch.ones(size // 4, device=device)
            target = torch.empty_like(source)
            for count in counts:
                torch.set_num_threads(count)
                share = BUDGET[device.type] / ALLOCATIONS / len(counts)
                best = min(best, _best(lambda: target.copy_(source), device, share))  # noqa: B023
    finally:
        torch.set_num_threads(threads)
    return 2 * size / best


def _spin_rate(unit: str, device: torch.device) -> float:
    """Of a loop on registers alone; 0 where there is none."""
    backend = load("cpu")
    if device.type != "cpu" or isinstance(backend, str):
        return 0.0
    made = backend.spin(unit, SPINS)
    return made / _best(lambda: backend.spin(unit, SPINS), device, 0.4 * BUDGET["cpu"])


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Of the largest product that does not take long; random numbers, since zeros draw less power."""
    for side in SIDES:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        result = torch.empty_like(left)
        product = functools.partial(torch.mm, left, right, out=result)
        product()
        if _seconds(product, device, 1) >= LONG_ENOUGH:
            break
    return side**3 / _best(product, device)


def _exp_rate(device: torch.device) -> float:
    if device.type == "cuda":
        from attnkern.triton_kernels.exp_rate import ROUNDS, exp_rate

        numbers = torch.rand(EXPONENTS["cuda"], device=device)
        programs = numbers.numel() // 1024
        with torch.cuda.device(device):
            seconds = _best(lambda: exp_rate[(programs,)](numbers, BLOCK=1024, num_warps=4), device)
        return ROUNDS.value * numbers.numel() / seconds
    numbers = torch.rand(EXPONENTS["cpu"])
    result = torch.empty_like(numbers)
    return max(numbers.numel() / _best(lambda: torch.exp2(numbers, out=result), device), _spin_rate("exp", device))


def _best(function: Callable[[], object], device: torch.device, budget: float | None = None) -> float:
    """Seconds of the fastest call: what slows others is no property of the device."""
    once = _seconds(function, device, 1)
    calls = max(1, round(0.01 / once))
    best, end = float("inf"), time.perf_counter() + (budget or BUDGET[device.type])
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, _seconds(function, device, calls))
    return best


def _seconds(function: Callable[[], object], device: torch.device, calls: int) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    wait(device)
    return (time.perf_counter() - begin) / calls
