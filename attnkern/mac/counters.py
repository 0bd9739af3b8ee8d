"""Counts held against the chip's own counters, through NVIDIA's Nsight Compute.

python -m attnkern.mac.counters FILE    makes the call that the pickled arguments of `call_of` describe, once, counted
"""

import csv
import io
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from attnkern.mac.counting import SPARSE, count, passes
from attnkern.problem import Problem

TENSOR_OPS = ("sm__ops_path_tensor_src_bf16_dst_fp32.sum", "sm__ops_path_tensor_src_fp16_dst_fp32.sum")
SPECIAL = "sm__inst_executed_pipe_xu.sum"  # of warps
MEMORY = "dram__bytes.sum"
METRICS = (*TENSOR_OPS, SPECIAL, MEMORY)
WARP = 32
PLACES = ("/usr/local/cuda/bin",)


class Difference(NamedTuple):
    """What was counted beforehand, and what the chip counted."""

    name: str
    counted: int
    measured: float

    @property
    def relative(self) -> float:
        return self.measured / self.counted - 1 if self.counted else float("nan")


def missing(problem: Problem) -> str | None:
    """Why the counters cannot be read here, or None."""
    if problem.device != "cuda" or not torch.cuda.is_available():
        return "the chip's counters need a GPU and a problem on it (--device cuda)"
    if problem.dtype not in (torch.float16, torch.bfloat16):
        return f"the chip counts products of float16 and bfloat16 on its matrix units, not of {problem.dtype}"
    if tool("ncu") is None:
        return "Nsight Compute's ncu is not in PATH: it comes with CUDA's toolkit"
    return None


def read(problem: Problem, backward: bool = False, backend: str | None = None) -> list[Difference]:
    """Makes one call under Nsight Compute and compares.

    Raises:
        RuntimeError: see `missing`; or Nsight Compute failed, in its own words.
    """
    if (reason := missing(problem)) is not None:
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory() as folder:
        arguments, log = Path(folder, "arguments"), Path(folder, "log.csv")
        arguments.write_bytes(pickle.dumps((problem, backward, backend)))
        # the clock as it is: at ncu's own, memory is as fast beside slower multiprocessors
        command = [tool("ncu"), "--clock-control", "none", "--csv", "--print-units", "base", "--log-file", log]
        command += ["--metrics", ",".join(METRICS)]
        command += ["--profile-from-start", "off", sys.executable, "-m", "attnkern.mac.counters", arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        said = log.read_text() if log.exists() else ""
    errors = [line for line in (said + done.stdout).splitlines() if line.startswith("==ERROR==")]
    if done.returncode or errors:
        raise RuntimeError((errors or done.stderr.strip().splitlines() or ["ncu failed"])[-1])
    return compare(problem, parse(said), backward, backend)


def parse(text: str) -> dict[str, dict[str, float]]:
    """Counters summed by kernel, from Nsight Compute's CSV; lines before its header are skipped.

    Raises:
        ValueError: there is no table, or a metric is not known to this chip.
    """
    lines = text.splitlines()
    begin = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        raise ValueError("Nsight Compute wrote no table of metrics")
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[begin:]))):
        kernel, metric, value = row["Kernel Name"], row["Metric Name"], row["Metric Value"].replace(",", "")
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"Nsight Compute has no {metric} here: {value}") from None
        metrics = found.setdefault(kernel, {})
        metrics[metric] = metrics.get(metric, 0.0) + number
    return found


def compare(
    problem: Problem, counters: dict[str, dict[str, float]], backward: bool = False, backend: str | None = None
) -> list[Difference]:
    """Of all kernels together: issued MACs, exponentials of whole tiles, and bytes of memory."""
    which = "training" if backward else "forward"
    total = {metric: sum(kernel.get(metric, 0.0) for kernel in counters.values()) for metric in METRICS}
    tiles = [one for one in passes(problem, which, backend=backend) if one.kernel != SPARSE]
    exps = sum(one.pairs for one in tiles) * (1 + bool(problem.softcap))
    return [
        Difference("MACs", sum(one.macs for one in tiles), sum(total[metric] for metric in TENSOR_OPS) / 2),
        Difference("exps", exps, WARP * total[SPECIAL]),
        Difference("bytes", count(problem, which, backend=backend).bytes, total[MEMORY]),
    ]


def tool(name: str) -> str | None:
    """Where a program of CUDA's toolkit is, or None."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *PLACES]))


def _counted(problem: Problem, backward: bool, backend: str | None) -> None:
    """Once to compile and to warm up, once between start and stop."""
    from attnkern.mac.calls import call_of

    call, tensors = call_of(problem, backward, backend)

    def run() -> None:
        result = call(*tensors)
        if backward:
            sum(part.sum() for part in (result if isinstance(result, tuple) else (result,))).backward()
        torch.cuda.synchronize()

    run()
    torch.cuda.cudart().cudaProfilerStart()
    run()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    _counted(*pickle.loads(Path(sys.argv[1]).read_bytes()))
