"""A step of decoding on a CPU: one query, offsets that are alike or not; keys out of sight are not touched."""

from unittest import mock

import pytest
import torch

from attnkern import global_attention, hard_attention, local_attention
from attnkern.backends import tiles

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
def test_one_query(kind, offsets, mask):
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
