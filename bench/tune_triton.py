"""Times many tiles of each Triton kernel, far more than `attnkern/backends/tuning.py` lists, in bfloat16.

    python -m attnkern.bench.tune_triton --out tiles.jsonl --seconds 400

Compiling takes most of the time: processes of their own do it first and leave the binaries in Triton's
cache on disk; then this process times them, one JSON line each.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton

from attnkern import Problem
from attnkern.backends import launching
from attnkern.backends import triton as backend
from attnkern.backends.tuning import Config
from attnkern.bench.results import machine
from attnkern.problem import Inputs

KINDS = {"causal": {"causal": True}, "plain": {}, "window": {"causal": True, "window": (1024, 0)}}
KERNELS = ("softmax_forward", "backward_key_value", "backward_query", "sample_forward")
HEAD_DIMS = (128, 64, 256)
SHARED = 227 << 10  # bytes of a multiprocessor that one program can have, on sm_90
ACCUMULATORS = 208  # 32-bit registers of a thread, of 255, that its sums may take
FEATURES, LENGTH, SHORT = 2048, 8192, 512  # of all heads; timed; compiled for: multiples of 16 both
COMPILING = 0.6  # share of the time


class Task(NamedTuple):
    """One kernel, compiled with one tile."""

    kernel: str
    head_dim: int
    kind: str
    config: Config


class Launch(NamedTuple):
    """The arguments of the backend's `_launch`, kept."""

    kernel: triton.JITFunction
    programs: object
    problem: Problem
    arguments: dict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file of JSON lines to append to")
    add("--seconds", type=float, default=400, help="for everything (default: %(default)s)")
    add("--kernels", nargs="+", default=KERNELS, choices=KERNELS)
    add("--head-dims", nargs="+", type=int, default=HEAD_DIMS)
    add("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    add("--workers", type=int, default=14, help="processes that compile (default: %(default)s)")
    options = parser.parse_args()

    began = time.perf_counter()
    groups = itertools.product(options.kinds, options.head_dims, options.kernels)
    tasks = [Task(kernel, dim, kind, c) for kind, dim, kernel in groups for c in configs(kernel, dim, kind)]
    print(f"{len(tasks)} kernels to compile")
    compiled = list(precompiled(tasks, options.workers, began + COMPILING * options.seconds))
    print(f"{len(compiled)} compiled or refused after {time.perf_counter() - began:.0f} s")
    lines, here = [], machine("cuda")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        for line in timed(compiled, began + options.seconds):
            lines.append(line)
            print(json.dumps(line | here), file=file, flush=True)
    print(f"{len(lines)} of {len(compiled)} timed after {time.perf_counter() - began:.0f} s")
    show_best(lines)
    return 0


def configs(kernel: str, head_dim: int, kind: str) -> list[Config]:
    """What may fit: the default first, then the grid without tiles too large for memory or registers."""
    blocks_m = (32, 64, 128) if kernel == "backward_key_value" else (64, 128, 256)
    blocks_n = (64,) if kernel == "sample_forward" else (64, 128) if kernel == "backward_key_value" else (32, 64, 128)
    stages = (1, 2) if head_dim > 128 else (1, 2, 3, 4)
    grid = itertools.starmap(Config, itertools.product(blocks_m, blocks_n, (4, 8), stages))
    found = dict.fromkeys([default(kernel, head_dim, kind)])
    return list(found | dict.fromkeys(config for config in grid if fits(kernel, head_dim, config)))


def default(kernel: str, head_dim: int, kind: str) -> Config:
    """The table's, for sm_90."""
    return launching.tuning.candidates(kernel, problem(head_dim, kind, LENGTH), 90)[0]


def fits(kernel: str, head_dim: int, config: Config) -> bool:
    """Tiles held and tiles in flight within shared memory, sums within registers."""
    m, n, warps, stages = config
    held, streamed, sums = {
        "softmax_forward": (m, 2 * n, m * (n + head_dim)),
        "backward_query": (2 * m, 2 * n, m * (2 * n + head_dim)),
        "backward_key_value": (2 * n, 2 * m, n * (2 * m + 2 * head_dim)),
        "sample_forward": (m, n, 2 * m * n),
    }[kernel]
    shared = 2 * head_dim * (held + stages * streamed)
    return shared <= SHARED and sums <= ACCUMULATORS * 32 * warps


def problem(head_dim: int, kind: str, length: int, **choices) -> Problem:
    """Two sequences, 16 heads of 128 or as many as make the same features."""
    return Problem(
        batch=2, heads=FEATURES // head_dim, len_q=length, head_dim=head_dim, dtype=torch.bfloat16, device="cuda",
        **KINDS[kind], **choices,
    )  # fmt: skip


def launches(head_dim: int, kind: str, length: int, with_default: bool) -> dict[str, Launch]:
    """Every kernel's launch for one self-attention, as the backend makes it; each may run once, with the default."""
    softmax, hard = problem(head_dim, kind, length), problem(head_dim, kind, length, selector="sample")
    shape = (softmax.batch, softmax.heads, length, head_dim)
    query, key, value, gradient = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(4))
    inputs = Inputs(query, key, value, seed=torch.tensor(7, device="cuda"))
    found, launch = {}, launching.launch

    def keep(*arguments):
        found[arguments[0].__name__] = Launch(*arguments)
        if with_default:
            launch(*arguments)

    with mock.patch.object(launching, "launch", keep):
        output, lse = backend.softmax(softmax, inputs)
        backend.backward(softmax, inputs, lse, grad_output=gradient, output=output)
        backend.sample(hard, inputs)
    return found


