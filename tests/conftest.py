"""Without a GPU the Triton kernels run in Triton's interpreter; memory that nobody wrote is NaN."""

import os

import numpy as np
import torch

HAS_GPU = torch.cuda.is_available()
if HAS_GPU:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products ask for
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import pytest  # noqa: E402

torch.set_num_threads(1)


def pytest_configure():
    if not HAS_GPU:
        _widen_bfloat16_products()
        _drop_nan_in_minima()
        _check_addresses()


def _widen_bfloat16_products() -> None:
    """The interpreter multiplies bfloat16 operands of `tl.dot` as integers; give it float32 instead."""
    import triton.language as tl
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        a, b = (
            interpreter.TensorHandle(
                interpreter._convert_float(x.data, tl.bfloat16, tl.float32, None).view("float32"), tl.float32
            )
            if x.dtype == tl.bfloat16
            else x
            for x in (a, b)
        )
        return original(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.create_dot_unmended = original


def _drop_nan_in_minima() -> None:
    """As on a GPU the smaller of a number and NaN is the number; Triton 3.6's interpreter says NaN."""
    from triton.runtime.interpreter import InterpreterBuilder

    InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)


def _check_addresses() -> None:
    """In the interpreter, a load or store outside the kernel's tensors is an error."""
    from triton.runtime import interpreter

    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    prepare, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store
    begins, ends = np.empty(0), np.empty(0)  # of the running kernel's memory

    def prepared(self, args, kwargs):
        nonlocal begins, ends
        found = prepare(self, args, kwargs)
        storages = [t.untyped_storage() for t in (*found[0], *found[1].values()) if isinstance(t, torch.Tensor)]
        ranges = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages})
        begins, ends = np.array(ranges, dtype=np.uint64).reshape(-1, 2).T
        return found

    def check(pointers, mask) -> None:
        active = pointers.data[mask.data].astype(np.uint64)
        size = np.uint64(pointers.get_element_ty().primitive_bitwidth // 8)
        place = np.searchsorted(begins, active, side="right") - 1
        outside = active[(place < 0) | (active + size > ends[place])]
        assert not outside.size, f"{outside.size} addresses outside every tensor, such as {outside[0]:#x}"

    def checked_load(self, pointers, mask, *rest):
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, value, mask, *rest):
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    executor._init_args_hst = prepared
    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store


@pytest.fixture
def poisoned_memory():
    """Every tensor allocated without a value starts as NaN (integers: their largest value)."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    return "cuda" if HAS_GPU else "cpu"
