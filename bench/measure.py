"""One row: everyone's result checked, then everyone's time taken, in turns and in rounds."""

import gc
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnkern import mac
from attnkern.bench import aoa, learned, modules, packed, peers, roofs, timing
from attnkern.bench.peers import Contender, Function
from attnkern.bench.problems import SEED, Row
from attnkern.bench.results import Result, Roof

FAMILIES = {  # the others are peers'
    "packed": packed, "module": modules, "aoa": aoa, "learned": learned, "matmul": roofs, "copy": roofs,
}  # fmt: skip
CACHE = 60 << 20  # bytes: the largest last-level cache of the devices we measure on
MOST_SETS = 16


class Broken(RuntimeError):
    """The GPU's context is lost: nothing can run in this process any more."""


class WrongResult(ArithmeticError):
    """An implementation does not compute the row; it gets no time."""


class Trial(NamedTuple):
    """What an implementation gave for one set of inputs, and the gradients that its results were given."""

    results: dict[str, Tensor]
    gradients: dict[str, Tensor]
    starts: dict[str, Tensor]


class Measurement:
    """A row: everyone checked once, and those who are right timed, in rounds that may lie far apart.

    Attributes:
        row: what is measured.
    """

    def __init__(self, row: Row, device: str, backends: list[str], peers: list[str]):
        """`backends` and `peers` are the names of those to measure."""
        self.row, self._device = row, device
        self._contenders = {one.name: one for one in family(row).contenders(row, device, backends, peers)}
        self._ready: dict[str, tuple[Function, dict[str, Tensor]]] = {}  # those who are right
        self._errors: dict[str, str] = {}
        self._memory: dict[str, int] = {}
        self._turns = timing.Turns(device, timing.ROUNDS[device])

    def round(self) -> None:
        """A few readings of everyone.

        Raises:
            Broken: nothing more can be measured in this process.
        """
        sets, contenders = input_sets(self.row, self._device), {}
        for name in (name for name in self._contenders if name not in self._errors):
            try:
                contenders[name] = self._prepare(name, sets)
            except Exception as error:  # unsupported, out of memory, wrong or broken
                self._errors[name] = first_line(error)
            try:
                _recover(self._device)
            except Broken:
                self._errors.setdefault(name, "broke the GPU's context")
                raise
        try:
            self._turns.round(contenders)
        except Exception as error:
            self._errors |= dict.fromkeys(contenders, first_line(error))
        contenders.clear()
        _recover(self._device)

    def results(self, limits: mac.Roofs | None = None) -> Iterator[Result]:
        """Of all rounds, one for each contender with a time or an error; `limits`: what the device can do at best."""
        for name, contender in self._contenders.items():
            work, error, times = contender.count, self._errors.get(name), self._turns.times.get(name)
            if not (error or times):  # its turn did not come
                continue
            result = Result(
                self.row, name, contender.role, ms=None if error else timing.summary(times),
                useful_macs=work.useful_macs, issued_macs=work.issued_macs or None, bytes=work.bytes, exps=work.exps,
                roof=roof(work, self.row, limits), memory=self._memory.get(name), error=error,
            )  # fmt: skip
            share = result.share_of_roof or 0.0
            if share > 1:
                error = f"measured wrongly: {share:.0%} of what the device can do; measure again"
                result = replace(result, ms=None, error=error)
            yield result

    def _prepare(self, name: str, sets: list[tuple[Tensor, ...]]) -> list[timing.Call]:
        """The contender's calls on these inputs; checked when it is met first."""
        contender = self._contenders[name]
        if name in self._ready:
            return calls(self.row, contender, *self._ready[name], sets)
        function = contender.build()
        starts = check(self.row, contender, function, sets[0]).starts
        made = calls(self.row, contender, function, starts, sets)
        self._memory[name] = peak_memory(made[0], self._device)
        self._ready[name] = function, starts
        return made


def family(row: Row):
    """The module that knows rows of this kind."""
    return FAMILIES.get(row.kind, peers)


def input_sets(row: Row, device: str) -> list[tuple[Tensor, ...]]:
    """So many inputs that, taken in rotation, none is still in a cache when its turn comes."""
    torch.manual_seed(SEED)
    first = family(row).inputs(row, device)
    size = sum(tensor.nbytes for tensor in first)
    copies = min(MOST_SETS, math.ceil(2 * CACHE / size)) - 1
    return [first, *(tuple(tensor.clone() for tensor in first) for _ in range(copies))]


def check(row: Row, contender: Contender, function: Function, tensors: tuple[Tensor, ...]) -> Trial:
    """Calls once what the contender built.

    Raises:
        WrongResult: it does not compute the row.
        Exception: whatever it raises where it cannot run.
    """
    trial = _trial(row, contender, function, tensors)
    complaint = family(row).complaint(row, tensors, *trial, same_seed=contender.role != "peer")
    if complaint is not None:
        raise WrongResult(complaint)
    return trial


def calls(
    row: Row, contender: Contender, function: Function, starts: dict[str, Tensor], sets: list[tuple[Tensor, ...]]
) -> list[timing.Call]:
    """What to time, one call for each set; `starts` are the gradients that results are given."""
    if row.phase == "forward":
        return [torch.no_grad()(partial(function, *tensors)) for tensors in sets]
    made = []
    for tensors in sets:
        leaves, wanted = _leaves(row, contender, function, tensors)
        if row.phase == "training":
            made.append(partial(_train, function, leaves, wanted, starts))
        else:
            made.append(partial(_gradients, function(*leaves), wanted, starts, retain_graph=True))
    return made


def _trial(row: Row, contender: Contender, function: Function, tensors: tuple[Tensor, ...]) -> Trial:
    if row.phase == "forward":
        with torch.no_grad():
            return Trial(function(*tensors), {}, {})
    leaves, wanted = _leaves(row, contender, function, tensors)
    results = function(*leaves)
    starts = {name: _start(row, name, results[name]) for name in contender.through}
    gradients = _gradients(results, wanted, starts)
    return Trial({name: result.detach() for name, result in results.items()}, dict(zip(wanted, gradients)), starts)


def _leaves(
    row: Row, contender: Contender, function: Function, tensors: tuple[Tensor, ...]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The inputs to call it with, and by name those tensors of which gradients are wanted, parameters too."""
    # a loss that does not reach the values asks for no gradient of them
    reached = len(tensors) if "output" in contender.through else 2
    leaves = [tensor.detach().requires_grad_(place < reached) for place, tensor in enumerate(tensors)]
    parameters = dict(function.named_parameters()) if isinstance(function, nn.Module) else {}
    return leaves, dict(zip(family(row).INPUTS, leaves[:reached])) | parameters


def _train(function: Function, leaves: list[Tensor], wanted: dict[str, Tensor], starts: dict[str, Tensor]):
    return _gradients(function(*leaves), wanted, starts)


def _gradients(
    results: dict[str, Tensor], wanted: dict[str, Tensor], starts: dict[str, Tensor], retain_graph: bool = False
) -> tuple[Tensor, ...]:
    ends = [results[name] for name in starts]
    return torch.autograd.grad(ends, list(wanted.values()), list(starts.values()), retain_graph=retain_graph)


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
    gc.freeze()  # what is still there has come to stay: no need to look at it again
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise Broken(f"the GPU's context is lost ({first_line(error)})") from None
