"""The native kernels for CPUs: every body that the machine has, threads, and memory that is not theirs."""

import copy
import ctypes
import mmap
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("hypothesis")

import attnkern
from attnkern import AuxRequest, attention_over_attention, global_attention, hard_attention, local_attention, reference
from attnkern.backends import choose
from attnkern.problem import Inputs
from tests.cases import CPU, Case, check, check_extreme_centers
from tests.test_fuzz import fuzz

if not CPU:
    pytest.skip("needs the kernels for CPUs, and tests on a CPU", allow_module_level=True)

backend = choose.load("cpu")
HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(params=backend.usable())
def instruction_set(request):
    before = backend.in_use()
    backend.use(request.param)
    assert backend.in_use() == request.param
    yield request.param
    backend.use(before)


# In float32 the smallest are left out: the rounding of a single number is luck.
@pytest.mark.parametrize(("dtype", "examples", "least"), [(FP32, 40, 9), (HALF, 15, 1), (BF16, 15, 1)], ids=str)
def test_any_call(instruction_set, dtype, examples, least, poisoned_memory):
    @fuzz(examples=examples, longest=200, least=least)
    def run(call):
        check(*call, "cpu", dtype, "cpu")

    run()


# Rows of one tile of keys, of several that are kept, and of more; few queries of many keys, which are divided.
@pytest.mark.parametrize(
    "case",
    [
        Case((65, 1000), (64, 64), heads=(2, 1), options={"is_causal": True, "query_offset": "end"}),
        Case((300, 700), (24, 40), mask="bool", options={"window": (150, 120), "query_offset": 200}),
        Case((3, 2500), (32, 32), heads=(4, 2), mask="padding", weights=None, options={"is_causal": True}),
        Case(
            (1, 2600),
            (16, 16),
            batch=2,
            heads=(2, 1),
            weights=None,
            options={"window": (2100, 0), "query_offset": "end"},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_long_rows(instruction_set, case, dtype, poisoned_memory):
    check("local" if "window" in case.options else "global", case, "cpu", dtype, "cpu")


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("sigma", [None, 3.0])
@pytest.mark.parametrize(("lengths", "window"), [((70, 90), (10, 10)), ((200, 150), (0, 5)), ((5, 300), (-1, 4))])
def test_centers(instruction_set, lengths, window, sigma, renormalize, poisoned_memory):
    if renormalize and sigma is None:
        return
    options = {"window": window, "dropout_p": 0.2, "seed": 3, "renormalize": renormalize}
    for mask, causal in ((None, True), ("float", False)):
        case = Case(
            lengths, (24, 17), batch=2, heads=(2, 1), mask=mask, center=True, sigma=sigma, weights=None,
            options=options | {"is_causal": causal},
        )  # fmt: skip
        check("local", case, "cpu", FP32, "cpu")


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_extreme_centers(instruction_set, dtype, renormalize):
    check_extreme_centers("cpu", dtype, "cpu", renormalize)


def everything(query, key, value, mask, **options):
    """Results and gradients of every kernel."""
    found = []

    def add(*results):
        leaves = [x for x in (query, key, value, mask) if x.requires_grad]
        loss = sum(x.float().square().sum() for x in results if x.is_floating_point())
        found.extend([*results, *torch.autograd.grad(loss, leaves, allow_unused=True)])

    options |= {"enable_gqa": True, "backend": "cpu"}
    output, aux = global_attention(
        query, key, value, mask, dropout_p=0.2, seed=1, softcap=3.0, return_aux=AuxRequest(True, "mean"), **options
    )
    add(output, aux.lse, aux.weights)
    add(local_attention(query, key, value, mask[:, :, :1], window=(50, 9), **options))
    center = torch.linspace(-5, key.shape[2], query.shape[2]).flip(0).view(1, 1, -1)
    add(local_attention(query, key, value, window=(9, 9), center=center, sigma=3.0, **options))
    add(*hard_attention(query, key, value, num_samples=3, seed=1, straight_through=True, **options))
    add(attnkern.mac_attention(query, key, value, activation="relu", **options))
    add(attention_over_attention(query[0], key[0].repeat_interleave(2, 0), backend="cpu"))
    return [x.detach() for x in found if x is not None]


def made(len_q=150, len_k=333, dim=24, dtype=FP32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, len_q, dim), (2, 2, len_k, dim), (2, 2, len_k, dim), (1, 4, len_q, len_k))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_number_of_threads_changes_no_bit(dtype):
    tensors, few = made(dtype=dtype), made(1, 3000, dtype=dtype)
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(everything(*tensors) + everything(*few))
    finally:
        torch.set_num_threads(1)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others))


def test_two_threads_of_python_at_once():
    """Each has tiles of its own."""
    from concurrent.futures import ThreadPoolExecutor

    tensors = made()
    expected = everything(*tensors)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: everything(*tensors), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(expected, found))


