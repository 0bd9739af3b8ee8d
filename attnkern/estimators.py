"""Gradients through samples: losses on the results of `hard_attention`, in plain torch.

A loss here is added to the one that reaches the outputs of the draws directly. Its value means nothing; its gradient
is an unbiased estimate of that of `-reward.mean()` through the choice of keys, whatever the reward's shape: the rows
(queries, heads) that share a reward add up their log-probabilities, and rewards are averaged.

    hard = attnkern.hard_attention(query, key, value, num_samples=4)
    losses = ...                                               # (4, B, 1, 1): of each draw for each example
    loss = losses.mean() + rloo_loss(hard, -losses)

In a model, `attnkern.nn.hard_attentions` finds the results of each hard layer's last forward. One draw:

    losses = F.cross_entropy(model(x), y, reduction="none").view(-1, 1, 1)
    expected = baseline.update(-losses)                        # baseline = MovingAverageBaseline()
    loss = losses.mean() + sum(reinforce_loss(hard, -losses, expected) for hard in hard_attentions(model))

Four draws, as four copies of each example; with one hard layer `rloo_loss(hard, -losses)` does the same for less:

    losses = F.cross_entropy(model(x.repeat(4, 1)), y.repeat(4), reduction="none").view(4, -1, 1, 1)
    others = leave_one_out(-losses)
    loss = losses.mean() + sum(reinforce_loss(hard, -losses, others) for hard in hard_attentions(model, copies=4))
"""

import torch
from torch import Tensor

from attnkern.results import HardAttention


def reinforce_loss(
    hard: HardAttention,
    reward: Tensor,
    baseline: "float | Tensor | MovingAverageBaseline" = 0.0,
    entropy_weight: float = 0.0,
) -> Tensor:
    """REINFORCE (Williams 1992; Xu et al. 2015): `-(reward - baseline) * log_prob - entropy_weight * entropy`.

    Args:
        hard: what `hard_attention` returned.
        reward: larger is better; broadcasts to `hard.score`, `([S,] B, H, Lq)`; not differentiated.
        baseline: what reward to expect, independent of the draw: a number, a tensor that broadcasts to `reward`, or a
            `MovingAverageBaseline`, which is updated.
        entropy_weight: of the entropy of each row, which keeps the distribution from collapsing early.

    Returns:
        The loss, 0-d. Its backward is dense (lse and entropy), but needs no values.

    Raises:
        TypeError, ValueError: a wrong type or shape, or a reward or baseline that is not finite (not looked for while
            a graph is compiled).
    """
    reward = _check(hard, "reward", reward)
    if isinstance(baseline, MovingAverageBaseline):
        baseline = baseline.update(reward)
    elif isinstance(baseline, Tensor):
        baseline = _check(hard, "baseline", baseline, reward)
    elif not isinstance(baseline, (int, float)) or not abs(baseline) < float("inf"):
        raise ValueError(f"baseline must be a finite number, a Tensor or a MovingAverageBaseline, got {baseline!r}")
    loss = -(reward - baseline) * hard.log_prob
    if entropy_weight:
        loss = loss - entropy_weight * hard.entropy
    return loss.sum() / reward.numel()


def rloo_loss(hard: HardAttention, reward: Tensor) -> Tensor:
    """Leave-one-out REINFORCE (Kool, van Hoof, Welling 2019): each draw's baseline is the mean reward of the others.

    The weights add up to 0 over the draws, so the lse cancels: `hard.score` alone is used, and the backward is a sparse
    gather and scatter. That holds where the draws share query and key, as those of one call do. Where they do not
    (copies of an example behind another hard layer, or behind dropout) use `reinforce_loss` with `leave_one_out`.

    Args:
        hard: what `hard_attention` returned for `num_samples=S`, S at least 2.
        reward: larger is better; broadcasts to `hard.score`, `(S, B, H, Lq)`, and is of size S in its first dimension;
            not differentiated.

    Returns:
        The loss, 0-d.

    Raises:
        TypeError, ValueError: as `reinforce_loss`; or fewer than two draws, or a reward that is the same for all.
    """
    reward = _check(hard, "reward", reward)
    if hard.score.dim() != 4 or hard.score.shape[0] < 2:
        raise ValueError(f"hard must hold at least 2 draws (num_samples=2), got score {tuple(hard.score.shape)}")
    if reward.dim() != 4 or reward.shape[0] != hard.score.shape[0]:
        raise ValueError(f"reward must have one entry for each of {hard.score.shape[0]} draws, got {_shape(reward)}")
    return -((reward - leave_one_out(reward)) * hard.score).sum() / reward.numel()


