"""Linear layer and feed-forward network as attention: the units of a layer are its keys."""

import torch
from torch import Tensor, nn

from attnkern.api import mac_attention


class Linear(nn.Linear):
    """`nn.Linear` through the attention core: linear weights, a unit vector for each key, `W^T` for values."""

    def forward(self, input: Tensor) -> Tensor:
        """`(*, in_features)`, as `nn.Linear`."""
        units = torch.eye(self.in_features, dtype=input.dtype, device=input.device)
        return _attend(input, units, self.weight.T, self.bias, activation="linear")


class FeedForward(nn.Sequential):
    """`nn.Sequential(nn.Linear, nn.ReLU, nn.Linear)`, `max(0, x W1 + b1) W2 + b2`, through the attention core.

    relu weights; hidden unit j is a key with bias: key `W1_j`, value `W2_j`. The hidden layer is never stored.
    """

    @staticmethod
    def describes(module: nn.Sequential) -> bool:
        return [type(layer) for layer in module] == [nn.Linear, nn.ReLU, nn.Linear]

    def forward(self, input: Tensor) -> Tensor:
        """`(*, in_features)`."""
        first, _, second = self
        return _attend(input, first.weight, second.weight.T, second.bias, activation="relu", attn_mask=first.bias)


def _attend(input: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, **options) -> Tensor:
    """Every row of `input` is a query; `options` and 2-d `key` and `value` as in `mac_attention`."""
    if input.shape[-1:] != key.shape[-1:]:
        raise ValueError(f"input must have shape (*, {key.shape[-1]}), got {tuple(input.shape)}")
    query = input.reshape(1, 1, -1, input.shape[-1])
    output = mac_attention(query, key[None, None], value[None, None], scale=1.0, **options)
    output = output.view(*input.shape[:-1], -1)
    return output if bias is None else output + bias
