"""The emulator of csrc/ptx: its arithmetic against plain loops, and every hazard that it should report."""

import fcntl
import importlib.util
import itertools
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SOURCES = Path(__file__).resolve().parent / "emulator"
FLAGS = ["-std=c++17", "-O1", "-march=x86-64-v3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
MODULES = ["emulator_hazards", "emulator_primitives"]
BF16, FP16 = torch.bfloat16, torch.float16

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def compile_modules(folder: Path) -> None:
    pybind11 = pytest.importorskip("pybind11")
    includes = [f"-I{CSRC / 'emulator'}", f"-I{CSRC}"]
    includes += ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]

    machine = folder / "machine.cpp"  # all of it at once compiles faster
    machine.write_text("".join(f'#include "{path}"\n' for path in sorted((CSRC / "emulator").glob("*.cpp"))))

    def compile_one(source):
        target = folder / f"{source.stem}.o"
        subprocess.run(["g++", *FLAGS, *includes, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    sources = [SOURCES / f"{name.removeprefix('emulator_')}.cpp" for name in MODULES]
    with ThreadPoolExecutor(2) as pool:
        *mains, machine = pool.map(compile_one, [*sources, machine])
    for name, main in zip(MODULES, mains):
        subprocess.run(["g++", "-shared", main, machine, "-o", str(folder / f"{name}.so")], check=True)


def built(tmp_path_factory, name, compile_into) -> Path:
    """A folder that compile_into(folder) has filled: once, also when several workers run the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            compile_into(folder)
            (folder / "built").touch()
    return folder


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    folder = built(tmp_path_factory, "emulator", compile_modules)
    return [load(folder / f"{name}.so") for name in MODULES]


@pytest.fixture(scope="session")
def hazards(modules):
    return modules[0]


@pytest.fixture
def primitives(modules):
    yield modules[1]
    modules[1].set_options(0, True, 3)
    modules[1].forget_globals()


def share(primitives, *tensors):
    """Lets kernels touch these tensors only; returns their addresses."""
    for tensor in tensors:
        primitives.register_global(tensor.data_ptr(), tensor.numel() * tensor.element_size(), True)
    return [tensor.data_ptr() for tensor in tensors]


def numbers(*shape, dtype=BF16, seed=0):
    """Small integers, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).to(dtype)


CASES = sorted(re.findall(r'\*name = "(\w+)"', "".join(path.read_text() for path in SOURCES.glob("hazards_of_*.h"))))


def test_every_case_is_listed(hazards):
    assert sorted(hazards.cases()) == CASES


@pytest.mark.parametrize("name", CASES)
def test_hazard_is_reported(hazards, name):
    pattern = hazards.cases()[name]
    for seed in range(8):
        with pytest.raises(RuntimeError, match=f"^({pattern}): .*kernel {name}, block 0.* seed {seed}]$"):
            hazards.run(name, True, seed)


@pytest.mark.parametrize("name", CASES)
def test_clean_twin_runs_silently(hazards, name):
    for seed in range(10):
        assert hazards.run(name, False, seed) == 0


@pytest.mark.parametrize(
    "name",
    ["accumulator_read_early", "one_lane_waits", "operand_overwritten", "operand_stored_over", "read_before_wait"],
)
def test_schedules_show_hazards_without_checks(hazards, name):
    assert any(hazards.run(name, True, seed, checks=False) for seed in range(20))


def test_a_seed_repeats_its_run(hazards):
    reports = set()
    for _ in range(3):
        with pytest.raises(RuntimeError) as report:
            hazards.run("warp_race", True, 5)
        reports.add(str(report.value))
    assert len(reports) == 1


def test_deadlock_names_who_waits_for_what(hazards):
    with pytest.raises(RuntimeError, match=r"warp 3 lanes 0-31 wait in barrier_wait parity 0 of \(0x400: phase 0, "):
        hazards.run("too_many_bytes", True, 0)


@pytest.mark.parametrize("b_mn_major", [False, True])
@pytest.mark.parametrize("left", ["K-major", "MN-major", "registers"])
@pytest.mark.parametrize("n", [32, 64, 80, 96, 128, 160, 176, 192, 256])
def test_product(primitives, n, left, b_mn_major):
    check_product(primitives, n, left, b_mn_major)


@pytest.mark.parametrize("left", ["K-major", "MN-major", "registers"])
def test_a_product_from_the_middle_of_an_atom(primitives, left):
    check_product(primitives, 32, left, True, b_first=32)
    with pytest.raises(RuntimeError, match="goes on past its end"):
        check_product(primitives, 64, left, True, b_first=32)


def check_product(primitives, n, left, b_mn_major, b_first=0):
    for dtype in (BF16, FP16):
        a, b = numbers(64, 64, dtype=dtype), numbers(64, b_first + n, dtype=dtype, seed=1)
        d = numbers(64, n, dtype=torch.float32, seed=2)
        expected = d + a.float() @ b[:, b_first:].float()
        a_stored = a.T.contiguous() if left == "MN-major" else a
        b_stored = b if b_mn_major else b.T.contiguous()
        primitives.forget_globals()
        places = share(primitives, a_stored, b_stored, d)
        order = ["K-major", "MN-major", "registers"].index(left)
        primitives.multiply(dtype == FP16, n, *places, order, b_mn_major, b_first)
        assert torch.equal(d, expected)


SECTIONS = [  # tiles, heads, heads that fit the cache
    (3, 5, 2),
    (2**14, 60, 2**18),  # whose product is 2^32
    (2**21, 500, 98305),
    (2**26, 15, 16 * 98305),
]


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize(("tiles", "heads", "section"), SECTIONS)
def test_every_tile_has_its_turn(primitives, tiles, heads, section, last_first):
    """However many tiles the heads have that fit the cache together."""
    for number in {0, 1, heads - 1, min(section, heads) * tiles - 1, tiles * heads // 2, tiles * heads - 1}:
        first = number // (section * tiles) * section
        together = min(section, heads - first)
        rank, head = divmod(number - first * tiles, together)
        tile = tiles - 1 - rank if last_first else rank
        assert primitives.place(tiles, heads, section, last_first, number) == (tile, first + head)


@pytest.mark.parametrize(("tiles", "heads"), [(2**21, 2**9), (1, 2**30), (2**28, 2**56)])
def test_too_many_tiles_are_refused(primitives, tiles, heads):
    with pytest.raises(ValueError, match=r"2\*\*30 tiles or more"):
        primitives.place(tiles, heads, 1, False, 0)


@pytest.mark.parametrize("offset", [0, 3, -3, 2**29, -(2**29), 2**31 - 1, -(2**31), 2**40, -(2**40)])
@pytest.mark.parametrize(("left", "right"), [(-1, 0), (0, -1), (2, 3), (2**31, 2**31), (2**40, 2**40)])
def test_windows_far_from_the_keys(primitives, left, right, offset):
    row, len_k = 5, 20
    begin, end = primitives.window(left, right, offset, row, len_k)
    for key in range(len_k):
        seen = (left < 0 or key >= row + offset - left) and (right < 0 or key <= row + offset + right)
        assert (begin <= key < end) == seen


def swizzled(box):
    """Rows of 64 numbers as 16-byte chunks in the places where 128-byte swizzling puts them."""
    chunks = box.reshape(-1, 8, 8)
    image = torch.empty_like(chunks)
    for row in range(chunks.shape[0]):
        for chunk in range(8):
            image[row, chunk ^ row % 8] = chunks[row, chunk]
    return image.reshape(box.shape)


@pytest.mark.parametrize("rows", [8, 64, 256])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (64, 8, 2, 1), (-5, -3, 1, 0), (90, 290, 0, 1), (0, 0, 3, 0)])
def test_copies_clip_at_the_tensor(primitives, rows, place):
    batches, heads, length, width = 2, 3, 300, 104
    source = numbers(batches, length, heads, width)  # heads inside of rows
    target = torch.full((batches, heads, length, width), -100.0, dtype=BF16)
    image = torch.zeros(rows, 64, dtype=BF16)
    share(primitives, source, target, image)
    sizes = [width, length, heads, batches]
    from_map = primitives.TensorMap(
        source.data_ptr(), sizes, [2 * heads * width, 2 * width, 2 * heads * width * length], rows
    )
    to_map = primitives.TensorMap(
        target.data_ptr(), sizes, [2 * width, 2 * width * length, 2 * heads * width * length], rows
    )
    to_place = (place[0] + 16, place[1] - 9, 1, 1)
    primitives.copy(from_map, to_map, rows, image.data_ptr(), place, to_place)

    box, expected = torch.zeros(rows, 64, dtype=BF16), torch.full_like(target, -100.0)
    for row, column in itertools.product(range(rows), range(64)):
        x, y, head, batch = place[0] + column, place[1] + row, place[2], place[3]
        if 0 <= x < width and 0 <= y < length and head < heads and batch < batches:
            box[row, column] = source[batch, y, head, x]
    for row, column in itertools.product(range(rows), range(64)):
        x, y, head, batch = to_place[0] + column, to_place[1] + row, to_place[2], to_place[3]
        if 0 <= x < width and 0 <= y < length:
            expected[batch, head, y, x] = box[row, column]
    assert torch.equal(image, swizzled(box))
    assert torch.equal(target, expected)


