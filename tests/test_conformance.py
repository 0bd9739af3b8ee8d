"""Each primitive of csrc/ptx on a GPU against its emulated twin: the same kernels, the same inputs, bits compared."""

import shutil
import subprocess
import sysconfig

import pytest
import torch

from tests.compiled import BUILD
from tests.test_emulator import BF16, CSRC, FP16, SOURCES, built, compile_modules, load, numbers

DEVICE = "cuda"
BITS = {2: torch.int16, 4: torch.int32}
INF, NAN = float("inf"), float("nan")


def why_not() -> str | None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        return "needs a GPU of compute capability 9.0"
    missing = [name for name, found in (("nvcc", BUILD["find_nvcc"]()), ("g++", shutil.which("g++"))) if not found]
    return f"needs {' and '.join(missing)}" if missing else None


if reason := why_not():
    pytest.skip(reason, allow_module_level=True)


def compile_device(folder) -> None:
    pybind11 = pytest.importorskip("pybind11")
    includes = [f"-I{CSRC}", "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    command = [BUILD["find_nvcc"](), *BUILD["NVCC_FLAGS"].split(), "-x", "cu", *includes]
    subprocess.run([*command, "-shared", SOURCES / "device.cpp", "-o", folder / "device_primitives.so"], check=True)


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    """The kernels compiled for the GPU, and emulated."""
    device = built(tmp_path_factory, "device", compile_device)
    emulated = built(tmp_path_factory, "emulator", compile_modules)
    return load(device / "device_primitives.so"), load(emulated / "emulator_primitives.so")


def outcomes(modules, run, *tensors):
    """What run(module, *addresses) leaves in each tensor, as pairs: on the GPU, emulated."""
    device, emulated = modules
    there, here = [x.to(DEVICE, copy=True) for x in tensors], [x.clone() for x in tensors]
    run(device, *(x.data_ptr() for x in there))
    torch.cuda.synchronize()
    run(emulated, *(x.data_ptr() for x in here))
    return [(x.cpu(), y) for x, y in zip(there, here)]


def as_bits(x):
    return x.view(BITS[x.element_size()])


def check_bits(pairs, nan_is_nan=False):
    """Equal bits; with nan_is_nan, any two NaNs are equal."""
    for place, (device, emulated) in enumerate(pairs):
        differs = as_bits(device) != as_bits(emulated)
        if nan_is_nan:
            differs &= ~(device.isnan() & emulated.isnan())
        assert not differs.any(), f"tensor {place}: {device[differs][:8]} on the GPU, {emulated[differs][:8]} emulated"


def check_close(device, emulated, bound):
    """Equal, both NaN, or no farther from each other than the bound."""
    near = (device == emulated) | (device.isnan() & emulated.isnan())
    near |= emulated.isfinite() & ((device.double() - emulated.double()).abs() <= bound)
    assert near.all(), f"{device[~near][:8]} on the GPU, {emulated[~near][:8]} emulated"


def random_bits(*shape, dtype=torch.int32, seed=0):
    size = torch.iinfo(dtype)
    return torch.randint(size.min, size.max + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Products

LEFTS = ["K-major", "MN-major", "registers"]


def multiply(modules, a, b, d, left="K-major", b_mn_major=False):
    """d + a b, of an MN-major b the last columns, on the GPU and emulated."""
    a_stored = a.T.contiguous() if left == "MN-major" else a
    b_stored = b if b_mn_major else b.T.contiguous()
    n = d.shape[1]

    def run(module, *places):
        module.multiply(a.dtype == FP16, n, *places, LEFTS.index(left), b_mn_major, b.shape[1] - n)

    return outcomes(modules, run, a_stored, b_stored, d)[2]


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("b_mn_major", [False, True])
@pytest.mark.parametrize("left", LEFTS)
@pytest.mark.parametrize("n", [32, 64, 80, 96, 128, 160, 176, 192, 256])
def test_products(modules, n, left, b_mn_major, dtype):
    a, b, d = numbers(64, 64, dtype=dtype), numbers(64, n, dtype=dtype, seed=1), numbers(64, n, seed=2).float()
    check_bits([multiply(modules, a, b, d, left, b_mn_major)])
    # Of other numbers the matrix unit aligns and truncates what it adds up, relative to the largest.
    a, b, d = normal(64, 64, dtype=dtype), normal(64, n, dtype=dtype, seed=1), normal(64, n, seed=2)
    magnitudes = d.double().abs() + a.double().abs() @ b.double().abs()
    check_close(*multiply(modules, a, b, d, left, b_mn_major), 1e-6 * magnitudes)


@pytest.mark.parametrize("left", LEFTS)
def test_products_from_the_middle_of_an_atom(modules, left):
    a, b, d = numbers(64, 64, dtype=BF16), numbers(64, 64, dtype=BF16, seed=1), numbers(64, 32, seed=2).float()
    check_bits([multiply(modules, a, b, d, left, True)])


@pytest.mark.parametrize(("dtype", "least", "up"), [(BF16, 2.0**-133, 2.0**100), (FP16, 2.0**-24, 1.0)], ids=str)
def test_products_keep_subnormal_factors(modules, dtype, least, up):
    a, b = numbers(64, 64).float() * least, numbers(64, 64, seed=1).float() * up
    pair = multiply(modules, a.to(dtype), b.to(dtype), torch.zeros(64, 64))
    assert pair[1].any()
    check_bits([pair])


def test_products_of_infinities_and_nan(modules):
    a = numbers(64, 64)
    a[3, 5], a[4, 7], a[4, 9], a[6, 0] = INF, INF, -INF, NAN
    pair = multiply(modules, a, numbers(64, 64, seed=1), torch.zeros(64, 64))
    check_bits([pair], nan_is_nan=True)


def test_gemm(modules):
    """Tiles by the copy engine, a ring of barriers, registers given and taken, stmatrix, and stores of tiles.

    There are more tiles of the result than multiprocessors, so that blocks go round.
    """
    m, n, k = 6200, 136, 200
    a, b, c = numbers(m, k), numbers(n, k, seed=1), torch.full((m, n), NAN, dtype=BF16)
    check_bits(outcomes(modules, lambda module, *places: module.gemm(*places, m, n, k), a, b, c))


# Copies

BATCHES, HEADS, LENGTH, WIDTH = 2, 3, 300, 104


@pytest.mark.parametrize("rows", [8, 64, 256])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (64, 8, 2, 1), (-5, -3, 1, 0), (90, 290, 0, 1), (0, 0, 3, 0)])
def test_copies_of_tiles(modules, rows, place):
    source = random_bits(BATCHES, LENGTH, HEADS, WIDTH, dtype=torch.int16)  # heads inside of rows
    target = random_bits(BATCHES, HEADS, LENGTH, WIDTH, dtype=torch.int16, seed=1)
    image = random_bits(rows, 64, dtype=torch.int16, seed=2)

    def run(module, source, target, image):
        sizes, row = [WIDTH, LENGTH, HEADS, BATCHES], 2 * WIDTH
        source = module.TensorMap(source, sizes, [HEADS * row, row, HEADS * row * LENGTH], rows)
        target = module.TensorMap(target, sizes, [row, row * LENGTH, HEADS * row * LENGTH], rows)
        module.copy(source, target, rows, image, place, (place[0] + 16, place[1] - 9, 1, 1))

    check_bits(outcomes(modules, run, source, target, image))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 32])
