"""Where to look, predicted: the centre of local-p (Luong et al. 2015)."""

import torch
from torch import Tensor, nn


class PredictedCenter(nn.Module):
    """`p = S * sigmoid(v . tanh(W h))` for each head, real positions in a sentence of S keys (arXiv 1508.04025).

    `h` is the embedding that asks, whole, and each head has its own rows of `W` and its own `v`: with one head this is
    Luong's formula. Begins near the middle of the sentence.

    Attributes:
        proj: `W`, `embed_dim` to `embed_dim`, without bias.
        score: `v`, `(num_heads, head_dim)`.
    """

    def __init__(self, embed_dim: int, num_heads: int, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Linear(embed_dim, embed_dim, bias=False, device=device, dtype=dtype)
        self.score = nn.Parameter(torch.empty(num_heads, embed_dim // num_heads, device=device, dtype=dtype))
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.uniform_(self.score, -(self.score.shape[1] ** -0.5), self.score.shape[1] ** -0.5)

    def forward(self, states: Tensor, len_k: int | Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Centres `(N, H, L)`, in float32 at least: a position has more digits than half a float.

        Args:
            states: `(N, L, embed_dim)`.
            len_k: number of keys, padding included; or one number for each state, `(L,)` or `(N, 1, L)`.
            key_padding_mask: `(N, len_k)`, True or -inf where a key is padding; S then counts the others, which must
                stand together, and positions count from the first of them.
        """
        hidden = self.proj(states).unflatten(-1, self.score.shape)
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).tanh()
        share = (hidden * self.score).sum(-1).sigmoid().transpose(1, 2)
        if key_padding_mask is None:
            return len_k * share
        is_bool = key_padding_mask.dtype == torch.bool
        real = ~key_padding_mask if is_bool else key_padding_mask != float("-inf")
        first, count = real.int().argmax(-1), real.sum(-1)
        return first[:, None, None] + count[:, None, None] * share