def test_tensor_maps_are_refused_as_the_driver_does(primitives):
    good = dict(data=64, sizes=[64, 64, 1, 1], strides=[128, 8192, 8192], box_rows=64)
    for bad in (dict(data=72), dict(sizes=[64, 0, 1, 1]), dict(strides=[120, 8192, 8192]), dict(box_rows=257)):
        with pytest.raises(RuntimeError, match="tensor map refused"):
            primitives.TensorMap(*{**good, **bad}.values())
    primitives.TensorMap(*good.values())


def test_adding_floats(primitives):
    sums = torch.ones(300)
    share(primitives, sums)
    for seed in range(5):
        primitives.set_options(seed, True, 3)
        sums.fill_(1)
        primitives.add(sums.data_ptr(), 296, 3, 2)
        expected = 1 + 2 * 3 * (4 * torch.arange(296.0) + 6)
        assert torch.equal(sums[:296], expected) and torch.equal(sums[296:], torch.ones(4))


def test_storing_matrices(primitives):
    matrices = torch.arange(256, dtype=torch.int16).reshape(4, 8, 8)
    fragments = torch.empty(32, 4, 2, dtype=torch.int16)
    for lane in range(32):
        fragments[lane] = matrices[:, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
    plain, transposed = torch.empty(4, 8, 8, dtype=torch.int16), torch.empty(4, 8, 8, dtype=torch.int16)
    primitives.matrices(*share(primitives, fragments, plain, transposed))
    assert torch.equal(plain, matrices) and torch.equal(transposed, matrices.mT)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 32])
