"""Gaussians around learned centres, as the backends compute them.

Inside of a softmax only differences of exponents matter. Each row's are taken relative to that of the key nearest to
the centre: with m the centre's other side as far away as that key n, `(j - c)^2 - (n - c)^2 = (j - n) (j - m)`. What
all keys of a row have in common is never rounded, however far the centre lies outside or however narrow the Gaussian.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attnkern.packing import places
from attnkern.problem import UNLIMITED, Inputs, Problem
from attnkern.reference import FARTHEST_SIGMAS, positions

NEG_INF = float("-inf")


class Gaussians(NamedTuple):
    """Exponents `-0.5 (j - nearest) (j - mirror) / sigma^2`, each `(B, H, Lq)`; both are the centre after a softmax."""

    nearest: Tensor
    mirror: Tensor
    sigma: Tensor


def anchors_of(problem: Problem, center: Tensor) -> Tensor:
    """The keys that the windows lie around, int32 `(B, H, Lq)`; of windows that see no key, the nearest such one.

    Around a centre that is NaN none is seen, however wide the window is.
    """
    left, right = problem.window
    lowest, highest = -1 - max(right, 0), problem.len_k + max(left, 0)
    nowhere = highest + 1 if right == UNLIMITED else lowest
    return center.double().floor().clamp(lowest, highest).nan_to_num(nowhere).int()


def windows_around(problem: Problem, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Of the keys that there are, those `[first, stop)` in the window around each anchor, causal or not."""
    left, right = problem.window
    first, stop = torch.zeros_like(anchors), torch.full_like(anchors, problem.len_k)
    if left != UNLIMITED:
        first = (anchors - left).clamp_(0, problem.len_k)
    if right != UNLIMITED:
        stop = (anchors + right + 1).clamp_(0, problem.len_k)
    if left == right == UNLIMITED:
        stop.masked_fill_(anchors > problem.len_k, 0)  # of no centre
    return first, stop


def gaussians(problem: Problem, inputs: Inputs) -> Gaussians | None:
    if not problem.sigma:
        return None
    center, sigma = inputs.center, inputs.sigma
    if not problem.renormalize:
        return Gaussians(center, center, sigma)
    offset = problem.query_offset if inputs.offsets is None else inputs.offsets
    keys, position = sight(center, problem.len_k, offset, inputs.cu_seq_q, inputs.cu_seq_k)
    near = nearest(center, problem.window, problem.causal, keys, position)
    over = center.nan_to_num() - near
    far = over.abs() >= FARTHEST_SIGMAS * sigma  # from there on the definition has all keys equally far
    return Gaussians(near, near + torch.where(far, 0.0, 2 * over), sigma.masked_fill(far, float("inf")))


def sight(
    center: Tensor, len_k: int, query_offset: int | Tensor, cu_seq_q: Tensor | None, cu_seq_k: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many keys there are, and where queries stand among them: of rows `(B, H, Lq)`, or for each sequence's."""
    rows, device = center.shape[-1], center.device
    if cu_seq_q is None:
        return torch.full((), len_k, device=device), positions(rows, query_offset, device)
    sequence, position = places(cu_seq_q, rows)
    offset = query_offset[sequence] if isinstance(query_offset, Tensor) else query_offset
    return cu_seq_k.diff()[sequence], position + offset


def nearest(center: Tensor, window: tuple[int, int], causal: bool, keys: Tensor, position: Tensor) -> Tensor:
    """The key nearest to each centre of those in sight but for a mask, `(B, H, Lq)`; any one where none is in sight.

    keys, position: as `sight` has them.
    """
    center = center.detach().nan_to_num()
    near = center.round()
    if window[1] != UNLIMITED:
        near = torch.minimum(near, center.floor() + window[1])
    near = torch.minimum(near, (keys - 1).to(center.dtype))
    if causal:
        near = torch.minimum(near, position.to(center.dtype))
    return near.clamp(min=0)


def lse_of_nearest(
    lse: Tensor, center: Tensor, sigma: Tensor, window: tuple[int, int], causal: bool, keys: Tensor, position: Tensor
) -> Tensor:
    """What the operations leave out of a row's lse: its nearest key's exponent; 0 in an empty row."""
    over = torch.where(lse == NEG_INF, 0.0, center - nearest(center, window, causal, keys, position))
    far = over.abs() >= FARTHEST_SIGMAS * sigma
    distance = torch.where(far, 0.0, over) / sigma
    return -0.5 * torch.where(far, FARTHEST_SIGMAS, distance).square()
