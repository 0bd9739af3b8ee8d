"""Every backend, kind, dtype and pass against the float64 reference, within the error budget."""

import pytest
import torch

from tests.cases import CPU, Case, check

HALF, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

COMMON = [
    Case((1, 1)),
    Case((63, 65), (64, 64), heads=(2, 2), mask="float per key", strided=True),
    Case((65, 63), (32, 32), batch=2, heads=(2, 1), mask="padding"),
    Case((111, 111), (80, 80), heads=(2, 2), options={"is_causal": True}, strided=True),
    Case((1, 1000), (32, 32), heads=(4, 2), options={"is_causal": True, "query_offset": "end"}),
    Case((111, 64), (40, 72), batch=2, heads=(2, 1), mask="float", options={"softcap": 3.0}),
    Case((63, 130), (256, 256), mask="bool"),
    Case(
        (70, 150),
        (24, 16),
        batch=2,
        heads=(2, 1),
        mask="float per head",
        options={"is_causal": True, "query_offset": 20},
    ),
    Case((130, 70), (16, 16), heads=(2, 2), mask="float per row", options={"query_offset": -40, "is_causal": True}),
]
LARGE = [Case((1000, 111), (16, 16), mask="float per key"), Case((300, 111), (128, 128), heads=(2, 1))]
WINDOWS = [(3, 5), (16, 0), (-1, 20), (40, -1), (0, 0), (64, 64), (200, 200), (7, 1), (2, -1), (100, 30), (64, 0)]


def cases_of(kind: str) -> list[Case]:
    """The common cases, with the options that belong to one kind spread over them."""
    found = []
    for number, case in enumerate(COMMON + LARGE):
        options = dict(case.options)
        if kind == "local":
            options["window"] = WINDOWS[number]
        if kind == "hard":
            options["seed"] = number
            options["num_samples"] = (None, 1, 2, 5)[number % 4]
            options["straight_through"] = number % 2 == 1
            if number % 3 == 2:
                options["window"] = WINDOWS[number]
            if number % 5 == 4:
                options["deterministic"] = True
        elif number % 4 == 1:
            options |= {"dropout_p": 0.3, "seed": number}
        found.append(Case(**{**case.__dict__, "options": options, "seed": number}))
    return found


KINDS = [(kind, case) for kind in ("global", "local", "hard") for case in cases_of(kind)]


@pytest.mark.parametrize("dtype", [FP32, HALF, BF16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("kind", "case"), KINDS, ids=lambda x: str(x))
def test_triton(kind, case, dtype, device, poisoned_memory):
    another_turn = dtype == (HALF, BF16)[case.seed % 2] or max(case.lengths) > 200
    if device == "cpu" and dtype != FP32 and another_turn:
        pytest.skip("slow in the interpreter; in float32 and one other dtype here, in every dtype on a GPU")
    check(kind, case, "triton", dtype, device)


@pytest.mark.parametrize("dtype", [FP32, FP64, HALF, BF16], ids=["fp32", "fp64", "fp16", "bf16"])
@pytest.mark.parametrize(("kind", "case"), KINDS, ids=lambda x: str(x))
def test_blocked_and_cpu(kind, case, dtype, device, poisoned_memory):
    """Together, as a budget takes longer than both."""
    check(kind, case, "blocked" if dtype == FP64 else ",".join(["blocked", *CPU]), dtype, device)
