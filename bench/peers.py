"""Who is measured: attnkern on each backend, torch's own attention, and what else is installed.

A contender takes a row's inputs and returns its results by name. This file is about attention itself;
`modules.py` and `roofs.py` have the same three functions for rows of other kinds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attnkern
from attnkern.problem import UNLIMITED
from bench.problems import EVERYWHERE, SEED, Row
from bench.verify import complaint

SDPA = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")
SMALL = 128  # queries
INPUTS = ("query", "key", "value")
Function = Callable[..., dict[str, Tensor]]
__all__ = ["INPUTS", "Contender", "complaint", "contenders", "inputs"]


@dataclass(frozen=True)
class Contender:
    """An implementation of a row.

    Attributes:
        build: makes the function; may raise where the implementation cannot run here.
        through: the results that the timed backward starts from.
        flops: useful operations of what is timed, None where counting them says nothing.
        bytes: read and written, where that is the measure.
    """

    name: str
    build: Callable[[], Function]
    through: tuple[str, ...] = ("output",)
    flops: float | None = None
    bytes: float | None = None

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("attnkern")


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    """query `(B, H, Lq, D)`, key and value `(B, Hkv, Lk, D)`, random."""
    shapes = ((row.heads, row.len_q), (row.kv_heads, row.len_k), (row.kv_heads, row.len_k))
    options = {"dtype": getattr(torch, row.dtype), "device": device}
    return tuple(torch.randn(row.batch, *shape, row.head_dim, **options) for shape in shapes)


def contenders(row: Row, device: str, backends: list[str]) -> Iterator[Contender]:
    """Everyone that computes the row's attention; hard attention has no peer but our own global attention."""
    # choosing torch's backend by hand takes as long as a small call, whose host time is all there is
    small = row.len_q <= SMALL
    softmax = partial(Contender, flops=None if small else softmax_flops(row))
    for name in (name for name in backends if attnkern.explain(row.problem(device)).reasons[name] is None):
        if row.kind == "hard":
            through = {"output": ("output",), "score": ("score",), "log_prob": ("score", "lse")}[row.loss]
            yield Contender(f"attnkern[{name}]", partial(hard, row, device, name), through, hard_flops(row))
            yield softmax(f"global[{name}]", partial(ours, row, name))
        else:
            yield softmax(f"attnkern[{name}]", partial(ours, row, name))
    if row.kind == "hard":
        return
    if small:
        yield softmax("SDPA", partial(sdpa, row, None))
        return
    if row.window == EVERYWHERE:
        for backend in SDPA:
            yield softmax(f"SDPA {backend.split('_')[0].lower()}", partial(sdpa, row, backend))
    if device == "cuda":
        yield softmax("FlexAttention", partial(flex, row, device))
    if find_spec("flash_attn"):
        yield softmax("flash_attn", partial(flash, row))


def softmax_flops(row: Row) -> float:
    """Two products over the pairs that the window admits, `4 * pairs * D`; backward 2.5 times that."""
    forward = 4.0 * row.problem("cuda").pairs() * row.head_dim
    return forward * {"forward": 1, "backward": 2.5, "training": 3.5}[row.phase]


def hard_flops(row: Row) -> float | None:
    """One product forward and three backward; the backward of a score alone is a gather, not a product."""
    product = 2.0 * row.problem("cuda").pairs() * row.head_dim
    return product if row.phase == "forward" else 3 * product if row.loss == "log_prob" else None


def ours(row: Row, backend: str) -> Function:
    options = {"is_causal": row.causal, "enable_gqa": row.heads != row.kv_heads, "backend": backend}
    function = attnkern.global_attention
    if row.window != EVERYWHERE:
        function, options = attnkern.local_attention, options | {"window": row.window}
    return lambda query, key, value: {"output": function(query, key, value, **options)}


def hard(row: Row, device: str, backend: str) -> Function:
    seed = torch.tensor(SEED, device=device)
    window = None if row.window == EVERYWHERE else row.window

    def run(query, key, value):
        return attnkern.hard_attention(
            query, key, value, is_causal=row.causal, enable_gqa=row.heads != row.kv_heads,
            num_samples=row.num_samples, window=window, seed=seed, backend=backend,
        )._asdict()  # fmt: skip

    return run


def sdpa(row: Row, backend: str | None) -> Function:
    attend = partial(F.scaled_dot_product_attention, is_causal=row.causal, enable_gqa=row.heads != row.kv_heads)

    def run(query, key, value):
        if backend is None:
            return {"output": attend(query, key, value)}
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return {"output": attend(query, key, value)}

    return run


def flex(row: Row, device: str) -> Function:
    torch._dynamo.reset()  # one graph per row: no limit on how often it compiles
    # the backward is timed many times over one graph
    torch._functorch.config.donated_buffer = False
    left, right = row.problem(device).band

    # comparisons of a vector with a scalar: only their conjunction is as large as the score matrix
    def inside(batch, head, i, j):
        allowed = j >= 0
        if left != UNLIMITED:
            allowed = allowed & (j + left >= i)
        if right != UNLIMITED:
            allowed = allowed & (j - right <= i)
        return allowed

    block_mask = None
    if (left, right) != EVERYWHERE:
        block_mask = create_block_mask(inside, None, None, row.len_q, row.len_k, device=device)
    options = {"block_mask": block_mask, "enable_gqa": row.heads != row.kv_heads}
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda query, key, value: {"output": compiled(query, key, value, **options)}


def flash(row: Row) -> Function:
    from flash_attn import flash_attn_func

    def run(query, key, value):
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        output = flash_attn_func(query, key, value, causal=row.causal, window_size=row.window)
        return {"output": output.transpose(1, 2)}

    return run