def leave_one_out(reward: Tensor) -> Tensor:
    """For each draw, the mean reward of the others, along the first dimension: a baseline, shaped like `reward`."""
    if reward.dim() == 0 or reward.shape[0] < 2:
        raise ValueError(f"reward must hold at least 2 draws in its first dimension, got {_shape(reward)}")
    return (reward.sum(0) - reward) / (reward.shape[0] - 1)


class MovingAverageBaseline:
    """The reward to expect: `b <- decay * b + (1 - decay) * mean reward`, from 0 (Xu et al. 2015, decay 0.9).

    Attributes:
        value: the baseline now, a 0-d tensor after the first update; never read on the host.
    """

    def __init__(self, decay: float = 0.9):
        if not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"decay must be a number in [0, 1), got {decay!r}")
        self.decay = decay
        self.value: float | Tensor = 0.0

    def update(self, reward: Tensor) -> float | Tensor:
        """Takes in a reward; returns the baseline from before, which does not depend on it."""
        before = self.value
        self.value = self.decay * before + (1 - self.decay) * reward.detach().mean()
        return before

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def soft_mixture(hard: HardAttention, soft: Tensor, probability: float = 0.5) -> HardAttention:
    """With a probability, for each batch element, the sample is replaced by its expectation (Xu et al. 2015, 4.1).

    Lowers the variance of the estimate. A replaced row was not sampled: its index is -1 and its score and `log_prob` 0,
    so that no estimator counts it, and its output is differentiable in query and key.

    Args:
        soft: the expectation `(B, H, Lq, Ev)`: `global_attention` of the same query, key and value.
        probability: of each batch element's coin, in [0, 1], drawn by torch's generator.
    """
    if not isinstance(soft, Tensor) or soft.shape != hard.output.shape[-4:]:
        got = _shape(soft) if isinstance(soft, Tensor) else type(soft).__name__
        raise ValueError(f"soft must be a Tensor of shape {tuple(hard.output.shape[-4:])}, got {got}")
    check_probability("probability", probability)
    coin = torch.rand(soft.shape[0], 1, 1, device=soft.device) < probability
    return HardAttention(  # torch 2.11 cannot compile _replace
        torch.where(coin[..., None], soft, hard.output),
        torch.where(coin, -1, hard.index),
        torch.where(coin, 0.0, hard.score),
        hard.lse,
        hard.entropy,
    )


def check_probability(name: str, probability: float) -> None:
    if not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {probability!r}")


def _check(hard: HardAttention, name: str, tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """The tensor without its gradient, if it is finite and broadcasts to `like`, or else to the scores."""
    if not isinstance(hard, HardAttention):
        raise TypeError(f"hard must be a HardAttention, got {type(hard).__name__}")
    like = hard.score if like is None else like
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    sizes = zip(reversed(tensor.shape), reversed(like.shape))
    if tensor.dim() > like.dim() or any(size not in (1, full) for size, full in sizes):
        raise ValueError(f"{name} must broadcast to {tuple(like.shape)}, got {_shape(tensor)}")
    if not torch.compiler.is_compiling() and not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int(tensor.isnan().sum())} NaN of {tensor.numel()}")
    return tensor.detach()


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
