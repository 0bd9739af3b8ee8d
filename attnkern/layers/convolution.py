"""Convolution as attention: a head for each tap of the kernel (Cordonnier, Loukas, Jaggi 2020, arXiv 1911.03584)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.api import mac_attention


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` through the attention core.

    Query i of head h looks at one key, `i * stride + h * dilation - padding`, with weight 1; the values of head h are
    `W_h x`. The output is the sum of the heads. A query whose key lies outside the input gets 0: that is zero padding.
    Time and memory grow with the length, as they do in a convolution: windows hold one key.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, L)` or `(C, L)`, as `nn.Conv1d`."""
        if input.dim() not in (2, 3) or input.shape[-2] != self.in_channels:
            raise ValueError(f"input must have shape ([N,] {self.in_channels}, L), got {tuple(input.shape)}")
        keys = input if input.dim() == 3 else input.unsqueeze(0)
        left, right = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":
            keys = F.pad(keys, (left, right), self.padding_mode)
            left = right = 0
        (kernel_size,), (stride,), (dilation,) = self.kernel_size, self.stride, self.dilation
        length = (keys.shape[2] + left + right - dilation * (kernel_size - 1) - 1) // stride + 1
        if length < 1:
            raise ValueError(f"input must be as long as the kernel reaches, got {tuple(input.shape)} for {self}")
        output = sum(self._head(h, keys, length, *divmod(h * dilation - left, stride)) for h in range(kernel_size))
        output = output.mT if self.bias is None else output.mT + self.bias[:, None]
        return output if input.dim() == 3 else output.squeeze(0)

    def _head(self, h: int, keys: Tensor, length: int, offset: int, phase: int) -> Tensor:
        """What tap h adds, `(N, length, out_channels)`: query i looks at key `(i + offset) * stride + phase`."""
        keys = keys[..., phase :: self.stride[0]].unflatten(1, (self.groups, -1))
        weight = self.weight[..., h].unflatten(0, (self.groups, -1))
        value = torch.einsum("ngcj,goc->njgo", keys, weight).flatten(2).unsqueeze(1)
        one = value.new_ones(1, 1, 1, 1)
        query, key = one.expand(len(value), 1, length, 1), one.expand(*value.shape[:3], 1)
        where = {"window": (0, 0), "query_offset": offset}
        return mac_attention(query, key, value, activation="linear", scale=1.0, **where).squeeze(1)
