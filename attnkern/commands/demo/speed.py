"""The three kinds timed beside torch's SDPA and naive torch, in one run, each checked before it is timed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import attnkern
from attnkern.commands.demo.timing import median_times

REACH = 128  # keys to each side of a query, for local
HEAD_DIM = 64
HEADS = {"cpu": 2, "cuda": 16}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
LENGTHS = {"cpu": (512, 1024, 2048, 4096), "cuda": (1024, 2048, 4096, 8192, 16384)}
QUICK_LENGTHS = (256, 512)
NAIVE_BYTES = {"cpu": 1 << 29, "cuda": 16 << 30}  # naive torch is skipped where it would take more
FORWARD, BOTH = PHASES = ("forward", "forward + backward")
NAIVE_MATRICES = {FORWARD: 3, BOTH: 6}  # of scores, that naive torch holds at once
OURS, SDPA, NAIVE = "attnkern", "SDPA", "naive"
SEED = 7


@dataclass(frozen=True)
class SpeedRow:
    """Seconds of each contender, None where it would take too much memory."""

    kind: str
    phase: str
    length: int
    agrees: bool
    seconds: dict[str, float | None]


def count(lengths: tuple[int, ...]) -> int:
    """How many rows `measure` yields."""
    return len(KINDS) * len(lengths) * len(PHASES)


def measure(device: str, lengths: tuple[int, ...], seconds: float) -> Iterator[SpeedRow]:
    """Rows as they are measured; each takes about `seconds` where its calls are short."""
    for kind, (operation, contenders_of) in KINDS.items():
        for length in lengths:
            generator = torch.Generator().manual_seed(SEED)
            shape = (1, HEADS[device], length, HEAD_DIM)
            inputs = [torch.randn(shape, generator=generator).to(device, DTYPE[device]) for _ in range(3)]
            agrees = _agrees(operation, inputs)
            contenders = {OURS: operation, **contenders_of(length, inputs[0])} if agrees else {}
            for phase in PHASES:
                calls = {name: _call(function, inputs, phase) for name, function in contenders.items()}
                if NAIVE_MATRICES[phase] * inputs[0].itemsize * HEADS[device] * length**2 > NAIVE_BYTES[device]:
                    calls.pop(NAIVE, None)
                times = median_times(calls, device, seconds)
                yield SpeedRow(kind, phase, length, agrees, {name: times.get(name) for name in contenders})


def _call(function: Callable, inputs: list[Tensor], phase: str) -> Callable[[], object]:
    """The function as one timed call: without gradients, or with those of all its results."""
    if phase == FORWARD:
        return torch.no_grad()(partial(function, *inputs))
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]

    def forward_and_backward():
        results = function(*inputs)
        return torch.autograd.grad(results, inputs, [torch.ones_like(result) for result in results])

    return forward_and_backward


def _agrees(operation: Callable, inputs: list[Tensor]) -> bool:
    """Whether the first head's results are the reference's, but for rounding and the draws that it tips."""
    found = operation(*inputs)
    expected = operation(*(tensor[:, :1] for tensor in inputs), backend="reference")
    tolerance = 1e-3 if inputs[0].dtype == torch.float32 else 2e-2
    return all(
        torch.isclose(one[:, :1], other, rtol=tolerance, atol=tolerance).double().mean() > 0.99
        for one, other in zip(found, expected)
    )


def _causal(query, key, value, backend=None):
    return (attnkern.global_attention(query, key, value, is_causal=True, backend=backend),)


def _local(query, key, value, backend=None):
    return (attnkern.local_attention(query, key, value, window=(REACH, REACH), backend=backend),)


def _hard(query, key, value, backend=None):
    hard = attnkern.hard_attention(query, key, value, seed=SEED, backend=backend)
    return hard.output, hard.log_prob


def _naive(query, key, value, allowed):
    score = query @ key.mT / math.sqrt(query.shape[-1])
    return (torch.softmax(score.masked_fill(~allowed, float("-inf")), -1) @ value,)


def _naive_hard(query, key, value):
    log_weights = torch.log_softmax(query @ key.mT / math.sqrt(query.shape[-1]), -1)
    draw = torch.multinomial(log_weights.detach().exp().flatten(0, 2), 1).view(*query.shape[:3], 1)
    return value.gather(2, draw.expand(query.shape)), log_weights.gather(3, draw).squeeze(-1)


def _sdpa(query, key, value, **options):
    return (F.scaled_dot_product_attention(query, key, value, **options),)


def _causal_contenders(length: int, like: Tensor) -> dict[str, Callable]:
    allowed = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    return {SDPA: partial(_sdpa, is_causal=True), NAIVE: partial(_naive, allowed=allowed)}


def _local_contenders(length: int, like: Tensor) -> dict[str, Callable]:
    position = torch.arange(length, device=like.device)
    allowed = (position - position[:, None]).abs() <= REACH
    band = torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill_(~allowed, float("-inf"))
    return {SDPA: partial(_sdpa, attn_mask=band), NAIVE: partial(_naive, allowed=allowed)}


def _hard_contenders(length: int, like: Tensor) -> dict[str, Callable]:
    return {NAIVE: _naive_hard}


KINDS = {
    "global, causal": (_causal, _causal_contenders),
    f"local, {REACH} each side": (_local, _local_contenders),
    "hard, sampled": (_hard, _hard_contenders),
}
