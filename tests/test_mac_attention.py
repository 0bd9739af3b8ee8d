"""Weights without normalisation: every backend, activation, dtype and gradient against the float64 reference."""

import pytest
import torch

import attnkern
from attnkern import Problem, UnsupportedProblem
from attnkern.problem import UNNORMALISED
from tests.cases import CPU, Case, check

HALF, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

SHAPES = [
    Case((1, 1)),
    Case((63, 65), (64, 64), heads=(2, 2), mask="float per key", strided=True),
    Case((65, 63), (32, 32), batch=2, heads=(2, 1), mask="padding", options={"window": (20, 9)}),
    Case((111, 111), (40, 72), heads=(2, 2), options={"is_causal": True}),
    Case(
        (70, 150), (24, 16), batch=2, heads=(2, 1), mask="float per head", options={"softcap": 3.0, "window": (30, 4)}
    ),
    Case((1, 600), (16, 16), heads=(4, 2), options={"is_causal": True, "query_offset": "end"}),
    Case((65, 70), (16, 16), mask="bool"),
    Case((130, 70), (16, 1), heads=(2, 2), mask="float per row", options={"query_offset": -40, "is_causal": True}),
]
CASES = [
    Case(**{**case.__dict__, "options": case.options | {"activation": activation}, "seed": number})
    for number, case in enumerate(SHAPES)
    for activation in UNNORMALISED
]


@pytest.mark.parametrize("dtype", [FP32, HALF, BF16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton(case, dtype, device, poisoned_memory):
    """In the interpreter a Latin square: every shape in every dtype and with every activation."""
    if device == "cpu" and (CASES.index(case) + case.seed) % 3 != (FP32, HALF, BF16).index(dtype):
        pytest.skip("on a GPU")
    check("mac", case, "triton", dtype, device)


@pytest.mark.parametrize("dtype", [FP32, FP64, HALF, BF16], ids=["fp32", "fp64", "fp16", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_blocked(case, dtype, device, poisoned_memory):
    check("mac", case, "blocked", dtype, device)


BACKENDS = ["reference", "blocked", *CPU, "triton"]


def tensors(batch=1, heads=2, len_q=6, len_k=70, dim=16, device="cpu"):
    torch.manual_seed(0)
    shapes = ((batch, heads, len_q, dim), (batch, heads, len_k, dim), (batch, heads, len_k, dim))
    return [torch.randn(shape, device=device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("activation", UNNORMALISED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_look_at(backend, activation, device):
    options = {"activation": activation, "backend": backend}
    for lengths in ((0, 5), (5, 0)):
        inputs = tensors(len_q=lengths[0], len_k=lengths[1], device=device)
        output = attnkern.mac_attention(*inputs, **options)
        assert output.shape == (1, 2, lengths[0], 16) and (output == 0).all()
        assert all((g == 0).all() for g in torch.autograd.grad(output.sum(), inputs))
    inputs = tensors(device=device)
    output = attnkern.mac_attention(*inputs, window=(3, 3), query_offset=-1000, **options)
    assert (output == 0).all() and all((g == 0).all() for g in torch.autograd.grad(output.sum(), inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_exponentials_do_not_overflow(backend, device):
    """A bias that falls with the distance back grows without bound ahead: e^980 behind the causal mask."""
    query, key, value = tensors(len_q=70, device=device)
    level = -14.0 * torch.arange(70, device=device)
    bias = (level[:, None] - level).requires_grad_()
    output = attnkern.mac_attention(query, key, value, bias, activation="exp", is_causal=True, backend=backend)
    gradients = torch.autograd.grad(output.sum(), (query, key, value, bias))
    assert all(t.isfinite().all() for t in (output, *gradients))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_separable_bias_is_two_features(backend, device):
    """exp(L_i - L_j) by features costs one rounding of L: at most 1.2e-7 |L|, relative to the weight."""
    _, _, value = tensors(len_k=100, device=device)
    level = torch.nn.functional.logsigmoid(torch.randn(2, 100, device=device, dtype=torch.float64) + 2).cumsum(-1)
    weights = (level[..., None] - level[:, None]).exp().tril()
    level, one = level.float()[None, ..., None], torch.ones(1, 2, 100, 1, device=device)
    query, key = torch.cat([level, one], -1), torch.cat([one, -level], -1)
    output = attnkern.mac_attention(query, key, value, activation="exp", is_causal=True, scale=1.0, backend=backend)
    terms = weights @ value.double().abs()  # what a relative error of every weight would add up to
    assert ((output - weights @ value.double()).abs() < 1.2e-7 * (2 + level.abs().amax((2, 3), True)) * terms).all()


def test_softmax_is_global_or_local_attention():
    inputs = tensors()
    assert torch.equal(attnkern.mac_attention(*inputs, softcap=2.0), attnkern.global_attention(*inputs, softcap=2.0))
    local = attnkern.local_attention(*inputs, window=(4, 1), query_offset=9)
    assert torch.equal(attnkern.mac_attention(*inputs, window=(4, 1), query_offset=9), local)


@pytest.mark.parametrize("backend", ["blocked", *CPU, "triton"])
def test_offsets_that_differ_and_expanded_inputs(backend, device):
    query, key, value = tensors(batch=3, device=device)
    options = {"window": (2, 5), "query_offset": torch.tensor([-3, 0, 66], device=device), "activation": "linear"}
    query, key = (t[:1, :1, :, :].expand(3, 2, -1, -1) for t in (query, key))
    got, expected = (attnkern.mac_attention(query, key, value, **options, backend=b) for b in (backend, "reference"))
    torch.testing.assert_close(got, expected)
    for gradients in zip(*(torch.autograd.grad(o.sin().sum(), (query, key, value)) for o in (got, expected))):
        torch.testing.assert_close(*gradients)


def test_problems_and_refusals():
    problem = Problem(len_q=8, selector="relu", dtype=HALF, device="cuda")
    assert problem.kind == "mac" and "relu" in str(problem) and "x1" not in str(problem)
    assert attnkern.explain(Problem(len_q=8, selector="relu", dtype=torch.float64)).chosen == "blocked"
    from attnkern.backends.hopper import Kernels

    assert Kernels("none", "cuda", lambda: None).refuses(problem) == "it has no relu"
    with pytest.raises(UnsupportedProblem, match="float64"):
        attnkern.mac_attention(*[t.double() for t in tensors()], activation="exp", backend="triton")
    for wrong in ("tanh", None, ["exp"]):
        with pytest.raises(ValueError, match="activation must be 'softmax', 'linear', 'relu' or 'exp', got"):
            attnkern.mac_attention(*tensors(), activation=wrong)
    with pytest.raises(ValueError, match="key must have the features"):
        attnkern.mac_attention(torch.zeros(1, 1, 2, 3), *tensors()[1:], activation="exp")
