"""Forward passes that are simpler problems: a step of decoding on a CPU, heads that share keys."""

from unittest import mock

import pytest
import torch

import attnkern
from attnkern import global_attention, hard_attention, local_attention
from attnkern.backends import sdpa, tiles


@pytest.fixture
def fused(monkeypatch):
    """The problems that torch's fused kernel is given."""
    found, forward = [], sdpa.forward
    monkeypatch.setattr(sdpa, "forward", lambda *call: (found.append(call[0]), forward(*call))[1])
    return found


CASES = {
    "the last query of a cache": ({"is_causal": True, "query_offset": 20}, (1, 2, 21)),
    "one position for all": ({"is_causal": True, "query_offset": torch.tensor([20, 20])}, (1, 2, 21)),
    "a window in a cache": ({"window": (9, 0), "query_offset": 20}, (1, 2, 10)),
    "nothing in sight": ({"is_causal": True, "query_offset": -1}, None),
    "its own positions": ({"is_causal": True, "query_offset": torch.tensor([20, 3])}, None),
    "heads that share keys": ({"enable_gqa": True, "query_offset": 20}, (2, 1, 33)),
    "a padded cache": ({"attn_mask": torch.arange(33) < torch.tensor([[[[5]]], [[[30]]]])}, (1, 2, 33)),
    "both": ({"enable_gqa": True, "is_causal": True, "query_offset": 20}, (2, 1, 21)),
}


@pytest.mark.parametrize("name", CASES)
def test_one_query(name, fused):
    options, sizes = CASES[name]
    torch.manual_seed(0)
    kv_heads = 1 if "enable_gqa" in options else 2
    query = torch.randn(2, 2, 1, 8)
    key, value = (torch.randn(2, kv_heads, 33, 8) for _ in range(2))
    if name in ("the last query of a cache", "a window in a cache", "both"):
        key[:, :, 21:], value[:, :, 21:] = float("nan"), float("nan")
    function = attnkern.local_attention if "window" in options else attnkern.global_attention
    found, expected = (function(query, key, value, **options, backend=name) for name in ("blocked", "reference"))
    torch.testing.assert_close(found, expected)
    merged = found.transpose(1, 2).flatten(2)
    assert merged.data_ptr() == found.data_ptr()  # a view
    assert [(problem.len_q, problem.heads, problem.len_k) for problem in fused] == ([] if sizes is None else [sizes])


def test_chunks_of_a_prompt():
    """Several queries far inside a cache: keys before the window and after the last query are not read."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 40, 8), torch.randn(1, 2, 500, 8), torch.randn(1, 2, 500, 8)
    key[:, :, 240:], value[:, :, :170] = float("nan"), float("nan")
    options = {"window": (30, 0), "query_offset": 200}
    found, expected = (
        attnkern.local_attention(query, key, value, **options, backend=name) for name in ("blocked", "reference")
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


def test_a_step_is_no_walk():
    query, key = torch.randn(4, 2, 1, 8), torch.randn(4, 2, 30, 8)
    with mock.patch.object(tiles, "Block", side_effect=AssertionError("walked")):
        global_attention(query, key, key, is_causal=True, query_offset=torch.full((4,), 5), backend="blocked")
        local_attention(query, key, key, window=(2, 0), query_offset=torch.full((4,), 5), backend="blocked")
