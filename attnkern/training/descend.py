"""One step down the gradient."""

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def descend(
    loss: Tensor, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, clip: float | None = 1.0
) -> None:
    """Gradients of the loss, of the norm `clip` at most, moved along by the optimizer; the schedule goes on."""
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    schedule.step()
