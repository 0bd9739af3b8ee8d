"""Times attnkern on a GPU beside its peers: every result checked, contenders in turns, one JSON line each.

python -m bench.run --suite global,local --out results.jsonl --seconds 120 --rows 'D128 16k'
"""

import argparse
import gc
import json
import math
import re
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench import modules, peers, report, roofs, timing
from bench.peers import Contender
from bench.problems import SEED, SUITES, Row

FAMILIES = {"module": modules, "matmul": roofs, "copy": roofs}  # the other kinds are peers'
CACHE = 60 << 20  # bytes: the largest L2 of the GPUs we measure on
MOST_SETS = 16
log = report.console(stderr=True).log


class Broken(RuntimeError):
    """The GPU's context is lost: nothing can run in this process any more."""


class Trial(NamedTuple):
    """A contender ready to be timed: one call per set of inputs, and what the first set gave."""

    calls: list[timing.Call]
    results: dict[str, Tensor]
    gradients: dict[str, Tensor]
    starts: dict[str, Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--suite", default="global,local,hard", help=f"of {', '.join(SUITES)} (default: %(default)s)")
    add("--out", type=Path, required=True, help="file of JSON lines to append to")
    add("--seconds", type=float, default=math.inf, help="rows that would begin later are skipped")
    add("--rows", default="", metavar="REGEX", help="only rows whose name it is found in")
    add("--backends", default="cuda,triton", help="ours, where they can run (default: %(default)s)")
    add("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()

    rows = [row for suite in options.suite.split(",") for row in SUITES[suite]() if re.search(options.rows, row.name)]
    began, lines, code = time.perf_counter(), [], 0
    machine = report.machine(options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        for number, row in enumerate(rows):
            if (spent := time.perf_counter() - began) > options.seconds:
                log(f"{spent:.0f} s spent: skipping the last {len(rows) - number} of {len(rows)} rows")
                break
            log(f"{number + 1}/{len(rows)} {row.name}")
            try:
                for line in measure(row, options.device, options.backends.split(",")):
                    lines.append(line)
                    print(json.dumps(line | machine), file=file, flush=True)
            except Broken as error:
                print(f"stopped at {row.name}: {error}; the lines before are in {options.out}", file=sys.stderr)
                code = 3
                break
    report.table(lines)
    return code


def measure(row: Row, device: str, backends: list[str]):
    """The row's JSON lines, one per contender."""
    family = FAMILIES.get(row.kind, peers)
    torch.manual_seed(SEED)
    sets = [family.inputs(row, device)]
    size = sum(tensor.nbytes for tensor in sets[0])
    sets += [family.inputs(row, device) for _ in range(min(MOST_SETS, math.ceil(2 * CACHE / size)) - 1)]
    trials, errors = {}, {}
    contenders = {contender.name: contender for contender in family.contenders(row, device, backends)}
    for name, contender in contenders.items():
        try:
            trial = prepare(row, contender, sets, family.INPUTS)
            errors[name] = family.complaint(row, sets[0], *trial[1:])
            if errors[name] is None:
                trials[name] = trial.calls
        except Exception as error:  # unsupported, out of memory, or broken
            errors[name] = _first_line(error)
        trial = None
        try:
            _recover(device)
        except Broken:
            yield _line(row, contender, None, errors[name] or "broke the GPU's context")
            raise
    try:
        times = timing.interleaved(trials, device)
    except Exception as error:
        times, errors = {}, errors | dict.fromkeys(trials, _first_line(error))
    for name, contender in contenders.items():
        if errors[name]:
            log(f"    {name}: {errors[name]}")
        yield _line(row, contender, times.get(name), errors[name])
    trials.clear()
    _recover(device)


def prepare(row: Row, contender: Contender, sets: list[tuple[Tensor, ...]], names: tuple[str, ...]) -> Trial:
    """Builds and calls it once on each set."""
    function = contender.build()
    parameters = dict(function.named_parameters()) if isinstance(function, nn.Module) else {}
    if row.phase == "forward":
        calls = [torch.no_grad()(partial(function, *tensors)) for tensors in sets]
        return Trial(calls, calls[0](), {}, {})
    calls, starts = [], {}
    for tensors in sets:
        # a loss that does not reach the values asks for no gradient of them
        reached = len(tensors) if "output" in contender.through else 2
        leaves = [tensor.detach().requires_grad_(place < reached) for place, tensor in enumerate(tensors)]
        results = function(*leaves)
        starts = starts or {name: _start(row, name, results[name]) for name in contender.through}
        wanted = [*leaves[:reached], *parameters.values()]
        if row.phase == "backward":
            ends = [results[name] for name in contender.through]
            calls.append(partial(torch.autograd.grad, ends, wanted, list(starts.values()), retain_graph=True))
        else:
            calls.append(partial(_train, function, leaves, wanted, starts))
        if len(calls) == 1:
            first = results
    gradients = dict(zip([*names[:reached], *parameters], calls[0]()))
    return Trial(calls, first, gradients, starts)


def _train(function, leaves: list[Tensor], wanted: list[Tensor], starts: dict[str, Tensor]) -> tuple[Tensor, ...]:
    results = function(*leaves)
    return torch.autograd.grad([results[name] for name in starts], wanted, list(starts.values()))


def _start(row: Row, name: str, result: Tensor) -> Tensor:
    """The gradient of a result: normal numbers in its layout, the same for every contender."""
    generator = torch.Generator(result.device).manual_seed(SEED)
    numbers = torch.randn(result.shape, dtype=result.dtype, device=result.device, generator=generator)
    if name == "lse":  # spreads over all keys: an error of it would be lost beside the score's, which has one
        numbers *= row.len_k**0.5
    return torch.empty_like(result).copy_(numbers)


def _recover(device: str) -> None:
    """Frees what a contender left; a context that an earlier error destroyed fails here again."""
    gc.collect()
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise Broken(f"the GPU's context is lost ({_first_line(error)})") from None


def _line(row: Row, contender: Contender, times: dict[str, float] | None, error: str | None) -> dict:
    fields = {("pass" if key == "phase" else "row" if key == "name" else key): v for key, v in asdict(row).items()}
    seconds = times["median"] / 1e3 if times else math.nan
    return fields | {
        "impl": contender.name,
        "ms": {key: round(value, 5) for key, value in times.items()} if times else None,
        "tflops": round(contender.flops / seconds / 1e12, 2) if times and contender.flops else None,
        "tb_per_s": round(contender.bytes / seconds / 1e12, 3) if times and contender.bytes else None,
        "error": error,
    }


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


if __name__ == "__main__":
    sys.exit(main())
