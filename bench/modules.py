"""Rows of whole modules: `attnkern.nn.MultiheadAttention` beside torch's, with the same parameters."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import attnkern
from bench.peers import Contender, softmax_flops
from bench.problems import SEED, Row
from bench.verify import judgement, relative_error

INPUTS = ("input",)
TOLERANCE = 5e-2  # relative, in norm: four products in bfloat16, one after the other


class SelfAttention(nn.Module):
    """`(B, L, E) -> (B, L, E)` by some multi-head attention, without its weights."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"output": self.attention(hidden, hidden, hidden, need_weights=False)[0]}


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    dtype = getattr(torch, row.dtype)
    return (torch.randn(row.batch, row.len_q, row.heads * row.head_dim, dtype=dtype, device=device),)


def contenders(row: Row, device: str, backends: list[str]) -> Iterator[Contender]:
    width = row.heads * row.head_dim
    linear = 2.0 * 4 * row.batch * row.len_q * width**2
    flops = softmax_flops(row) + linear * (1 if row.phase == "forward" else 3)
    for name in backends:
        if attnkern.explain(row.problem(device)).reasons[name] is None:
            yield Contender(f"attnkern[{name}]", lambda name=name: _build(row, device, name), flops=flops)
    yield Contender("nn.MultiheadAttention", lambda: _build(row, device, None), flops=flops)


def complaint(row: Row, tensors, results, gradients, starts) -> str | None:
    """Against torch's module in float32: its output, and gradients of input and parameters."""
    exact = _build(row, str(tensors[0].device), None).float()
    hidden = tensors[0].detach().float().requires_grad_(bool(gradients))
    with torch.set_grad_enabled(bool(gradients)):
        output = exact(hidden)["output"]
    relative = {"output": relative_error(results["output"].detach(), output)}
    if gradients:
        wanted = [hidden, *exact.parameters()]
        expected = torch.autograd.grad(output, wanted, starts["output"].float())
        for (name, gradient), correct in zip(gradients.items(), expected):
            relative[f"grad_{name}"] = relative_error(gradient, correct)
    return judgement(relative, TOLERANCE)


def _build(row: Row, device: str, backend: str | None) -> SelfAttention:
    """Torch's module, or ours on a backend; parameters are the same each time, biases included."""
    width = row.heads * row.head_dim
    generator = torch.Generator().manual_seed(SEED)
    module = nn.MultiheadAttention(width, row.heads, batch_first=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * width**-0.5)
    if backend is not None:
        ours = attnkern.nn.MultiheadAttention(width, row.heads, batch_first=True, backend=backend)
        ours.load_state_dict(copy.deepcopy(module.state_dict()))
        module = ours
    return SelfAttention(module).to(device, getattr(torch, row.dtype)).train(row.phase != "forward")
