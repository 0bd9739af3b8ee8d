"""Compiles the Triton kernels for GPUs that are not there, and reads registers and spills off the cubin.

python -m tests.machine_code 80 90 100 120 --head-dims 64 128 --dtypes bfloat16 float32
"""

import argparse
import itertools
import json
import re
import tempfile

import torch

from attnkern.backends import aoa_triton
from attnkern.backends.tuning import Config
from attnkern.mac.machine_code import cuobjdump
from attnkern.mac.triton_code import TYPES, Launch
from attnkern.mac.triton_code import launches as launches_of
from attnkern.problem import Inputs, Problem

VARIANTS = {
    "plain": {},
    "causal": {"causal": True},
    "bool": {"mask": "bool"},
    "float": {"mask": "float"},
    "dropout": {"dropout_p": 0.1},
    "linear": {"selector": "linear"},
    "relu": {"selector": "relu", "mask": "float"},
    "exp": {"selector": "exp", "causal": True},
    "centered": {"center": True, "sigma": True, "window": (10, 10)},
    "everything": {
        "kv_heads": 1,
        "window": (100, 20),
        "mask": "float",
        "softcap": 5.0,
        "dropout_p": 0.1,
        "query_offset": None,
    },
    "decode": {"len_q": 1, "len_k": 4096, "causal": True, "query_offset": 4095},
    "packed": {"packed": True, "causal": True},
    "centered everything": {
        "kv_heads": 1,
        "center": True,
        "sigma": True,
        "renormalize": True,
        "window": (100, 20),
        "causal": True,
        "mask": "float",
        "softcap": 5.0,
        "dropout_p": 0.1,
        "query_offset": None,
    },
}


def aoa_launches(features: int, dtype: torch.dtype) -> dict[str, Launch]:
    """The same of Attention-over-Attention, with masks and a question of 64 words."""
    found = {}

    def record(call, kernel, programs, **tensors):
        arguments = call.arguments | tensors
        config = Config(aoa_triton.ROWS, arguments["BLOCK_N"], aoa_triton.WARPS)
        found[kernel.__name__] = Launch(kernel, config, {key: arguments[key] for key in kernel.arg_names})

    original, aoa_triton.Call.launch = aoa_triton.Call.launch, record
    try:
        pair = [torch.zeros(2, words, features, dtype=dtype) for words in (256, 64)]
        pair += [torch.ones(2, words, dtype=torch.bool) for words in (256, 64)]
        attention, *saved = aoa_triton.forward(*pair)
        aoa_triton.backward(attention, *saved, *pair)
    finally:
        aoa_triton.Call.launch = original
    return found


def launches(variant: str, head_dim: int, dtype: torch.dtype, capability: int) -> dict:
    """Every kernel's arguments and default config for one self-attention, as the host side fills them."""
    if variant == "aoa":
        return aoa_launches(head_dim, dtype)
    sizes = {"len_q": 256, "len_k": 256, "batch": 2, "heads": 2, "head_dim": head_dim}
    choices = {"dtype": dtype, "device": "cuda", "num_samples": 4, "requires_grad": True}
    problem = Problem(**(sizes | choices | VARIANTS[variant]))
    everything = variant.endswith("everything")
    query = torch.zeros(2, 2, problem.len_q, head_dim, dtype=dtype)
    key, value = (torch.zeros(2, problem.kv_heads, problem.len_k, head_dim, dtype=dtype) for _ in range(2))
    mask = {
        "everything": torch.zeros(2, 1, 1, 256, dtype=dtype),
        "centered everything": torch.zeros(2, 1, 1, 256, dtype=dtype),
        "bool": torch.zeros(2, 2, 256, 256, dtype=torch.bool),
        "float": torch.zeros(2, 2, 256, 256),
        "relu": torch.zeros(1, 1, 1, 256),
    }.get(variant)
    cu_seq = torch.tensor([0, 256, 512], dtype=torch.int32)
    offsets = torch.zeros(2, dtype=torch.int64) if everything else None
    center, sigma = (torch.ones(2, 2, 256) if problem.center else None for _ in range(2))
    seed = torch.zeros((), dtype=torch.int64)
    inputs = Inputs(query, key, value, mask, offsets, seed, center=center, sigma=sigma)
    if problem.packed:
        tensors = (tensor.transpose(0, 1).flatten(1, 2)[None] for tensor in (query, key, value))
        inputs = Inputs(*tensors, seed=seed, cu_seq_q=cu_seq, cu_seq_k=cu_seq)
    gradients = {"needs_mask": True} if everything else {}
    if everything and not problem.center:  # whose op gives a gradient to the output and the lse alone
        gradients |= {"grad_weights": torch.zeros(2, 2, 256, 256, dtype=dtype), "entropy": torch.zeros(2, 2, 256)}
    return launches_of(problem, inputs, capability, **gradients)


def resources(launch: Launch, capability: int) -> dict:
    """Registers, spills and shared memory of one kernel compiled for `sm_<capability>`."""
    compiled = launch.compiled(capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = cuobjdump("--dump-resource-usage", cubin.name)
        instructions = cuobjdump("--dump-sass", cubin.name)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", instructions)),  # stores to and loads from local memory
        "shared_bytes": compiled.metadata.shared,
        "wgmma": "wgmma" in compiled.asm["ptx"],
    }


def survey(capabilities, head_dims, dtypes, variants):
    for capability, head_dim, dtype, variant in itertools.product(capabilities, head_dims, dtypes, variants):
        for name, launch in launches(variant, head_dim, dtype, capability).items():
            case = {"kernel": name, "variant": variant, "sm": capability, "head_dim": head_dim, "dtype": TYPES[dtype]}
            yield case | {"config": launch.config} | resources(launch, capability)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capabilities", type=int, nargs="+", help="80, 90, 100, 120")
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--variants", nargs="+", default=["plain", "causal"], choices=(*VARIANTS, "aoa"))
    options = parser.parse_args()
    dtypes = [getattr(torch, name) for name in options.dtypes]
    for found in survey(options.capabilities, options.head_dims, dtypes, options.variants):
        print(json.dumps(found), flush=True)
