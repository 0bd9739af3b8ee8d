"""What a measurement says besides its times: the machine it ran on, and a table to read."""

import os
import platform
import subprocess
from datetime import date

import torch
import triton
from rich.console import Console
from rich.table import Table

import attnkern

WIDTH = 150  # of what goes to a file


def machine(device: str) -> dict[str, str]:
    """Device, versions, commit and date: the same for every line of a run."""
    gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else "none",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "attnkern": attnkern.__version__,
        "commit": os.environ.get("ATTNKERN_COMMIT") or _said("git", "rev-parse", "--short=12", "HEAD"),
        "date": str(date.today()),
    }


def table(lines: list[dict]) -> None:
    """A line per row: TFLOP/s, or milliseconds where there is no such count, and how far ahead we are."""
    names = list(dict.fromkeys(line["impl"] for line in lines))
    shown = Table(title="TFLOP/s (or ms); last, time of the best peer / our best time", title_justify="left")
    shown.add_column("row")
    for name in [*names, "ratio"]:
        shown.add_column(name.replace(" ", "\n"), justify="right")
    for row in dict.fromkeys(line["row"] for line in lines):
        found = {line["impl"]: line for line in lines if line["row"] == row}
        shown.add_row(row, *(_cell(found.get(name)) for name in names), _ratio(found))
    console().print(shown)


def console(stderr: bool = False) -> Console:
    """Names hold brackets, which are no markup; files are wide."""
    stream = Console(stderr=stderr, markup=False, highlight=False)
    if not stream.is_terminal:
        stream.width = WIDTH
    return stream


def _cell(line: dict | None) -> str:
    if line is None:
        return ""
    if line["error"]:
        return "error"
    if line["tflops"]:
        return f"{line['tflops']:.0f}" if line["tflops"] >= 10 else f"{line['tflops']:.2g}"
    if line["tb_per_s"]:
        return f"{line['tb_per_s']:.2f} TB/s"
    return f"{line['ms']['median']:.3g} ms"


def _ratio(found: dict[str, dict]) -> str:
    """Above 1: we are faster."""
    times = {name: line["ms"]["median"] for name, line in found.items() if line["ms"]}
    ours = [time for name, time in times.items() if name.startswith("attnkern")]
    peers = [time for name, time in times.items() if not name.startswith("attnkern")]
    return f"{min(peers) / min(ours):.2f}" if ours and peers else ""


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
