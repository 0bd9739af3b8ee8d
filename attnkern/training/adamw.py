"""The optimizer that BERT was trained with."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def adamw(model: nn.Module, rate: float, steps: int, warm_up: int | None = None) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW and its schedule as Devlin et al. 2018, A.2: the rate rises for `warm_up` steps, then falls to 0.

    Matrices decay by 0.01, vectors (biases, LayerNorm's weights) do not; eps is 1e-6. torch's AdamW corrects its
    moments for having begun at 0. Google's does not, which after a warm-up of hundreds of steps is the same.

    Args:
        steps: of the optimizer in all; call `schedule.step()` after each.
        warm_up: steps; None for a tenth of them all.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, eps=1e-6)
    warm_up = max(1, steps // 10 if warm_up is None else warm_up)
    return optimizer, LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))
    )