class Fenced:
    """Copies of tensors, each between two pages that must not be touched, at either end of what it has."""

    def __init__(self):
        self.libc, self.kept = ctypes.CDLL(None, use_errno=True), []
        self.libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def copy(self, tensor, at_end):
        size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
        room = -(-size // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for fence in (start, start + page + room):
            assert self.libc.mprotect(fence, page, 0) == 0
        self.kept.append((memory, start, room))
        place = page + (room - size if at_end else 0)
        found = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=place).view(tensor.shape)
        with torch.no_grad():
            found.copy_(tensor)
        return found.requires_grad_(tensor.requires_grad)

    def open(self):
        for _, start, room in self.kept:
            self.libc.mprotect(start, room + 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (65, 111, 17), (150, 333, 24)])
def test_nothing_outside_a_tensor_is_read(instruction_set, sizes, at_end, dtype):
    tensors = made(*sizes, dtype=dtype)
    expected, fenced = everything(*tensors), Fenced()
    try:
        found = everything(*(fenced.copy(x, at_end) for x in tensors))
    finally:
        fenced.open()
    assert all(torch.equal(a, b) for a, b in zip(expected, found))


def test_any_stride(instruction_set):
    query, key, value, _ = (x.detach() for x in made())
    expected = global_attention(query, key, value, enable_gqa=True, backend="cpu")
    apart = torch.stack([value] * 3, -1)[..., 1]
    reversed_heads = query.flip(1).as_strided(query.shape, query.stride())
    every_other = torch.stack([key, key * 2], 3).flatten(2, 3)[:, :, ::2]
    got = global_attention(reversed_heads.flip(1), every_other, apart, enable_gqa=True, backend="cpu")
    torch.testing.assert_close(got, expected)
    shared = key[:, :1, :1].expand(2, 2, 333, 24)  # strides 0
    got = global_attention(query, shared, value, enable_gqa=True, backend="cpu")
    expected = reference.softmax_attention(query, shared, value)[0]
    torch.testing.assert_close(got, expected)


def test_sequences_outside_of_the_tensors_are_refused():
    x = torch.randn(1, 2, 10, 8)
    inside = torch.tensor([0, 4, 10])
    for outside in ([0, 4, 11], [0, 5, 4], [-1, 4, 10], [0, 1, 10]):
        for sequences in ((inside, torch.tensor(outside)), (torch.tensor(outside), inside)):
            options = (*sequences, 1.0, 0.0, False, -1, -1, 0, 6, 6, 0.0, "cpu")
            with pytest.raises(ValueError, match="packed sequences"):
                torch.ops.attnkern.softmax_attention(x, x, x, None, None, None, *options)


def test_the_environment_names_the_instructions():
    def run(name):
        command = [sys.executable, "-c", "from attnkern.backends import cpu; print(cpu.in_use())"]
        return subprocess.run(command, env=os.environ | {backend.CAPABILITY: name}, capture_output=True, text=True)

    done = run("plain")
    assert done.stdout.strip() == backend.usable()[-1], done.stderr
    message = run("mmx").stderr.splitlines()[-1]
    assert message.endswith(f"must be one of {', '.join(backend.INSTRUCTION_SETS)}, got 'mmx'")
    for name in backend.INSTRUCTION_SETS:
        backend.use(name)
        assert backend.in_use() == (name if name in backend.usable() else backend.usable()[-1])
    backend.use(backend.INSTRUCTION_SETS[0])


def test_a_problem_that_ran_is_copied_without_what_is_remembered():
    problem = attnkern.Problem(len_q=5, head_dim=8)
    backend.softmax(problem, Inputs(*torch.randn(3, 1, 1, 5, 8)))
    assert problem.notes
    for copy_of in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        assert copy_of(problem) == problem and not copy_of(problem).notes


def test_modes_and_profilers_see_the_operations():
    """Though without them torch's dispatcher is not asked."""
    x = torch.randn(1, 2, 5, 8, requires_grad=True)

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Called(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for mode in (Dispatched(), Called()):
        seen = []
        with mode:
            global_attention(x, x, x, backend="cpu").sum().backward()
        assert any("attnkern.softmax_attention" in name for name in seen), mode
    with torch.profiler.profile() as profile:
        global_attention(x, x, x, backend="cpu").sum().backward()
    names = {event.name for event in profile.events()}
    assert {"attnkern::softmax_attention", "attnkern::softmax_attention_backward"} <= names


def test_it_is_the_default_on_a_cpu():
    assert attnkern.explain(attnkern.Problem(len_q=8)).chosen == "cpu"
    wide = attnkern.explain(attnkern.Problem(len_q=8, dtype=torch.float64))
    assert wide.chosen == "blocked" and wide.reasons["cpu"] == "dtype torch.float64 is not float32, bfloat16 or float16"
    assert attnkern.explain(attnkern.Problem(len_q=2**31)).reasons["cpu"] == "lengths must be below 2**31"
    wide = attnkern.explain(attnkern.Problem(len_q=8, value_dim=65537))
    assert wide.chosen == "blocked" and wide.reasons["cpu"] == "heads must not be wider than 65536"
    assert attnkern.explain(attnkern.Problem(len_q=8, device="cuda")).reasons["cpu"] == "it is for CPUs, not cuda"
