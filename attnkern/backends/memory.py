"""What the backends that launch kernels ask of tensors in memory."""

import torch
from torch import Tensor


def on_device_of(tensor: Tensor):
    """While it lasts, the tensor's GPU is the current one; nothing on a CPU."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


def broadcastable(tensor: Tensor) -> Tensor:
    """The same tensor with stride 0 in its dimensions of size 1, so that any index reads entry 0."""
    strides = [stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride())]
    return tensor.as_strided(tensor.shape, strides)
