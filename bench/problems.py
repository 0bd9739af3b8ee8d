"""What is measured: named suites of rows, as plain data, with sizes for a CPU and for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from attnkern import Problem
from attnkern.problem import UNLIMITED

SEED = 7
TOKENS = 1 << 14  # of a whole batch on a GPU, unless one sequence is longer
FEATURES = {"cpu": 256, "cuda": 2048}  # of all heads together
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
EVERYWHERE = (UNLIMITED, UNLIMITED)
Kind = Literal["global", "local", "hard", "decode", "packed", "module", "aoa", "learned", "matmul", "copy"]
Phase = Literal["forward", "backward", "training"]
KINDS, PHASES = get_args(Kind), get_args(Phase)
SELECTOR = {"hard": "sample", "aoa": "aoa"}  # of the other kinds "softmax"
LOSSES = {"output": ("output",), "score": ("score",), "log_prob": ("score", "lse")}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, the same for every implementation of it.

    Attributes:
        kind: "decode" is global attention of a query that stands at the end of a cache; "packed" of `batch` sequences
            whose lengths go evenly from 1 to `len_q`; "aoa" is attention-over-attention, a document of `len_q` words
            and a question of `len_k`; "learned" is local attention, Gaussian, around a centre for each query and head.
        phase: what is timed: "forward" without gradients, "backward" alone, or "training", which is both.
        loss: which results the gradients come through, of hard attention: "log_prob" stands for score and lse.
        mask, softcap, dropout_p: as `Problem` has them; the mask is `(len_q, len_k)`, see `mask_of`.
    """

    kind: Kind
    phase: Phase = "forward"
    loss: Literal["output", "score", "log_prob"] = "output"
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    len_q: int = 1
    len_k: int = 1
    head_dim: int = 64
    dtype: str = "bfloat16"
    causal: bool = False
    window: tuple[int, int] = EVERYWHERE
    num_samples: int = 1
    mask: Literal["bool", "float"] | None = None
    softcap: float = 0.0
    dropout_p: float = 0.0

    @property
    def name(self) -> str:
        """Kind, sizes and choices, in a few words."""
        if self.kind in ("matmul", "copy"):
            return f"roof {self.kind} {self.dtype}"
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        left, right = self.window
        both = left == right or (self.causal and right == 0)
        words = {
            f"{self.kind} {_thousands(self.len_q)}": True,
            f"x {_thousands(self.len_k)}": self.len_k != self.len_q,
            f"B{self.batch} H{heads} D{self.head_dim}": True,
            "causal": self.causal,
            f"W{left}" if both else f"W{left},{right}": self.window != EVERYWHERE,
            f"S{self.num_samples}": self.kind == "hard",
            f"{self.mask}-mask": self.mask,
            f"softcap{self.softcap:g}": self.softcap,
            f"dropout{self.dropout_p:g}": self.dropout_p,
            self.loss: self.loss != "output",
            self.phase: True,
        }
        return " ".join(word for word, there in words.items() if there)

    @property
    def through(self) -> tuple[str, ...]:
        """The results that the gradients come through."""
        return LOSSES[self.loss]

    @property
    def offset(self) -> int:
        """Key position of the first query."""
        return self.len_k - self.len_q if self.kind == "decode" else 0

    def problem(self, device: str) -> Problem:
        """The `Problem` of one call."""
        return Problem(
            batch=self.batch, heads=self.heads, kv_heads=self.kv_heads, len_q=self.len_q, len_k=self.len_k,
            head_dim=self.head_dim, dtype=getattr(torch, self.dtype), device=device, causal=self.causal,
            window=self.window, query_offset=self.offset, selector=SELECTOR.get(self.kind, "softmax"),
            num_samples=self.num_samples, requires_grad=self.phase != "forward", packed=self.kind == "packed",
            center=self.kind == "learned", sigma=self.kind == "learned", mask=self.mask, softcap=self.softcap,
            dropout_p=self.dropout_p,
        )  # fmt: skip


