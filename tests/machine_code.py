"""Compiles the Triton kernels for GPUs that are not there, and reads registers and spills off the cubin.

python -m tests.machine_code 80 90 100 120 --head-dims 64 128 --dtypes bfloat16 float32
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnkern.backends import triton as backend
from attnkern.problem import Inputs, Problem

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64", torch.uint8: "u8"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def launches(head_dim: int, dtype: torch.dtype, causal: bool, capability: int) -> dict:
    """Every kernel's arguments and default config for a self-attention, as the host side fills them."""
    problem = Problem(
        len_q=256, batch=2, heads=2, head_dim=head_dim, dtype=dtype, device="cuda", causal=causal, requires_grad=True
    )
    tensors = [torch.zeros(2, 2, 256, head_dim, dtype=dtype) for _ in range(3)]
    inputs = Inputs(*tensors, seed=torch.zeros((), dtype=torch.int64))
    lse = torch.zeros(2, 2, 256)
    found = {}

    def record(kernel, programs, problem, arguments):
        config = backend.tuning.candidates(kernel.__name__, problem, capability)[0]
        named = {key: arguments[key] for key in kernel.arg_names if key in arguments}
        tiles = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
        found[kernel.__name__] = kernel, config, named | {k: v for k, v in tiles.items() if k in kernel.arg_names}

    original, backend._launch = backend._launch, record
    try:
        output, _ = backend.softmax(problem, inputs)
        backend.backward(problem, inputs, lse, grad_output=output)
        backend.weights(problem, inputs, lse)
        backend.sample(problem, inputs)
    finally:
        backend._launch = original
    return found


def resources(kernel, config, arguments: dict, capability: int) -> dict:
    """Registers, stack (spills) and shared memory of one kernel compiled for `sm_<capability>`."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spill_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_bytes": compiled.metadata.shared,
        "wgmma": "wgmma" in compiled.asm["ptx"],
    }


def survey(capabilities, head_dims, dtypes, causals=(False, True)):
    for capability, head_dim, dtype, causal in itertools.product(capabilities, head_dims, dtypes, causals):
        for name, (kernel, config, arguments) in launches(head_dim, dtype, causal, capability).items():
            case = {"kernel": name, "sm": capability, "head_dim": head_dim, "causal": causal}
            case |= {"dtype": TYPES[dtype], "config": config}
            yield case | resources(kernel, config, arguments, capability)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capabilities", type=int, nargs="+", help="80, 90, 100, 120")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    options = parser.parse_args()
    for found in survey(options.capabilities, options.head_dims, [getattr(torch, name) for name in options.dtypes]):
        print(json.dumps(found), flush=True)
