"""Which module an operation belongs to, forward and backward, while a model runs."""

import bisect
from collections import Counter

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import record_function

RANGE = "module: "  # what a trace's ranges are named by


class Modules:
    """A context in which every module's forward is a range of the trace.

    Nodes of the autograd graph are numbered as they are made; the numbers at which a module begins and ends tell, in
    the backward, whose node is running.

    Args:
        model: whose modules have names.
        seen: watch these modules alone, by hooks of their own; else all there are, by global hooks, which only eager
            code may run under: dynamo would compile them into the graphs that it keeps.
    """

    def __init__(self, model: object, seen: "Modules | None" = None):
        self.kinds = {"": type(model).__name__ if isinstance(model, nn.Module) else "function"}
        self.calls, self._names, self._called = Counter(), {}, set()
        if isinstance(model, nn.Module):
            for name, module in model.named_modules():
                self._name(module, name)
        self._seen = seen
        self._stack, self._ranges = [""], []
        self._numbers, self._owners = [], []  # from this number on, nodes belong to this module

    def __enter__(self) -> "Modules":
        if self._seen is None:
            begin, end = register_module_forward_pre_hook, register_module_forward_hook
            self._hooks = [begin(self._begin), end(self._end, always_call=True)]
        else:
            self._names, self.kinds = self._seen._names, self._seen.kinds
            self._hooks = []
            for module in self._seen._called - _compiled(self._seen._called):
                self._hooks.append(module.register_forward_pre_hook(self._begin, prepend=True))
                self._hooks.append(module.register_forward_hook(self._end, always_call=True))
        self._mark()
        return self

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def current(self) -> str:
        """The module whose operation runs now."""
        if len(self._stack) > 1:
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        return "" if node is None else self.of_node(node._sequence_nr())

    def of_node(self, number: int) -> str:
        """The module that made a node of the graph."""
        place = bisect.bisect_right(self._numbers, number) - 1
        return self._owners[place] if place >= 0 else ""

    def _begin(self, module: nn.Module, inputs) -> None:
        if module not in self._names:  # it is no part of the model: the model is a function
            for name, part in module.named_modules(prefix=type(module).__name__):
                self._name(part, name)
        self._called.add(module)
        name = self._names[module]
        self._stack.append(name)
        self.calls[name] += 1
        opened = record_function(RANGE + name)
        opened.__enter__()
        self._ranges.append(opened)
        self._mark()

    def _end(self, module: nn.Module, inputs, output) -> None:
        self._ranges.pop().__exit__(None, None, None)
        self._stack.pop()
        self._mark()

    def _mark(self) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._owners.append(self._stack[-1])

    def _name(self, module: nn.Module, name: str) -> None:
        self._names.setdefault(module, name)
        self.kinds.setdefault(name, type(module).__name__)


def _compiled(called: set[nn.Module]) -> set[nn.Module]:
    """Modules that run as compiled code: dynamo would compile their hooks into it, TorchScript takes none."""
    found = set()
    for module in called:
        if isinstance(module, torch.jit.ScriptModule):
            found.add(module)
        elif isinstance(module, torch._dynamo.OptimizedModule):
            found.update(module._orig_mod.modules())
        elif module._compiled_call_impl is not None:
            found.update(module.modules())
    return found
