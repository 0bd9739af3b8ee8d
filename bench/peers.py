"""Who computes attention: attnkern on each backend, and torch in every way that it offers.

A contender takes a row's inputs and returns its results by name. This file is about attention itself; `modules.py`,
`aoa.py`, `learned.py` and `roofs.py` have the same for rows of other kinds, `others.py` the packages that may be there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attnkern
from attnkern import mac
from attnkern.bench import others
from attnkern.bench.problems import EVERYWHERE, SEED, Row
from attnkern.bench.verify import allowed, complaint, mask_of
from attnkern.problem import UNLIMITED

SDPA = {
    "cpu": ("FLASH_ATTENTION", "MATH"),
    "cuda": ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"),
}
SMALL = 128  # queries
MATRICES = {"cpu": 1 << 30, "cuda": 48 << 30}  # bytes that whole score matrices, or copies of windows, may take
INPUTS = ("query", "key", "value")
Function = Callable[..., dict[str, Tensor]]
__all__ = ["INPUTS", "Contender", "complaint", "contenders", "inputs"]


class TooLarge(MemoryError):
    """It would take more memory than it is given."""


@dataclass(frozen=True)
class Contender:
    """An implementation of a row.

    Attributes:
        build: makes the function; may raise where the implementation cannot run here.
        count: its work; `issued_macs` is 0 where it is not known.
        through: the results that the timed backward starts from.
        role: "other" is what is measured beside the row but computes something else.
    """

    name: str
    build: Callable[[], Function]
    count: mac.Count
    through: tuple[str, ...] = ("output",)
    role: Literal["ours", "peer", "other"] = "peer"


def inputs(row: Row, device: str) -> tuple[Tensor, ...]:
    """query `(B, H, Lq, D)`, key and value `(B, Hkv, Lk, D)`, random."""
    shapes = ((row.heads, row.len_q), (row.kv_heads, row.len_k), (row.kv_heads, row.len_k))
    options = {"dtype": getattr(torch, row.dtype), "device": device}
    return tuple(torch.randn(row.batch, *shape, row.head_dim, **options) for shape in shapes)


def contenders(row: Row, device: str, backends: list[str], peers: list[str]) -> Iterator[Contender]:
    """Everyone that computes the row's attention, of the backends and peers that are named."""
    problem = row.problem(device)
    through = row.through if row.kind == "hard" else ("output",)
    for name in (name for name in backends if attnkern.explain(problem).reasons[name] is None):
        work = mac.count(problem, row.phase, through=through, backend=name)
        function = hard if row.kind == "hard" else ours
        yield Contender(f"attnkern[{name}]", partial(function, row, device, name), work, through, "ours")
        if row.kind == "hard":  # what it costs to look everywhere softly
            softly = replace(row, kind="global", loss="output", num_samples=1)
            work = mac.count(softly.problem(device), row.phase, backend=name)
            yield Contender(f"global[{name}]", partial(ours, softly, device, name), work, role="other")
    work = useful_alone(mac.count(problem, row.phase, through=through))
    for name, build in _peers(row, device, peers):
        yield Contender(name, build, work, through)


def useful_alone(count: mac.Count) -> mac.Count:
    """The work by definition, of an implementation whose tiles are not known."""
    return mac.Count(count.useful_macs, 0, count.bytes, count.exps, count.randoms)


def _peers(row: Row, device: str, names: list[str]) -> Iterator[tuple[str, Callable[[], Function]]]:
    if row.dropout_p:  # theirs draws other numbers, which nothing here can check
        return
    if "naive" in names:
        yield "naive", partial(naive_hard if row.kind == "hard" else naive, row, device)
    if row.kind == "hard":
        return
    if row.softcap:  # FlexAttention alone has it, by a score_mod that is not written here
        return
    if "sdpa" in names:
        # choosing torch's backend by hand takes as long as a small call, whose host time is most there is
        for backend in (None,) if row.len_q <= SMALL else SDPA[device]:
            name = f"SDPA {backend.split('_')[0].lower()}" if backend else "SDPA"
            yield name, partial(sdpa, row, device, backend)
    if row.mask:
        return
    if "flex" in names and row.len_q > SMALL:
        yield "FlexAttention", partial(flex, row, device)
    for name in others.NAMES:
        if name in names and others.computes(name, row.kind):
            yield name, partial(others.build, name, row, device)


def ours(row: Row, device: str, backend: str) -> Function:
    options = {"is_causal": row.causal, "enable_gqa": row.heads != row.kv_heads, "backend": backend}
    options |= {"attn_mask": mask_of(row, device), "softcap": row.softcap, "dropout_p": row.dropout_p}
    if row.dropout_p:
        options["seed"] = torch.tensor(SEED, device=device)
    function = attnkern.global_attention
    if row.kind == "decode":
        options["query_offset"] = "end"
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


