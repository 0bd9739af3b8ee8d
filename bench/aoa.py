"""Rows of attention-over-attention (Cui et al. 2017), beside the definition as torch runs it."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import attnkern
from attnkern import mac
from attnkern.bench.peers import Contender, Function, useful_alone
from attnkern.bench.problems import Row
from attnkern.bench.verify import TOLERANCE, judgement, relative_error

INPUTS = ("document", "question")


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    """document `(B, Ld, D)` and question `(B, Lq, D)`; scores about as large as a scaled dot product's."""
    options = {"dtype": getattr(torch, row.dtype), "device": device}
    scale = row.head_dim**-0.25
    return tuple(torch.randn(row.batch, length, row.head_dim, **options) * scale for length in (row.len_q, row.len_k))


def contenders(row: Row, device: str, backends: list[str], peers: list[str]) -> Iterator[Contender]:
    problem = row.problem(device)
    reasons = attnkern.explain(problem).reasons
    for name in (name for name in backends if reasons[name] is None):
        work = mac.count(problem, row.phase, backend=name)
        yield Contender(f"attnkern[{name}]", lambda name=name: ours(name), work, role="ours")
    if "naive" in peers:
        yield Contender("naive", lambda: naive, useful_alone(mac.count(problem, row.phase)))


def ours(backend: str) -> Function:
    function = partial(attnkern.attention_over_attention, backend=backend)
    return lambda document, question: {"output": function(document, question)}


def naive(document: Tensor, question: Tensor) -> dict[str, Tensor]:
    """`(B, Ld)`: over the document for each word of the question, weighted by what the document asks for on average."""
    score = document @ question.mT
    over_document, over_question = torch.softmax(score, -2), torch.softmax(score, -1)
    return {"output": (over_document @ over_question.mean(-2).unsqueeze(-1)).squeeze(-1)}


def complaint(row: Row, tensors, results, gradients, starts, same_seed=True) -> str | None:
    """Against the definition in float64: its output, and gradients of document and question."""
    exact = [tensor.detach().double().requires_grad_(bool(gradients)) for tensor in tensors]
    output = naive(*exact)["output"]
    relative = {"output": relative_error(results["output"].detach(), output)}
    if gradients:
        expected = torch.autograd.grad(output, exact, starts["output"].double())
        relative |= {f"grad_{name}": relative_error(gradients[name], one) for name, one in zip(INPUTS, expected)}
    return judgement(relative, TOLERANCE[row.dtype])
