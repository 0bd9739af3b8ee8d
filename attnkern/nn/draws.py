"""What hard attention drew in a module's last forward."""

import torch
from torch import Tensor, nn

from attnkern.nn.kinds import Hard
from attnkern.results import HardAttention


class LastDraws:
    """The last draws of a module: they belong to a graph, so a copy, or what was saved, has none."""

    def __init__(self, draws: HardAttention | None = None):
        self.draws = draws

    def __reduce__(self) -> tuple:
        return LastDraws, ()


def hard_attentions(model: nn.Module, copies: int | None = None) -> list[HardAttention]:
    """The results of the last forward of every `MultiheadAttention` in a model that computes `Hard`, for estimators.

    Args:
        copies: the batch holds this many copies of each example, `x.repeat(copies, ...)`: results get a leading
            dimension of copies, `(copies, B, H, Lq, ...)`, as `num_samples` gives.

    Raises:
        ValueError: there is none, one has not run, or its batch is not that many copies or has several draws each.
    """
    layers = [module for module in model.modules() if isinstance(getattr(module, "attention", None), Hard)]
    found = [layer.hard for layer in layers if layer.hard is not None]
    if not layers or len(found) < len(layers):
        raise ValueError(f"model must hold hard attention that has run, got {len(layers)} layers, {len(found)} run")
    if copies is None:
        return found
    for hard in found:
        if hard.score.dim() == 4 or hard.score.shape[0] % copies:
            raise ValueError(f"copies must divide a batch of single draws, got {copies} of {tuple(hard.score.shape)}")
    return [HardAttention(*(part.unflatten(0, (copies, -1)) for part in hard)) for hard in found]


def shares(index: Tensor, len_k: int, wanted: str, dtype: torch.dtype) -> Tensor:
    """Share of the draws `([S,] N, H, Lq)` on each key: `(N, H, Lq, Lk)`, or their mean `(N, Lq, Lk)`."""
    index = index.view(-1, *index.shape[-3:]).permute(1, 2, 3, 0)  # (N, H, Lq, S)
    if wanted == "mean":
        index = index.transpose(1, 2).flatten(-2)
    counts = torch.zeros(*index.shape[:-1], len_k + 1, device=index.device)
    one = counts.new_ones(()).expand(index.shape)
    # the last column takes the draws of queries with nothing to look at
    counts.scatter_add_(-1, torch.where(index < 0, len_k, index), one)
    return counts[..., :len_k].to(dtype) / index.shape[-1]
