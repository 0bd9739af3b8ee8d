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


@pytest.mark.parametrize(("capability", "head_dim", "dtype"), CASES)
def test_no_spills(capability, head_dim, dtype):
    """In a process of its own: this one runs the interpreter."""
    command = [
        sys.executable,
        "-m",
        "tests.machine_code",
        str(capability),
        "--head-dims",
        str(head_dim),
        "--dtypes",
        dtype,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert {case["kernel"] for case in found} >= {
        "softmax_forward",
        "backward_query",
        "backward_key_value",
        "sample_forward",
    }
    spilled = [(case["kernel"], case["causal"], case["spill_bytes"]) for case in found if case["spill_bytes"]]
    assert spilled == []
    shared = {80: 163, 90: 227, 100: 227, 120: 99}[capability] * 1024
    assert all(case["shared_bytes"] <= shared for case in found)
    if capability == 90:
        assert all(case["wgmma"] for case in found)
