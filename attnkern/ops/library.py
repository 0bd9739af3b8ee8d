"""The torch.library namespace `attnkern::`, and what every operation in it shares."""

import functools
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from attnkern.backends.choose import choose, load
from attnkern.problem import Gradients, Inputs, Problem

library = torch.library.Library("attnkern", "DEF")

# the arguments that describe scores and prior, the same in every operation
SCORE_ARGUMENTS = (
    "Tensor? attn_mask, Tensor? offsets, Tensor? seed, Tensor? cu_seq_q, Tensor? cu_seq_k, "
    "float scale, float softcap, bool causal, int left, int right, SymInt query_offset, SymInt max_q, SymInt max_k"
)
TENSORS = 8  # of them that are tensors, and query, key and value


class ScoreOptions(NamedTuple):
    """Those that are none, in their order."""

    scale: float
    softcap: float
    causal: bool
    left: int
    right: int
    query_offset: int
    max_q: int
    max_k: int


_implementations: dict[str, Callable] = {}
_FIRST = ("query", "document")  # the tensors whose device is that of all others


def define(schema: str, implementation, fake) -> None:
    """Registers one operation for every device."""
    name = schema.split("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    names = [argument.name for argument in getattr(torch.ops.attnkern, name).default._schema.arguments]
    first = next(place for place, argument in enumerate(names) if argument in _FIRST)
    _implementations[name] = prepared(implementation, first)
    library.impl(name, _implementations[name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"attnkern::{name}", fake, lib=library)


def prepared(implementation: Callable, first: int) -> Callable:
    """Runs without autocast, and with the GPU of argument number `first` as the current one: backends launch on it.

    The API has chosen the dtype; products inside must not choose again.
    """

    @functools.wraps(implementation)
    def run(*args):
        device = args[first].device
        elsewhere = device.index is not None and device.type == "cuda" and device.index != torch.cuda.current_device()
        autocast = torch._C._is_any_autocast_enabled() and device.type != "meta"
        if not (elsewhere or autocast):
            return implementation(*args)
        with torch.cuda.device(device if elsewhere else -1), torch.autocast(device.type, enabled=False):
            return implementation(*args)

    return run


def differentiable(name: str, setup_context: Callable, backward: Callable) -> Callable:
    """Registers an operation's backward; returns what to call.

    `torch.library.register_autograd` would cost a hundred microseconds a call, and torch.func's
    transforms do not see through it: they get an `autograd.Function` of their own.
    """
    operation = getattr(torch.ops.attnkern, name).default
    implementation = _implementations[name]
    tensors = [place for place, arg in enumerate(operation._schema.arguments) if "Tensor" in str(arg.type)]

    def records(args: tuple) -> bool:
        return torch.is_grad_enabled() and any([args[i] is not None and args[i].requires_grad for i in tensors])

    def recorded(forward: Callable) -> Callable:
        def run(ctx, *args):
            output = forward(*args)
            setup_context(ctx, args, output)
            return output

        return _function(name, forward=run, backward=backward).apply

    def below(*args):
        with torch._C._AutoDispatchBelowAutograd():
            return operation(*args)

    recorded_directly, recorded_below = recorded(implementation), recorded(below)
    transformable = _function(
        name,
        generate_vmap_rule=True,
        forward=lambda *args: operation(*args),
        setup_context=setup_context,
        backward=backward,
    )

    def dispatch(*args):
        _check_no_tangents(args)
        return recorded_below(*args) if records(args) else below(*args)

    library.impl(name, dispatch, "Autograd")

    def call(*args):
        if torch.compiler.is_compiling():
            return operation(*args)
        if torch._C._are_functorch_transforms_active():
            _check_no_tangents(args)
            return transformable.apply(*args)
        if _somebody_listens():
            return operation(*args)
        requires_grad = False
        for place in tensors:
            if (tensor := args[place]) is not None:
                if type(tensor) not in _ORDINARY or not _is_memory(torch._C._dispatch_keys(tensor).raw_repr()):
                    return operation(*args)
                requires_grad |= tensor.requires_grad
        _check_no_tangents(args)
        return (recorded_directly if requires_grad and torch.is_grad_enabled() else implementation)(*args)

    return call


_ORDINARY = {Tensor, torch.nn.Parameter}  # subclasses may have a meaning of their own


@functools.cache
def _is_memory(dispatch_keys: int) -> bool:
    """Whether a tensor's numbers are those in its memory: not negated, nor absent, nor a batch of others'."""
    names = str(torch._C.DispatchKeySet.from_raw_repr(dispatch_keys)).removeprefix("DispatchKeySet(").rstrip(")")
    return all(name.startswith(_MEMORY) for name in names.split(", "))


_MEMORY = ("CPU", "CUDA", "ADInplaceOrView", "Autograd", "Autocast")


def _somebody_listens() -> bool:
    """Whether torch's dispatcher has more to do than to call: for that alone it takes as long as a small kernel.

    A mode, profiler or tracer is on.
    """
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._autograd._profiler_enabled()
        or torch._C._get_tracing_state() is not None
    )


def _check_no_tangents(args: tuple) -> None:
    """A kernel would take a dual number for its primal part."""
    if forward_ad._current_level >= 0 and any(isinstance(arg, Tensor) and _is_dual(arg) for arg in args):
        raise NotImplementedError(
            "attnkern's kernels have no forward-mode derivatives: use reverse mode, or backend='reference', which "
            "stores the score matrix"
        )


def _is_dual(tensor: Tensor) -> bool:
    """Whether it has a tangent, or comes from the input of a `torch.func.jvp` below other transforms."""
    stack = _functorch.get_interpreter_stack() or ()
    levels = [transform.level() for transform in stack if transform.key() == _functorch.TransformType.Jvp]
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.maybe_get_level(tensor) in levels:
            return True
        tensor = _functorch.get_unwrapped(tensor)
    with torch._C._DisableFuncTorch():
        return forward_ad.unpack_dual(tensor).tangent is not None


def _function(name: str, **members) -> type[torch.autograd.Function]:
    static = {key: staticmethod(member) if callable(member) else member for key, member in members.items()}
    return type(name, (torch.autograd.Function,), static)


def plan(inputs: Inputs, options: tuple, backend: str | None, **choices) -> tuple[ModuleType, Problem]:
    """The module of the backend that will run a call, and its `Problem`; options: in the order of `ScoreOptions`.

    Raises:
        UnsupportedProblem: the named backend, or every one, refuses it.
    """
    return _planned(refusals_depend_on(), *_kind(inputs), backend, tuple(options), *choices.items())


def refusals_depend_on() -> bool:
    """What a backend asks besides the `Problem` and its device: whether it must be deterministic."""
    return torch.are_deterministic_algorithms_enabled()


def describe(inputs: Inputs, options: tuple, **choices) -> Problem:
    """The `Problem` of a call."""
    return _problem(*_kind(inputs), options, **choices)


def _kind(inputs: Inputs) -> tuple:
    """What a `Problem` takes from tensors."""
    query, key, value, mask, offsets, _, cu_seq_q = inputs[:7]
    mask = None if mask is None else "bool" if mask.dtype == torch.bool else "float"
    sequences = None if cu_seq_q is None else cu_seq_q.shape[0] - 1
    return query.shape, key.shape, value.shape, query.dtype, query.device, mask, offsets is None, sequences


@functools.lru_cache(maxsize=256)
def _planned(_, *kind) -> tuple[ModuleType, Problem]:
    """To find them takes as long as a small kernel."""
    *kind_of_tensors, backend, options = kind[:10]
    problem = _problem(*kind_of_tensors, options, **dict(kind[10:]))
    return load(choose(problem, backend)), problem


def _problem(query, key, value, dtype, device, mask, one_offset, sequences, options, **choices) -> Problem:
    scale, softcap, causal, left, right, query_offset, max_q, max_k = options
    return Problem(
        batch=query[0] if sequences is None else sequences,
        packed=sequences is not None,
        heads=query[1],
        kv_heads=key[1],
        len_q=max_q,
        len_k=max_k,
        head_dim=query[3],
        value_dim=value[3],
        dtype=dtype,
        device=device.type,
        scale=scale,
        softcap=softcap,
        mask=mask,
        causal=causal,
        window=(left, right),
        query_offset=query_offset if one_offset else None,
        **choices,
    )


def flop_formula(name: str) -> Callable:
    """Registers `formula(problem, given)`: an operation's MACs, of a `Problem` and of its arguments by name.

    The formula is told of packed sequences one by one.
    """
    operation = getattr(torch.ops.attnkern, name)
    names = [argument.name for argument in operation.default._schema.arguments]

    def register(formula: Callable) -> Callable:
        def flops(*args, out_val=None, **kwargs) -> int:
            given = dict(zip(names, args)) | kwargs
            return 2 * sum(formula(problem, given) for problem in _problems(given))

        register_flop_formula(operation, get_raw=True)(flops)
        return formula

    return register


def _problems(given: dict) -> Iterator[Problem]:
    """What a call computes, sequence by sequence where they are packed."""
    query, key = given["query"], given["key"]
    (batch, heads, len_q, head_dim), (_, kv_heads, len_k, value_dim) = query.shape, given.get("value", key).shape
    offset = given["query_offset"] if given["offsets"] is None else None
    sizes = [(batch, len_q, len_k, offset)]
    if given["cu_seq_q"] is not None:
        lengths = (given[name].diff().tolist() for name in ("cu_seq_q", "cu_seq_k"))
        offsets = itertools.repeat(offset) if given["offsets"] is None else given["offsets"].tolist()
        sizes = zip(itertools.repeat(1), *lengths, offsets)
    for batch, len_q, len_k, offset in sizes:
        yield Problem(
            batch=batch,
            heads=heads,
            kv_heads=kv_heads,
            len_q=len_q,
            len_k=len_k,
            head_dim=head_dim,
            value_dim=value_dim,
            causal=given["causal"],
            window=(given["left"], given["right"]),
            query_offset=offset,
            center="center" in given,
            num_samples=given.get("num_samples", 1),
            straight_through=given.get("straight_through", False),
        )


def like_inputs(gradients: Gradients, inputs: Inputs, needs_mask: bool) -> tuple[Tensor, ...]:
    """Gradients in the dtype and layout of their inputs, as the fake promises; zeros for None."""
    grads = [like(gradient, tensor) for gradient, tensor in zip(gradients[:3], inputs)]
    mask = like(gradients.attn_mask, inputs.attn_mask) if needs_mask else inputs.query.new_empty(0)
    return *grads, mask


def like(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    """A gradient in the dtype and layout of its input; zeros for None."""
    if gradient is None:
        return torch.zeros_like(tensor)
    if gradient.dtype == tensor.dtype and gradient.stride() == tensor.stride():
        return gradient
    wanted = torch.empty_like(tensor)  # whose strides are others where the input has gaps
    same = gradient.dtype == wanted.dtype and gradient.stride() == wanted.stride()
    return gradient if same else wanted.copy_(gradient)


def fake_gradients(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, needs_mask: bool):
    """The fake of every backward: gradients laid out like their inputs."""
    mask = torch.empty_like(attn_mask) if needs_mask else query.new_empty(0)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), mask


def gradients_or_none(gradients: tuple[Tensor, ...], needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """What autograd wants back: one entry per argument of the operation, None where none is needed."""
    wanted = (gradient if need else None for gradient, need in zip(gradients, needed))
    return *wanted, *[None] * (len(needed) - len(gradients))


def row_shape(query: Tensor) -> tuple[int, ...]:
    return query.shape[:-1]


def compute_dtype(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)
