"""Local attention around real positions: `attnkern::centered_attention` and its backward (local-p)."""

import torch

from attnkern import products
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Inputs, new_output

INPUTS = library.TENSORS + 2  # center and sigma


def _prepare(tensors: tuple, options: tuple, **choices):
    inputs = Inputs(*tensors)
    *score_options, renormalize, dropout_p, backend = options
    choices |= {"sigma": inputs.sigma is not None, "renormalize": renormalize, "dropout_p": dropout_p}
    return *library.plan(inputs, score_options, backend, center=True, **choices), inputs


def _forward(*args):
    module, problem, inputs = _prepare(args[:INPUTS], args[INPUTS:])
    return module.softmax(problem, inputs)


def _fake_forward(query, key, value, *_):
    lse = query.new_empty(library.row_shape(query), dtype=library.compute_dtype(query))
    return new_output(query, value), lse


def _backward(grad_output, grad_lse, output, lse, *args):
    *options, needs_mask = args[INPUTS:]
    module, problem, inputs = _prepare(args[:INPUTS], options, requires_grad=True)
    gradients = module.backward(
        problem,
        inputs,
        lse,
        grad_output=torch.zeros_like(output) if grad_output is None else grad_output,
        output=output,
        row=None if grad_lse is None else -grad_lse,
        needs_mask=needs_mask,
    )
    empty = inputs.query.new_empty(0)  # without a Gaussian no gradient reaches the centres
    gaussian = (empty.clone() if grad is None else grad for grad in (gradients.center, gradients.sigma))
    return *library.like_inputs(gradients, inputs, needs_mask), *gaussian


def _fake_backward(grad_output, grad_lse, output, lse, *args):
    query, key, value, attn_mask, *_, center, sigma = args[:INPUTS]
    gaussian = (query.new_empty(0) if sigma is None else torch.empty_like(center).contiguous() for _ in range(2))
    return *library.fake_gradients(query, key, value, attn_mask, needs_mask=args[-1]), *gaussian


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:INPUTS], *output)
    ctx.options = inputs[INPUTS:]


def _autograd(ctx, grad_output, grad_lse):
    *inputs, output, lse = ctx.saved_tensors
    needed = ctx.needs_input_grad
    if grad_output is None and grad_lse is None:
        return tuple([None] * len(needed))
    found = _differentiable_backward(grad_output, grad_lse, output, lse, *inputs, *ctx.options, needed[3])
    has_sigma = inputs[-1] is not None
    gaussian = [grad if need and has_sigma else None for grad, need in zip(found[4:], needed[library.TENSORS :])]
    grads = library.gradients_or_none(found[:4], needed[: library.TENSORS])
    return *grads, *gaussian, *[None] * len(ctx.options)


ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, "
    + library.SCORE_ARGUMENTS.replace("float scale", "Tensor center, Tensor? sigma, float scale")
    + ", bool renormalize, float dropout_p, str? backend"
)
library.define(
    f"centered_attention({ARGUMENTS}) -> (Tensor output, Tensor lse)",
    _forward,
    _fake_forward,
)
library.define(
    "centered_attention_backward(Tensor? grad_output, Tensor? grad_lse, Tensor output, Tensor lse, "
    f"{ARGUMENTS}, bool needs_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_differentiable_backward = second_order.differentiable(
    "centered_attention_backward", ("grad_output", "grad_lse"), second_order.softmax_results
)
centered_attention = library.differentiable("centered_attention", _setup_context, _autograd)
_BATCHED = dict.fromkeys(("query", "key", "value", "attn_mask", "offsets", "center", "sigma"), 0)
fold_into_batch("centered_attention", _BATCHED, (0, 0))
_BATCHED |= dict.fromkeys(("grad_output", "grad_lse", "output", "lse"), 0)
fold_into_batch("centered_attention_backward", _BATCHED, (0,) * 6, mask_gradient=3)


@library.flop_formula("centered_attention")
def _forward_macs(problem, given) -> int:
    """Of whole windows: where they lie is the tensor's secret."""
    return products.softmax(problem)


@library.flop_formula("centered_attention_backward")
def _backward_macs(problem, given) -> int:
    return products.softmax_backward(problem, output=given["grad_output"] is not None)
