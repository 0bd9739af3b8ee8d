"""MACs and bytes of every operation that a model runs, by torch's formulas, ours, and those that torch lacks."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from attnkern import products
from attnkern.mac.modules import Modules
from attnkern.problem import Problem

UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


@dataclass
class Work:
    """Of all calls of one operation in one module; `macs` by the dtype of its operands."""

    calls: int
    macs: dict[str, int]
    bytes: int


class Recorder(TorchDispatchMode):
    """`work[module, operation]` of what runs in this context."""

    def __init__(self, modules: Modules):
        super().__init__()
        self.modules = modules
        self.device = torch.device("cpu")  # a GPU, once an operation has run there
        self.work = defaultdict(lambda: Work(0, defaultdict(int), 0))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket if isinstance(func, torch._ops.OpOverload) else func
        known = packet in flop_registry or packet in FORMULAS
        if not known and isinstance(func, torch._ops.OpOverload):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload) and not _is_view(func):
            self._add(func, args, kwargs, result)
        return result

    def _add(self, func, args, kwargs, result) -> None:
        packet = func._overloadpacket
        work = self.work[self.modules.current, operation_name(func)]
        work.calls += 1
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.device = next((tensor.device for tensor in written if tensor.is_cuda), self.device)
        if packet.__name__ not in UNWRITTEN:
            work.bytes += sum(map(_bytes, read)) + sum(map(_bytes, written))
        if packet in FORMULAS:
            macs = FORMULAS[packet](dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs)
        elif packet in flop_registry:
            macs = flop_registry[packet](*args, **kwargs, out_val=result) // 2
        else:
            return
        work.macs[str(read[0].dtype).removeprefix("torch.")] += macs


def operation_name(func: torch._ops.OpOverload) -> str:
    """As the profiler has it, such as "aten::mm"."""
    return func._schema.name


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


def _problem(given: dict) -> Problem:
    query, key, value = (given[name] for name in ("query", "key", "value"))
    return Problem(
        batch=query.shape[0],
        heads=query.shape[1],
        kv_heads=key.shape[1],
        len_q=query.shape[2],
        len_k=key.shape[2],
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        causal=bool(given.get("is_causal", False)),
    )


def _attention(given: dict) -> int:
    return products.softmax(_problem(given))


def _attention_backward(given: dict) -> int:
    return products.softmax_backward(_problem(given))


def _multi_head(given: dict) -> int:
    batch, length, features = given["query"].shape
    return batch * length * (4 * features * features + 2 * given["key"].shape[1] * features)


def _encoder_layer(given: dict) -> int:
    batch, length, features = given["src"].shape
    hidden = given["ffn_weight_1"].shape[0]
    return batch * length * (4 * features * features + 2 * length * features + 2 * hidden * features)


def _formulas() -> dict:
    """By operation, from its arguments by name. Torch's own formulas take a causal call for a full one."""
    aten, fused = torch.ops.aten, "_scaled_dot_product_{}_attention{}"
    names = [fused.format(kind, end) for kind in ("efficient", "cudnn", "flash") for end in ("", "_for_cpu")]
    names.append(fused.format("fused", "_overrideable"))
    found = {"_native_multi_head_attention": _multi_head, "_transformer_encoder_layer_fwd": _encoder_layer}
    for name in names:
        found |= {name: _attention, f"{name}_backward": _attention_backward}
    return {getattr(aten, name): formula for name, formula in found.items() if hasattr(aten, name)}


FORMULAS = _formulas()
