"""What kind of attention a module computes: `Global()`, `Local(window)` or `Hard(...)`."""

from dataclasses import dataclass

from torch import nn

from attnkern import checks
from attnkern.estimators import check_probability


@dataclass(frozen=True)
class Global:
    """Softmax over all keys (Bahdanau et al. 2015, Vaswani et al. 2017)."""


@dataclass(frozen=True)
class Local:
    """Softmax inside a window around each query's own position (local-m of Luong et al. 2015).

    Attributes:
        window: `(left, right)` counts of keys, -1 for unlimited: query `i` looks at keys
            `[i - left, i + right]`. An int `w` means `(w, w)`.

    Raises:
        TypeError, ValueError: the window is no such count or pair.
    """

    window: tuple[int, int]

    def __post_init__(self):
        object.__setattr__(self, "window", _pair(self.window))


@dataclass(frozen=True)
class Hard:
    """One key for each query: drawn in training, the best in evaluation (Xu et al. 2015).

    Attributes:
        num_samples: draws in training; the module's output is their mean. None for one draw.
        straight_through: lets the output's gradient pass to query and key as if it were soft.
        window: restricts where to look, as in `Local`; None for everywhere.
        soft_mixture: in training, the probability that an example attends softly instead (0.5 in Xu et al.).

    Raises:
        TypeError, ValueError: an attribute is none of these.
    """

    num_samples: int | None = None
    straight_through: bool = False
    window: tuple[int, int] | None = None
    soft_mixture: float = 0.0

    def __post_init__(self):
        checks.check_samples(self.num_samples)
        check_probability("soft_mixture", self.soft_mixture)
        if not isinstance(self.straight_through, bool):
            raise TypeError(f"straight_through must be a bool, got {self.straight_through!r}")
        if self.window is not None:
            object.__setattr__(self, "window", _pair(self.window))


Kind = Global | Local | Hard


def check_kind(attention: Kind) -> None:
    """Raises TypeError unless `attention` is one of the three kinds."""
    if not isinstance(attention, Kind):
        raise TypeError(f"attention must be Global(), Local(window) or Hard(...), got {attention!r}")


def refusal(attention: Kind, module: nn.MultiheadAttention) -> str | None:
    """Why this kind does not go with the module's options, or None."""
    appended = {"add_bias_kv": module.bias_k is not None, "add_zero_attn": module.add_zero_attn}
    names = " and ".join(name for name, present in appended.items() if present)
    if names and getattr(attention, "window", None) is not None:
        return f"{attention} has no place for the keys that {names} appends: they lie outside every window"
    return None


def _pair(window: int | tuple[int, int]) -> tuple[int, int]:
    if window is None:
        raise TypeError("window must be an int or a pair (left, right), got None")
    return checks.check_window((window, window) if isinstance(window, int) else window)
