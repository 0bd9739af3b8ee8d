"""Forward passes that are simpler problems: a step of decoding, heads that share keys."""

import pytest
import torch

import attnkern
from attnkern.backends import sdpa


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
