"""The Elman network as attention: one query at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.api import mac_attention


class RNN(nn.RNN):
    """`nn.RNN` through the attention core.

    The hidden units are keys `(W_ih, W_hh, b)`, a step's query is `(x_t, h_{t-1}, 1)`, and the values are unit vectors:
    unit j's weight, its score under a soft cap of 1 (which is tanh) or relu, is its new state. The next query needs
    that state, so a sequence of L steps is L calls, one after the other: nothing is gained over `nn.RNN`.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`output, h_n`, as `nn.RNN`; no packed sequences."""
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(f"input must have 2 or 3 dimensions, {self.input_size} features, got {tuple(input.shape)}")
        batch_dim = 0 if self.batch_first else 1
        steps = (input if input.dim() == 3 else input.unsqueeze(batch_dim)).movedim(batch_dim, 1)  # (L, N, features)
        directions = 2 if self.bidirectional else 1
        shape = (self.num_layers * directions, steps.shape[1], self.hidden_size)
        states = steps.new_zeros(shape) if hx is None else hx if input.dim() == 3 else hx.unsqueeze(1)
        if states.shape != shape:
            raise ValueError(f"hx must have {shape[0]} states of {self.hidden_size} features, got {tuple(hx.shape)}")
        last = []
        for layer in range(self.num_layers):
            if layer:
                steps = F.dropout(steps, self.dropout, self.training)
            outputs = []
            for place in range(layer * directions, (layer + 1) * directions):
                backwards = place % directions == 1
                output = self._walk(steps.flip(0) if backwards else steps, states[place], *self.all_weights[place])
                last.append(output[-1])
                outputs.append(output.flip(0) if backwards else output)
            steps = torch.cat(outputs, -1)
        output, state = steps.movedim(1, batch_dim), torch.stack(last)
        return (output, state) if input.dim() == 3 else (output.squeeze(batch_dim), state.squeeze(1))

    def _walk(
        self, steps: Tensor, state: Tensor, input_weight: Tensor, state_weight: Tensor, *biases: Tensor
    ) -> Tensor:
        """The states after each step, `(L, N, hidden)`."""
        bias = sum(biases) if biases else input_weight.new_zeros(self.hidden_size)
        key = torch.cat([input_weight, state_weight, bias.unsqueeze(1)], 1)
        units = torch.eye(self.hidden_size, dtype=key.dtype, device=key.device)
        one = steps.new_ones(steps.shape[1], 1)
        kind = {"activation": "relu"} if self.nonlinearity == "relu" else {"activation": "linear", "softcap": 1.0}
        states = []
        for step in steps:
            query = torch.cat([step, state, one], -1)
            state = mac_attention(*(t[None, None] for t in (query, key, units)), scale=1.0, **kind)[0, 0]
            states.append(state)
        return torch.stack(states)
