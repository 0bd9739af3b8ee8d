"""Attention weights on request, recomputed from the lse: `attnkern::attention_weights` and its backward."""

import torch
from torch.utils.flop_counter import register_flop_formula

from attnkern import products
from attnkern.backends.choose import choose, load
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Inputs

# the lse is a constant here: the backward differentiates the whole softmax


def _prepare(query, key, attn_mask, offsets, seed, options, **choices):
    inputs = Inputs(query, key, key, attn_mask, offsets, seed)
    *score_options, dropout_p, mean, backend = options
    problem = library.describe(
        inputs, *score_options, dropout_p=dropout_p, weights="mean" if mean else "heads", **choices
    )
    return load(choose(problem, backend)), problem, inputs


def _forward(query, key, lse, attn_mask, offsets, seed, *options):
    module, problem, inputs = _prepare(query, key, attn_mask, offsets, seed, options)
    return module.weights(problem, inputs, lse)


def _fake_forward(query, key, lse, attn_mask, offsets, seed, *options):
    batch, heads, len_q, _ = query.shape
    mean = options[-2]
    return query.new_empty((batch, len_q, key.shape[2]) if mean else (batch, heads, len_q, key.shape[2]))


def _backward(grad_weights, query, key, lse, attn_mask, offsets, seed, *options):
    *options, needs_mask = options
    module, problem, inputs = _prepare(query, key, attn_mask, offsets, seed, options, requires_grad=True)
    if problem.weights == "mean":
        grad_weights = grad_weights.unsqueeze(1) / problem.heads
    gradients = module.backward(problem, inputs, lse, grad_weights=grad_weights, needs_mask=needs_mask)
    grad_query, grad_key, _, grad_mask = library.like_inputs(gradients, inputs, needs_mask)
    return grad_query, grad_key, grad_mask


def _fake_backward(grad_weights, query, key, lse, attn_mask, *rest):
    grad_query, grad_key, _, grad_mask = library.fake_gradients(query, key, key, attn_mask, needs_mask=rest[-1])
    return grad_query, grad_key, grad_mask


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _autograd(ctx, grad_weights):
    needs_query, needs_key, _, needs_mask, *_ = ctx.needs_input_grad
    grad_query, grad_key, grad_mask = _differentiable_backward(
        grad_weights, *ctx.saved_tensors, *ctx.options, needs_mask
    )
    gradients = (grad_query if needs_query else None, grad_key if needs_key else None, None)
    return *gradients, grad_mask if needs_mask else None, None, None, *[None] * len(ctx.options)


library.define(
    f"attention_weights(Tensor query, Tensor key, Tensor lse, {library.SCORE_ARGUMENTS}, "
    "float dropout_p, bool mean, str? backend) -> Tensor",
    _forward,
    _fake_forward,
)
library.define(
    f"attention_weights_backward(Tensor grad_weights, Tensor query, Tensor key, Tensor lse, {library.SCORE_ARGUMENTS}, "
    "float dropout_p, bool mean, str? backend, bool needs_mask) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_differentiable_backward = second_order.differentiable(
    "attention_weights_backward", ("grad_weights",), second_order.weights_result
)
attention_weights = library.differentiable("attention_weights", _setup_context, _autograd)
_BATCHED = dict.fromkeys(("query", "key", "lse", "attn_mask", "offsets"), 0)
fold_into_batch("attention_weights", _BATCHED, (0,))
fold_into_batch("attention_weights_backward", _BATCHED | {"grad_weights": 0}, (0, 0, 0), mask_gradient=2)


@register_flop_formula(torch.ops.attnkern.attention_weights)
def _forward_flops(query, key, lse, attn_mask, offsets, seed, *options, **_) -> int:
    return 2 * products.weights(library.problem_of(query, key, key, offsets, options))


@register_flop_formula(torch.ops.attnkern.attention_weights_backward)
def _backward_flops(grad_weights, query, key, lse, attn_mask, offsets, seed, *options, **_) -> int:
    return 2 * products.weights_backward(library.problem_of(query, key, key, offsets, options))