def attention(device: str, kind: str, length: int, phase: str, head_dim: int = 64, batch: int = 0, **choices) -> Row:
    """Self-attention."""
    heads = FEATURES[device] // head_dim
    batch = batch or (max(1, TOKENS // length) if device == "cuda" else 1)
    return Row(
        kind=kind, phase=phase, batch=batch, heads=heads, kv_heads=heads, len_q=length, len_k=length,
        head_dim=head_dim, dtype=DTYPE[device], **choices,
    )  # fmt: skip


def global_rows(device: str) -> list[Row]:
    if device == "cpu":
        sizes = [(length, phase) for length in (512, 1024, 2048) for phase in ("forward", "training")]
        return [attention(device, "global", *size, causal=True) for size in [*sizes, (1024, "backward")]]
    return [
        attention(device, "global", length, phase, head_dim, causal=causal)
        for length in (16384, 8192, 2048)
        for head_dim in (128, 64)
        for causal in (False, True)
        for phase in PHASES
    ]


def local_rows(device: str) -> list[Row]:
    """On a GPU each window, and the global causal row whose rate it is a share of."""
    if device == "cpu":
        sizes = [(length, phase) for length in (1024, 4096, 8192) for phase in ("forward", "training")]
        return [attention(device, "local", *size, window=(128, 128)) for size in [*sizes, (1024, "backward")]]
    return [
        attention(device, kind, length, phase, head_dim, **choices)
        for head_dim in (128, 64)
        for kind, length, choices in (
            ("local", 32768, {"causal": True, "window": (1024, 0)}),
            ("global", 32768, {"causal": True}),
            ("local", 65536, {"window": (256, 256)}),
        )
        for phase in PHASES
    ]


def hard_rows(device: str) -> list[Row]:
    """REINFORCE through the log-probability, and leave-one-out, which needs the scores of the draws alone."""
    losses = [("forward", {}), ("backward", {"loss": "log_prob"}), ("backward", {"num_samples": 4, "loss": "score"})]
    if device == "cuda":
        both = [("training", {"loss": "log_prob"})]
        return [
            attention(device, "hard", 16384, phase, head_dim, **choices)
            for head_dim in (128, 64)
            for phase, choices in losses + both
        ]
    sizes = [(length, *size) for length in (512, 1024, 2048) for size in (losses[0], ("training", losses[1][1]))]
    sizes += [(1024, *size) for size in losses[1:]]
    return [attention(device, "hard", length, phase, **choices) for length, phase, choices in sizes]


def decode_rows(device: str) -> list[Row]:
    """One query for each sequence, against a cache of keys that several heads share."""
    heads, kv_heads, batch, head_dim = (32, 8, 16, 128) if device == "cuda" else (8, 2, 1, 64)
    return [
        Row(
            kind="decode", batch=batch, heads=heads, kv_heads=kv_heads, len_k=length, head_dim=head_dim,
            dtype=DTYPE[device], causal=True,
        )
        for length in (4096, 16384, 65536)
    ]  # fmt: skip


def packed_rows(device: str) -> list[Row]:
    """Heads and lengths of BERT-base, which pads to the longest sentence otherwise."""
    heads, tokens = (12, 2 * TOKENS) if device == "cuda" else (4, TOKENS // 4)
    return [
        Row(
            kind="packed", phase=phase, batch=tokens // length, heads=heads, kv_heads=heads, len_q=length, len_k=length,
            dtype=DTYPE[device],
        )
        for length in ((128, 512) if device == "cuda" else (256,))
        for phase in ("forward", "training")
    ]  # fmt: skip


def module_rows(device: str) -> list[Row]:
    """`MultiheadAttention` of BERT-base: 12 heads of 64, embeddings of 768."""
    tokens = TOKENS if device == "cuda" else TOKENS // 16
    return [
        Row(
            kind="module", phase=phase, batch=tokens // length, heads=12, kv_heads=12, len_q=length, len_k=length,
            dtype=DTYPE[device],
        )
        for length in (128, 512)
        for phase in ("forward", "training")
    ]  # fmt: skip


def aoa_rows(device: str) -> list[Row]:
    """Documents and questions as long as those of the cloze tests (Cui et al. 2017), and longer ones."""
    batch, features, lengths = (64, 512, (1024, 8192)) if device == "cuda" else (16, 256, (512, 2048))
    return [
        Row(
            kind="aoa", phase=phase, batch=batch, len_q=length, len_k=32, head_dim=features, dtype=DTYPE[device],
        )
        for length in lengths
        for phase in ("forward", "training")
    ]  # fmt: skip


def learned_rows(device: str) -> list[Row]:
    """Luong's window (2015), 10 keys to each side."""
    lengths = (4096, 32768) if device == "cuda" else (2048, 8192)
    return [
        attention(device, "learned", length, phase, window=(10, 10))
        for length in lengths
        for phase in ("forward", "training")
    ]


def extras_rows(device: str) -> list[Row]:
    """Masks, a soft cap, dropout, and on a GPU the widest heads."""
    choices = ({"mask": "bool"}, {"mask": "float"}, {"softcap": 30.0}, {"dropout_p": 0.1})
    if device == "cpu":
        return [attention(device, "global", 1024, "training", **choice) for choice in choices]
    wide = [
        attention(device, "global", 8192, phase, 256, causal=causal)
        for causal in (True, False)
        for phase in ("forward", "backward")
    ]
    return wide + [
        attention(device, "global", 4096, phase, head_dim, **choice)
        for head_dim in (128, 64)
        for choice in choices
        for phase in ("forward", "backward")
    ]


def small_rows(device: str) -> list[Row]:
    """So small that the host's time per call is most there is."""
    return [attention(device, "global", 128, phase, batch=1) for phase in ("forward", "training")]


def roof_rows(device: str) -> list[Row]:
    """A product of two square matrices, and a copy of as many bytes as `len_q` elements are."""
    side, copied = (8192, 1 << 29) if device == "cuda" else (1024, 1 << 26)
    product = Row(kind="matmul", len_q=side, len_k=side, head_dim=side, dtype=DTYPE[device])
    return [product, Row(kind="copy", len_q=copied, dtype=DTYPE[device])]


SUITES: dict[str, Callable[[str], list[Row]]] = {
    "roofs": roof_rows,
    "small": small_rows,
    "global": global_rows,
    "local": local_rows,
    "hard": hard_rows,
    "decode": decode_rows,
    "module": module_rows,
    "aoa": aoa_rows,
    "packed": packed_rows,
    "learned": learned_rows,
    "extras": extras_rows,
}


def _thousands(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length}"