def naive(row: Row, device: str) -> Function:
    """As the definition is written."""
    mask = _mask(row, device, copies=3 if row.phase == "forward" else 6)

    def run(query, key, value):
        score = _scores(row, query, key, mask)
        return {"output": torch.softmax(score, -1) @ _shared(row, value)}

    return run


def _scores(row: Row, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    score = query @ _shared(row, key).mT * row.head_dim**-0.5
    if row.softcap:
        score = row.softcap * torch.tanh(score / row.softcap)
    if row.mask == "float":
        return score + mask
    return score if mask is None else score.masked_fill(~mask, float("-inf"))


def naive_hard(row: Row, device: str) -> Function:
    """Softmax, `torch.multinomial`, gather; and of the rest only what the loss needs."""
    mask = _mask(row, device, copies=4 if row.phase == "forward" else 6)

    def run(query, key, value):
        score = _scores(row, query, key, mask)
        weights = torch.softmax(score.detach(), -1)
        index = torch.multinomial(weights.flatten(0, 2), row.num_samples, replacement=True)
        index = index.view(*score.shape[:3], -1).movedim(-1, 0)  # (S, B, H, Lq)
        places = index[..., None].expand(*index.shape, value.shape[-1])
        values = _shared(row, value).expand(row.num_samples, *query.shape[:2], *value.shape[2:])
        results = {"output": values.gather(3, places), "index": index}
        if "score" in row.through:
            results["score"] = score.gather(3, index.movedim(0, -1)).movedim(-1, 0)
        if "lse" in row.through:
            results["lse"] = score.logsumexp(-1)
        return results

    return run


def sdpa(row: Row, device: str, backend: str | None) -> Function:
    options = {"enable_gqa": row.heads != row.kv_heads}
    if row.window == EVERYWHERE and not row.mask:
        options["is_causal"] = row.causal and row.kind != "decode"  # the one query there sees every key
    else:
        options["attn_mask"] = _mask(row, device, copies=3 if backend == "MATH" else 0)
    if backend == "MATH":
        _afford(row, device, copies=3 if row.phase == "forward" else 6)

    def run(query, key, value):
        if backend is None:
            return {"output": F.scaled_dot_product_attention(query, key, value, **options)}
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return {"output": F.scaled_dot_product_attention(query, key, value, **options)}

    return run


def flex(row: Row, device: str) -> Function:
    # the backward is timed many times over one graph
    torch._functorch.config.donated_buffer = False
    left, right = row.problem(device).band
    offset = row.offset

    # comparisons of a vector with a scalar: only their conjunction is as large as the score matrix
    def inside(batch, head, i, j):
        visible = j >= 0
        if left != UNLIMITED:
            visible = visible & (j + left >= i + offset)
        if right != UNLIMITED:
            visible = visible & (j - right <= i + offset)
        return visible

    block_mask = None
    if (left, right) != EVERYWHERE:
        block_mask = create_block_mask(inside, None, None, row.len_q, row.len_k, device=device)
    options = {"block_mask": block_mask, "enable_gqa": row.heads != row.kv_heads}

    def attend(query, key, value):
        return flex_attention(query, key, value, **options)

    # torch.compile counts its graphs by the code that they are of, and gives up after a few: each row has its own
    own = FunctionType(attend.__code__.replace(), globals(), closure=attend.__closure__)
    compiled = torch.compile(own, dynamic=False)
    return lambda query, key, value: {"output": compiled(query, key, value)}


def _shared(row: Row, tensor: Tensor) -> Tensor:
    """Keys or values, each as often as heads share it."""
    return tensor if row.heads == row.kv_heads else tensor.repeat_interleave(row.heads // row.kv_heads, 1)


def _mask(row: Row, device: str, copies: int) -> Tensor | None:
    """`(Lq, Lk)`, True where a query may look, or what a float mask adds; None if there is nothing to say."""
    _afford(row, device, copies)
    mask = mask_of(row, device)
    if row.window == EVERYWHERE and (not row.causal or row.kind == "decode"):
        return mask
    seen = allowed(row, 0, row.len_q, device)
    if row.mask == "float":
        return mask.masked_fill(~seen, float("-inf"))
    return seen if mask is None else seen & mask


def _afford(row: Row, device: str, copies: int) -> None:
    """Refuses what stores the whole score matrix that often."""
    needed = copies * row.batch * row.heads * row.len_q * row.len_k * getattr(torch, row.dtype).itemsize
    afford(needed, device, "score matrices")


def afford(needed: int, device: str, what: str) -> None:
    """Refuses what stores so many bytes, before the machine runs out of memory."""
    if needed > MATRICES[device]:
        limit = MATRICES[device] / 2**30
        raise TooLarge(f"needs {needed / 2**30:.1f} GiB for {what}, more than the {limit:.0f} GiB allowed")
