"""What the kernels' main loops issue, read off their machine code; a part of `attnkern profile`."""

import dataclasses
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

import attnkern
from attnkern.commands import CommandError
from attnkern.mac import issued, machine_code
from attnkern.problem import Inputs

CAPABILITY = 90
LENGTH = 256  # of a call that is compiled but not run
NAME = 62  # characters of a kernel's name that are shown: all of our own
SHOWN = ("exp", "float", "integer", "shared", "other")
OURS = re.compile(
    r"kernels\d+(SoftmaxForward|SampleForward|SoftmaxBackward|SoftmaxBackwardByColumns)INS_4(bf16|fp16)E"
    r"((?:L[ib]\d+E|LN4core5SightE\dE)+)"
)
PRODUCTS = {"SoftmaxForward": 2, "SampleForward": 1, "SoftmaxBackward": 5, "SoftmaxBackwardByColumns": 5}


def show(file: Path | None, problem: attnkern.Problem | None) -> int:
    """Prints a table: of the file's kernels, of Triton's for the problem, or of the CUDA C++ kernels."""
    try:
        rows = of_triton(problem) if problem is not None else of_file(file or _built())
    except (FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from None
    heads = (*SHOWN, "clocks", "limit", "of matrix rate")
    if not rows:
        raise CommandError("no loop with products on the matrix units; those take float16 or bfloat16")
    print(f"{'instructions of a thread for each score':<{NAME}} " + " ".join(f"{head:>7}" for head in heads))
    for name, loop, features in rows:
        cells = [""] * (len(SHOWN) + 1)
        if features:
            mix = loop.per_score(features)
            cells = [f"{mix[kind]:.2f}" for kind in SHOWN] + [f"{loop.clocks_per_score(features):.4f}"]
        cells += [loop.limit, f"{loop.matrix_share:.0%} at most"]
        print(f"{name[:NAME]:<{NAME}} " + " ".join(f"{cell:>7}" for cell in cells))
    print("clocks: of a multiprocessor of compute capability 9.0 for each score, if nothing else held it up")
    return 0


Row = tuple[str, machine_code.Loop, int | None]  # MACs of a score, where they are known


def of_file(file: Path) -> list[Row]:
    rows = [(*described(loop.kernel), loop) for loop in machine_code.main_loops(file)]
    return sorted((name, loop, features) for name, features, loop in rows)


def of_triton(problem: attnkern.Problem) -> list[Row]:
    """The Triton kernels that the problem would launch on a GPU, compiled."""
    from attnkern.backends import triton as backend

    if backend.INTERPRETED:
        raise ValueError("TRITON_INTERPRET=1 is set: without it the Triton kernels can be compiled")
    from attnkern.mac.triton_code import launches

    call = dataclasses.replace(
        problem, batch=1, heads=problem.group, kv_heads=1, len_q=LENGTH, len_k=LENGTH, device="cuda"
    )
    if (reason := backend.refuses(call)) is not None:
        raise ValueError(f"backend 'triton' cannot run [{call}]: {reason}")
    every = {}
    for operation in ("softmax", "weights", "sample", "backward"):
        found = issued.passes(call, operation, issued.Sources(output=operation == "backward"), "triton")
        every |= {one.kernel: one.features for one in found}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, launch in launches(call, _tensors(call), CAPABILITY).items():
            if name not in every:  # a pass that this problem does without
                continue
            file = Path(folder, "kernel.cubin")
            file.write_bytes(launch.compiled(CAPABILITY).asm["cubin"])
            rows += [(name, loop, every[name]) for loop in machine_code.main_loops(file)]
    return rows


def _tensors(problem: attnkern.Problem) -> Inputs:
    def zeros(heads: int, width: int) -> torch.Tensor:
        return torch.zeros(1, heads, LENGTH, width, dtype=problem.dtype)

    mask = torch.zeros(1, 1, LENGTH, LENGTH, dtype=torch.bool if problem.mask == "bool" else problem.dtype)
    key, value = zeros(1, problem.head_dim), zeros(1, problem.value_dim)
    return Inputs(
        zeros(problem.heads, problem.head_dim),
        key,
        value,
        mask if problem.mask else None,
        seed=torch.zeros((), dtype=torch.int64),
    )


def described(kernel: str) -> tuple[str, int | None]:
    """A kernel of ours by its template's arguments, and the MACs of a score."""
    if (found := OURS.search(kernel)) is None:
        return kernel, None
    name, dtype, arguments = found.groups()
    flags = [int(flag) for flag in re.findall(r"Lb(\d)", arguments)]
    (seen,) = re.findall(r"SightE(\d)", arguments)
    sizes = [int(size) for size in re.findall(r"Li(\d+)", arguments)]
    without_output = name.startswith("SoftmaxBackward") and not flags[0]
    products = 3 if without_output else PRODUCTS[name]
    named = {"SoftmaxForward": ("extras",), "SampleForward": ()}
    words = [word for word, flag in zip(named.get(name, ("output", "extras")), flags) if flag]
    sight = {"1": ["windowed"], "2": ["centered"]}.get(seen, [])
    return " ".join([name, dtype, "x".join(map(str, sizes)), *sight, *words]), products * sizes[0]


def _built() -> Path:
    found = find_spec("attnkern._cuda")
    if found is None or found.origin is None:
        raise ValueError("the CUDA C++ kernels are not built; name a file, or describe a call for Triton with --kind")
    return Path(found.origin)
