"""Where a word stands: added to its embedding (sinusoidal, learned), or to the scores (relative)."""

import math

import torch
from torch import Tensor, nn

from attnkern.priors import relative_bias

Offset = int | Tensor


class SinusoidalPosition(nn.Module):
    """Adds `sin` and `cos` of `position * 10000^(-2 f / d)`, by turns (Vaswani et al. 2017). No parameters, no limit.

    Args:
        dim: features of an embedding, an even number.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even and positive, got {dim}")
        self.dim = dim

    def forward(self, embeddings: Tensor, offset: Offset = 0) -> Tensor:
        """Embeddings `(B, L, dim)` of words that stand at `offset`, an int or `(B,)`, and after it."""
        # in float64: far angles keep their digits
        even = torch.arange(0, self.dim, 2, dtype=torch.float64, device=embeddings.device)
        frequency = (even * (-math.log(10_000) / self.dim)).exp()
        angle = positions(embeddings.shape[1], offset, embeddings.device).unsqueeze(-1) * frequency
        return embeddings + torch.stack([angle.sin(), angle.cos()], -1).flatten(-2).to(embeddings.dtype)


class LearnedPosition(nn.Module):
    """Adds a learned vector for each position (Gehring et al. 2017, Devlin et al. 2018).

    Args:
        max_length: number of positions.
        dim: features of an embedding.
    """

    def __init__(self, max_length: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(max_length, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, embeddings: Tensor, offset: Offset = 0) -> Tensor:
        """As `SinusoidalPosition`'s.

        Raises:
            ValueError: a word stands beyond `max_length`; not looked for in an offset that is a tensor.
        """
        length, most = embeddings.shape[1], self.embedding.num_embeddings
        if not isinstance(offset, Tensor) and offset + length > most:
            raise ValueError(f"embeddings must stand at positions below {most}, got {offset} to {offset + length - 1}")
        return embeddings + self.embedding(positions(length, offset, embeddings.device))


class RelativePositionBias(nn.Module):
    """A learned bias of each head for how far a key lies from a query, for the operations' `attn_mask`.

    The distances fall into T5's buckets (Raffel et al. 2020, arXiv 1910.10683): near ones each in its own, farther ones
    in ever wider ones, all from `max_distance` on in one. A bucket for each distance, as in Shaw et al. 2018, is
    `attnkern.priors.relative_bias`.

    Args:
        num_heads: of the attention.
        num_buckets: in all; with `bidirectional`, half of them for keys ahead.
        max_distance: more than `num_buckets`.
        bidirectional: False for causal attention: all keys ahead share the bucket of distance 0.

    Attributes:
        table: `(num_heads, num_buckets)`, T5's `relative_attention_bias.weight` transposed.
    """

    def __init__(self, num_heads: int, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True):
        super().__init__()
        if num_buckets < 4 or num_buckets % 2:
            raise ValueError(f"num_buckets must be even and at least 4, got {num_buckets}")
        if max_distance <= num_buckets:
            raise ValueError(f"max_distance must be more than num_buckets, {num_buckets}, got {max_distance}")
        self.table = nn.Parameter(torch.zeros(num_heads, num_buckets))
        ahead = torch.arange(-max_distance, max_distance + 1)
        self.register_buffer("bucket", _buckets(ahead, num_buckets, max_distance, bidirectional), persistent=False)

    def forward(self, len_q: int, len_k: int, offset: Offset = 0) -> Tensor:
        """`(1, H, Lq, Lk)`, or `(B, H, Lq, Lk)` where `offset`, the position of query 0, is `(B,)`."""
        return relative_bias(self.table[:, self.bucket], len_q, len_k, query_offset=offset)


def positions(length: int, offset: Offset, device=None) -> Tensor:
    """Of words at `offset` and after it: `(L,)`, or `(B, L)` where it is `(B,)`."""
    place = torch.arange(length, device=device)
    return offset.unsqueeze(-1) + place if isinstance(offset, Tensor) else offset + place


def _buckets(ahead: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    count = num_buckets // 2 if bidirectional else num_buckets
    distance = ahead.abs() if bidirectional else (-ahead).clamp(min=0)
    near = count // 2  # these have a bucket each
    growth = (distance.clamp(min=near) / near).log() / math.log(max_distance / near)
    far = (near + (growth * (count - near)).long()).clamp(max=count - 1)
    return torch.where(distance < near, distance, far) + (count * (ahead > 0) if bidirectional else 0)
