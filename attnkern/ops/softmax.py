"""Global and local attention: `attnkern::softmax_attention` and its backward."""

from attnkern import products
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Inputs, new_output


def _forward(*args):
    inputs = Inputs(*args[: library.TENSORS])
    *score_options, dropout_p, backend = args[library.TENSORS :]
    module, problem = library.plan(inputs, score_options, backend, dropout_p=dropout_p)
    return module.softmax(problem, inputs)


def _fake_forward(query, key, value, *_):
    lse = query.new_empty(library.row_shape(query), dtype=library.compute_dtype(query))
    return new_output(query, value), lse


def _backward(grad_output, grad_lse, output, lse, *args):
    inputs = Inputs(*args[: library.TENSORS])
    *score_options, dropout_p, backend, needs_mask = args[library.TENSORS :]
    module, problem = library.plan(inputs, score_options, backend, dropout_p=dropout_p, requires_grad=True)
    gradients = module.backward(
        problem,
        inputs,
        lse,
        grad_output=grad_output,
        output=output,
        row=None if grad_lse is None else -grad_lse,
        needs_mask=needs_mask,
    )
    return library.like_inputs(gradients, inputs, needs_mask)


def _fake_backward(grad_output, grad_lse, output, lse, query, key, value, attn_mask, *rest):
    return library.fake_gradients(query, key, value, attn_mask, needs_mask=rest[-1])


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: library.TENSORS], *output)
    ctx.options = inputs[library.TENSORS :]


def _autograd(ctx, grad_output, grad_lse):
    *inputs, output, lse = ctx.saved_tensors
    no_gradient = [None] * (library.TENSORS + len(ctx.options))
    if grad_output is None and grad_lse is None:
        return tuple(no_gradient)
    needs_mask = ctx.needs_input_grad[3]
    gradients = _differentiable_backward(grad_output, grad_lse, output, lse, *inputs, *ctx.options, needs_mask)
    return library.gradients_or_none(gradients, ctx.needs_input_grad)


library.define(
    f"softmax_attention(Tensor query, Tensor key, Tensor value, {library.SCORE_ARGUMENTS}, "
    "float dropout_p, str? backend) -> (Tensor output, Tensor lse)",
    _forward,
    _fake_forward,
)
library.define(
    "softmax_attention_backward(Tensor? grad_output, Tensor? grad_lse, Tensor output, Tensor lse, "
    f"Tensor query, Tensor key, Tensor value, {library.SCORE_ARGUMENTS}, "
    "float dropout_p, str? backend, bool needs_mask) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_differentiable_backward = second_order.differentiable(
    "softmax_attention_backward", ("grad_output", "grad_lse"), second_order.softmax_results
)
softmax_attention = library.differentiable("softmax_attention", _setup_context, _autograd)
_BATCHED = dict.fromkeys(("query", "key", "value", "attn_mask", "offsets"), 0)
fold_into_batch("softmax_attention", _BATCHED, (0, 0))
_BATCHED |= dict.fromkeys(("grad_output", "grad_lse", "output", "lse"), 0)
fold_into_batch("softmax_attention_backward", _BATCHED, (0, 0, 0, 0), mask_gradient=3)


@library.flop_formula("softmax_attention")
def _forward_macs(problem, given) -> int:
    return products.softmax(problem)


@library.flop_formula("softmax_attention_backward")
def _backward_macs(problem, given) -> int:
    return products.softmax_backward(problem, output=given["grad_output"] is not None)
