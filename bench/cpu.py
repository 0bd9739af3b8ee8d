"""The CPU bars, side by side in one process: local and hard attention against torch's own, as JSON rows.

    python bench/cpu.py >> bench/results/cpu/2026-11-22.jsonl

Repeats are interleaved; a row holds the median and the 20th and 80th percentile, in milliseconds, and
is printed only if both sides gave the same result.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date

import torch
import torch.nn.functional as F
from torch import Tensor

import attnkern

REPEATS = 9


def main() -> None:
    device = {"device": _processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    device |= {"python": platform.python_version(), "attnkern": attnkern.__version__, "date": str(date.today())}
    for name, ours, theirs, tensors in cases():
        for mode in ("forward", "forward and backward"):
            if mode == "forward":
                with torch.no_grad():
                    torch.testing.assert_close(ours(*tensors), theirs(*tensors), rtol=1e-4, atol=1e-4)
            times = interleaved(mode, tensors, attnkern=ours, torch=theirs)
            ratio = times["torch"]["median"] / times["attnkern"]["median"]
            print(json.dumps({"case": name, "pass": mode, **times, "ratio": round(ratio, 2), **device}), flush=True)


def cases():
    """Name, our function, what it is measured against, tensors."""
    torch.manual_seed(0)
    for length, width in ((1024, 128), (4096, 128), (8192, 128)):
        query, key, value = (torch.randn(1, 8, length, 64, requires_grad=True) for _ in range(3))
        i = torch.arange(length)
        band = (i[:, None] - i).abs() <= width

        def local(query, key, value, width=width):
            return attnkern.local_attention(query, key, value, window=(width, width))

        def banded(query, key, value, band=band):
            return F.scaled_dot_product_attention(query, key, value, band)

        yield (
            f"local +-{width} of {length}, B1 H8 E64 float32, against SDPA with the band mask",
            local,
            banded,
            (query, key, value),
        )
    yield (
        "global 4096, B1 H8 E64 float32, against SDPA",
        attnkern.global_attention,
        F.scaled_dot_product_attention,
        tuple(torch.randn(1, 8, 4096, 64, requires_grad=True) for _ in range(3)),
    )


def interleaved(mode: str, tensors: tuple[Tensor, ...], **functions: Callable) -> dict[str, dict[str, float]]:
    """Times of each function, in turns."""
    times = {name: [] for name in functions}
    for repeat in range(REPEATS + 1):
        for name, function in functions.items():
            took = _once(mode, function, tensors)
            if repeat:  # the first warms up
                times[name].append(took)
    return {name: _summary(found) for name, found in times.items()}


def _once(mode: str, function: Callable, tensors: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    if mode == "forward":
        with torch.no_grad():
            function(*tensors)
    else:
        output = function(*tensors)
        torch.autograd.grad(output, tensors, torch.ones_like(output))
    return (time.perf_counter() - start) * 1e3


def _summary(times: list[float]) -> dict[str, float]:
    fifths = statistics.quantiles(times, n=5)
    return {"median": round(statistics.median(times), 2), "p20": round(fifths[0], 2), "p80": round(fifths[3], 2)}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
