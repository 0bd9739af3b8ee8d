"""The CUDA C++ kernels as compiled: instructions, registers and spills, read off the module; needs nvcc, but no GPU."""

import re
import subprocess
import sys
from collections import defaultdict

import pytest

from attnkern.backends import hopper
from attnkern.commands.machine_code import described
from attnkern.mac.machine_code import cuobjdump, loops_of
from tests.compiled import compiled

REGISTERS = 65536  # of a multiprocessor
NAME = re.compile(r"kernels\d+([A-Za-z]+)INS_4(bf16|fp16)E(?:Li(\d+))?")


@pytest.fixture(scope="session")
def module() -> str:
    return compiled("cuda").__file__


@pytest.fixture(scope="session")
def listing(module) -> str:
    return cuobjdump("--dump-sass", module)


@pytest.fixture(scope="session")
def kernels(module, listing) -> dict[str, dict[str, int]]:
    """By mangled name: registers, stack and local bytes, threads, and how often some instructions occur."""
    found = defaultdict(dict)
    usage = cuobjdump("--dump-resource-usage", module)
    for name, registers, stack, local in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage):
        found[name] |= {"registers": int(registers), "stack": int(stack), "local": int(local)}
    for part in re.split(r"^\.nv\.info\.", cuobjdump("--dump-elf", module), flags=re.MULTILINE)[1:]:
        threads = re.search(r"EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s+0x(\w+)", part)
        found[part.split(maxsplit=1)[0]]["threads"] = int(threads[1], 16)
    for part in re.split(r"^\s+Function : ", listing, flags=re.MULTILINE)[1:]:
        kernel = found[part.split(maxsplit=1)[0]]
        for instruction in ("HGMMA", "STL", "LDL"):
            kernel[instruction] = len(re.findall(rf"\b{instruction}\b", part))
    return dict(found)


def test_every_kernel_is_there(kernels):
    found = {NAME.search(name).groups() for name in kernels}
    for dtype in ("bf16", "fp16"):
        for width in hopper.WIDTHS:
            backward = "SoftmaxBackward" if width <= 128 else "SoftmaxBackwardByColumns"
            assert {(kind, dtype, str(width)) for kind in ("SoftmaxForward", "SampleForward", backward)} <= found


def test_tiles_are_those_that_are_counted(kernels):
    """hopper.py's tables, against the templates' arguments in the kernels' names."""
    for name in kernels:
        kernel, _, width = NAME.search(name).groups()
        sizes = [int(size) for size in re.findall(r"Li(\d+)E", name)]
        if kernel == "SoftmaxForward":
            (sight,), (extras,) = re.findall(r"SightE(\d)", name), re.findall(r"Lb(\d)E", name)
            table = hopper.FORWARD_TILE if sight == "1" else hopper.DENSE_FORWARD_TILE
            table = hopper.EXTRAS_FORWARD_TILE if extras == "1" else table
            assert tuple(sizes[1:]) == table[int(width)]
        elif kernel == "SampleForward":
            _, rows, _, samples = sizes
            table = hopper.SAMPLE_TILE if samples == 1 else hopper.SAMPLES_TILE
            assert rows == table[int(width)][0] and samples in (1, hopper.SAMPLES_AT_ONCE)
        elif kernel == "SoftmaxBackward":
            assert sizes[1] == hopper.BACKWARD_TILE[int(width)][0]
        elif kernel == "SoftmaxBackwardByColumns":
            assert sizes[1] == hopper.BACKWARD_BY_COLUMNS_TILE[int(width)][0]


def test_products_run_on_the_matrix_unit(kernels):
    """wgmma is HGMMA; the small kernels around the backward have no product."""
    assert [name for name, found in kernels.items() if NAME.search(name)[3] and not found["HGMMA"]] == []


def test_no_spills(kernels):
    """Of heads up to 128: wider ones may, a few bytes."""
    held = [name for name in kernels if int(NAME.search(name)[3] or 0) <= 128]
    narrow = {name: kernels[name] for name in held}
    counts = {name: {what: found[what] for what in ("stack", "local", "STL", "LDL")} for name, found in narrow.items()}
    spilled = [f"{name}: {count}" for name, count in counts.items() if any(count.values())]
    assert not spilled, "\n".join(spilled)


def test_loops_are_not_held_up_by_issue(listing):
    """Plain global attention, forward and backward, heads of 128: the matrix units set the pace."""
    loops = {loop.kernel: loop for loop in loops_of(listing)}
    plain = [
        loop
        for name, loop in loops.items()
        if re.search(r"bf16ELi128E(Li128ELi160ELN4core5SightE0ELb0|Li64ELN4core5SightE0ELb1)E", name)
    ]
    assert len(plain) == 2 and all(loop.matrix_share == 1 for loop in plain)
    for name, loop in loops.items():
        features = described(name)[1]
        assert features is None or 1 <= loop.per_score(features)["exp"] < 1.05, name


def test_a_block_fits_a_multiprocessor(kernels):
    """Registers; of shared memory the compiler makes sure."""
    assert all(found["registers"] and found["threads"] for found in kernels.values())
    assert [name for name, found in kernels.items() if found["registers"] * found["threads"] > REGISTERS] == []


def test_the_module_needs_no_driver(module):
    """Importing it maps no CUDA library, so it also imports where there is none."""
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("attnkern._cuda", {module!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
assert "libcuda" not in open("/proc/self/maps").read()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_both_modules_live_in_one_process(module):
    """The kernels and their emulated twin have classes of the same names."""
    assert compiled("emulated").ScoreOptions is not compiled("cuda").ScoreOptions
