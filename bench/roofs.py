"""What the device can do at best, measured: a matrix product, and a copy."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.peers import Contender
from bench.problems import Row

INPUTS = ("source", "other")
SIDE = 8192
COPIED = 1 << 30  # bytes read, and as many written


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    """Two matrices, or source and destination; random, since zeros draw less power."""
    shape = (SIDE, SIDE) if row.kind == "matmul" else (COPIED // 2,)
    return tuple(torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2))


def contenders(row: Row, device: str, backends: list[str]) -> Iterator[Contender]:
    if row.kind == "matmul":
        yield Contender("torch", lambda: lambda a, b: {"output": a @ b}, flops=2.0 * SIDE**3)
    else:
        yield Contender("torch", lambda: lambda source, other: {"output": other.copy_(source)}, bytes=2.0 * COPIED)


def complaint(*_) -> None:
    """Torch's own results are taken as they are."""
