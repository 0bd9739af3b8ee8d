"""The torch.library namespace `attnkern::`, and what every operation in it shares."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from attnkern.problem import Gradients, Inputs, Problem

library = torch.library.Library("attnkern", "DEF")

# the arguments that describe scores and prior, the same in every operation
SCORE_ARGUMENTS = (
    "Tensor? attn_mask, Tensor? offsets, Tensor? seed, "
    "float scale, float softcap, bool causal, int left, int right, SymInt query_offset"
)
SCORE_OPTIONS = 6  # those of them that are no tensors
TENSORS = 6  # the others, and query, key and value


def define(schema: str, implementation, fake) -> None:
    """Registers one operation for every device."""
    name = schema.split("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, _without_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"attnkern::{name}", fake, lib=library)


def _without_autocast(implementation: Callable) -> Callable:
    """The API has chosen the dtype; products inside must not choose again."""

    @functools.wraps(implementation)
    def run(*args):
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if device == "meta" or not torch.is_autocast_enabled(device):
            return implementation(*args)
        with torch.autocast(device, enabled=False):
            return implementation(*args)

    return run


def differentiable(name: str, setup_context: Callable, backward: Callable) -> Callable:
    """Registers an operation's backward; returns what to call.

    `torch.library.register_autograd` would cost a hundred microseconds a call, and torch.func's
    transforms do not see through it: they get an `autograd.Function` of their own.
    """
    operation = getattr(torch.ops.attnkern, name).default

    def forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            output = operation(*args)
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

    def dispatch(*args):
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            return recorded.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operation(*args)

    library.impl(name, dispatch, "Autograd")

    def call(*args):
        transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        return transformable.apply(*args) if transformed else operation(*args)

    return call


def _function(name: str, **members) -> type[torch.autograd.Function]:
    static = {key: staticmethod(member) if callable(member) else member for key, member in members.items()}
    return type(name, (torch.autograd.Function,), static)


def describe(inputs: Inputs, scale, softcap, causal, left, right, query_offset, **choices) -> Problem:
    """The `Problem` of one call."""
    query, key, value, mask = inputs[:4]
    batch, heads, len_q, head_dim = query.shape
    return Problem(
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        len_q=len_q,
        len_k=key.shape[2],
        head_dim=head_dim,
        value_dim=value.shape[3],
        dtype=query.dtype,
        device=query.device.type,
        scale=scale,
        softcap=softcap,
        mask=None if mask is None else "bool" if mask.dtype == torch.bool else "float",
        causal=causal,
        window=(left, right),
        query_offset=query_offset if inputs.offsets is None else None,
        **choices,
    )


def problem_of(query: tuple, key: tuple, value: tuple, offsets: tuple | None, options: tuple, **choices) -> Problem:
    """What a FLOP formula knows of a call: shapes, and the options after the tensors."""
    causal, left, right, query_offset = options[2:SCORE_OPTIONS]
    return Problem(
        batch=query[0],
        heads=query[1],
        kv_heads=key[1],
        len_q=query[2],
        len_k=key[2],
        head_dim=query[3],
        value_dim=value[3],
        causal=causal,
        window=(left, right),
        query_offset=query_offset if offsets is None else None,
        **choices,
    )


def like_inputs(gradients: Gradients, inputs: Inputs, needs_mask: bool) -> tuple[Tensor, ...]:
    """Gradients in the dtype and layout of their inputs, as the fake promises; zeros for None."""
    grads = [like(gradient, tensor) for gradient, tensor in zip(gradients[:3], inputs)]
    mask = like(gradients.attn_mask, inputs.attn_mask) if needs_mask else inputs.query.new_empty(0)
    return *grads, mask


def like(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    """A gradient in the dtype and layout of its input; zeros for None."""
    wanted = torch.empty_like(tensor)
    if gradient is None:
        return wanted.zero_()
    if gradient.dtype == wanted.dtype and gradient.stride() == wanted.stride():
        return gradient
    return wanted.copy_(gradient)


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
