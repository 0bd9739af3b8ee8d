"""The CUDA C++ kernels on a CPU, through the host twin of their instructions (csrc/emulator): for tests."""

from attnkern import _emulated  # noqa: F401  without it this backend is not built
from attnkern.backends.hopper import Kernels

_kernels = Kernels("attnkern._emulated", "cpu", lambda: None)
refuses, softmax, backward = _kernels.refuses, _kernels.softmax, _kernels.backward
