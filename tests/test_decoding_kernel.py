"""A step of decoding in Triton: few queries, whose keys several programs share."""

import pytest
import torch

import attnkern
from attnkern import AuxRequest, Problem
from attnkern.backends import launching
from attnkern.backends import triton as backend
from attnkern.backends.tuning import FEWEST_ROWS
from attnkern.budget import Budget
from attnkern.triton_kernels import softmax as kernels
from tests.cases import check_results


def tensors(batch=2, heads=4, kv_heads=2, len_q=1, len_k=1000, dim=24):
    torch.manual_seed(0)
    shapes = ((batch, heads, len_q, dim), *[(batch, kv_heads, len_k, dim)] * 2)
    return [torch.randn(shape) for shape in shapes]


@pytest.fixture
def combined(monkeypatch):
    """How many programs of `combine_splits` each launch has."""
    found, launch = [], launching.launch

    def spy(kernel, programs, *rest):
        if kernel is kernels.combine_splits:
            found.append(programs(None))
        launch(kernel, programs, *rest)

    monkeypatch.setattr(launching, "launch", spy)
    return found


CALLS = {
    "plain": {},
    "cached": {"is_causal": True, "query_offset": torch.tensor([999, 3])},  # the second sees 4 keys: empty shares
    "nothing": {"is_causal": True, "query_offset": torch.tensor([700, -9])},
    "window": {"window": (600, 0), "query_offset": 900},
    "mask": {"attn_mask": torch.rand(2, 1, 1, 1000, generator=torch.Generator().manual_seed(1)) < 0.5},
    "dropout": {"dropout_p": 0.3, "seed": 3, "softcap": 4.0},
}


@pytest.mark.parametrize(("name", "len_q"), [*((name, 1) for name in CALLS), ("cached", 7)])
def test_keys_are_shared(name, len_q, combined):
    call = CALLS[name] | {"enable_gqa": True, "return_aux": AuxRequest(lse=True)}
    function = attnkern.local_attention if "window" in call else attnkern.global_attention
    inputs = tensors(len_q=len_q)

    def results(dtype, backend="reference"):
        output, aux = function(*(t.to(dtype) for t in inputs), **call, backend=backend)
        return {"output": output, "lse": aux.lse}

    found = results(inputs[0].dtype, "triton")
    assert combined == [2 * 4 * len_q]
    check_results(Budget(results, inputs[0].dtype), found)


def test_training_shares_no_keys(combined):
    query, key, value = (tensor.requires_grad_() for tensor in tensors(batch=1, heads=2, kv_heads=1))
    attnkern.global_attention(query, key, value, enable_gqa=True, backend="triton").sum().backward()
    assert combined == []
    apart = [tensor.repeat_interleave(2, -1)[..., ::2] for tensor in (query, key, value)]  # the kernels get copies
    attnkern.global_attention(*apart, enable_gqa=True, backend="triton").sum().backward()
    assert combined == []


def test_packed_caches(combined):
    query, key, value = (t[0].transpose(0, 1) for t in tensors(len_k=1300))
    query = query.expand(3, -1, -1).contiguous()
    lengths = {"cu_seq_q": torch.tensor([0, 1, 2, 3]), "cu_seq_k": torch.tensor([0, 900, 900, 1300])}
    options = lengths | {"max_q": 1, "max_k": 900, "enable_gqa": True}
    found, expected = (
        attnkern.global_attention(query, key, value, **options, backend=name) for name in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected)
    assert combined == [12] and not found[1].any()


def test_when_keys_are_shared():
    def splits(**sizes):
        return backend.key_splits(Problem(**({"len_q": 1, "len_k": 1 << 16, "heads": 8} | sizes)))

    assert splits() == 264 // 8
    assert splits(heads=1) == 64  # no more programs than that share a row
    assert splits(len_k=700) == 2 and splits(len_k=500) == 1  # nor does one take less than 256 keys
    assert splits(window=(1023, 0)) == 4
    assert splits(batch=32) == 1 and splits(len_q=FEWEST_ROWS + 1) == 1 and splits(selector="relu") == 1
