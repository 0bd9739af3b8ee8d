"""What `F.scaled_dot_product_attention` takes besides `(B, H, L, E)`: other dimensions, no features, other numbers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import attnkern
from attnkern import AuxRequest
from attnkern.arguments import checked
from tests.cases import CPU

BACKENDS = ["reference", "blocked", *CPU, "triton"]
LEADING = [(), (3,), (2, 3), (2, 1, 3), (2, 1, 2, 2), (0, 2, 3)]


def inputs(leading, len_q=5, len_k=7, width=16, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = ((len_q, width), (len_k, width), (len_k, 8))
    return [torch.randn(*leading, *shape, generator=generator).to(device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", LEADING, ids=str)
def test_any_number_of_dimensions(leading, backend, device):
    query, key, value = inputs(leading, device=device)
    masks = [torch.rand(5, 7, device=device), torch.rand(*leading, 5, 7, device=device) > 0.3]
    masks += [torch.rand(*(1 if d % 2 else size for d, size in enumerate(leading)), 5, 1, device=device)]
    for mask in masks:
        expected = F.scaled_dot_product_attention(query, key, value, mask)
        aux = AuxRequest(lse=True, weights="heads")
        got, aux = attnkern.global_attention(query, key, value, mask, return_aux=aux, backend=backend)
        torch.testing.assert_close(got, expected, equal_nan=True)
        assert aux.lse.shape == (*leading, 5) and aux.weights.shape == (*leading, 5, 7)
        torch.testing.assert_close(aux.weights @ value, got)
        for found, wanted in zip(*(torch.autograd.grad(out.sum(), (query, key, value)) for out in (got, expected))):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("leading", LEADING[:-1], ids=str)
def test_every_operation_takes_them(leading):
    query, key, value = inputs(leading)
    four = [
        t.reshape(math.prod(leading[:-1]), leading[-1] if leading else 1, *t.shape[-2:]) for t in (query, key, value)
    ]
    center = torch.rand(*leading[:-1], *leading[-1:] and (1,), 5) * 6
    offsets = torch.arange(math.prod(leading[:-1])).view(leading[:-1])

    def calls(query, key, value, center, offsets, mean):
        options = {"window": (2, 1), "query_offset": offsets}
        aux = AuxRequest(weights="mean")
        yield attnkern.local_attention(query, key, value, **options, dropout_p=0.5, seed=1)
        yield attnkern.local_attention(query, key, value, **options, return_aux=aux)[1].weights if mean else query
        yield attnkern.local_attention(query, key, value, **options, center=center, sigma=center.exp())
        yield attnkern.mac_attention(query, key, value, activation="relu", **options)
        for draws in (None, 4):
            yield from attnkern.hard_attention(query, key, value, num_samples=draws, seed=3, **options)

    folded = center.reshape(math.prod(leading[:-1]), 1, 5)
    wanted = calls(*four, folded, offsets.reshape(-1), mean=len(leading) > 0)
    for got, expected in zip(calls(query, key, value, center, offsets, mean=len(leading) > 0), wanted, strict=True):
        assert torch.equal(got.flatten(), expected.flatten())


def test_grouped_heads_are_the_last_leading_dimension():
    query, (_, key, value) = inputs((2, 2, 4))[0], inputs((2, 2, 2))
    got = attnkern.global_attention(query, key, value, enable_gqa=True)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_no_features(backend, device):
    """All scores are 0, or the mask's."""
    query, key, value = inputs((2, 3), width=0, device=device)
    mask = torch.randn(5, 7, device=device)
    expected = F.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(attnkern.global_attention(query, key, value, mask, backend=backend), expected)
    got = attnkern.global_attention(query, key, value, backend=backend)
    torch.testing.assert_close(got, value.mean(2, keepdim=True).expand_as(got))
    gradients = torch.autograd.grad(got.sum(), (query, key, value))
    torch.testing.assert_close(gradients[2], torch.full_like(value, 5 / 7))
    hard = attnkern.hard_attention(query, key, value, seed=1, backend=backend)
    torch.testing.assert_close(hard.lse, torch.full_like(hard.lse, math.log(7)))


@pytest.mark.parametrize("number", [torch.tensor(0.5), torch.tensor(0.5).double(), np.float32(0.5), np.float64(0.5)])
def test_numbers_of_other_libraries(number):
    tensors = inputs((1, 2))
    expected = attnkern.global_attention(*tensors, scale=0.5, softcap=0.5)
    assert torch.equal(attnkern.global_attention(*tensors, scale=number, softcap=number), expected)
    window = (np.int64(2), np.int32(1))
    got = attnkern.local_attention(*tensors, window=window, query_offset=np.int64(1), sigma=np.float32(2))
    assert torch.equal(got, attnkern.local_attention(*tensors, window=(2, 1), query_offset=1, sigma=2.0))
    draws = attnkern.hard_attention(*tensors, num_samples=np.int64(2), seed=np.int64(3))
    assert torch.equal(draws.index, attnkern.hard_attention(*tensors, num_samples=2, seed=3).index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_mask_of_fewer_bits(half, dtype):
    tensors = [t.detach().to(dtype) for t in inputs((1, 2))]
    mask = torch.randn(5, 7, dtype=half, requires_grad=True)
    got = attnkern.global_attention(*tensors, mask)
    torch.testing.assert_close(got, F.scaled_dot_product_attention(*tensors, mask.to(dtype)))
    assert torch.autograd.grad(got.sum(), mask)[0].dtype == half


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("corner", [causal_upper_left, causal_lower_right])
@pytest.mark.parametrize("lengths", [(5, 7), (5, 5), (7, 5)])
@pytest.mark.filterwarnings("ignore:Lower right causal bias")
def test_torchs_causal_bias(lengths, corner, backend):
    tensors = inputs((1, 2), *lengths)
    bias = corner(*lengths)
    mask = bias._materialize()
    for options in ({}, {"query_offset": 2}, {"is_causal": True}, {"is_causal": True, "query_offset": -1}):
        got = attnkern.global_attention(*tensors, bias, backend=backend, **options)
        torch.testing.assert_close(got, attnkern.global_attention(*tensors, mask, backend="reference", **options))
        draws = [attnkern.hard_attention(*tensors, m, seed=1, backend=backend, **options).index for m in (bias, mask)]
        assert torch.equal(*draws)
    for options in ({"window": (1, 1)}, {"window": (2, -1), "query_offset": "end"}, {"window": (1, 0), "sigma": 2.0}):
        got = attnkern.local_attention(*tensors, bias, backend=backend, **options)
        torch.testing.assert_close(got, attnkern.local_attention(*tensors, mask, backend="reference", **options))
    got = attnkern.mac_attention(*tensors, bias, activation="relu", backend=backend)
    torch.testing.assert_close(got, attnkern.mac_attention(*tensors, mask, activation="relu", backend="reference"))


def test_a_causal_bias_stores_no_matrix():
    call = checked(*inputs((1, 2)), causal_lower_right(5, 7), False, None, False, "end", 0.0, None)
    assert call.attn_mask is None and call.options.causal and call.options.query_offset == 2


def test_a_subclass_without_a_meaning_of_its_own_is_a_mask():
    class Named(torch.Tensor):
        pass

    tensors, mask = inputs((1, 2)), torch.randn(5, 7)
    expected = attnkern.global_attention(*tensors, mask)
    for same in (mask.as_subclass(Named), torch.nn.Parameter(mask)):
        assert torch.equal(attnkern.global_attention(*tensors, same), expected)
