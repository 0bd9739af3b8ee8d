"""Sampled hard attention: `attnkern::sample_attention` and its backward.

The backward has two halves that run only when a gradient asks for them: a sparse one at the draws
(scores and values), and a dense one through the whole distribution (lse, entropy, straight-through).
"""

import torch

from attnkern import products
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Gradients, Inputs, new_output


def _prepare(inputs, options, **choices):
    *score_options, num_samples, deterministic, straight_through, backend = options
    choices |= {"num_samples": num_samples, "straight_through": straight_through}
    return library.plan(inputs, score_options, backend, selector="argmax" if deterministic else "sample", **choices)


def _forward(*args):
    inputs = Inputs(*args[: library.TENSORS])
    module, problem = _prepare(inputs, args[library.TENSORS :])
    return module.sample(problem, inputs)


def _fake_forward(query, key, value, *rest):
    draws, rows, dtype = rest[-4], library.row_shape(query), library.compute_dtype(query)
    index = query.new_empty(draws, *rows, dtype=torch.int64)
    score = query.new_empty(draws, *rows, dtype=dtype)
    return (
        new_output(query, value, draws),
        index,
        score,
        query.new_empty(rows, dtype=dtype),
        query.new_empty(rows, dtype=dtype),
    )


def _backward(grad_output, grad_score, grad_lse, grad_entropy, index, score, lse, entropy, *args):
    inputs = Inputs(*args[: library.TENSORS])
    *options, needs_mask = args[library.TENSORS :]
    module, problem = _prepare(inputs, options, requires_grad=True)
    gradients = Gradients()
    if grad_output is not None or grad_score is not None:
        gradients = module.sparse_backward(problem, inputs, index, score, grad_score, grad_output, needs_mask)
    through_output = problem.straight_through and grad_output is not None
    if through_output or grad_lse is not None or grad_entropy is not None:
        dense = _dense_backward(module, problem, inputs, lse, entropy, grad_output, grad_lse, grad_entropy, needs_mask)
        gradients = Gradients(*(_sum(*pair) for pair in zip(gradients, dense)))
    return library.like_inputs(gradients, inputs, needs_mask)


def _dense_backward(module, problem, inputs, lse, entropy, grad_output, grad_lse, grad_entropy, needs_mask):
    soft_gradient = grad_output.sum(0) if problem.straight_through and grad_output is not None else None
    row = _sum(None if grad_lse is None else -grad_lse, None if grad_entropy is None else grad_entropy * entropy)
    dense = module.backward(
        problem, inputs, lse, grad_output=soft_gradient, row=row, entropy=grad_entropy, needs_mask=needs_mask
    )
    return dense._replace(value=None)  # the value's gradient comes from the draws alone


def _sum(left, right):
    return right if left is None else left if right is None else left + right


def _fake_backward(
    grad_output, grad_score, grad_lse, grad_entropy, index, score, lse, entropy, query, key, value, attn_mask, *rest
):
    return library.fake_gradients(query, key, value, attn_mask, needs_mask=rest[-1])


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: library.TENSORS], *output[1:])
    ctx.options = inputs[library.TENSORS :]


def _autograd(ctx, grad_output, _, grad_score, grad_lse, grad_entropy):
    *inputs, index, score, lse, entropy = ctx.saved_tensors
    grads = (grad_output, grad_score, grad_lse, grad_entropy)
    if all(grad is None for grad in grads):
        return tuple([None] * (library.TENSORS + len(ctx.options)))
    gradients = _differentiable_backward(
        *grads, index, score, lse, entropy, *inputs, *ctx.options, ctx.needs_input_grad[3]
    )
    return library.gradients_or_none(gradients, ctx.needs_input_grad)


_CHOICES = "int num_samples, bool deterministic, bool straight_through, str? backend"
library.define(
    f"sample_attention(Tensor query, Tensor key, Tensor value, {library.SCORE_ARGUMENTS}, {_CHOICES}) "
    "-> (Tensor output, Tensor index, Tensor score, Tensor lse, Tensor entropy)",
    _forward,
    _fake_forward,
)
library.define(
    "sample_attention_backward(Tensor? grad_output, Tensor? grad_score, Tensor? grad_lse, Tensor? grad_entropy, "
    "Tensor index, Tensor score, Tensor lse, Tensor entropy, Tensor query, Tensor key, Tensor value, "
    f"{library.SCORE_ARGUMENTS}, {_CHOICES}, bool needs_mask) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_differentiable_backward = second_order.differentiable(
    "sample_attention_backward",
    ("grad_output", "grad_score", "grad_lse", "grad_entropy"),
    second_order.sample_results,
)
sample_attention = library.differentiable("sample_attention", _setup_context, _autograd)
_BATCHED = dict.fromkeys(("query", "key", "value", "attn_mask", "offsets"), 0)
fold_into_batch("sample_attention", _BATCHED, (1, 1, 1, 0, 0))
_BATCHED |= dict.fromkeys(("grad_output", "grad_score", "index", "score"), 1)
_BATCHED |= dict.fromkeys(("grad_lse", "grad_entropy", "lse", "entropy"), 0)
fold_into_batch("sample_attention_backward", _BATCHED, (0, 0, 0, 0), mask_gradient=3)


@library.flop_formula("sample_attention")
def _forward_macs(problem, given) -> int:
    return products.hard(problem)


@library.flop_formula("sample_attention_backward")
def _backward_macs(problem, given) -> int:
    return products.hard_backward(
        problem,
        output=given["grad_output"] is not None,
        score=given["grad_score"] is not None,
        distribution=given["grad_lse"] is not None or given["grad_entropy"] is not None,
    )
