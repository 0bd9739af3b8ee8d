"""The noun: one attention call, as everything but the API sees it.

Backends, error messages, MAC counts and benchmark rows all read the same `Problem`.
"""

import functools
import math
import sys
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor

UNLIMITED = -1
UNNORMALISED = ("linear", "relu", "exp")  # selectors whose weights depend on their own scores alone
LARGEST = 2**63 - 1
CHOICES = {"dtype": torch.dtype, "device": str}
CHOICES |= dict.fromkeys(
    ("packed", "causal", "center", "sigma", "renormalize", "straight_through", "requires_grad"), bool
)
NAMED = {
    "mask": (None, "bool", "float"),
    "selector": ("softmax", "sample", "argmax", *UNNORMALISED, "aoa"),
    "weights": (None, "mean", "heads"),
}


def is_int(value: object) -> bool:
    """Python's, numpy's, or one that torch traces; not a bool."""
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, (Real, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)


def plain(value: object) -> int:
    """Python's own int, which does not overflow; a traced one as it is."""
    return value if isinstance(value, torch.SymInt) else int(value)


@functools.cache
def _is_device_type(name: str) -> bool:
    try:
        return torch.device(name).index is None
    except RuntimeError:
        return False


class UnsupportedProblem(RuntimeError):
    """The named backend, or every backend, cannot run this problem; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Shapes, dtype, device and the three choices: score, prior, selector.

    Attributes:
        batch, heads, kv_heads, len_q, len_k, head_dim, value_dim: sizes. `kv_heads`, `len_k` and
            `value_dim` default to their query counterparts.
        dtype, device: of query, key and value; `device` is a type such as "cpu" or "cuda".
        packed: `batch` sequences of different lengths lie one after another; `len_q`, `len_k` are the longest.
        scale, softcap, mask: how scores are made. `scale=None` is `1/sqrt(head_dim)`; `mask` is the
            kind of `attn_mask`.
        causal, window, query_offset: where a query may look. `query_offset=None` stands for a tensor
            of one offset per batch element.
        center, sigma, renormalize: local-p's learned centre and Gaussian.
        selector: how scores become weights. "aoa" is Attention-over-Attention: the document's words are the
            queries, the question's the keys.
        dropout_p, num_samples, straight_through, weights: what else is asked for.
        requires_grad: whether this is part of a backward pass.

    Raises:
        TypeError: a field is of another type.
        ValueError: a field has a value that no call has.
    """

    len_q: int
    len_k: int | None = None
    batch: int = 1
    heads: int = 1
    kv_heads: int | None = None
    head_dim: int = 64
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    packed: bool = False

    scale: float | None = None
    softcap: float = 0.0
    mask: Literal["bool", "float"] | None = None

    causal: bool = False
    window: tuple[int, int] = (UNLIMITED, UNLIMITED)
    query_offset: int | None = 0
    center: bool = False
    sigma: bool = False
    renormalize: bool = False

    selector: Literal["softmax", "sample", "argmax", "linear", "relu", "exp", "aoa"] = "softmax"
    dropout_p: float = 0.0
    num_samples: int = 1
    straight_through: bool = False
    weights: Literal["mean", "heads"] | None = None
    requires_grad: bool = False

    def __post_init__(self):
        self._check_sizes("len_q", "head_dim", "heads", "batch", "num_samples")
        defaults = {
            "len_k": self.len_q,
            "kv_heads": self.heads,
            "value_dim": self.head_dim,
            "scale": 1 / math.sqrt(self.head_dim) if self.head_dim else 1.0,
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                self._set(name, default)
        self._check_sizes("len_k", "kv_heads", "value_dim")
        self._check_choices()
        if self.heads % self.kv_heads if self.kv_heads else self.heads:
            raise ValueError(f"Problem.heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            size = getattr(self, name)
            if not is_int(size):
                raise TypeError(f"Problem.{name} must be an int, got {size!r}")
            if size < 0:
                raise ValueError(f"Problem.{name} must not be negative, got {size}")
            if size > LARGEST:
                raise ValueError(f"Problem.{name} must be below 2**63, as sizes of tensors are, got {size}")
            self._set(name, plain(size))

    def _check_choices(self) -> None:
        for name, kind in CHOICES.items():
            if not isinstance(choice := getattr(self, name), kind):
                raise TypeError(f"Problem.{name} must be a {kind.__name__}, got {choice!r}")
        for name in ("scale", "softcap", "dropout_p"):
            if not is_number(number := getattr(self, name)):
                raise TypeError(f"Problem.{name} must be a number, got {number!r}")
        if not 0 <= self.dropout_p <= 1:
            raise ValueError(f"Problem.dropout_p must be between 0 and 1, got {self.dropout_p}")
        if not 0 <= self.softcap <= sys.float_info.max:
            raise ValueError(f"Problem.softcap must be a finite number, 0 for none, got {self.softcap}")
        if not self.dtype.is_floating_point or self.dtype.itemsize < 2:
            raise ValueError(f"Problem.dtype must be a floating-point dtype of 16 bits or more, got {self.dtype}")
        if not _is_device_type(self.device):
            raise ValueError(f"Problem.device must be a type of device, such as 'cpu' or 'cuda', got {self.device!r}")
        if not abs(self.scale) <= sys.float_info.max:
            raise ValueError(f"Problem.scale must be finite, got {self.scale}")
        if self.num_samples < 1:
            raise ValueError(f"Problem.num_samples must be at least 1, got {self.num_samples}")
        if not (isinstance(self.window, tuple) and len(self.window) == 2 and all(map(is_int, self.window))):
            raise TypeError(f"Problem.window must be a tuple of two ints, got {self.window!r}")
        if min(self.window) < UNLIMITED:
            raise ValueError(f"Problem.window must hold counts of keys, or -1 for unlimited, got {self.window}")
        self._set("window", tuple(map(plain, self.window)))
        if self.query_offset is not None and not is_int(self.query_offset):
            raise TypeError(f"Problem.query_offset must be an int, or None for a tensor, got {self.query_offset!r}")
        self._set("query_offset", None if self.query_offset is None else plain(self.query_offset))
        for name, allowed in NAMED.items():
            if getattr(self, name) not in allowed:
                named = ", ".join(map(repr, allowed))
                raise ValueError(f"Problem.{name} must be one of {named}, got {getattr(self, name)!r}")

    @functools.cached_property
    def notes(self) -> dict:
        """What backends remember of it from one call to the next; no copy of it has that."""
        return {}

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "notes"}

    @property
    def kind(self) -> Literal["global", "local", "hard", "mac", "aoa"]:
        """Which of the three kinds of attention this is.

        Or "mac", a sum of values with weights of no distribution, or "aoa", Attention-over-Attention.
        """
        if self.selector == "aoa":
            return "aoa"
        if self.selector != "softmax":
            return "mac" if self.selector in UNNORMALISED else "hard"
        return "global" if self.window == (UNLIMITED, UNLIMITED) and not (self.center or self.sigma) else "local"

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.heads // self.kv_heads if self.kv_heads else 1

    @property
    def band(self) -> tuple[int, int]:
        """Window with causality folded in: a causal query looks no further right than itself.

        A window around learned centres stays as it is: causality is a bound of its own there.
        """
        left, right = self.window
        return (left, 0) if self.causal and not self.center else (left, right)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What sums are kept in, and the dtype of `lse`, `score` and `entropy`."""
        return torch.promote_types(self.dtype, torch.float32)

    def key_range(self, row_begin: int, row_end: int, offset: int | None = None) -> tuple[int, int]:
        """The keys `[begin, end)` that any of the rows may look at; empty ranges have begin == end.

        All of them where tensors of learned centres say which.
        """
        if self.center:
            return 0, self.len_k
        offset = self.query_offset if offset is None else offset
        left, right = self.band
        begin = 0 if left < 0 else min(max(0, row_begin + offset - left), self.len_k)
        end = self.len_k if right < 0 else min(max(0, row_end - 1 + offset + right + 1), self.len_k)
        return begin, max(begin, end)

    def pairs(self) -> int:
        """Number of (query, key) pairs the prior admits, over batch and query heads.

        Exact, but for what a tensor says: a mask is taken to hide nothing, packed sequences to be as long as the
        longest, and windows around learned centres, or at offsets that differ in a batch, to lie inside the keys
        wherever they may.
        """
        left, right = self.window if self.center else self.band
        if self.center or self.query_offset is None:
            width = self.len_k if UNLIMITED in (left, right) else min(left + right + 1, self.len_k)
            pairs = self.len_q * width
            if self.center and self.causal and self.query_offset is not None:
                pairs = min(pairs, self._clamped_sum(self.query_offset + 1))
            return self.batch * self.heads * pairs
        begin = 0 if left < 0 else self._clamped_sum(self.query_offset - left)
        end = self.len_q * self.len_k if right < 0 else self._clamped_sum(self.query_offset + right + 1)
        return self.batch * self.heads * (end - begin)

    def _clamped_sum(self, shift: int) -> int:
        """Sum over the rows i of i + shift, kept between 0 and len_k."""
        first, last = (min(max(0, bound), self.len_q) for bound in (-shift, self.len_k - shift))
        return (first + last - 1 + 2 * shift) * (last - first) // 2 + (self.len_q - last) * self.len_k

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        dims = f"{self.head_dim}" if self.head_dim == self.value_dim else f"{self.head_dim}/{self.value_dim}"
        dtype = str(self.dtype).removeprefix("torch.")
        text = f"{self.kind} B{self.batch} H{heads} Lq{self.len_q} Lk{self.len_k} E{dims} {dtype} {self.device}"
        details = {
            "causal": self.causal,
            f"window={self.window}": self.window != (UNLIMITED, UNLIMITED),
            f"{self.mask} mask": self.mask,
            f"softcap={self.softcap}": self.softcap,
            f"dropout={self.dropout_p}": self.dropout_p,
            f"{self.selector} x{self.num_samples}": self.kind == "hard",
            self.selector: self.kind == "mac",
            "center": self.center,
            "sigma": self.sigma,
            "packed": self.packed,
        }
        return " ".join([text, *(name for name, present in details.items() if present)])


class Inputs(NamedTuple):
    """The tensors of one call, beside its `Problem`.

    query `(B, H, Lq, E)`, key `(B, Hkv, Lk, E)`, value `(B, Hkv, Lk, Ev)`; attn_mask 4-d, each
    dimension full or 1; offsets `(B,)` where `Problem.query_offset` is None; seed 0-d int64; center and
    sigma `(B, H, Lq)` in the compute dtype where the Problem has them.

    Packed: sequence b is rows `cu_seq_q[b] ... cu_seq_q[b + 1]` of a query `(1, H, T, E)`, and keys likewise; center
    and sigma are `(1, H, T)`, masks and offsets as ever. first: what number its first batch element has for random
    choices.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    offsets: Tensor | None = None
    seed: Tensor | None = None
    cu_seq_q: Tensor | None = None
    cu_seq_k: Tensor | None = None
    center: Tensor | None = None
    sigma: Tensor | None = None
    first: int = 0

    @property
    def requires_grad(self) -> bool:
        """Whether a backward may follow. What is copied below autograd does not know any more."""
        return any(tensor.requires_grad for tensor in self[:3])


class Gradients(NamedTuple):
    """Of the same shapes as the inputs; None where not asked for."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    attn_mask: Tensor | None = None
    center: Tensor | None = None
    sigma: Tensor | None = None


def new_output(query: Tensor, value: Tensor, *draws: int) -> Tensor:
    """An output `(*draws, B, H, Lq, Ev)`, stored `(*draws, B, Lq, H, Ev)` so that merging the heads is a view."""
    batch, heads, len_q, _ = query.shape
    value_dim = value.shape[-1]
    token = heads * value_dim
    strides = (batch * len_q * token, len_q * token, value_dim, token, 1)[-4 - len(draws) :]
    return query.new_empty_strided((*draws, batch, heads, len_q, value_dim), strides)  # one operation
