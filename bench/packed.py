"""Rows of packed sequences of different lengths, beside the ways that torch has for them."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

import attnkern
from attnkern import mac
from attnkern.bench.peers import Contender, Function, useful_alone
from attnkern.bench.problems import Row
from attnkern.bench.verify import TOLERANCE, judgement, relative_error
from attnkern.packing import places

INPUTS = ("query", "key", "value")


def _lengths(row: Row) -> list[int]:
    """Evenly from 1 to `len_q`: as many places would be padding as hold tokens."""
    return torch.linspace(1, row.len_q, row.batch).round().int().tolist()


def _begins(row: Row, device: str) -> Tensor:
    """`cu_seq`, int32 `(B + 1,)`."""
    return torch.tensor([0, *accumulate(_lengths(row))], dtype=torch.int32, device=device)


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    """query, key and value `(T, H, D)`, random."""
    shape = (sum(_lengths(row)), row.heads, row.head_dim)
    return tuple(torch.randn(shape, dtype=getattr(torch, row.dtype), device=device) for _ in INPUTS)


def contenders(row: Row, device: str, backends: list[str], peers: list[str]) -> Iterator[Contender]:
    reasons = attnkern.explain(row.problem(device)).reasons
    for name in (name for name in backends if reasons[name] is None):
        yield Contender(f"attnkern[{name}]", partial(ours, row, device, name), _count(row, device, name), role="ours")
    work = useful_alone(_count(row, device, None))
    for name, build in _peers(device, peers):
        yield Contender(name, partial(build, row, device), work)


def _peers(device: str, names: list[str]) -> Iterator[tuple[str, Callable[[Row, str], Function]]]:
    if "naive" in names:
        yield "naive", naive
    if "sdpa" in names:
        yield "SDPA padded", padded
        yield "SDPA nested", nested
        if device == "cuda":
            yield "varlen_attn", varlen


def _count(row: Row, device: str, backend: str | None) -> mac.Count:
    """Of all sequences, each for itself."""
    alone = (replace(row, batch=1, len_q=length, len_k=length) for length in _lengths(row))
    return sum((mac.count(one.problem(device), row.phase, backend=backend) for one in alone), mac.Count())


def ours(row: Row, device: str, backend: str) -> Function:
    options = _packing(row, device) | {"backend": backend}
    return lambda *tensors: {"output": attnkern.global_attention(*tensors, **options)}


def _packing(row: Row, device: str) -> dict[str, Tensor | int]:
    begins = _begins(row, device)
    return {"cu_seq_q": begins, "cu_seq_k": begins, "max_q": row.len_q, "max_k": row.len_k}


def naive(row: Row, device: str) -> Function:
    """One sequence after the other, as the definition is written."""

    def run(*tensors):
        sequences = zip(*(tensor.transpose(0, 1).split(_lengths(row), 1) for tensor in tensors))
        scores = ((query @ key.mT * row.head_dim**-0.5, value) for query, key, value in sequences)
        return {"output": torch.cat([torch.softmax(score, -1) @ value for score, value in scores], 1).transpose(0, 1)}

    return run


def padded(row: Row, device: str) -> Function:
    """What it takes to use a dense kernel: padding, a mask, and taking the padding out again."""
    begins = _begins(row, device)
    sequence, place = places(begins, int(begins[-1]))
    real = (torch.arange(row.len_q, device=device) < begins.diff()[:, None])[:, None, None]

    def run(*tensors):
        dense = [t.new_zeros(row.batch, row.len_q, *t.shape[1:]).index_put((sequence, place), t) for t in tensors]
        output = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in dense), attn_mask=real)
        return {"output": output.transpose(1, 2)[sequence, place]}

    return run


def nested(row: Row, device: str) -> Function:
    """Torch's own tensors of different lengths."""
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
    begins = _begins(row, device).long()

    def run(*tensors):
        jagged = (torch.nested.nested_tensor_from_jagged(tensor, begins, max_seqlen=row.len_q) for tensor in tensors)
        output = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in jagged))
        return {"output": output.transpose(1, 2).values()}

    return run


def varlen(row: Row, device: str) -> Function:
    from torch.nn.attention.varlen import varlen_attn

    packing = _packing(row, device)
    return lambda *tensors: {"output": varlen_attn(*tensors, **packing)}


def complaint(row: Row, tensors, results, gradients, starts, same_seed=True) -> str | None:
    """Against the definition in float64, of the first head: its output and all gradients."""
    exact = [tensor.detach()[:, :1].double().requires_grad_(bool(gradients)) for tensor in tensors]
    output = naive(row, "")(*exact)["output"]
    relative = {"output": relative_error(results["output"].detach()[:, :1], output)}
    if gradients:
        expected = torch.autograd.grad(output, exact, starts["output"][:, :1].double())
        relative |= {f"grad_{name}": relative_error(gradients[name][:, :1], one) for name, one in zip(INPUTS, expected)}
    return judgement(relative, TOLERANCE[row.dtype])
