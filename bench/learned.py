"""Rows of windows and Gaussians around learned centres (local-p, Luong et al. 2015), scattered over the sequence."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import attnkern
from attnkern import mac
from attnkern.backends.choose import refusal
from attnkern.bench.peers import Contender, Function, afford, useful_alone
from attnkern.bench.problems import Row
from attnkern.bench.verify import QUERIES, TOLERANCE, judgement, relative_error

INPUTS = ("query", "key", "value", "center", "sigma")


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    """query, key and value `(B, H, L, D)`; center and sigma `(B, H, L)`, float32. Sigma is about half the window."""
    shape = (row.batch, row.heads, row.len_q)
    tensors = (torch.randn(*shape, row.head_dim, dtype=getattr(torch, row.dtype), device=device) for _ in range(3))
    center, sigma = torch.rand(2, *shape, device=device)
    return *tensors, center * row.len_k, (sigma + 0.5) * row.window[0] / 2


def contenders(row: Row, device: str, backends: list[str], peers: list[str]) -> Iterator[Contender]:
    problem = row.problem(device)
    for name in (name for name in backends if refusal(name, problem) is None):  # those that run when named, too
        work = mac.count(problem, row.phase, backend=name)
        yield Contender(f"attnkern[{name}]", partial(ours, row, name), work, role="ours")
    work = useful_alone(mac.count(problem, row.phase))
    if "naive" in peers:
        yield Contender("gathered", partial(gathered, row, device), work)


def ours(row: Row, backend: str) -> Function:
    def run(query, key, value, center, sigma):
        options = {"window": row.window, "backend": backend}
        return {"output": attnkern.local_attention(query, key, value, center=center, sigma=sigma, **options)}

    return run


def gathered(row: Row, device: str) -> Function:
    """Every query's window of keys and values, copied: as it is written without a kernel of its own."""
    left, right = row.window
    steps = torch.arange(-left, right + 1, device=device)
    needed = 2 * row.batch * row.heads * row.len_q * len(steps) * row.head_dim * getattr(torch, row.dtype).itemsize
    afford(needed, device, "copies of windows")

    def run(query, key, value, center, sigma):
        place = center.floor().long().unsqueeze(-1) + steps
        seen = (place >= 0) & (place < row.len_k)
        taken = place.clamp(0, row.len_k - 1).flatten(2).unsqueeze(-1).expand(-1, -1, -1, row.head_dim)
        keys, values = (tensor.gather(2, taken).unflatten(2, place.shape[2:]) for tensor in (key, value))
        score = (keys @ query.unsqueeze(-1)).squeeze(-1) * row.head_dim**-0.5
        weights = score.masked_fill(~seen, float("-inf")).softmax(-1)
        distance = (place - center.unsqueeze(-1)) / sigma.unsqueeze(-1)
        weights = weights * torch.exp(-0.5 * distance.square()).to(weights.dtype)
        return {"output": (weights.unsqueeze(-2) @ values).squeeze(-2)}

    return run


def complaint(row: Row, tensors, results, gradients, starts, same_seed=True) -> str | None:
    """Against the reference in float64, of the first head, a thousand queries at a time: output and all gradients."""
    exact = [tensor.detach()[:1, :1].double().requires_grad_(bool(gradients)) for tensor in tensors]
    outputs = []
    for begin in range(0, row.len_q, QUERIES):
        query, center, sigma = (exact[place][:, :, begin : begin + QUERIES] for place in (0, 3, 4))
        options = {"window": row.window, "center": center, "sigma": sigma, "backend": "reference"}
        output = attnkern.local_attention(query, *exact[1:3], **options)
        outputs.append(output.detach())
        if gradients:
            output.backward(starts["output"][:1, :1, begin : begin + QUERIES].double())
    relative = {"output": relative_error(results["output"].detach()[:1, :1], torch.cat(outputs, 2))}
    relative |= {f"grad_{name}": relative_error(gradients[name][:1, :1], one.grad) for name, one in zip(INPUTS, exact)
                 if name in gradients}  # fmt: skip
    return judgement(relative, TOLERANCE[row.dtype])
