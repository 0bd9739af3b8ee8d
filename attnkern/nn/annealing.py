"""Windows that begin as wide as the sentence and narrow while a model learns."""

from dataclasses import replace

from torch import nn

from attnkern.nn.kinds import Local
from attnkern.nn.multihead import MultiheadAttention
from attnkern.problem import UNLIMITED


class WindowAnnealing:
    """Narrows every local attention of a model, linearly, to the window that it has when this is made.

    A predicted centre learns nothing from a key outside its window: in sentences of 96, a window of 10 does not learn
    an alignment, and one that narrows from 96 to 10 does. A sigma that follows from the window narrows with it.

        annealing = WindowAnnealing(model, start=96, steps=1000)
        for step in range(4000):
            annealing(step)  # then forward, backward, update

    It has no state: after a checkpoint, go on with the step. Under `torch.compile` every new window compiles anew.

    Args:
        model: has `attnkern.nn.MultiheadAttention` modules with `Local` attention, or is one.
        start: keys to each side at step 0; sides that are wider, or unlimited, stay as they are.
        steps: the windows are their final ones from this step on.

    Raises:
        ValueError: the model has no local attention, or start or steps is less than 1.
    """

    def __init__(self, model: nn.Module, start: int, steps: int):
        for name, number in (("start", start), ("steps", steps)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        modules = (m for m in model.modules() if isinstance(m, MultiheadAttention))
        self._kinds = {module: module.attention for module in modules if isinstance(module.attention, Local)}
        if not self._kinds:
            raise ValueError("model must have a MultiheadAttention with Local attention, found none")
        self.start, self.steps = start, steps

    def __call__(self, step: int) -> None:
        """Gives every module its window of this step."""
        left = max(0.0, 1 - step / self.steps)  # of the way
        for module, kind in self._kinds.items():
            extra = (0 if side == UNLIMITED else max(0, self.start - side) for side in kind.window)
            window = tuple(side + round(left * more) for side, more in zip(kind.window, extra))
            module.attention = replace(kind, window=window)