def forced(config: Config):
    """While it lasts the backend launches every kernel with this tile."""
    return mock.patch.object(launching.tuning, "config", lambda *_: config)


def resources(launch: Launch) -> dict[str, int]:
    """Of the binary that runs: registers of a thread, those spilled, bytes of shared memory."""
    binaries, run = [], launch.kernel.run
    with mock.patch.object(launch.kernel, "run", lambda *a, **k: binaries.append(run(*a, **k))):
        launching.launch(*launch)
    binary = binaries[0]
    return {"registers": binary.n_regs, "spills": binary.n_spills, "shared_bytes": binary.metadata.shared}


def precompiled(tasks: list[Task], workers: int, deadline: float):
    """Tasks whose kernel is in the cache by then, in order, with the error if it does not run."""
    pool = multiprocessing.get_context("spawn").Pool(workers)
    waiting = [(task, pool.apply_async(compile_one, task)) for task in tasks]
    for task, result in waiting:
        try:
            yield task, result.get(timeout=max(0.0, deadline - time.perf_counter()))
        except multiprocessing.TimeoutError:
            continue
    pool.terminate()


_launches = {}  # of a worker, by head size and kind


def compile_one(kernel: str, head_dim: int, kind: str, config: Config) -> str | None:
    """In a worker: one launch on a short sequence, whose integers Triton treats as it does the long one's."""
    place = head_dim, kind
    try:
        if place not in _launches:
            _launches[place] = launches(*place, SHORT, with_default=False)
        with forced(config):
            launching.launch(*_launches[place][kernel])
        torch.cuda.synchronize()
    except Exception as error:  # does not fit, or does not compile
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def timed(compiled: list[tuple[Task, str | None]], deadline: float):
    """The JSON lines."""
    place, long = None, {}
    for task, error in compiled:
        if time.perf_counter() > deadline:
            return
        line = {"kernel": task.kernel, "head_dim": task.head_dim, "kind": task.kind, "config": list(task.config)}
        line |= {"default": task.config == default(*task[:3]), "ms": None, "error": error}
        if error is None:
            try:
                if place != (task.head_dim, task.kind):
                    long = launches(task.head_dim, task.kind, LENGTH, with_default=True)  # whose lse is right
                    place = task.head_dim, task.kind
                line |= measured(long[task.kernel], task.config)
            except Exception as failure:
                line["error"] = f"{type(failure).__name__}: {str(failure)[:200]}"
        yield line


def measured(launch: Launch, config: Config) -> dict:
    """Resources, and the median of its times."""
    with forced(config):
        found = resources(launch)
        return found | {"ms": triton.testing.do_bench(lambda: launching.launch(*launch), 5, 25, return_mode="median")}


def show_best(lines: list[dict]) -> None:
    """The three fastest of each kernel, and the table's default."""
    places = dict.fromkeys((line["kernel"], line["head_dim"], line["kind"]) for line in lines)
    for place in places:
        ran = [line for line in lines if (line["kernel"], line["head_dim"], line["kind"]) == place and line["ms"]]
        ran.sort(key=lambda line: line["ms"])
        shown = ran[:3] + [line for line in ran[3:] if line["default"]]
        print(*place)
        for line in shown:
            registers = f"{line['registers']} registers, {line['spills']} spilled"
            print(f"  {line['ms']:8.3f} ms  {line['config']}  {registers}{'  default' * line['default']}")


if __name__ == "__main__":
    sys.exit(main())
