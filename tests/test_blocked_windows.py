"""Windows in the blocked backend: as defined, whatever their place, from the keys in sight alone."""

import pytest
import torch

import attnkern

LSE = attnkern.AuxRequest(lse=True)
CASES = {
    "both sides": {"window": (40, 25)},
    "causal": {"window": (40, 25), "is_causal": True},
    "a diagonal": {"window": (0, 0)},
    "before the keys": {"window": (3, 0), "query_offset": -50},
    "past the keys": {"window": (3, 9), "query_offset": 60},
    "end": {"window": (128, 128), "query_offset": "end", "len_k": 800},
}


def tensors(len_q: int = 400, len_k: int = 400) -> list[torch.Tensor]:
    """Heads beside each other, as in `(B, L, H, E)`."""
    generator = torch.Generator().manual_seed(7)
    shape = (len_q, len_k, len_k)
    return [torch.randn(2, length, 3, 16, dtype=torch.float64, generator=generator).transpose(1, 2) for length in shape]


@pytest.mark.parametrize("case", CASES)
def test_as_defined(case):
    options = dict(CASES[case])
    inputs = [tensor.requires_grad_() for tensor in tensors(len_k=options.pop("len_k", 400))]
    start = tensors()[0]
    output, aux = attnkern.local_attention(*inputs, **options, return_aux=LSE, backend="blocked")
    gradients = torch.autograd.grad(output, inputs, start)
    expected, exact = attnkern.local_attention(*inputs, **options, return_aux=LSE, backend="reference")
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(aux.lse, exact.lse)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, start))


def test_keys_that_nobody_sees_are_not_read():
    query, key, value = tensors(len_k=600)
    key[:, :, 430:], value[:, :, 430:] = float("nan"), float("nan")
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    output = attnkern.local_attention(*inputs, window=(20, 10), backend="blocked")
    assert output.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(output.sum(), inputs))


def test_an_overflow():
    query, key, value = (tensor.float() for tensor in tensors())
    query[0, 0, 200], key[0, 0, 200] = 1e20, 1e20
    output = attnkern.local_attention(query, key, value, window=(20, 10), backend="blocked")
    assert output.isfinite().all()
    torch.testing.assert_close(output[0, 0, 200], value[0, 0, 200])
