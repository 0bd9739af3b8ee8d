"""Put attnkern's attention into a model that is already built, and take it out again.

Nothing is rebuilt: modules keep their identity, parameters, hooks and names, and optimizers their state.
"""

import sys
from dataclasses import dataclass, field

from torch import nn

from attnkern import huggingface
from attnkern.architectures import goes_through
from attnkern.architectures import refusal as stranger
from attnkern.nn.kinds import Global, Hard, Kind, Local, check_kind, refusal
from attnkern.nn.multihead import MultiheadAttention, is_called, keep_off_fast_path

FORMER = "_attnkern_former"  # where a module keeps what the swap changed
ABSENT = ...


@dataclass
class SwapReport:
    """What `swap_attention` did; printed, a table.

    Attributes:
        swapped: `(name, from, to)` of each module that computes something else now.
        skipped: `(name, reason)` of each that could not be changed, or looks like attention of a kind unknown
            here.

    Names are `named_modules`'s, "" for the model itself.
    """

    swapped: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(name, f"{former} -> {now}") for name, former, now in self.swapped]
        rows += [(name, f"not swapped: {reason}") for name, reason in self.skipped]
        if not rows:
            return "no attention found"
        rows = [(name or "(the model)", text) for name, text in rows]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def swap_attention(model: nn.Module, attention: Kind | None = None) -> SwapReport:
    """Makes a model's attention compute `attention`, in place.

    Every `torch.nn.MultiheadAttention` becomes an `attnkern.nn.MultiheadAttention`, inside torch's own
    Transformer layers as well. A Hugging Face model, or part, changes its attention implementation to
    "attnkern" or "attnkern_local", with the window in its config. Modules swapped before change their kind.

    Args:
        attention: `Global()` by default, `Local(window)` or `Hard(...)`. The last two change what the model
            computes, in cross-attention too; Hugging Face models have no Hard.

    Returns:
        What was changed and what was not, and why.

    Raises:
        TypeError: `model` is no `nn.Module`, or `attention` no kind.
    """
    _check_module(model)
    attention = Global() if attention is None else attention
    check_kind(attention)

    report, handled = SwapReport(), set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            _swap_multihead(name, module, attention, report)
        elif module in handled:
            continue
        elif _is_pretrained(module):
            handled.update(module.modules())
            _swap_pretrained(name, module, attention, report)
        elif _resembles_attention(module) and not any(map(_resembles_attention, list(module.modules())[1:])):
            report.skipped.append((name, f"{type(module).__name__} is unknown to attnkern"))

    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(m, MultiheadAttention) for m in module.modules()
        ):
            _set(module, use_nested_tensor=False)
    return report


def restore_attention(model: nn.Module) -> None:
    """Undoes every `swap_attention` on the model, or on the parts of it that were swapped.

    Raises:
        TypeError: `model` is no `nn.Module`.
    """
    _check_module(model)
    for module in model.modules():
        if FORMER not in vars(module):
            continue
        if _is_pretrained(module):
            _restore_pretrained(module)
            continue
        _reset(module)
        if isinstance(module, MultiheadAttention):
            vars(module).pop("_last", None)
            if "attention" not in vars(module):
                module.__class__ = _as_torch_s(type(module))
                hooks = module._forward_pre_hooks
                for number in [number for number, hook in hooks.items() if hook is is_called]:
                    del hooks[number]


def _check_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _swap_multihead(name: str, module: nn.MultiheadAttention, attention: Kind, report: SwapReport) -> None:
    if type(module) is not nn.MultiheadAttention and not isinstance(module, MultiheadAttention):
        reason = f"{type(module).__name__} is a subclass of nn.MultiheadAttention with a behaviour of its own"
    else:
        reason = refusal(attention, module)
    if reason is not None:
        report.skipped.append((name, reason))
        return
    former = module.attention if isinstance(module, MultiheadAttention) else "torch.nn.MultiheadAttention"
    report.swapped.append((name, str(former), str(attention)))
    vars(module).pop("_last", None)
    _set(module, attention=attention)
    if type(module) is nn.MultiheadAttention:
        module.__class__ = MultiheadAttention
        keep_off_fast_path(module)


