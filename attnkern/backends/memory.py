"""What the backends that launch kernels ask of tensors in memory."""

from torch import Tensor


def broadcastable(tensor: Tensor) -> Tensor:
    """The same tensor with stride 0 in its dimensions of size 1, so that any index reads entry 0."""
    strides = [stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride())]
    return tensor.as_strided(tensor.shape, strides)
