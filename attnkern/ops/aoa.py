"""Attention-over-Attention: `attnkern::attention_over_attention` and its backward."""

import torch
from torch.utils.flop_counter import register_flop_formula

from attnkern import products, reference
from attnkern.backends.choose import choose, load
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Problem


def describe(document, question, document_mask, question_mask, **choices) -> Problem:
    """The `Problem` of one call: the document's words are the queries, the question's the keys."""
    return Problem(
        batch=document.shape[0],
        len_q=document.shape[1],
        len_k=question.shape[1],
        head_dim=document.shape[2],
        dtype=document.dtype,
        device=document.device.type,
        scale=1.0,
        mask=None if document_mask is None and question_mask is None else "bool",
        selector="aoa",
        **choices,
    )


def _forward(document, question, document_mask, question_mask, backend):
    tensors = (document, question, document_mask, question_mask)
    return load(f"aoa_{choose(describe(*tensors), backend)}").forward(*tensors)


def _fake_forward(document, question, *_):
    attention = document.new_empty(document.shape[:2])
    dtype = library.compute_dtype(document)
    columns = question.new_empty(question.shape[:2], dtype=dtype)
    return attention, torch.empty_like(attention, dtype=dtype), columns, torch.empty_like(columns)


def _backward(grad_attention, row_lse, column_lse, beta, *inputs):
    *tensors, backend = inputs
    module = load(f"aoa_{choose(describe(*tensors, requires_grad=True), backend)}")
    gradients = module.backward(grad_attention, row_lse, column_lse, beta, *tensors)
    return tuple(library.like(gradient, words) for gradient, words in zip(gradients, tensors))


def _fake_backward(grad_attention, row_lse, column_lse, beta, document, question, *_):
    return torch.empty_like(document), torch.empty_like(question)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.backend = inputs[4]


def _autograd(ctx, grad_attention, *_):
    *inputs, row_lse, column_lse, beta = ctx.saved_tensors
    if grad_attention is None:
        return (None,) * 5
    gradients = _differentiable_backward(grad_attention, row_lse, column_lse, beta, *inputs, ctx.backend)
    return library.gradients_or_none(gradients, ctx.needs_input_grad)


def _results(**given) -> tuple[torch.Tensor]:
    names = ("document", "question", "document_mask", "question_mask")
    return (reference.attention_over_attention(*(given[name] for name in names)),)


_INPUTS = "Tensor document, Tensor question, Tensor? document_mask, Tensor? question_mask, str? backend"
library.define(
    f"attention_over_attention({_INPUTS}) -> (Tensor attention, Tensor row_lse, Tensor column_lse, Tensor beta)",
    _forward,
    _fake_forward,
)
library.define(
    "attention_over_attention_backward(Tensor grad_attention, Tensor row_lse, Tensor column_lse, Tensor beta, "
    f"{_INPUTS}) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_differentiable_backward = second_order.differentiable(
    "attention_over_attention_backward", ("grad_attention",), _results
)
attention_over_attention = library.differentiable("attention_over_attention", _setup_context, _autograd)
_BATCHED = dict.fromkeys(("document", "question", "document_mask", "question_mask"), 0)
fold_into_batch("attention_over_attention", _BATCHED, (0, 0, 0, 0))
_BATCHED |= dict.fromkeys(("grad_attention", "row_lse", "column_lse", "beta"), 0)
fold_into_batch("attention_over_attention_backward", _BATCHED, (0, 0))


@register_flop_formula(torch.ops.attnkern.attention_over_attention)
def _forward_flops(document, question, *_, **__) -> int:
    return 2 * products.aoa(_problem(document, question))


@register_flop_formula(torch.ops.attnkern.attention_over_attention_backward)
def _backward_flops(grad_attention, row_lse, column_lse, beta, document, question, *_, **__) -> int:
    return 2 * products.aoa_backward(_problem(document, question))


def _problem(document, question) -> Problem:
    """From shapes."""
    return Problem(batch=document[0], len_q=document[1], len_k=question[1], head_dim=document[2])
