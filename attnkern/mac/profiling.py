"""Where the time of any torch model goes, and which share of the device's roofs it reaches."""

import dataclasses
import json
import os
import statistics
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.utils._pytree import tree_leaves

from attnkern.atomic import written
from attnkern.mac import report, trace
from attnkern.mac.modules import Modules
from attnkern.mac.recorder import Recorder, Work
from attnkern.mac.roofline import Roofs
from attnkern.mac.roofline import roofs as measure_roofs

PROJECTIONS = ("aten::mm", "aten::addmm", "aten::linear")
MOST_REPEATS, SECONDS = 20, 2.0  # of the timing without a profiler


@dataclasses.dataclass
class Row:
    """All calls of something: an operation in one module, a module with all inside it, or a part of the model.

    Attributes:
        seconds: on the device, with the profiler on: on a GPU those of its kernels.
        macs, bytes: multiply-accumulates; bytes of all operands and results of its operations.
        roof_seconds: what its MACs take at the device's measured rate of large matrix products.
        peak_bytes: memory allocated during its forward, above what there was before; None where it is not known.
        kernels: seconds by the kernels launched on a GPU.
    """

    name: str
    kind: str
    calls: int = 0
    seconds: float = 0.0
    macs: int = 0
    bytes: int = 0
    roof_seconds: float = 0.0
    peak_bytes: int | None = None
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, other: "Row") -> None:
        """Work and time; not memory."""
        for name in ("calls", "seconds", "macs", "bytes", "roof_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kernel, seconds in other.kernels.items():
            self.kernels[kernel] = self.kernels.get(kernel, 0.0) + seconds

    @property
    def rate(self) -> float:
        """MACs per second."""
        return self.macs / self.seconds if self.seconds else 0.0

    @property
    def roof_share(self) -> float:
        """Of the rate of a large matrix product."""
        return self.roof_seconds / self.seconds if self.seconds else 0.0


@dataclasses.dataclass
class Profile:
    """What `profile` found; printed, it is a table.

    Attributes:
        device: name of the device.
        seconds: of one call, median, without the profiler.
        total: the whole call.
        parts: attention, and the rest.
        modules: every module that was called, with all inside it; `name` as in `named_modules`.
        operations: every kind of operation. What `torch.compile` made of several is one, "compiled code": its MACs
            and bytes are those of the operations it replaces.
        uncounted: calls by operation that may multiply and accumulate, but that nobody has a formula for: they are
            no part of the MACs.
    """

    device: str
    seconds: float
    total: Row
    parts: list[Row]
    modules: list[Row]
    operations: list[Row]
    uncounted: dict[str, int]
    roofs: Roofs
    _trace: torch.profiler.profile = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return report.text(self)

    def to_json(self, path: str | os.PathLike) -> None:
        """Everything but the trace, in SI units."""
        fields = (field.name for field in dataclasses.fields(self) if field.name != "_trace")
        content = {name: _plain(getattr(self, name)) for name in fields}
        with written(path) as draft:
            draft.write_text(json.dumps(content, indent=1) + "\n")

    def to_chrome_trace(self, path: str | os.PathLike) -> None:
        """The profiler's trace of one call, with the modules as ranges; opens in Perfetto (https://ui.perfetto.dev)."""
        with written(path) as draft:
            self._trace.export_chrome_trace(os.fspath(draft))


def profile(
    model: nn.Module | Callable, *inputs, backward: bool = False, roofs: Roofs | None = None, **kwargs
) -> Profile:
    """Times a model or a function, operation by operation, and counts its MACs, bytes and memory.

    It is called several times: to count (eagerly, what `torch.compile` compiled, too), to warm up, for the clock, and
    once under torch's profiler, which slows it on a CPU. What is compiled stays so. Parameters' gradients are put back
    as they were; whatever else a call changes, it changes each time.

    Args:
        model: any torch module or function, ours or not.
        inputs, kwargs: what it is called with.
        backward: also the backward, of the sum of all differentiable results; under `torch.no_grad`, too.
        roofs: what to compare with; those of the device by default, measured the first time.

    Raises:
        TypeError: `model` cannot be called.
        ValueError: `backward` was asked for, but no result has a gradient, or in `torch.inference_mode`.
    """
    if not callable(model):
        raise TypeError(f"model must be a module or a function, got {type(model).__name__}")
    if backward and torch.is_inference_mode_enabled():
        raise ValueError("backward=True needs gradients, which torch.inference_mode does not record: call it outside")

    def call() -> None:
        with torch.set_grad_enabled(backward or torch.is_grad_enabled()):
            result = model(*inputs, **kwargs)
            if backward:
                _loss(result).backward()
        for leaf in recorder.gradients:
            leaf.grad = None

    seen = Modules(model)
    recorder = Recorder(seen, backward)
    try:
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings(), seen, recorder:
            warnings.filterwarnings("ignore", ".*global hooks on modules")  # harmless to what runs eagerly
            call()
        device = recorder.device
        roofs = roofs or measure_roofs(device)
        call()
        seconds = _median_seconds(call, device)
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        options = {"activities": activities, "profile_memory": True, "acc_events": True}  # else torch 2.11 warns
        with Modules(model, seen) as modules, torch.profiler.profile(**options) as traced:
            call()
            _wait(device)
    finally:
        for leaf, gradient in recorder.gradients.items():
            leaf.grad = gradient
    operations = {operation for _, operation in recorder.work}
    spent = trace.spent(traced, modules, operations, device.type)
    peaks = trace.peak_memory(traced, device.type)
    work = _compiled(recorder.work, spent)
    places = dict.fromkeys((*work, *spent))
    rows = [_row(*place, seen.kinds, work.get(place), spent.get(place), roofs) for place in places]
    uncounted = Counter()
    for (_, operation), done in recorder.work.items():
        uncounted[operation] += done.uncounted
    return Profile(
        device=roofs.device,
        seconds=seconds,
        total=_sum("total", seen.kinds[""], rows, 1, peaks.get("", 0)),
        parts=[
            _sum("attention", "", [row for row in rows if row.attention]),
            _sum("the rest", "", [row for row in rows if not row.attention]),
        ],
        modules=[
            _sum(name, kind, [row for row in rows if _inside(row.module, name)], seen.calls[name], peaks.get(name))
            for name, kind in seen.kinds.items()
            if seen.calls[name]
        ],
        operations=[
            _sum(name, "", [row for row in rows if row.name == name])
            for name in dict.fromkeys(row.name for row in rows)
        ],
        uncounted={operation: calls for operation, calls in uncounted.items() if calls},
        roofs=roofs,
        _trace=traced,
    )


def _compiled(work: dict[tuple[str, str], Work], spent: dict) -> dict[tuple[str, str], Work]:
    """The work by module and operation, where operations that run no more are part of the compiled code."""
    running = {operation for _, operation in spent}
    if trace.COMPILED not in running:
        return work
    found = defaultdict(Work)
    for (module, operation), done in work.items():
        found[module, operation if operation in running else trace.COMPILED].add(done)
    return found


@dataclasses.dataclass
class _Operation(Row):
    module: str = ""
    attention: bool = False


def _row(
    module: str, operation: str, kinds: dict[str, str], work: Work | None, spent: trace.Spent | None, roofs: Roofs
):
    work, spent = work or Work(), spent or trace.Spent()
    return _Operation(
        name=operation,
        kind=kinds[module],
        calls=spent.calls if operation == trace.COMPILED else work.calls,
        seconds=spent.seconds,
        macs=sum(work.macs.values()),
        bytes=work.bytes,
        roof_seconds=sum(macs / roofs.matmul[dtype] for dtype, macs in work.macs.items() if dtype in roofs.matmul),
        kernels=dict(spent.kernels),
        module=module,
        attention=_is_attention(operation, kinds[module]),
    )


def _is_attention(operation: str, kind: str) -> bool:
    """A fused one, or what a module called something like Attention does itself, but for its projections."""
    return "attention" in operation or "Attention" in kind and operation not in (*PROJECTIONS, trace.COMPILED)


def _sum(name: str, kind: str, rows: list[Row], calls: int | None = None, peak: int | None = None) -> Row:
    total = Row(name, kind, peak_bytes=peak)
    for row in rows:
        total.add(row)
    if calls is not None:
        total.calls = calls
    return total


def _inside(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def _loss(result: object) -> Tensor:
    leaves = tree_leaves(dict(result) if isinstance(result, Mapping) else result)
    results = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not results:
        raise ValueError("backward=True needs a result with a gradient; no parameter and no input requires one")
    return sum(result.sum() for result in results)


def _median_seconds(call: Callable[[], None], device: torch.device) -> float:
    times, end = [], time.perf_counter() + SECONDS
    while not times or len(times) < MOST_REPEATS and time.perf_counter() < end:
        _wait(device)
        begin = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _plain(value: object) -> object:
    """As JSON has it."""
    if isinstance(value, Row):
        return dataclasses.asdict(value) | {"macs_per_second": value.rate, "roof_share": value.roof_share}
    if isinstance(value, Roofs):
        return dataclasses.asdict(value)
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
