"""Weights without normalisation: `attnkern::mac_attention` and its backward."""

from attnkern import products
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Inputs, new_output


def _prepare(args: tuple, **choices):
    inputs = Inputs(*args[: library.TENSORS])
    *score_options, activation, backend = args[library.TENSORS :]
    return *library.plan(inputs, score_options, backend, selector=activation, **choices), inputs


def _forward(*args):
    module, problem, inputs = _prepare(args)
    return module.mac(problem, inputs)


def _fake_forward(query, key, value, *_):
    return new_output(query, value)


def _backward(grad_output, *args):
    *args, needs_mask = args
    module, problem, inputs = _prepare(args, requires_grad=True)
    gradients = module.backward(problem, inputs, grad_output=grad_output, needs_mask=needs_mask)
    return library.like_inputs(gradients, inputs, needs_mask)


def _fake_backward(grad_output, query, key, value, attn_mask, *rest):
    return library.fake_gradients(query, key, value, attn_mask, needs_mask=rest[-1])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: library.TENSORS])
    ctx.options = inputs[library.TENSORS :]


def _autograd(ctx, grad_output):
    gradients = _differentiable_backward(grad_output, *ctx.saved_tensors, *ctx.options, ctx.needs_input_grad[3])
    return library.gradients_or_none(gradients, ctx.needs_input_grad)


library.define(
    f"mac_attention(Tensor query, Tensor key, Tensor value, {library.SCORE_ARGUMENTS}, "
    "str activation, str? backend) -> Tensor",
    _forward,
    _fake_forward,
)
library.define(
    f"mac_attention_backward(Tensor grad_output, Tensor query, Tensor key, Tensor value, {library.SCORE_ARGUMENTS}, "
    "str activation, str? backend, bool needs_mask) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_differentiable_backward = second_order.differentiable(
    "mac_attention_backward", ("grad_output",), second_order.mac_result
)
mac_attention = library.differentiable("mac_attention", _setup_context, _autograd)
_BATCHED = dict.fromkeys(("query", "key", "value", "attn_mask", "offsets"), 0)
fold_into_batch("mac_attention", _BATCHED, (0,))
fold_into_batch("mac_attention_backward", _BATCHED | {"grad_output": 0}, (0, 0, 0, 0), mask_gradient=3)


@library.flop_formula("mac_attention")
def _forward_macs(problem, given) -> int:
    return products.softmax(problem)


@library.flop_formula("mac_attention_backward")
def _backward_macs(problem, given) -> int:
    return products.softmax_backward(problem)
