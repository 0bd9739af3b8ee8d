"""What is measured on a GPU: named suites of rows, as plain data."""

from dataclasses import dataclass
from typing import Literal

import torch

from attnkern import Problem
from attnkern.problem import UNLIMITED

SEED = 7
TOKENS = 1 << 14  # of a whole batch, unless one sequence is longer
FEATURES = 2048  # of all heads together
EVERYWHERE = (UNLIMITED, UNLIMITED)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, the same for every implementation of it.

    Attributes:
        phase: what is timed: "forward" without gradients, "backward" alone, or "training", which is both.
        loss: which results the gradients come through: "output", "score", or "log_prob" (score and lse).
    """

    name: str
    kind: Literal["global", "local", "hard", "module", "matmul", "copy"]
    phase: Literal["forward", "backward", "training"] = "forward"
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

    def problem(self, device: str) -> Problem:
        """The `Problem` of one call."""
        return Problem(
            batch=self.batch, heads=self.heads, kv_heads=self.kv_heads, len_q=self.len_q, len_k=self.len_k,
            head_dim=self.head_dim, dtype=getattr(torch, self.dtype), device=device, causal=self.causal,
            window=self.window, selector="sample" if self.kind == "hard" else "softmax",
            num_samples=self.num_samples, requires_grad=self.phase != "forward",
        )  # fmt: skip


def attention(kind: str, length: int, head_dim: int, phase: str, batch: int | None = None, **choices) -> Row:
    """Self-attention in bfloat16; the name says what differs from row to row."""
    words = [kind, f"D{head_dim}", f"{length // 1024}k" if length >= 1024 else f"{length}"]
    window, samples = choices.get("window", EVERYWHERE), choices.get("num_samples")
    words += ["causal"] if choices.get("causal") else []
    words += [] if window == EVERYWHERE else [f"W{window[0]}"]
    words += [] if samples is None else [f"S{samples}"]
    words += [choices["loss"]] if "loss" in choices else []
    heads = FEATURES // head_dim
    return Row(
        name=" ".join([*words, phase]), kind=kind, phase=phase, batch=batch or max(1, TOKENS // length),
        heads=heads, kv_heads=heads, len_q=length, len_k=length, head_dim=head_dim, **choices,
    )  # fmt: skip


def global_rows() -> list[Row]:
    return [
        attention("global", length, head_dim, phase, causal=causal)
        for length in (16384, 8192, 2048)
        for head_dim in (128, 64)
        for causal in (False, True)
        for phase in ("forward", "backward")
    ]


def local_rows() -> list[Row]:
    """Each window, and the global causal row whose rate it is a share of."""
    return [
        attention(kind, length, head_dim, phase, **choices)
        for head_dim in (128, 64)
        for kind, length, choices in (
            ("local", 32768, {"causal": True, "window": (1024, 0)}),
            ("global", 32768, {"causal": True}),
            ("local", 65536, {"window": (256, 256)}),
        )
        for phase in ("forward", "backward")
    ]


def hard_rows() -> list[Row]:
    return [
        attention("hard", 16384, head_dim, phase, **choices)
        for head_dim in (128, 64)
        for phase, choices in (
            ("forward", {"num_samples": 1}),
            ("backward", {"num_samples": 1, "loss": "log_prob"}),
            ("backward", {"num_samples": 4, "loss": "score"}),
        )
    ]


def module_rows() -> list[Row]:
    """`MultiheadAttention` of BERT-base: 12 heads of 64, embeddings of 768."""
    return [
        Row(
            name=f"module L{length} {phase}", kind="module", phase=phase, batch=TOKENS // length,
            heads=12, kv_heads=12, len_q=length, len_k=length,
        )
        for length in (128, 512)
        for phase in ("forward", "training")
    ]  # fmt: skip


def small_rows() -> list[Row]:
    """So small that the host's time per call is all there is."""
    return [attention("global", 128, 64, phase, batch=1) for phase in ("forward", "training")]


def roof_rows() -> list[Row]:
    return [Row(name="roof matmul 8192", kind="matmul"), Row(name="roof copy 2 GiB", kind="copy")]


SUITES = {
    "roofs": roof_rows,
    "global": global_rows,
    "local": local_rows,
    "hard": hard_rows,
    "module": module_rows,
    "small": small_rows,
}
