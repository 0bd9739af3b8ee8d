"""The CUDA C++ kernels on a CPU, through the host twin of their instructions (csrc/emulator): for tests."""

from attnkern import _emulated  # noqa: F401  without it this backend is not built
from attnkern.backends.hopper import Kernels

_kernels = Kernels("attnkern._emulated", "cpu", lambda: None)
refuses, softmax, sample = _kernels.refuses, _kernels.softmax, _kernels.sample
backward, sparse_backward = _kernels.backward, _kernels.sparse_backward
