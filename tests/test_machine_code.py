"""The Triton kernels, compiled for GPUs that are not there: no register spills, and the instructions we count on."""

import json
import os
import subprocess
import sys

import pytest

CASES = [
    (capability, head_dim, dtype)
    for head_dim in (64, 128)
    for capability, dtype in ((80, "float16"), (90, "bfloat16"), (100, "bfloat16"), (120, "bfloat16"))
]

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # bytes that a program may take
# tiles without any spill are over 5% slower
ALLOWED_SPILLS = {(90, 128, "backward_key_value"): 32}


def compiled(capability: int, head_dim: int, dtype: str, *variants: str) -> list[dict]:
    """In a process of its own: this one runs the interpreter."""
    command = [sys.executable, "-m", "tests.machine_code", str(capability), "--head-dims", str(head_dim)]
    command += ["--dtypes", dtype, "--variants", *variants]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize(("capability", "head_dim", "dtype"), CASES)
def test_no_spills(capability, head_dim, dtype):
    found = compiled(capability, head_dim, dtype, "plain", "causal")
    kernels = {"softmax_forward", "backward_query", "backward_key_value", "attention_weights", "sample_forward"}
    assert {case["kernel"] for case in found} >= kernels
    spilled = [
        (case["kernel"], case["variant"], case["spills"])
        for case in found
        if case["spills"] > ALLOWED_SPILLS.get((capability, head_dim, case["kernel"]), 0)
    ]
    assert spilled == []
    assert all(case["shared_bytes"] <= SHARED[capability] for case in found)
    if capability == 90:
        assert all(case["wgmma"] for case in found)


@pytest.mark.parametrize("capability", [90, 120])
def test_dropout_fits(capability):
    """It takes shared memory as well as registers; of those the backward lacks a few."""
    found = {case["kernel"]: case for case in compiled(capability, 128, "bfloat16", "dropout")}
    assert all(case["shared_bytes"] <= SHARED[capability] for case in found.values())
    assert found["softmax_forward"]["spills"] == 0 and all(case["spills"] < 50 for case in found.values())


@pytest.mark.parametrize("head_dim", [64, 128])
def test_no_spills_without_a_softmax(head_dim):
    found = compiled(90, head_dim, "bfloat16", "relu", "exp")
    assert len(found) == 6 and not any(case["spills"] for case in found)
    assert all(case["wgmma"] for case in found)


@pytest.mark.parametrize("capability", [80, 90])
def test_attention_over_attention_spills_little(capability):
    found = compiled(capability, 128, "bfloat16", "aoa")
    assert len(found) == 5 and all(case["spills"] <= 4 for case in found)
    assert capability == 80 or all(case["wgmma"] for case in found)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_no_spills_around_learned_centres(head_dim):
    found = compiled(90, head_dim, "bfloat16", "centered")
    assert len(found) == 4 and not any(case["spills"] for case in found)
    assert all(case["wgmma"] for case in found)


@pytest.mark.parametrize("capability", [80, 90])
def test_a_step_of_decoding_does_not_spill(capability):
    found = {case["kernel"]: case["spills"] for case in compiled(capability, 128, "bfloat16", "decode")}
    assert found["softmax_forward"] == found["combine_splits"] == 0


@pytest.mark.parametrize("capability", [80, 90])
def test_no_spills_of_packed_sequences(capability):
    found = compiled(capability, 64, "bfloat16", "packed")
    assert len(found) == 6 and not any(case["spills"] for case in found)
    assert capability == 80 or all(case["wgmma"] for case in found)


@pytest.mark.parametrize(("capability", "head_dim", "dtype"), [(90, 80, "bfloat16"), (80, 32, "float32")])
def test_every_option_compiles(capability, head_dim, dtype):
    """Window, float mask and its gradient, soft cap, dropout, grouped heads, offsets, entropy, weights, at once."""
    found = compiled(capability, head_dim, dtype, "everything", "centered everything")
    for variant in ("everything", "centered everything"):
        kernels = {case["kernel"] for case in found if case["variant"] == variant}
        assert kernels >= {"softmax_forward", "backward_query", "backward_key_value", "backward_mask"}
        assert (kernels >= {"attention_weights", "sample_forward"}) == (variant == "everything")


@pytest.mark.parametrize(("capability", "kib"), [(120, 99), (90, 227)])
def test_masked_tiles_fit(capability, kib):
    """A mask's tile is pipelined with the keys'; sm_120 (like sm_86 and sm_89) has 99 KiB for both."""
    found = compiled(capability, 128, "bfloat16", "bool", "float", *(["everything"] if capability == 90 else []))
    assert found and all(case["shared_bytes"] <= kib * 1024 for case in found)
