"""One row: everyone's result checked, then everyone's time taken, in turns."""

import gc
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnkern import mac
from attnkern.bench import aoa, modules, packed, peers, roofs, timing
from attnkern.bench.peers import Contender
from attnkern.bench.problems import SEED, Row
from attnkern.bench.results import Result, Roof

FAMILIES = {"packed": packed, "module": modules, "aoa": aoa, "matmul": roofs, "copy": roofs}  # the others are peers'
CACHE = 60 << 20  # bytes: the largest last-level cache of the devices we measure on
MOST_SETS = 16


class Broken(RuntimeError):
    """The GPU's context is lost: nothing can run in this process any more."""


class WrongResult(ArithmeticError):
    """An implementation does not compute the row; it gets no time."""


class Trial(NamedTuple):
    """A contender ready to be timed: one call per set of inputs, and what the first set gave."""

    calls: list[timing.Call]
    results: dict[str, Tensor]
    gradients: dict[str, Tensor]
    starts: dict[str, Tensor]


def measure(
    row: Row, device: str, backends: list[str], peers: list[str], limits: mac.Roofs | None = None
) -> Iterator[Result]:
    """The row's results, one per contender, all of one run.

    Args:
        backends, peers: names of those to measure.
        limits: what the device can do at best.
    """
    contenders = {one.name: one for one in family(row).contenders(row, device, backends, peers)}
    sets = input_sets(row, device)
    calls, errors, memory = {}, {}, {}
    for name, contender in contenders.items():
        try:
            calls[name] = checked(row, contender, sets)
            memory[name] = peak_memory(calls[name][0], device)
        except Exception as error:  # unsupported, out of memory, wrong or broken
            calls.pop(name, None)
            errors[name] = first_line(error)
        try:
            _recover(device)
        except Broken:
            yield Result(row, name, contender.role, error=errors.get(name) or "broke the GPU's context")
            raise
    try:
        times = timing.interleaved(calls, device)
    except Exception as error:
        times, errors = {}, errors | dict.fromkeys(calls, first_line(error))
    for name, contender in contenders.items():
        work, ms = contender.count, timing.summary(times[name]) if name in times else None
        yield Result(
            row, name, contender.role, ms=ms, useful_macs=work.useful_macs, issued_macs=work.issued_macs or None,
            bytes=work.bytes, exps=work.exps, roof=roof(work, row, limits), memory=memory.get(name),
            error=errors.get(name),
        )  # fmt: skip
    calls.clear()
    _recover(device)


def family(row: Row):
    """The module that knows rows of this kind."""
    return FAMILIES.get(row.kind, peers)


def input_sets(row: Row, device: str) -> list[tuple[Tensor, ...]]:
    """So many inputs that, taken in rotation, none is still in a cache when its turn comes."""
    torch.manual_seed(SEED)
    sets = [family(row).inputs(row, device)]
    size = sum(tensor.nbytes for tensor in sets[0])
    return sets + [family(row).inputs(row, device) for _ in range(min(MOST_SETS, math.ceil(2 * CACHE / size)) - 1)]


def checked(row: Row, contender: Contender, sets: list[tuple[Tensor, ...]]) -> list[timing.Call]:
    """The calls to time, of an implementation whose results are right.

    Raises:
        WrongResult: they are not.
        Exception: whatever it raises where it cannot run.
    """
    trial = prepare(row, contender, sets)
    complaint = family(row).complaint(row, sets[0], *trial[1:], same_seed=contender.role != "peer")
    if complaint is not None:
        raise WrongResult(complaint)
    return trial.calls


def prepare(row: Row, contender: Contender, sets: list[tuple[Tensor, ...]]) -> Trial:
    """Builds and calls it once; for a backward, once on each set."""
    function = contender.build()
    names = family(row).INPUTS
    parameters = dict(function.named_parameters()) if isinstance(function, nn.Module) else {}
    if row.phase == "forward":
        calls = [torch.no_grad()(partial(function, *tensors)) for tensors in sets]
        return Trial(calls, calls[0](), {}, {})
    calls, first = [], None
    for tensors in sets:
        # a loss that does not reach the values asks for no gradient of them
        reached = len(tensors) if "output" in contender.through else 2
        leaves = [tensor.detach().requires_grad_(place < reached) for place, tensor in enumerate(tensors)]
        wanted = [*leaves[:reached], *parameters.values()]
        if row.phase == "backward" or first is None:
            results = function(*leaves)
            ends = [results[name] for name in contender.through]
        if first is None:
            starts = {name: _start(row, name, results[name]) for name in contender.through}
            gradients = torch.autograd.grad(ends, wanted, list(starts.values()), retain_graph=True)
            gradients = dict(zip([*names[:reached], *parameters], gradients))
            first = {name: result.detach() for name, result in results.items()}
        if row.phase == "backward":
            calls.append(partial(torch.autograd.grad, ends, wanted, list(starts.values()), retain_graph=True))
        else:
            calls.append(partial(_train, function, leaves, wanted, starts))
    return Trial(calls, first, gradients, starts)


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Bytes that one call takes at its peak, its results included, beyond what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells standard error that it starts and stops
    options = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with torch.profiler.profile(**options) as profile:
        result = call()
    del result
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def roof(work: mac.Count, row: Row, limits: mac.Roofs | None) -> Roof | None:
    """The least time for the work, and what sets it."""
    if limits is None or row.dtype not in limits.matmul:
        return None
    floor = limits.floor(work, row.dtype)
    return Roof(floor.seconds * 1e3, floor.limit, limits.matmul[row.dtype], limits.bandwidth, limits.exp)


def first_line(error: Exception) -> str:
    """What went wrong, in one line; running out of memory is called that."""
    text = (str(error).strip() or "no message").splitlines()[0][:300]
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"out of memory: {text}"
    if isinstance(error, NotImplementedError):
        return f"unsupported: {text}"
    return text if isinstance(error, WrongResult) else f"{type(error).__name__}: {text}"


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
        raise Broken(f"the GPU's context is lost ({first_line(error)})") from None