def test_runs_of_bytes_through_a_ring(modules, count):
    """Each sum is one thread's, in order: exact for any numbers."""
    rows = normal(count, 128)
    check_bits(outcomes(modules, lambda module, *places: module.ring(*places, count), rows, torch.empty(128)))


def test_adding_floats(modules):
    check_bits(outcomes(modules, lambda module, sums: module.add(sums, 296, 3, 7), torch.ones(300)))


def test_setting_zero(modules):
    check_bits(outcomes(modules, lambda module, place: module.set_zero(place, 400), normal(128)))


# Threads


def test_storing_matrices(modules):
    tensors = [random_bits(256, dtype=torch.int16, seed=seed) for seed in range(3)]
    check_bits(outcomes(modules, lambda module, *places: module.matrices(*places), *tensors))


def test_words_of_all_sizes(modules):
    tensors = [normal(128, 4), torch.empty(128, 7), torch.empty(128, dtype=torch.int32)]
    check_bits(outcomes(modules, lambda module, *places: module.words(*places), *tensors))


def test_lanes_exchange(modules):
    """Which lane is elected is the machine's choice."""
    blocks = 5
    results = [torch.full((64 * blocks,), -1, dtype=torch.int32) for _ in range(5)]
    *exchanged, elected = outcomes(modules, lambda module, *places: module.lanes(*places, blocks), *results)
    check_bits(exchanged)
    for lanes in elected:
        assert ((lanes == 0) | (lanes == 1)).all() and (lanes.reshape(-1, 32).sum(1) == 1).all()


def test_atomic_additions(modules):
    """Who gets which ticket is chance."""
    blocks = 300
    tensors = [torch.tensor([5], dtype=torch.int32), torch.zeros(64 * blocks, dtype=torch.int32), torch.ones(32)]
    counter, tickets, sums = outcomes(modules, lambda module, *places: module.tickets(*places, blocks), *tensors)
    check_bits([counter, [drawn.sort()[0] for drawn in tickets], sums])


