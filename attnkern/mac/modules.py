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
    """

    def __init__(self, model: object):
        self.kinds = {"": type(model).__name__ if isinstance(model, nn.Module) else "function"}
        self.calls, self._names = Counter(), {}
        if isinstance(model, nn.Module):
            for name, module in model.named_modules():
                self._name(module, name)
        self._stack, self._ranges = [""], []
        self._numbers, self._owners = [], []  # from this number on, nodes belong to this module

    def __enter__(self) -> "Modules":
        self._hooks = (
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        )
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