def test_phases_of_a_two_stage_ring(primitives, count):
    rows, sums = numbers(count, 128, dtype=torch.float32), torch.empty(128)
    share(primitives, rows, sums)
    for seed in range(5):
        primitives.set_options(seed, True, 3)
        sums.fill_(torch.nan)
        primitives.ring(rows.data_ptr(), sums.data_ptr(), count)
        assert torch.equal(sums, rows.sum(0))


def test_lanes_exchange(primitives):
    blocks, results = 3, torch.full((5, 192), -1, dtype=torch.int32)
    share(primitives, results)
    primitives.lanes(*[row.data_ptr() for row in results], blocks)
    place = torch.arange(64 * blocks, dtype=torch.int32)
    assert torch.equal(results[0], place // 32 * 32 + 7)
    assert torch.equal(results[1], place ^ 5)
    assert torch.equal(results[2], torch.where(place % 32 < 3, place, place - 3))
    assert torch.equal(results[3], (place % 64 >= 32).int())
    assert torch.equal(results[4].reshape(-1, 32).sum(1), torch.ones(2 * blocks, dtype=torch.int64))


def test_words_of_all_sizes(primitives):
    words, out, mirrored = torch.randn(128, 4), torch.empty(128, 7), torch.empty(128, dtype=torch.int32)
    primitives.words(*share(primitives, words, out, mirrored))
    assert torch.equal(out, torch.cat([words, words[:, 2:], words[:, :1]], 1).flip(0))
    assert torch.equal(mirrored, 27 - torch.arange(128, dtype=torch.int32))


def test_tickets(primitives):
    counter, tickets, sums = torch.tensor([5], dtype=torch.int32), torch.zeros(192, dtype=torch.int32), torch.ones(32)
    primitives.tickets(*share(primitives, counter, tickets, sums), 3)
    assert counter == 197 and torch.equal(tickets.sort()[0], torch.arange(5, 197, dtype=torch.int32))
    assert torch.equal(sums, 1 + torch.arange(192.0).reshape(6, 32).sum(0))


def test_warpgroups_take_turns(primitives):
    numbers, last = torch.empty(2, 128, dtype=torch.int32), [torch.arange(128)] * 2
    for turn in range(1, 8):
        last[turn % 2] = 3 * last[1 - turn % 2].roll(-1) + turn % 2
    share(primitives, numbers)
    for seed in range(5):
        primitives.set_options(seed, True, 3)
        primitives.turns(numbers.data_ptr(), 4)
        assert torch.equal(numbers, torch.stack(last).int())


def test_taken_registers_hold_numbers(primitives):
    held, rotated = torch.randn(2, 200, 128), torch.empty(2, 200, 128)
    primitives.registers(*share(primitives, held, rotated))
    assert torch.equal(rotated, held.roll(-1, 1))


@pytest.mark.parametrize("checks", [True, False])
def test_persistent_gemm(primitives, checks):
    m, n, k = 200, 136, 200
    a, b, c = numbers(m, k), numbers(n, k, seed=1), torch.empty(m, n, dtype=BF16)
    places = share(primitives, a, b, c)
    for seed in range(20):
        primitives.set_options(seed, checks, 3)
        c.fill_(torch.nan)
        primitives.gemm(*places, m, n, k)
        assert torch.equal(c, (a.float() @ b.float().T).to(BF16))


def test_only_registered_memory_may_be_touched(primitives):
    rows, sums = numbers(2, 128, dtype=torch.float32), torch.zeros(128)
    share(primitives, rows[:1], sums)
    with pytest.raises(RuntimeError, match="out of bounds: load_bytes"):
        primitives.ring(rows.data_ptr(), sums.data_ptr(), 2)
    primitives.forget_globals()
    primitives.register_global(rows.data_ptr(), rows.numel() * 4, False)
    primitives.register_global(sums.data_ptr(), sums.numel() * 4, True)
    with pytest.raises(RuntimeError, match="uninitialised read: load_bytes"):
        primitives.ring(rows.data_ptr(), sums.data_ptr(), 2)


def apply(primitives, function, x, y=None, result=torch.float32):
    """A function of csrc/ptx/number.h, of all numbers."""
    result = torch.empty(x.numel(), dtype=result)
    primitives.forget_globals()
    getattr(primitives, function)(*share(primitives, x, x if y is None else y, result), x.numel())
    return result


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_conversions(primitives, dtype):
    name = "bf16" if dtype == BF16 else "fp16"
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    expected = bits.view(dtype).float()
    assert torch.equal(apply(primitives, f"{name}_to_float", bits).nan_to_num(7.0), expected.nan_to_num(7.0))
    wide = torch.randint(-(2**31), 2**31, (3000,), generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([wide.int().view(torch.float32), torch.randn(3000) * 30, torch.tensor([65504.0, 65520.0])])
    inputs = inputs.nan_to_num(1.0)
    packed = apply(primitives, f"pack_{name}", inputs, inputs.flip(0), torch.int32)
    rounded = inputs.to(dtype).view(torch.int16)
    assert torch.equal(packed.view(torch.int16).reshape(-1, 2), torch.stack([rounded, rounded.flip(0)], 1))
    nan = torch.tensor([torch.nan])
    assert apply(primitives, f"pack_{name}", nan, torch.zeros(1), torch.int32) == 0x7FFF


def test_special_functions(primitives):
    inf, nan = float("inf"), float("nan")
    assert apply(primitives, "exp2", torch.tensor([-3.0, -200.0, -130.0, -inf])).tolist() == [0.125, 0, 0, 0]
    # Subnormal numbers are flushed.
    assert apply(primitives, "log2", torch.tensor([8.0, 0.0, 1e-40])).tolist() == [3, -inf, -inf]
    assert apply(primitives, "tanh", torch.tensor([0.0, inf, -inf])).tolist() == [0, 1, -1]
    x, y = torch.tensor([1.0, 2.0, nan, 1.0, -inf]), torch.tensor([2.0, 1.0, 1.0, nan, 0.0])
    assert (
        apply(primitives, "min_or_nan", x, y).nan_to_num(7.0).tolist() == torch.minimum(x, y).nan_to_num(7.0).tolist()
    )
    ones = torch.tensor([-1], dtype=torch.int32)
    assert apply(primitives, "multiply_high", ones, result=torch.int32) == -2
