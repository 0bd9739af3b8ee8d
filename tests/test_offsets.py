"""Where queries stand among the keys: steps of decoding, chunks of a prompt, offsets that differ in a batch."""

import pytest
import torch

import attnkern
from attnkern import global_attention, hard_attention, local_attention
from tests.cases import CPU

CASES = {
    "the last query of a cache": {"is_causal": True, "query_offset": 20},
    "one position for all": {"is_causal": True, "query_offset": torch.tensor([20, 20])},
    "a window in a cache": {"window": (9, 0), "query_offset": 20},
    "nothing in sight": {"is_causal": True, "query_offset": -1},
    "its own positions": {"is_causal": True, "query_offset": torch.tensor([20, 3])},
    "heads that share keys": {"enable_gqa": True, "query_offset": 20},
    "a padded cache": {"attn_mask": torch.arange(33) < torch.tensor([[[[5]]], [[[30]]]])},
    "both": {"enable_gqa": True, "is_causal": True, "query_offset": 20},
}


@pytest.mark.parametrize("backend", ["blocked", *CPU])
@pytest.mark.parametrize("name", CASES)
def test_one_query(name, backend):
    options = CASES[name]
    torch.manual_seed(0)
    kv_heads = 1 if "enable_gqa" in options else 2
    query = torch.randn(2, 2, 1, 8)
    key, value = (torch.randn(2, kv_heads, 33, 8) for _ in range(2))
    if name in ("the last query of a cache", "a window in a cache", "both"):
        key[:, :, 21:], value[:, :, 21:] = float("nan"), float("nan")
    function = attnkern.local_attention if "window" in options else attnkern.global_attention
    found, expected = (function(query, key, value, **options, backend=name) for name in (backend, "reference"))
    torch.testing.assert_close(found, expected)
    merged = found.transpose(1, 2).flatten(2)
    assert merged.data_ptr() == found.data_ptr()  # a view


@pytest.mark.parametrize("backend", ["blocked", *CPU])
def test_chunks_of_a_prompt(backend):
    """Several queries far inside a cache: keys before the window and after the last query are not read."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 500, 8), torch.randn(1, 2, 500, 8)
    key[:, :, 240:], value[:, :, :170] = float("nan"), float("nan")
    options = {"window": (30, 0), "query_offset": 200}
    found, expected = (
        attnkern.local_attention(query, key, value, **options, backend=name) for name in (backend, "reference")
    )
    torch.testing.assert_close(found, expected)


KINDS = {
    "global": lambda *args, **options: global_attention(*args, **options),
    "window": lambda *args, **options: local_attention(*args, window=(3, 2), **options),
    "gaussian": lambda *args, **options: local_attention(*args, window=(3, 2), sigma=1.5, **options),
    "hard": lambda *args, **options: hard_attention(*args, seed=7, num_samples=3, **options).output,
    "hard window": lambda *args, **options: hard_attention(*args, seed=7, window=(3, 2), **options).output,
}


@pytest.mark.parametrize("mask", (None, "bool", "float"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offsets", ([6, 6], [0, 0], [6, 2], [40, 40], [-5, -5]))
def test_offsets_that_are_alike_or_not(kind, offsets, mask):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, length, 8, dtype=torch.float64) for length in (1, 12, 12))
    attn_mask = None if mask is None else torch.rand(2, 1, 1, 12) < 0.7
    if mask == "float":
        attn_mask = torch.where(attn_mask, torch.randn(4, 1, 12, dtype=torch.float64), -torch.inf)
    for row, offset in enumerate(offsets):
        key[row, :, max(0, offset + 1) :] = 1e6
    given = {"attn_mask": attn_mask, "is_causal": True, "query_offset": torch.tensor(offsets)}
    found = KINDS[kind](query, key, value, **given, backend="blocked")
    torch.testing.assert_close(found, KINDS[kind](query, key, value, **given, backend="reference"))
