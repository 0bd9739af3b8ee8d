"""Which Hugging Face models compute their attention through transformers' AttentionInterface.

The others would add our bool mask to their scores, or not know our name. transformers tells them apart by flags of
"sdpa" and by their source's text; here by the classes that a model's code names.
"""

import inspect
from collections.abc import Iterator
from functools import cache, wraps
from types import CodeType, FunctionType

from torch import nn

INTERFACE = "ALL_ATTENTION_FUNCTIONS"


@cache
def goes_through(architecture: type[nn.Module]) -> bool | None:
    """Whether the attention of a class of models goes through the interface; None if it has none.

    That of models inside it, with classes of their own, is theirs.
    """
    parts = _parts(architecture)
    if any(_chooses_by_name(value) for part in parts for value in _names(part).values()):
        return False  # a table of its own, "eager", "sdpa" and so on, without our names
    through = any(INTERFACE in _names(part) for part in parts)
    strangers = any("Attention" in part.__name__ and not _any_through(part) for part in parts)
    # where "sdpa" works, what does not go through takes no mask, or takes a bool one
    vouched = architecture._supports_sdpa and (through or architecture.__module__.startswith("transformers."))
    if strangers and not vouched:
        return False
    return True if through else None


def refusal(architecture: type[nn.Module]) -> str:
    return f"{architecture.__name__} does not go through transformers' AttentionInterface"


def refuse_strangers(pretrained: type[nn.Module], implementations: tuple[str, ...]) -> None:
    """Lets transformers' check of an implementation's name, at construction and later, refuse ours where "sdpa" is."""
    check = pretrained.get_correct_attn_implementation
    if hasattr(check, "__wrapped__"):
        return

    @wraps(check)
    def checked(self, requested_attention: str | None, *args, **kwargs) -> str:
        if requested_attention in implementations and goes_through(type(self)) is False:
            raise ValueError(f'{refusal(type(self))}: load it with attn_implementation="eager"')
        return check(self, requested_attention, *args, **kwargs)

    pretrained.get_correct_attn_implementation = checked


@cache
def _parts(module: type[nn.Module]) -> frozenset[type[nn.Module]]:
    """The classes of modules that a module may build: those that its code names, and theirs."""
    found, pending = set(), [module]
    while pending:
        part = pending.pop()
        if part in found:
            continue
        found.add(part)
        for value in _names(part).values():
            candidates = value.values() if isinstance(value, dict) else (value,)
            pending += [each for each in candidates if _is_own_module(each)]
    return frozenset(found)


@cache
def _any_through(module: type[nn.Module]) -> bool:
    return any(INTERFACE in _names(part) for part in _parts(module))


@cache
def _names(module: type[nn.Module]) -> dict[str, object]:
    """What the code of a class, without torch's part of it, takes from its files' globals."""
    found = {}
    for base in module.__mro__:
        # _init_weights only asks what a module is
        methods = [] if _is_torch(base) else [value for name, value in vars(base).items() if name != "_init_weights"]
        for method in methods:
            function = inspect.unwrap(getattr(method, "__func__", method))
            if isinstance(function, FunctionType):
                names = {name for code in _codes(function.__code__) for name in code.co_names}
                found |= {name: function.__globals__[name] for name in names if name in function.__globals__}
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _chooses_by_name(value: object) -> bool:
    return isinstance(value, dict) and "eager" in value and all(_is_own_module(each) for each in value.values())


def _is_own_module(value: object) -> bool:
    """Whether this is a class of modules, neither torch's nor a model with a check of its own."""
    is_module = isinstance(value, type) and issubclass(value, nn.Module) and not _is_torch(value)
    return is_module and not hasattr(value, "get_correct_attn_implementation")


def _is_torch(value: type) -> bool:
    return value.__module__.split(".")[0] in ("torch", "builtins") or value.__module__ == "transformers.modeling_utils"
