"""Attention-over-Attention by native kernels (csrc/cpu)."""

import torch
from torch import Tensor

from attnkern import _cpu


def forward(
    document: Tensor,
    question: Tensor,
    document_mask: Tensor | None,
    question_mask: Tensor | None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `aoa_blocked.forward` says; `kept` is filled with scores."""
    attention = document.new_empty(document.shape[:2])
    if kept is not None and (document_mask is not None or question_mask is not None):
        kept.zero_()  # what is no word's is never filled
    row_lse = torch.empty_like(attention, dtype=torch.float32)
    column_lse = question.new_empty(question.shape[:2], dtype=torch.float32)
    beta = torch.empty_like(column_lse)
    others = *_contiguous(document_mask, question_mask), kept
    call = _call(document, question, *others)
    _cpu.aoa_forward(call, attention, row_lse, column_lse, beta)
    return attention, row_lse, column_lse, beta


def backward(
    grad: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    beta: Tensor,
    document: Tensor,
    question: Tensor,
    document_mask: Tensor | None,
    question_mask: Tensor | None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of document and question."""
    grad_document, grad_question = torch.empty_like(document), torch.empty_like(question)
    others = _contiguous(document_mask, question_mask, kept)
    call = _call(document, question, *others)
    _cpu.aoa_backward(call, grad, column_lse.contiguous(), beta.contiguous(), grad_document, grad_question)
    return grad_document, grad_question


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _call(document: Tensor, question: Tensor, *others: Tensor | None) -> "_cpu.AoaCall":
    """It knows addresses: its tensors must be kept until it is over."""
    sizes = (*document.shape[:2], question.shape[1], document.shape[2])
    return _cpu.AoaCall(sizes, document, question, *others, torch.get_num_threads())
