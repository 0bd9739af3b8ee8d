"""Attention-over-Attention: `attnkern::attention_over_attention` and its backward."""

import functools
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attnkern import products, reference
from attnkern.backends.aoa_blocked import keeps
from attnkern.backends.choose import choose, load
from attnkern.ops import library, second_order
from attnkern.ops.vmap import fold_into_batch
from attnkern.problem import Problem


def _module(tensors, backend: str | None, requires_grad: bool = False) -> ModuleType:
    """The module of the backend that will run a call."""
    document, question, *masks = tensors
    masked = any(mask is not None for mask in masks)
    kind = document.shape, question.shape[1], document.dtype, document.device, masked, backend, requires_grad
    return _planned(library.refusals_depend_on(), *kind)


@functools.lru_cache(maxsize=256)
def _planned(_, document, len_q, dtype, device, masked, backend, requires_grad) -> ModuleType:
    """The document's words are the queries of the `Problem`, the question's the keys."""
    problem = Problem(
        batch=document[0],
        len_q=document[1],
        len_k=len_q,
        head_dim=document[2],
        dtype=dtype,
        device=device.type,
        scale=1.0,
        mask="bool" if masked else None,
        selector="aoa",
        requires_grad=requires_grad,
    )
    return load(f"aoa_{choose(problem, backend)}")


def attention_over_attention(
    document: Tensor, question: Tensor, document_mask: Tensor | None, question_mask: Tensor | None, backend: str | None
) -> Tensor:
    """The attention `(B, Ld)`."""
    trains = torch.is_grad_enabled() and (document.requires_grad or question.requires_grad)
    sizes = question.shape[1], document.shape[2], document.dtype, document.device.type
    keep = trains and backend in (None, "cpu", "blocked") and keeps(*sizes)
    return _differentiable(document, question, document_mask, question_mask, keep, backend)[0]


def _forward(*args):
    *tensors, keep, backend = args
    kept = _space(*tensors[:2], keep)
    return *_module(tensors, backend).forward(*tensors, *[kept] * keep), kept


def _fake_forward(document, question, document_mask, question_mask, keep, backend):
    attention = document.new_empty(document.shape[:2])
    dtype = library.compute_dtype(document)
    columns = question.new_empty(question.shape[:2], dtype=dtype)
    return (
        attention,
        torch.empty_like(attention, dtype=dtype),
        columns,
        torch.empty_like(columns),
        _space(document, question, keep),
    )


def _space(document: Tensor, question: Tensor, keep: bool) -> Tensor:
    """For scores or exponentials of them, `(B, Ld, Lq)`; `(B, 0, Lq)` if they are not kept."""
    shape = document.shape[0], document.shape[1] if keep else 0, question.shape[1]
    return document.new_empty(shape, dtype=library.compute_dtype(document))


def _backward(grad_attention, row_lse, column_lse, beta, exponentials, *inputs):
    *tensors, keep, backend = inputs
    module = _module(tensors, backend, requires_grad=True)
    gradients = module.backward(grad_attention, row_lse, column_lse, beta, *tensors, *[exponentials] * keep)
    return tuple(library.like(gradient, words) for gradient, words in zip(gradients, tensors))


def _fake_backward(grad_attention, row_lse, column_lse, beta, exponentials, document, question, *_):
    return torch.empty_like(document), torch.empty_like(question)


def _setup_context(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *inputs[:4])
    ctx.options = inputs[4:]


def _autograd(ctx, grad_attention, *_):
    if grad_attention is None:
        return (None,) * 6
    gradients = _differentiable_backward(grad_attention, *ctx.saved_tensors, *ctx.options)
    return library.gradients_or_none(gradients, ctx.needs_input_grad)


def _results(**given) -> tuple[torch.Tensor]:
    names = ("document", "question", "document_mask", "question_mask")
    return (reference.attention_over_attention(*(given[name] for name in names)),)


_INPUTS = "Tensor document, Tensor question, Tensor? document_mask, Tensor? question_mask, bool keep, str? backend"
_SAVED = "Tensor row_lse, Tensor column_lse, Tensor beta, Tensor exponentials"
library.define(
    f"attention_over_attention({_INPUTS}) -> (Tensor attention, {_SAVED})",
    _forward,
    _fake_forward,
)
library.define(
    f"attention_over_attention_backward(Tensor grad_attention, {_SAVED}, {_INPUTS}) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_differentiable_backward = second_order.differentiable(
    "attention_over_attention_backward", ("grad_attention",), _results
)
_differentiable = library.differentiable("attention_over_attention", _setup_context, _autograd)
_BATCHED = dict.fromkeys(("document", "question", "document_mask", "question_mask"), 0)
fold_into_batch("attention_over_attention", _BATCHED, (0, 0, 0, 0, 0))
_BATCHED |= dict.fromkeys(("grad_attention", "row_lse", "column_lse", "beta", "exponentials"), 0)
fold_into_batch("attention_over_attention_backward", _BATCHED, (0, 0))


@register_flop_formula(torch.ops.attnkern.attention_over_attention)
def _forward_flops(document, question, *_, **__) -> int:
    return 2 * products.aoa(_problem(document, question))


@register_flop_formula(torch.ops.attnkern.attention_over_attention_backward)
def _backward_flops(grad_attention, row_lse, column_lse, beta, exponentials, document, question, *_, **__) -> int:
    return 2 * products.aoa_backward(_problem(document, question))


def _problem(document, question) -> Problem:
    """From shapes."""
    return Problem(batch=document[0], len_q=document[1], len_k=question[1], head_dim=document[2])
