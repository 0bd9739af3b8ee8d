"""What the error budget lets pass, and what it does not: the same on every machine."""

import os
import subprocess
import sys

import pytest
import torch

from attnkern import reference
from attnkern.budget import MEASURES, Budget
from tests.cases import Case, check_results, run, run_naive, widened

HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
LENGTHS = (111, 111)
CALLS = [
    ("global", Case(LENGTHS, (64, 64), heads=(2, 1), mask="float", options={"is_causal": True})),
    ("local", Case(LENGTHS, (32, 32), options={"window": (20, 9)})),
    ("mac", Case(LENGTHS, (32, 32), options={"activation": "exp"})),
    ("hard", Case(LENGTHS, (32, 32), options={"num_samples": 2, "seed": 1, "straight_through": True})),
]


def budget_of(kind, case, dtype):
    """And the results of torch's own products, naively in that dtype."""
    tensors = case.tensors(dtype, "cpu")
    index = run(kind, widened(tensors, torch.float64), case, "reference")["index"] if kind == "hard" else None

    def naive(dtype):
        found = run_naive(kind, tensors, case, index, dtype)
        found.pop("index", None)
        return found

    return Budget(naive, dtype), naive(dtype)


@pytest.mark.parametrize("dtype", [FP32, HALF, BF16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("kind", "case"), CALLS, ids=str)
def test_three_times_the_naive_error_is_caught(kind, case, dtype):
    """In outputs and gradients; once passes. Of hard attention's others there is little to add up."""
    budget, naive = budget_of(kind, case, dtype)
    check_results(budget, naive)
    planted = {name: budget.exact[name] + 3 * (found - budget.exact[name]) for name, found in naive.items()}
    added_up = ("grad_query", "grad_key") if kind == "hard" else ("output", "grad_query", "grad_key", "grad_value")
    for name, wrong in planted.items():
        if not name.endswith(added_up):
            continue
        # in float64, so that what is planted is not rounded itself; the budget is that of the results' dtype
        error = MEASURES["rms"][0](wrong - budget.exact[name])
        assert error > budget.allowed(name, "rms", naive[name].dtype), name


@pytest.mark.parametrize("factor", [1.0, 2.0**-20, 2.0**20])
def test_a_gradient_that_cancels_is_held_to_its_terms(factor):
    """With one key the query's is 0, as the difference of two products: what these round is allowed, and no more."""
    query, key, value, upstream = torch.randn(4, 64, 1, 1, 32, generator=torch.Generator().manual_seed(0))
    value *= factor

    def naive(dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        output = reference.softmax_attention(*leaves)[0]
        return {"grad_query": torch.autograd.grad(output, leaves, upstream.to(dtype))[0]}

    budget = Budget(naive, FP32)
    assert not budget.exact["grad_query"].any()
    products = (upstream * value).unbind(-1)
    terms = [sum(products[::step])[..., None] for step in (1, -1)]
    rounding = (terms[0] - terms[1]) * key / 32**0.5
    assert rounding.any() and budget.complaint("grad_query", rounding) is None
    assert "exceeds" in budget.complaint("grad_query", 8 * rounding)


def test_cpu_capabilities_do_not_move_it():
    """Nor do libraries of products: the budget of a fixed case is the same number in each process."""
    script = """
import torch
from attnkern import reference
from attnkern.budget import Budget
query, key, value = ((torch.arange(2 * 70 * 24) * x % 101 / 32 - 1.5).view(1, 2, 70, 24) for x in (37, 53, 71))
results = lambda dtype: {"output": reference.softmax_attention(*(x.to(dtype) for x in (query, key, value)))[0]}
print(Budget(results, torch.float32).allowed("output", "rms", torch.float32))
"""
    found = {
        subprocess.check_output([sys.executable, "-c", script], text=True, env=os.environ | setting)
        for setting in ({}, {"ATEN_CPU_CAPABILITY": "default"}, {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"})
    }
    assert max(map(float, found)) <= (1 + 1e-9) * min(map(float, found))
