"""The three kinds against the float64 reference, held to the error budget.

`attnkern.budget` says what a result may err.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import attnkern
from attnkern import reference
from attnkern.budget import MEASURES, Budget

SHAPE = (1, 2, 333, 64)  # batch, heads, length, features
WINDOW = (40, 25)
SEED = 7
DIFFERENT_DRAWS = 0.01  # share that ties, broken by rounding, may account for


@dataclass(frozen=True)
class Check:
    """One result of one kind: the root mean square of its error, and what that may be."""

    kind: str
    dtype: str
    quantity: str
    error: float
    budget: float

    @property
    def passed(self) -> bool:
        return self.error <= self.budget  # False for NaN

    @property
    def is_gradient(self) -> bool:
        return self.quantity.endswith("gradient")

    @property
    def share(self) -> float:
        """Error as a share of the budget."""
        return self.error / self.budget


def check(device: str, dtypes: list[torch.dtype]) -> list[Check]:
    """Every kind in every dtype: its results, and the gradients of all of them together."""
    return [row for dtype in dtypes for row in _check(device, dtype)]


def _check(device: str, dtype: torch.dtype) -> list[Check]:
    generator = torch.Generator().manual_seed(SEED)
    inputs = [torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(3)]
    seed = torch.tensor(SEED, device=device)

    def causal(*qkv):
        return attnkern.global_attention(*qkv, is_causal=True)

    def naive_causal(*qkv):
        return reference.softmax_attention(*qkv, is_causal=True)[0]

    def local(*qkv):
        return attnkern.local_attention(*qkv, window=WINDOW)

    def naive_local(*qkv):
        return reference.softmax_attention(*qkv, window=WINDOW)[0]

    def hard(*qkv):
        return attnkern.hard_attention(*qkv, num_samples=1, seed=seed)

    def naive_hard(*qkv):
        return reference.hard_attention(*qkv, index=draws.cpu())

    draws = hard(*inputs).index
    true_draws = reference.hard_attention(*(tensor.double() for tensor in inputs), seed=seed).index
    different = (draws != true_draws).double().mean().item()
    return [
        *_compare("global, causal", causal, naive_causal, inputs),
        *_compare("local", local, naive_local, inputs),
        *_compare("hard", hard, naive_hard, inputs),
        Check("hard", dtype_name(dtype), "draws that differ", different, DIFFERENT_DRAWS),
    ]


def _compare(kind: str, ours: Callable, naive: Callable, inputs: list[Tensor]) -> list[Check]:
    dtype, cpu = inputs[0].dtype, [tensor.cpu() for tensor in inputs]
    budget = Budget(lambda dtype: _results(naive, [tensor.to(dtype) for tensor in cpu]), dtype)
    size, *_ = MEASURES["rms"]
    return [
        Check(kind, dtype_name(dtype), name, size(found - budget.exact[name]), budget.allowed(name, "rms", dtype))
        for name, found in _results(ours, inputs).items()
    ]


def _results(function: Callable, inputs: list[Tensor]) -> dict[str, Tensor]:
    """What the function returns, and the gradients of its dot product with fixed random tensors; in float64."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    result = function(*inputs)
    named = {"output": result} if isinstance(result, Tensor) else result._asdict()
    named.pop("index", None)
    generator = torch.Generator().manual_seed(SEED)
    directions = [torch.randn(t.shape, generator=generator).to(inputs[0].dtype).to(t) for t in named.values()]
    gradients = torch.autograd.grad(list(named.values()), inputs, directions)
    named |= zip(("query gradient", "key gradient", "value gradient"), gradients)
    return {name: tensor.detach().double().cpu() for name, tensor in named.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it, without `torch.`."""
    return str(dtype).removeprefix("torch.")
