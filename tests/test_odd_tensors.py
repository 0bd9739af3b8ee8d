"""Tensors whose numbers are not what lies in their memory, or lie there oddly, and values that are no numbers."""

import pytest
import torch
from torch.autograd.functional import jacobian

import attnkern
from attnkern import attention_over_attention, global_attention, hard_attention, local_attention, mac_attention
from tests.cases import CPU

BACKENDS = ["blocked", *CPU]
NAN, INF = float("nan"), float("inf")


def randn(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator)


def negated(tensor):
    """The same numbers, which memory has with the other sign."""
    found = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert found.is_neg() and torch.equal(found, tensor)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_that_are_negated_on_the_way(backend):
    query, key, mask, start = randn(1, 2, 5, 8), randn(1, 2, 7, 8), randn(5, 7), randn(1, 2, 5, 8)

    def results(*tensors, start):
        inputs = [tensor.detach().requires_grad_() for tensor in tensors]
        output = global_attention(inputs[0], inputs[1], inputs[1], inputs[2], backend=backend)
        return output, *torch.autograd.grad(output, inputs, start)

    expected = results(query, key, mask, start=start)
    for one in range(3):
        tensors = [negated(tensor) if place == one else tensor for place, tensor in enumerate((query, key, mask))]
        torch.testing.assert_close(results(*tensors, start=start), expected)
    torch.testing.assert_close(results(query, key, mask, start=negated(start)), expected)
    document, question = randn(2, 9, 8), randn(2, 3, 8)
    found = attention_over_attention(negated(document), question, backend=backend)
    torch.testing.assert_close(found, attention_over_attention(document, question, backend=backend))


def test_many_gradients_at_once():
    query, key = randn(1, 2, 5, 8).requires_grad_(), randn(1, 2, 7, 8)
    output = global_attention(query, key, key)
    starts = randn(4, *output.shape)
    found = torch.autograd.grad(output, query, starts, is_grads_batched=True, retain_graph=True)[0]
    expected = [torch.autograd.grad(output, query, start, retain_graph=True)[0] for start in starts]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sequences_that_lie_apart(backend, dtype):
    x, cu = randn(7, 2, 8), torch.tensor([0, 3, 7], dtype=dtype)
    lengths = {"max_q": 4, "max_k": 4, "backend": backend}
    expected = global_attention(x, x, x, cu_seq_q=cu, cu_seq_k=cu, **lengths)
    for others in ([2, 5, 7], [9, 9, 9]):
        apart = torch.stack([cu, torch.tensor(others, dtype=dtype)], 1)[:, 0]
        assert not apart.is_contiguous()
        found = global_attention(x, x, x, cu_seq_q=apart, cu_seq_k=apart, **lengths)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_that_lie_apart(backend):
    query, key, offset = randn(6, 1, 2, 5, 8), randn(6, 1, 2, 9, 8), torch.tensor([3])

    def attend(query, key, offset):
        return global_attention(query, key, key, is_causal=True, query_offset=offset, backend=backend)

    expected = torch.stack([attend(query[i], key[i], offset) for i in range(6)])
    torch.testing.assert_close(torch.func.vmap(attend, (0, 0, None))(query, key, offset), expected)
    apart = torch.tensor([[3, 0], [1, 0]])[:, 0]
    found = attend(query[:2, 0], key[:2, 0], apart)
    torch.testing.assert_close(found, attend(query[:2, 0], key[:2, 0], apart.contiguous()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_derivative_of_one_document(backend):
    document, question = randn(1, 70, 64), randn(1, 9, 64)

    def attend(document):
        return attention_over_attention(document, question, backend=backend)

    torch.testing.assert_close(torch.func.jacrev(attend)(document), jacobian(attend, document), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_mask_of_no_keys(backend):
    query, key, mask = randn(1, 1, 2, 4).requires_grad_(), randn(1, 1, 0, 4), torch.zeros(2, 0, requires_grad=True)
    score = hard_attention(query, key, key, mask, backend=backend).score
    query_gradient, mask_gradient = torch.autograd.grad(score.sum(), (query, mask))
    assert not query_gradient.any() and mask_gradient.shape == (2, 0)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_centre_that_is_no_number(backend):
    x, center = randn(1, 1, 5, 4), torch.full((1, 1, 5), NAN)
    for window in ((-1, -1), (-1, 2), (2, -1), (2, 2)):
        for prior in ({}, {"sigma": 1.0}, {"sigma": 1.0, "renormalize": True}):
            if backend == "reference" and prior == {"sigma": 1.0}:
                continue  # 0 times a Gaussian that is NaN
            assert not local_attention(x, x, x, window=window, center=center, **prior, backend=backend).any()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("renormalize", [False, True])
def test_a_sigma_that_is_no_number(backend, renormalize):
    x, sigma = randn(1, 1, 5, 4), torch.tensor(NAN)
    output = local_attention(x, x, x, window=(2, 2), sigma=sigma, renormalize=renormalize, backend=backend)
    assert output.isnan().all()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, -1, -0x00000001, 0x7FFFFFFF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_nan_is_one(backend, dtype, bits):
    mask = torch.full((1, 1, 8, 8), bits, dtype=torch.int32).view(torch.float32)
    x = randn(1, 1, 8, 32).to(dtype).requires_grad_()
    output = mac_attention(x, x, x, mask, activation="linear", backend=backend)
    assert output.isnan().all()
    assert torch.autograd.grad(output.sum(), x)[0].isnan().all()


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_infinite_score_is_a_constant_to_an_activation(backend, activation):
    query, key, value = (randn(1, 1, 6, 4 + i)[..., :4].requires_grad_() for i in range(3))
    mask = torch.zeros(6, 6).fill_diagonal_(INF)

    def gradients(backend):
        output = mac_attention(query, key, value, mask, activation=activation, backend=backend)
        return torch.autograd.grad(output, (query, key), torch.ones_like(output))

    torch.testing.assert_close(gradients(backend), gradients("reference"))


@pytest.mark.parametrize("name", ["is_causal", "renormalize", "deterministic", "straight_through"])
def test_flags_are_bools(name):
    """Whatever was called before."""
    x = randn(1, 1, 5, 4)
    calls = {
        "is_causal": lambda flag: global_attention(x, x, x, is_causal=flag),
        "renormalize": lambda flag: local_attention(x, x, x, window=(1, 1), sigma=1.0, renormalize=flag),
        "deterministic": lambda flag: hard_attention(x, x, x, deterministic=flag),
        "straight_through": lambda flag: hard_attention(x, x, x, straight_through=flag),
    }
    for _ in range(2):
        calls[name](True)
        with pytest.raises(TypeError, match=f"{name} must be a bool, got 1"):
            calls[name](1)


def test_layouts_that_are_refused():
    x, mask = randn(1, 1, 5, 4), torch.eye(5)
    with pytest.raises(TypeError, match="query must be dense, got the layout torch.sparse_coo"):
        global_attention(x.to_sparse(), x, x)
    with pytest.raises(TypeError, match="attn_mask must be dense, got the layout torch.sparse_coo"):
        global_attention(x, x, x, mask.to_sparse())
    with pytest.raises(TypeError, match="document must be dense, got the layout torch.sparse_coo"):
        attention_over_attention(x[0].to_sparse(), x[0])
    nested = torch.nested.nested_tensor([randn(1, 5, 4), randn(1, 3, 4)], layout=torch.strided)
    with pytest.raises(ValueError, match="query must be nested where query is, jagged"):
        attnkern.global_attention(nested, nested, nested)
