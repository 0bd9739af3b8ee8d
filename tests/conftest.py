"""Without a GPU the Triton kernels run in Triton's interpreter; memory that nobody wrote is NaN."""

import os

import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

import pytest  # noqa: E402

torch.set_num_threads(1)


def pytest_configure():
    if not HAS_GPU:
        _widen_bfloat16_products()


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
