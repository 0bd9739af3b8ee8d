"""MACs and bytes of every operation that a model runs; see formulas.py."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnkern.mac import formulas
from attnkern.mac.modules import Modules

UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@dataclass
class Work:
    """Of all calls of one operation in one module; `macs` by the dtype of its operands; calls not counted in them."""

    calls: int = 0
    macs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: int = 0
    uncounted: int = 0

    def add(self, other: "Work") -> None:
        self.calls += other.calls
        self.bytes += other.bytes
        self.uncounted += other.uncounted
        for dtype, macs in other.macs.items():
            self.macs[dtype] += macs


class Recorder(TorchDispatchMode):
    """`work[module, operation]` of what runs in this context.

    gradients: of the leaves that the operations read, as they were; taken away, lest a backward adds to them. Only
        if there will be a backward. (Nothing else finds those that a reentrant checkpoint hides from the graph.)
    """

    supports_higher_order_operators = True

    def __init__(self, modules: Modules, backward: bool):
        super().__init__()
        self.modules, self.backward = modules, backward
        self.device = torch.device("cpu")  # a GPU, once an operation has run there
        self.work = defaultdict(Work)
        self.gradients: dict[Tensor, Tensor | None] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.backward:
            self._take_gradients(read)
        overload = isinstance(func, torch._ops.OpOverload)
        if overload and not formulas.known(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if not overload or not _is_view(func) and func.namespace != "profiler":
            self._add(func, args, kwargs, read, result)
        return result

    def _take_gradients(self, read: list[Tensor]) -> None:
        for leaf in read:
            if leaf.is_leaf and leaf.requires_grad and leaf not in self.gradients:
                self.gradients[leaf], leaf.grad = leaf.grad, None

    def _add(self, func, args, kwargs, read, result) -> None:
        work = self.work[self.modules.current, operation_name(func)]
        work.calls += 1
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.device = next((tensor.device for tensor in written if tensor.is_cuda), self.device)
        if func.__name__.split(".")[0] not in UNWRITTEN:
            work.bytes += sum(map(_bytes, read)) + sum(map(_bytes, written))
        macs = formulas.macs(func, args, kwargs, result)
        if macs is None:
            work.uncounted += 1
        elif macs:
            work.macs[str(read[0].dtype).removeprefix("torch.")] += macs


def operation_name(func: torch._ops.OperatorBase) -> str:
    """As the profiler has it, such as "aten::mm"."""
    return func._schema.name if isinstance(func, torch._ops.OpOverload) else func.__name__


def _bytes(tensor: Tensor) -> int:
    """Of its elements, those that are read several times (expanded) once."""
    if tensor.layout != torch.strided:
        return 0
    distinct = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        distinct *= size if stride or size == 0 else 1
    return distinct * tensor.element_size()


def _is_view(func: torch._ops.OpOverload) -> bool:
    """Nothing moves: every result is an argument seen in another way."""
    returned = func._schema.returns
    return bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)
