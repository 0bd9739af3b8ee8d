"""What the operations return beside, or instead of, a plain output tensor."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class AuxRequest(NamedTuple):
    """Which extra results `return_aux=` asks for, after `torch.nn.attention.AuxRequest`.

    lse: the log-sum-exp of each row of scores, `(B, H, Lq)`, differentiable.
    weights: the attention weights, after dropout: `"heads"` for `(B, H, Lq, Lk)`, `"mean"` for their
        mean over heads `(B, Lq, Lk)`, computed without the larger one. Differentiable.
    """

    lse: bool = False
    weights: Literal["mean", "heads"] | None = None


class Aux(NamedTuple):
    """The extra results that an `AuxRequest` asked for; the others are None."""

    lse: Tensor | None = None
    weights: Tensor | None = None


class HardAttention(NamedTuple):
    """Sampled hard attention (Xu et al. 2015). With `num_samples=S` the first three lead with S.

    output: the values at the sampled keys, `([S,] B, H, Lq, Ev)`.
    index: the sampled keys, int64 `([S,] B, H, Lq)`; -1 where a query has nothing to look at.
    score: the score at the sampled key, `([S,] B, H, Lq)`, natural-log units; 0 where index is -1.
    lse: the log-sum-exp of all scores of the row, `(B, H, Lq)`.
    entropy: of the distribution sampled from, in nats, `(B, H, Lq)`.

    `score`, `lse` and `entropy` are differentiable; `output` is, with respect to the values.
    """

    output: Tensor
    index: Tensor
    score: Tensor
    lse: Tensor
    entropy: Tensor

    @property
    def log_prob(self) -> Tensor:
        """Log-probability of each sample, `score - lse`; 0 where there was nothing to sample."""
        return torch.where(self.index >= 0, self.score - self.lse, 0.0)
