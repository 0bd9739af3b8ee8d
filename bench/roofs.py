"""Rows of what the device can do at best: a matrix product, and a copy."""

from collections.abc import Iterator

import torch
from torch import Tensor

from attnkern.bench.peers import Contender
from attnkern.bench.problems import Row
from attnkern.mac import Count

INPUTS = ("source", "other")


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    """Two matrices, or source and destination; random, since zeros draw less power."""
    shape = (row.len_q, row.len_k) if row.kind == "matmul" else (row.len_q,)
    return tuple(torch.randn(shape, dtype=getattr(torch, row.dtype), device=device) for _ in range(2))


def contenders(row: Row, device: str, backends: list[str], peers: list[str]) -> Iterator[Contender]:
    size = getattr(torch, row.dtype).itemsize
    if row.kind == "matmul":
        work = Count(useful_macs=row.len_q**3, bytes=3 * row.len_q**2 * size)
        yield Contender("torch", lambda: lambda a, b: {"output": a @ b}, work)
    else:
        work = Count(bytes=2 * row.len_q * size)
        yield Contender("torch", lambda: lambda source, other: {"output": other.copy_(source)}, work)


def complaint(row: Row, tensors: tuple[Tensor, ...], *_, **__) -> None:
    """Torch's own results are taken as they are."""
