"""Attention weights on request, recomputed from the lse: `attnkern::attention_weights` and its backward."""

from attnkern import products
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Inputs

# the lse is a constant here: the backward differentiates the whole softmax


def _prepare(args: tuple, **choices):
    query, key, lse, *rest = args[: library.TENSORS]
    inputs = Inputs(query, key, key, *rest)
    *score_options, dropout_p, mean, backend = args[library.TENSORS :]
    choices |= {"dropout_p": dropout_p, "weights": "mean" if mean else "heads"}
    return *library.plan(inputs, score_options, backend, **choices), inputs, lse


def _forward(*args):
    module, problem, inputs, lse = _prepare(args)
    return module.weights(problem, inputs, lse)


def _fake_forward(query, key, lse, *rest):
    cu_seq_q, max_q, max_k, mean = rest[3], rest[-5], rest[-4], rest[-2]
    batch = query.shape[0] if cu_seq_q is None else cu_seq_q.shape[0] - 1
    return query.new_empty((batch, max_q, max_k) if mean else (batch, query.shape[1], max_q, max_k))


def _backward(grad_weights, *args):
    *args, needs_mask = args
    module, problem, inputs, lse = _prepare(args, requires_grad=True)
    if problem.weights == "mean":
        grad_weights = grad_weights.unsqueeze(1) / problem.heads
    gradients = module.backward(problem, inputs, lse, grad_weights=grad_weights, needs_mask=needs_mask)
    grad_query, grad_key, _, grad_mask = library.like_inputs(gradients, inputs, needs_mask)
    return grad_query, grad_key, grad_mask


def _fake_backward(grad_weights, query, key, lse, attn_mask, *rest):
    grad_query, grad_key, _, grad_mask = library.fake_gradients(query, key, key, attn_mask, needs_mask=rest[-1])
    return grad_query, grad_key, grad_mask


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[: library.TENSORS])
    ctx.options = inputs[library.TENSORS :]


def _autograd(ctx, grad_weights):
    grad_query, grad_key, grad_mask = _differentiable_backward(
        grad_weights, *ctx.saved_tensors, *ctx.options, ctx.needs_input_grad[3]
    )
    gradients = (grad_query, grad_key, None, grad_mask)
    return library.gradients_or_none(gradients, ctx.needs_input_grad)


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


@library.flop_formula("attention_weights")
def _forward_macs(problem, given) -> int:
    return products.weights(problem)


@library.flop_formula("attention_weights_backward")
def _backward_macs(problem, given) -> int:
    return products.weights_backward(problem)
