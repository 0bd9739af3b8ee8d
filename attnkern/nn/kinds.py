"""What kind of attention a module computes: `Global()`, `Local(window)` or `Hard(...)`."""

from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor, nn

from attnkern import checks
from attnkern.api import hard_attention, local_attention
from attnkern.estimators import check_probability, soft_mixture
from attnkern.problem import UNLIMITED
from attnkern.results import HardAttention

LUONG_WINDOW = 10


@dataclass(frozen=True)
class Global:
    """Softmax over all keys (Bahdanau et al. 2015, Vaswani et al. 2017)."""


@dataclass(frozen=True)
class Local:
    """Softmax inside a window around a centre for each query (Luong et al. 2015, arXiv 1508.04025).

    Attributes:
        window: `(left, right)` counts of keys, -1 for unlimited: a query with centre `p` looks at keys
            `[floor(p) - left, floor(p) + right]`. An int `w` means `(w, w)`; None means Luong's 10, for predicted
            centres only.
        center: "aligned" puts query `i` at key `i` (local-m); "predicted" lets the module learn each head's centre,
            `S * sigmoid(v . tanh(W h))` (local-p).
        sigma: width in keys of a Gaussian around the centre. None means none around aligned centres, and half the
            wider side of the window around predicted ones, which learn through it.
        renormalize: puts the Gaussian inside the softmax; else it multiplies the weights after it, as Luong's does.

    Raises:
        TypeError, ValueError: an attribute is none of these, or no sigma follows from the window.
    """

    window: tuple[int, int] | None = None
    center: Literal["aligned", "predicted"] = "aligned"
    sigma: float | None = None
    renormalize: bool = False

    def __post_init__(self):
        if self.center not in ("aligned", "predicted"):
            raise ValueError(f"center must be 'aligned' or 'predicted', got {self.center!r}")
        window = LUONG_WINDOW if self.window is None and self.center == "predicted" else self.window
        object.__setattr__(self, "window", _pair(window))
        checks.check_sigma(self.sigma)
        if not isinstance(self.renormalize, bool):
            raise TypeError(f"renormalize must be a bool, got {self.renormalize!r}")
        if self.center == "predicted" and self.sigma is None and (max(self.window) < 1 or UNLIMITED in self.window):
            raise ValueError(f"sigma must be given for a predicted centre in the window {self.window}, got None")
        if self.renormalize and self.width is None:
            raise ValueError("renormalize=True needs sigma, got None")

    @property
    def width(self) -> float | None:
        """The Gaussian's sigma: as given, or what the window makes it."""
        if self.sigma is None and self.center == "predicted":
            return max(self.window) / 2
        return self.sigma

    def __repr__(self) -> str:
        chosen = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Local({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in chosen)})"


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


def attend_hard(
    kind: Hard, training: bool, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options
) -> tuple[Tensor, HardAttention]:
    """The output, a mean over the draws, and what was drawn; options are the operations' own."""
    draws = kind.num_samples if training else None
    how = {"deterministic": not training, "straight_through": kind.straight_through, "window": kind.window}
    hard = hard_attention(query, key, value, mask, num_samples=draws, **how, **options)
    if training and kind.soft_mixture:
        # -1 on both sides is a window that holds every key
        soft = local_attention(query, key, value, mask, window=kind.window or (UNLIMITED, UNLIMITED), **options)
        hard = soft_mixture(hard, soft, kind.soft_mixture)
    return hard.output if draws is None else hard.output.mean(0), hard


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
    if predicts_center(attention) and not hasattr(module, "center"):
        return f"{attention} has parameters of its own: construct attnkern.nn.MultiheadAttention with it"
    if getattr(attention, "soft_mixture", 0) and not getattr(module, "can_mix", True):
        return f"attention must have no soft_mixture where sentences are packed, got {attention}"
    return None


def predicts_center(attention: Kind) -> bool:
    return isinstance(attention, Local) and attention.center == "predicted"


def _pair(window: int | tuple[int, int]) -> tuple[int, int]:
    if window is None:
        raise TypeError("window must be an int or a pair (left, right), got None")
    return checks.check_window((window, window) if isinstance(window, int) else window)
