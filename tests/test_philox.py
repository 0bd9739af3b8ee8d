"""The random numbers: published vectors, tile independence, and the Triton mirror."""

import pytest
import torch
import triton
import triton.language as tl

from attnkern import philox
from attnkern.triton_kernels.random import dropout_keep

ONES = 0xFFFFFFFF
# Random123's kat_vectors for philox4x32-10: counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def seed_of(low: int, high: int) -> torch.Tensor:
    value = high << 32 | low
    return torch.tensor(value - 2**64 if value >= 2**63 else value)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_vectors(counter, key, expected):
    words = philox.philox(seed_of(*key), tuple(torch.tensor(c) for c in counter))
    assert tuple(int(word) for word in words) == expected


def test_dropout_does_not_depend_on_the_tile():
    rows, heads, seed = torch.arange(5), torch.arange(6).view(2, 3), torch.tensor(9)
    whole = philox.dropout_keep(seed, rows, heads, (0, 50), 0.4)
    parts = [philox.dropout_keep(seed, rows, heads, keys, 0.4) for keys in ((0, 3), (3, 17), (17, 50))]
    assert torch.equal(whole, torch.cat(parts, -1))
    assert whole.shape == (2, 3, 5, 50)


def test_dropout_rate():
    keep = philox.dropout_keep(torch.tensor(1), torch.arange(1000), torch.arange(2), (0, 500), 0.3)
    assert abs(keep.float().mean().item() - 0.7) < 4 * (0.3 * 0.7 / 1e6) ** 0.5
    assert philox.dropout_keep(torch.tensor(1), torch.arange(100), torch.arange(2), (0, 100), 1.0).sum() == 0


def test_uniforms_are_uniform_and_each_sample_has_its_own():
    u = philox.sample_uniforms(torch.tensor(3), torch.arange(500), torch.arange(4), torch.arange(10), 6)
    assert u.shape == (6, 4, 500, 10)
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 50, 0, 1)
    chi_square = ((counts - u.numel() / 50) ** 2 / (u.numel() / 50)).sum()
    assert chi_square < 100  # 49 degrees of freedom: beyond 1e-5
    correlation = torch.corrcoef(u.flatten(1)) - torch.eye(6)
    assert correlation.abs().max() < 0.03


def test_seed_uses_all_64_bits():
    counter = tuple(torch.tensor(0) for _ in range(4))
    words = {philox.philox(torch.tensor(seed), counter)[0].item() for seed in (0, 1, 1 << 32, 1 << 62, -1)}
    assert len(words) == 5


@triton.jit
def store_dropout(seed, result, threshold, KEYS_FIRST: tl.constexpr):
    row, key = tl.arange(0, 16)[:, None], tl.arange(0, 64)[None, :]
    if KEYS_FIRST:
        row, key = tl.trans(row), tl.trans(key)
    keep = dropout_keep(tl.load(seed), tl.full((), 5, tl.int32), 32 + row, 64, threshold, 16, 64, KEYS_FIRST)
    tl.store(result + row * 64 + key, keep.to(tl.int32))


@pytest.mark.parametrize("keys_first", [False, True])
def test_triton_draws_the_same_dropout(device, keys_first):
    seed = torch.tensor(-(2**61) + 12345, device=device)
    result = torch.empty(16, 64, dtype=torch.int32, device=device)
    store_dropout[(1,)](seed, result, philox.dropout_threshold(0.25), keys_first)
    expected = philox.dropout_keep(
        seed, torch.arange(32, 48, device=device), torch.tensor([5], device=device), (64, 128), 0.25
    )
    assert torch.equal(result.bool(), expected[0])
