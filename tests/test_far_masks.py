"""Rows that a finite mask puts far out, as those that are padded whole.

Their weights are those of the scores as rounded there, alike from some 1e9 on: the output is the mean of the values.
Gradients are right as well, though the lse has lost the logarithm of the sum.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

import attnkern
from attnkern import AuxRequest
from tests.cases import CPU
from tests.compiled import compiled

LOWEST = torch.finfo(torch.float32).min
FAR = [(torch.float32, -1e9), (torch.float32, -1e30), (torch.float32, LOWEST), (None, -65504.0), (None, -1e4)]
OPTIONS = [{}, {"softcap": 2.0}, {"is_causal": True}, {"dropout_p": 0.3, "seed": 1}]
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 2e-2, torch.float32: 1e-4}
CASES = [
    *((backend, dtype) for backend in ("blocked", *CPU) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    ("emulated", torch.float16), ("emulated", torch.bfloat16), ("triton", torch.float32), ("triton", torch.float16),
]  # fmt: skip
NAMES = ("output", "lse", "query", "key", "value", "mask")


@pytest.fixture(autouse=True)
def built(request):
    if request.node.callspec.params.get("backend") == "emulated":
        compiled("emulated")


def inputs(dtype, mask_dtype, far, mixed, len_q=70, len_k=150, width=64) -> list[Tensor]:
    """query, key, value, mask and the output's gradient; every other row is far out, whole or (mixed) in part."""
    generator = torch.Generator().manual_seed(0)

    def normal(heads, length):
        return torch.randn(1, heads, length, width, generator=generator).to(dtype)

    mask = torch.randn(1, 1, len_q, len_k, generator=generator)
    mask[:, :, ::2, slice(None, None, 3 if mixed else 1)] = far
    return [normal(2, len_q), normal(1, len_k), normal(1, len_k), mask.to(mask_dtype or dtype), normal(2, len_q)]


def results(tensors, backend, **options) -> list[Tensor]:
    *leaves, start = tensors
    leaves = [tensor.detach().requires_grad_() for tensor in leaves]
    output, aux = attnkern.global_attention(
        *leaves, enable_gqa=True, return_aux=AuxRequest(lse=True), backend=backend, **options
    )
    return [output.detach(), aux.lse.detach(), *grad(output, leaves, start)]


@pytest.mark.parametrize("mixed", [False, True], ids=["whole", "mixed"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "plain"))
@pytest.mark.parametrize(("mask_dtype", "far"), FAR, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
def test_rows_far_out(backend, dtype, mask_dtype, far, options, mixed):
    """Against the definition in float32, which rounds scores as the kernels do."""
    if backend == "triton" and far in (-1e30, -65504.0):
        pytest.skip("slow in the interpreter, and between others")
    tensors = inputs(dtype, mask_dtype, far, mixed)
    exact = results([tensor.float() for tensor in tensors], "reference", **options)
    for name, found, wanted in zip(NAMES, results(tensors, backend, **options), exact):
        error = (found.float() - wanted).norm() / wanted.norm()
        assert error < TOLERANCE[dtype], f"{name}: relative error {error:.2g}"


@pytest.mark.parametrize(("backend", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("far", [-1e12, -1e30, LOWEST])
def test_a_row_masked_whole_is_the_mean(backend, dtype, far):
    query, key, value, mask, start = inputs(dtype, torch.float32, far, mixed=False)
    value.requires_grad_()
    output = attnkern.global_attention(query, key, value, mask, enable_gqa=True, backend=backend)
    mean = value.detach().float().mean(2).repeat_interleave(2, 1)[:, :, None]
    torch.testing.assert_close(output[:, :, ::2].float(), mean.expand(-1, -1, 35, -1), rtol=0.01, atol=2e-3)
    start[:, :, 1::2] = 0
    (found,) = grad(output, value, start)
    wanted = start.float().sum(2).unflatten(1, (1, 2)).sum(2)[:, :, None] / key.shape[2]
    torch.testing.assert_close(found.float(), wanted.expand(-1, -1, 150, -1), rtol=0.01, atol=2e-3)


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
@pytest.mark.parametrize("far", [-1e9, -1e30])
def test_weights_and_samples_of_rows_far_out(far, backend):
    query, key, value, mask, _ = inputs(torch.float32, None, far, mixed=False)
    found = attnkern.global_attention(
        query, key, value, mask, enable_gqa=True, return_aux=AuxRequest(weights="heads"), backend=backend
    )[1].weights
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    torch.testing.assert_close(found[:, :, ::2], torch.full_like(found[:, :, ::2], 1 / 150))
    hard = {}
    for name in (backend, "reference"):
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, mask)]
        drawn = attnkern.hard_attention(
            leaves[0], leaves[1], value, leaves[2], enable_gqa=True, num_samples=3, seed=5, backend=name
        )
        hard[name] = drawn.index, *grad(drawn.entropy.sum() + drawn.lse.sin().sum(), leaves)
    assert torch.equal(hard[backend][0], hard["reference"][0])
    for one, other in zip(hard[backend][1:], hard["reference"][1:]):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