@pytest.mark.parametrize("rounds", [1, 2, 9])
def test_warpgroups_take_turns(modules, rounds):
    last = torch.full((2, 128), -1, dtype=torch.int32)
    check_bits(outcomes(modules, lambda module, place: module.turns(place, rounds), last))


def test_taken_registers_hold_numbers(modules):
    tensors = [normal(2, 200, 128), torch.zeros(2, 200, 128)]
    check_bits(outcomes(modules, lambda module, *places: module.registers(*places), *tensors))


# Numbers


def apply(modules, function, x, y=None, result=torch.float32):
    """A function of number.h of all numbers, on the GPU and emulated."""

    def run(module, *places):
        getattr(module, function)(*places, x.numel())

    return outcomes(modules, run, x, x if y is None else y, torch.zeros(x.numel(), dtype=result))[2]


SPECIAL = [0.0, INF, NAN, 1.0, 2.0**-126, 2.0**-127, 2.0**-149, 3.4028234663852886e38, 65504.0, 65519.99, 65520.0]


def floats():
    """Of all magnitudes, subnormal ones and NaNs of any payload among them."""
    special = torch.tensor(SPECIAL)
    return torch.cat([special, -special, random_bits(2**16).view(torch.float32)])


def ties(dtype):
    """The middles between neighbours of a 16-bit type, and the floats beside them."""
    value = torch.arange(2**15, dtype=torch.int16).view(dtype).float()
    value = value[value.isfinite()]
    middle = torch.cat([(value[1:] + value[:-1]) / 2, value[-1:] + (value[-1:] - value[-2:-1]) / 2])
    beside = [middle, middle.nextafter(torch.tensor(0.0)), middle.nextafter(torch.tensor(INF))]
    return torch.cat([*beside, *(-x for x in beside)])


@pytest.mark.parametrize(("name", "dtype"), [("bf16", BF16), ("fp16", FP16)])
def test_conversions(modules, name, dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    check_bits([apply(modules, f"{name}_to_float", bits)], nan_is_nan=True)
    x = torch.cat([floats(), ties(dtype)])
    check_bits([apply(modules, f"pack_{name}", x, x.flip(0), torch.int32)])


# The twin's functions are right to an ulp; what the hardware promises comes on top of that.
ULP, TINY = 2.0**-23, 2.0**-126


def uniform(low, high, seed=0):
    return torch.empty(2**16).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


def test_exp2(modules):
    """Promised: 2 ulp, or 2^-22 relative. Results below the normal numbers are zeros, on the edge either may be."""
    x = torch.cat([floats(), uniform(-160, 130), uniform(-1, 1, seed=1), torch.arange(-160.0, 130)])
    device, emulated = apply(modules, "exp2", x)
    check_close(device, emulated, 3 * ULP * emulated.double() + TINY)


def test_log2(modules):
    """Promised: 2^-22 absolute from 0.5 to 2, elsewhere 2 ulp."""
    x = torch.cat([floats(), uniform(0.4, 2.5), 2 ** uniform(-126, 127, seed=1), 2 ** torch.arange(-126.0, 127)])
    device, emulated = apply(modules, "log2", x)
    absolute = torch.where((x >= 0.5) & (x <= 2), 2.0**-22, 0.0)
    check_close(device, emulated, 3 * ULP * emulated.double().abs() + absolute)


def test_tanh(modules):
    """Promised: 2^-11 relative; measured by others to be a little more."""
    x = torch.cat([floats(), uniform(-10, 10), uniform(-0.01, 0.01, seed=1)])
    device, emulated = apply(modules, "tanh", x)
    check_close(device, emulated, 2.0**-10.9 * emulated.double().abs() + TINY)


def test_min_or_nan(modules):
    """Not of two zeros: the twin does not tell which is the smaller."""
    x, y = floats(), floats().roll(7)
    x = torch.where((x == 0) & (y == 0), 1.0, x)
    check_bits([apply(modules, "min_or_nan", x, y), apply(modules, "min_or_nan", x, x)], nan_is_nan=True)


def test_multiply_high(modules):
    edges = torch.tensor([0, 1, -1, 2**31 - 1, -(2**31)], dtype=torch.int32)
    x = torch.cat([edges.repeat_interleave(5), random_bits(2**14)])
    y = torch.cat([edges.repeat(5), random_bits(2**14, seed=1)])
    check_bits([apply(modules, "multiply_high", x, y, torch.int32)])
