"""The Triton kernels, compiled for GPUs that need not be there."""

from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from attnkern.backends import launching
from attnkern.backends import triton as backend
from attnkern.backends.tuning import Config, candidates
from attnkern.problem import Inputs, Problem

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


class Launch(NamedTuple):
    """A kernel, its tiles, and its arguments as the host side fills them."""

    kernel: triton.JITFunction
    config: Config
    arguments: dict

    def compiled(self, capability: int) -> CompiledKernel:
        """For `sm_<capability>`; the cubin is in `asm["cubin"]`."""
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
                attributes[(place,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0:
                    attributes[(place,)] = [["tt.divisibility", 16]]
        options = {"num_warps": self.config.num_warps, "num_stages": self.config.num_stages}
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def launches(problem: Problem, inputs: Inputs, capability: int, **gradients) -> dict[str, Launch]:
    """Every launch of forward, backward, weights and sampler, with the table's first tiles; nothing is run.

    Args:
        inputs: tensors on any device, of which only dtype and layout count.
        gradients: of what else than the output, as `backward` of a backend takes them.
    """
    found = {}

    def record(kernel, programs, problem, arguments):
        config = first(kernel, problem)
        named = {key: arguments[key] for key in kernel.arg_names if key in arguments}
        tiles = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
        name = f"{kernel.__name__}, mean" if arguments.get("MEAN") else kernel.__name__
        found[name] = Launch(kernel, config, named | {k: v for k, v in tiles.items() if k in kernel.arg_names})

    def first(kernel, problem):
        return candidates(kernel.__name__, problem, capability)[0]

    originals = launching.launch, launching.config_of
    launching.launch, launching.config_of = record, first
    try:
        output, lse = backend.softmax(problem, inputs)
        backend.backward(problem, inputs, lse, grad_output=output, **gradients)
        if problem.kind != "mac" and not problem.center:
            backend.weights(problem, inputs, lse)
            backend.sample(problem, inputs)
    finally:
        launching.launch, launching.config_of = originals
    return found
