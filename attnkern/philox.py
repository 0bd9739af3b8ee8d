"""The counter-based random numbers every backend shares (Philox4x32-10, Salmon et al. 2011).

The layout below is the definition; `triton_kernels/random.py`, `csrc/core` and `csrc/cpu/philox.h` mirror it.

    key      the 64-bit seed, low word first
    counter  (row, batch * heads + head, stream, block)

    dropout  stream 0, block = key // 4, word key % 4 decides the weight at (row, key)
    samples  stream 1 + sample // 4, block = key // 64, word sample % 4 is the draw of a 64-key block

A word becomes a uniform number by its top 24 bits, exact in float32. Nothing here depends on a tile
size, so every backend draws the same numbers in whatever order it likes.
"""

import torch
from torch import Tensor

DROPOUT_STREAM = 0
SAMPLE_STREAM = 1
SAMPLE_BLOCK = 64  # keys that share one uniform per row and sample: part of the definition
UNIFORM_BITS = 24

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words, as int64 tensors, for each broadcast counter.

    Args:
        seed: 0-d int64 tensor, all 64 bits used.
        counter: four int64 tensors that broadcast, each taken modulo 2**32.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*(word & _WORD for word in counter))
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # int64 products wrap to the low 64 bits, which is all that a 32x32 product has
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        high0, high1 = (p0 >> 32) & _WORD, (p1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _WORD, high0 ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def dropout_keep(seed: Tensor, rows: Tensor, batch_heads: Tensor, keys: tuple[int, int], dropout_p: float) -> Tensor:
    """True where dropout keeps the weight; shape `batch_heads x rows x keys`.

    Args:
        rows: 1-d int64 query positions.
        batch_heads: int64 of any shape, `batch * heads + head`.
        keys: the first key and the one past the last.
    """
    begin, end = keys
    blocks = torch.arange(begin // 4, -(-end // 4), device=rows.device)
    stream = torch.full((), DROPOUT_STREAM, device=rows.device)
    words = philox(seed, (rows[:, None], batch_heads[..., None, None], stream, blocks))
    bits = torch.stack(words, dim=-1).flatten(-2)[..., begin % 4 : begin % 4 + end - begin]
    return (bits >> (32 - UNIFORM_BITS)) >= dropout_threshold(dropout_p)


def dropout_threshold(dropout_p: float) -> int:
    """Weights whose top bits fall below this integer are dropped: one exact comparison everywhere."""
    return round(dropout_p * 2**UNIFORM_BITS)


def dropout_scale(dropout_p: float) -> float:
    """What the weights that dropout keeps are multiplied by."""
    return 1 / (1 - dropout_p) if dropout_p < 1 else 0.0


def sample_uniforms(seed: Tensor, rows: Tensor, batch_heads: Tensor, blocks: Tensor, num_samples: int) -> Tensor:
    """Float32 uniforms in [0, 1); shape `num_samples x batch_heads x rows x blocks`."""
    groups = torch.arange(-(-num_samples // 4), device=rows.device) + SAMPLE_STREAM
    stream = groups.view(-1, *([1] * (batch_heads.dim() + 2)))
    words = philox(seed, (rows[:, None], batch_heads[..., None, None], stream, blocks))
    bits = torch.stack(words, dim=1).flatten(0, 1)[:num_samples]
    return (bits >> (32 - UNIFORM_BITS)).to(torch.float32) * 2.0**-UNIFORM_BITS


def running_sum(mass: Tensor) -> Tensor:
    """Prefix sums along the last dimension, by doubling: `cumsum` has no deterministic form on a GPU."""
    step = 1
    while step < mass.shape[-1]:
        mass = mass + torch.nn.functional.pad(mass[..., :-step], (step, 0))
        step *= 2
    return mass


def draw_seed(device: torch.device) -> Tensor:
    """A fresh 0-d int64 seed from torch's generator of `device` (follows `torch.manual_seed`)."""
    return torch.randint(0, 2**62, (), dtype=torch.int64, device=device)
