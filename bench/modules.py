"""Rows of whole modules: `attnkern.nn.MultiheadAttention` beside torch's, with the same parameters."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import attnkern
from attnkern import mac
from attnkern.bench.peers import Contender, useful_alone
from attnkern.bench.problems import SEED, Row
from attnkern.bench.verify import judgement, relative_error

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


def contenders(row: Row, device: str, backends: list[str], peers: list[str]) -> Iterator[Contender]:
    problem, linear = row.problem(device), _linear(row)
    for name in backends:
        if attnkern.explain(problem).reasons[name] is None:
            work = mac.count(problem, row.phase, backend=name) + linear
            yield Contender(f"attnkern[{name}]", lambda name=name: _build(row, device, name), work, role="ours")
    if "mha" in peers:
        work = useful_alone(mac.count(problem, row.phase) + linear)
        yield Contender("nn.MultiheadAttention", lambda: _build(row, device, None), work)


def _linear(row: Row) -> mac.Count:
    """The four projections: a product forward, and two backward, of the input's gradient and the weights'."""
    width, tokens = row.heads * row.head_dim, row.batch * row.len_q
    size = getattr(torch, row.dtype).itemsize
    products = {"forward": 1, "backward": 2, "training": 3}[row.phase]
    macs = products * 4 * tokens * width**2
    return mac.Count(macs, macs, products * 4 * size * (width**2 + 2 * tokens * width))


def complaint(row: Row, tensors, results, gradients, starts, same_seed=True) -> str | None:
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
