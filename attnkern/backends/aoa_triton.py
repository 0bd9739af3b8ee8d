"""Attention-over-Attention's Triton kernels: their host side."""

import torch
import triton
from torch import Tensor

from attnkern.backends.launching import padded, precision, with_unit_stride
from attnkern.triton_kernels import aoa as kernels
from attnkern.triton_kernels import aoa_backward as backward_kernels
from attnkern.triton_kernels.scores import LOG2E

ONE_TILE = 128  # words of a question up to which it is one tile
COLUMNS = 64  # of a tile of a longer question
ROWS = 64  # of a tile: words of the document
WARPS = 8
PROGRAMS = 256  # enough to fill a GPU
FEWEST_TILES = 4  # of a split: its partial sums are few beside its words


def forward(
    document: Tensor, question: Tensor, document_mask: Tensor | None, question_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The attention `(B, Ld)`, the lse of rows `(B, Ld)` and columns `(B, Lq)`, and beta `(B, Lq)`."""
    call = Call(document, question, document_mask, question_mask)
    attention = document.new_empty(document.shape[:2])
    row_lse = torch.empty_like(attention, dtype=torch.float32)
    tops, totals, sums = (call.new_columns() for _ in range(3))
    if not call.arguments["ONE_TILE"]:
        call.launch(kernels.aoa_rows, call.row_tiles, row_lse=row_lse)
    call.launch(
        kernels.aoa_columns, call.column_tiles, row_lse=row_lse, column_top=tops, column_total=totals, beta=sums
    )
    top = tops.amax(0)
    total = (totals * (tops - top).exp()).sum(0)
    filled = _nonzero(total)
    beta = sums.sum(0) / call.count
    call.launch(kernels.aoa_attention, call.row_tiles, column_top=top, weights=beta / filled, attention=attention)
    return attention, row_lse, torch.where(total > 0, top + filled.log(), 0.0), beta


def backward(
    grad: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    beta: Tensor,
    document: Tensor,
    question: Tensor,
    document_mask: Tensor | None,
    question_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of document and question."""
    call = Call(document, question, document_mask, question_mask)
    call.arguments |= {"grad_attention": grad.contiguous(), "row_lse": row_lse.contiguous(), "row_mean": row_lse}
    call.arguments["column_lse"] = column_lse.contiguous()
    sums, totals = call.new_columns(), call.new_columns()
    call.launch(backward_kernels.aoa_grad_columns, call.column_tiles, grad_columns=sums, column_total=totals)
    # the lse was rounded: its softmax adds up to not quite 1
    total = _nonzero(totals.sum(0))
    grad_columns = sums.sum(0) / total
    call.arguments |= {"beta": beta / total, "grad_columns": grad_columns, "mean": grad_columns / call.count}
    if not call.arguments["ONE_TILE"]:
        row_mean = torch.empty_like(row_lse)
        call.launch(backward_kernels.aoa_row_mean, call.row_tiles, row_mean=row_mean)
        call.arguments["row_mean"] = row_mean

    grad_document = torch.empty_like(call.arguments["document"])
    batch_stride, row_stride, _ = grad_document.stride()
    call.launch(
        backward_kernels.aoa_backward_document,
        call.row_tiles * call.chunks,
        grad_document=grad_document,
        stride_gdb=batch_stride,
        stride_gdm=row_stride,
    )
    partial = call.new_columns(document.shape[2])
    call.launch(backward_kernels.aoa_backward_question, call.column_tiles * call.chunks, grad_question=partial)
    return grad_document, partial.sum(0)


def _nonzero(total: Tensor) -> Tensor:
    return torch.where(total > 0, total, 1.0)


class Call:
    """What every kernel may ask for, and how many programs it takes."""

    def __init__(
        self,
        document: Tensor,
        question: Tensor,
        document_mask: Tensor | None = None,
        question_mask: Tensor | None = None,
    ):
        masks = document_mask, question_mask
        batch, len_d, features = document.shape
        len_q = question.shape[1]
        document, question = with_unit_stride(document), with_unit_stride(question)
        # a mask that is not there is never read
        document_mask, question_mask = (
            document if mask is None else mask.contiguous().view(torch.uint8) for mask in masks
        )
        self.count = len_d if masks[0] is None else masks[0].sum(1, keepdim=True).clamp(min=1)
        block_n = padded(len_q) if len_q <= ONE_TILE else COLUMNS
        block_e = min(padded(features), 64)
        tiles = triton.cdiv(len_q, block_n)
        self.chunks = triton.cdiv(features, block_e)
        self.row_tiles = batch * triton.cdiv(len_d, ROWS)
        split = ROWS * max(FEWEST_TILES, triton.cdiv(self.row_tiles * tiles, PROGRAMS))
        self.splits = triton.cdiv(len_d, split)
        self.column_tiles = self.splits * batch * tiles
        halved = document.dtype != torch.float32
        self.arguments = {
            "document": document, "question": question, "document_mask": document_mask, "question_mask": question_mask,
            "stride_db": document.stride(0), "stride_dm": document.stride(1),
            "stride_qb": question.stride(0), "stride_qn": question.stride(1),
            "batches": batch, "len_d": len_d, "len_q": len_q, "split": split,
            "DOCUMENT_MASK": masks[0] is not None, "QUESTION_MASK": masks[1] is not None,
            "FEATURES": features, "ONE_TILE": tiles == 1,
            "BLOCK_M": ROWS, "BLOCK_N": block_n, "BLOCK_E": block_e,
            "PRECISION": precision(document.dtype),
            # 16-bit words are exact in tf32, and so is the range of their small gradients
            "GRAD_PRECISION": "tf32" if halved else precision(document.dtype),
            "UNIT": LOG2E.value if halved else 1.0,
        }  # fmt: skip

    def new_columns(self, *width: int) -> Tensor:
        """A part for each split of the document, `(splits, B, Lq, *width)`."""
        question = self.arguments["question"]
        return question.new_empty(self.splits, *question.shape[:2], *width, dtype=torch.float32)

    def launch(self, kernel, programs: int, **tensors) -> None:
        """Runs one kernel; takes from the arguments those it names."""
        if programs == 0:
            return
        arguments = self.arguments | tensors
        arguments = {name: arguments[name] for name in kernel.arg_names if name in arguments}
        kernel[(programs,)](**arguments, num_warps=WARPS, num_stages=2)
