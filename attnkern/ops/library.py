"""The torch.library namespace `attnkern::`, and what every operation in it shares."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

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


def define(schema: str, implementation, fake) -> None:
    """Registers one operation for every device."""
    name = schema.split("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _implementations[name] = prepared(implementation)
    library.impl(name, _implementations[name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"attnkern::{name}", fake, lib=library)


def prepared(implementation: Callable) -> Callable:
    """Runs with the tensors' GPU as the current one, which backends ask and launch on, and without autocast.

    The API has chosen the dtype; products inside must not choose again.
    """

    @functools.wraps(implementation)
    def run(*args):
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        kind = device.type
        elsewhere = kind == "cuda" and device.index != torch.cuda.current_device()
        autocast = kind != "meta" and torch.is_autocast_enabled(kind)
        if not (elsewhere or autocast):
            return implementation(*args)
        with torch.cuda.device(device if elsewhere else -1), torch.autocast(kind, enabled=False):
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
        return torch.is_grad_enabled() and any(args[i] is not None and args[i].requires_grad for i in tensors)

    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            output = (implementation if _nobody_listens(args) else operation)(*args)
        setup_context(ctx, args, output)
        return output

    recorded = _function(name, forward=forward, backward=backward)
    transformable = _function(
        name,
        generate_vmap_rule=True,
        forward=lambda *args: operation(*args),
        setup_context=setup_context,
        backward=backward,
    )

    def dispatch(*args, run=operation):
        _check_no_tangents(args)
        if records(args):
            return recorded.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return run(*args)

    library.impl(name, dispatch, "Autograd")

    def call(*args):
        if torch.compiler.is_compiling():
            return operation(*args)
        if torch._C._are_functorch_transforms_active():
            _check_no_tangents(args)
            return transformable.apply(*args)
        if _nobody_listens(args):
            return dispatch(*args, run=implementation)
        return operation(*args)

    return call


def _nobody_listens(args: tuple) -> bool:
    """Whether torch's dispatcher has nothing to do for a call but to call: it takes as long as a small kernel.

    No mode, profiler or tracer is on, and every tensor is a plain one.
    """
    return (
        torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
        and not torch._C._autograd._profiler_enabled()
        and torch._C._get_tracing_state() is None
        and _ORDINARY.issuperset(map(type, args))
    )


_ORDINARY = {Tensor, torch.nn.Parameter, int, float, bool, str, type(None)}


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


def describe(inputs: Inputs, scale, softcap, causal, left, right, query_offset, max_q, max_k, **choices) -> Problem:
    """The `Problem` of one call. max_q, max_k: the lengths, for packed sequences those of the longest."""
    query, key, value, mask = inputs[:4]
    batch, heads, _, head_dim = query.shape
    packed = inputs.cu_seq_q is not None
    choices |= {
        "batch": len(inputs.cu_seq_q) - 1 if packed else batch,
        "packed": packed,
        "heads": heads,
        "kv_heads": key.shape[1],
        "len_q": max_q,
        "len_k": max_k,
        "head_dim": head_dim,
        "value_dim": value.shape[3],
        "dtype": query.dtype,
        "device": query.device.type,
        "scale": scale,
        "softcap": softcap,
        "mask": None if mask is None else "bool" if mask.dtype == torch.bool else "float",
        "causal": causal,
        "window": (left, right),
        "query_offset": query_offset if inputs.offsets is None else None,
    }
    try:
        return _remembered(*choices.items())
    except TypeError:  # a compiler's symbols for sizes have no hash
        return Problem(**choices)


@functools.lru_cache(maxsize=256)
def _remembered(*choices: tuple) -> Problem:
    """To make one takes as long as a small kernel."""
    return Problem(**dict(choices))


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
