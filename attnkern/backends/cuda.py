"""CUDA C++ kernels for compute capability 9.0 (csrc/)."""

import torch

from attnkern import _cuda  # noqa: F401  without it this backend is not installed
from attnkern.backends.hopper import Kernels


def _unavailable() -> str | None:
    if not torch.cuda.is_available():
        return "there is no GPU"
    capability = torch.cuda.get_device_capability()
    return None if capability == (9, 0) else f"compute capability {capability[0]}.{capability[1]} is not 9.0"


_kernels = Kernels("attnkern._cuda", "cuda", _unavailable)
refuses, softmax, sample = _kernels.refuses, _kernels.softmax, _kernels.sample
backward, sparse_backward = _kernels.backward, _kernels.sparse_backward
