"""Torch's layers, run through the attention core: convolution, linear layer, feed-forward network, recurrences.

Each is `output_i = sum_j w_ij * value_j` with weights of its own, so each is one kind of `mac_attention`. They show
what attention contains and are tested to equal the originals; for speed, use the originals.
"""

from torch import nn

from attnkern.layers.convolution import Conv1d
from attnkern.layers.dense import FeedForward, Linear
from attnkern.layers.recurrence import linear_attention, linear_recurrence
from attnkern.layers.rnn import RNN

__all__ = ["RNN", "Conv1d", "FeedForward", "Linear", "as_attention", "linear_attention", "linear_recurrence"]

TWINS = {nn.Conv1d: Conv1d, nn.Linear: Linear, nn.RNN: RNN, nn.Sequential: FeedForward}


def as_attention(module: nn.Module) -> nn.Module:
    """The same layer with the same parameters (shared, not copied), computed by the attention core.

    Args:
        module: `nn.Conv1d` (any stride, dilation, padding, padding mode and groups, so depthwise too), `nn.Linear`,
            `nn.Sequential(nn.Linear, nn.ReLU, nn.Linear)` or `nn.RNN`. Recurrences that torch has no layer for are
            functions: `attnkern.layers.linear_recurrence` and `linear_attention`.

    Returns:
        A subclass of the module's class, with its arguments, results and state dict.

    Raises:
        TypeError: the module is something else (subclasses may compute something else).
    """
    twin_class = TWINS.get(type(module))
    if twin_class is None or (twin_class is FeedForward and not FeedForward.describes(module)):
        raise TypeError(
            "module must be nn.Conv1d, nn.Linear, nn.RNN or nn.Sequential(nn.Linear, nn.ReLU, nn.Linear) itself, "
            f"got {module if isinstance(module, nn.Module) else type(module).__name__}"
        )
    twin = twin_class.__new__(twin_class)
    vars(twin).update(vars(module))
    return twin