def _as_torch_s(ours: type[MultiheadAttention]) -> type[nn.MultiheadAttention]:
    """The class of a module before the swap: torch's, or what a parametrization since then made of ours, of torch's."""
    if ours is MultiheadAttention:
        return nn.MultiheadAttention
    bases = tuple(nn.MultiheadAttention if base is MultiheadAttention else base for base in ours.__bases__)
    own = {name: value for name, value in vars(ours).items() if name not in ("__dict__", "__weakref__")}
    return type(ours)(ours.__name__, bases, own)


def _set(module: nn.Module, **attributes) -> None:
    """Sets attributes and remembers, in the module, what they replaced the first time."""
    former = vars(module).setdefault(FORMER, {})
    for name in attributes:
        former.setdefault(name, vars(module).get(name, ABSENT))
    vars(module).update(attributes)


def _reset(module: nn.Module) -> None:
    for name, value in vars(module).pop(FORMER).items():
        if value is ABSENT:
            del vars(module)[name]
        else:
            vars(module)[name] = value


def _resembles_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _is_pretrained(module: nn.Module) -> bool:
    """Whether this is a Hugging Face model; if so, transformers is imported already."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def _swap_pretrained(name: str, model: nn.Module, attention: Kind, report: SwapReport) -> None:
    if isinstance(attention, Hard):
        report.skipped.append((name, "Hugging Face's attention interface has no place for the draws of Hard"))
        return
    if isinstance(attention, Local) and attention != Local(attention.window):
        report.skipped.append((name, "Hugging Face's config has place for a window, not for a centre or sigma"))
        return
    huggingface.register()
    chosen = "attnkern_local" if isinstance(attention, Local) else "attnkern"
    for part, module, configs in _parts(name, model):
        if configs is None:
            report.skipped.append((part, stranger(type(module))))
            continue
        former = _implementations(module.config) if len(configs) > 1 else module.config._attn_implementation
        vars(module).setdefault(
            FORMER, [(config, config._attn_implementation, vars(config).get("attnkern_window")) for config in configs]
        )
        for config in configs:
            config._attn_implementation = {"": chosen}  # a dict: of this config alone
            if isinstance(attention, Local):
                config.attnkern_window = attention.window
        now = f"{chosen}, {attention}" if isinstance(attention, Local) else chosen
        report.swapped.append((part, str(former), now))


def _parts(name: str, model: nn.Module) -> list[tuple[str, nn.Module, list | None]]:
    """The parts of a model that are changed or skipped as one, named, with their configs, or None to be skipped.

    The whole model, if all its attention goes through transformers' interface; else what has a config of its own.
    """
    models = [(f"{name}.{inner}".strip("."), m) for inner, m in model.named_modules() if _is_pretrained(m)]
    through = {}  # of each config: False if some attention does not, None if there is none
    for _, module in models:
        verdicts = goes_through(type(module)), through.get(id(module.config))
        through[id(module.config)] = False if False in verdicts else (True if True in verdicts else None)
    if False not in through.values() and True in through.values():
        configs = {id(config): config for _, module in models for config in _configs(module.config)}
        return [(name, model, list(configs.values()))]

    parts, seen = [], set()
    for part, module in models:
        config = module.config
        if id(config) in seen:
            continue
        seen.add(id(config))
        if through[id(config)]:
            own = [inner for inner in _configs(config) if inner is config or id(inner) not in through]
            parts.append((part, module, own))
        elif through[id(config)] is False or module is model and True not in through.values():
            parts.append((part, module, None))
    return parts


def _configs(config) -> list:
    """A config and those inside it."""
    inner = [part for part in (getattr(config, name, None) for name in config.sub_configs) if part is not None]
    return [config, *(each for part in inner for each in _configs(part))]


def _implementations(config) -> str | dict:
    """The implementation of a config, or of each part."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    inner = {name: _implementations(part) for name, part in parts.items() if part is not None}
    return {"": config._attn_implementation, **inner} if inner else config._attn_implementation


def _restore_pretrained(model: nn.Module) -> None:
    for config, implementation, window in vars(model).pop(FORMER):
        config._attn_implementation = {"": implementation}
        vars(config).pop("attnkern_window", None)
        if window is not None:
            config.attnkern_window = window
