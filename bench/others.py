"""Peers that may be installed: each takes and gives `(B, H, L, D)`, or says why it cannot."""

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor

from attnkern.bench.problems import EVERYWHERE, Row

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Unsupported(NotImplementedError):
    """A package that does not compute this row, or not the same thing."""


def build(name: str, row: Row, device: str) -> Callable[..., dict[str, Tensor]]:
    """The package's attention, set up for the row."""
    attend = BUILDERS[name](row, device)
    return lambda query, key, value: {"output": attend(query, key, value)}


def computes(name: str, kind: str) -> bool:
    """Whether the package has that kind of attention at all."""
    return kind == "local" or name not in ("natten", "local-attention")


def importable(name: str) -> bool:
    """Whether the package is here; a broken one around it counts as absent."""
    try:
        return find_spec(MODULES[name]) is not None
    except Exception:
        return False


def flash_attn(row: Row, device: str) -> Attend:
    from flash_attn import flash_attn_func

    options = {"causal": row.causal, "window_size": row.window}
    return _sequence_first(lambda *tensors: flash_attn_func(*tensors, **options))


def flash_attn_4(row: Row, device: str) -> Attend:
    from flash_attn.cute import flash_attn_func

    window = tuple(None if side < 0 else side for side in row.window)

    def attend(*tensors):
        found = flash_attn_func(*tensors, causal=row.causal, window_size=window)
        return found[0] if isinstance(found, tuple) else found  # some versions return the lse as well

    return _sequence_first(attend)


def xformers(row: Row, device: str) -> Attend:
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import LocalAttentionFromBottomRightMask, LowerTriangularFromBottomRightMask

    if row.heads != row.kv_heads:
        raise Unsupported("shared key heads take another layout there")
    left, right = row.problem(device).band
    bias = None
    if row.window != EVERYWHERE:
        if min(left, right) < 0:
            raise Unsupported("its windows have two sides")
        bias = LocalAttentionFromBottomRightMask(window_left=left, window_right=right)
    elif row.causal:
        bias = LowerTriangularFromBottomRightMask()
    return _sequence_first(lambda *tensors: memory_efficient_attention(*tensors, attn_bias=bias))


def natten(row: Row, device: str) -> Attend:
    from natten import na1d

    left, right = row.problem(device).band
    if row.window == EVERYWHERE or left < 0 or right != 0:
        raise Unsupported("only its causal windows are ours: the others are shifted at both ends, to keep their size")
    return _sequence_first(lambda *tensors: na1d(*tensors, kernel_size=left + 1, is_causal=True))


def local_attention(row: Row, device: str) -> Attend:
    from local_attention import LocalAttention

    left, right = row.problem(device).band
    if row.window == EVERYWHERE or left <= 0 or right not in (0, left):
        raise Unsupported("its windows are causal, or reach equally far to both sides")
    return LocalAttention(
        window_size=left, causal=right == 0, look_backward=1, look_forward=int(right > 0), exact_windowsize=True,
        use_rotary_pos_emb=False,
    ).to(device)  # fmt: skip


def _sequence_first(attend: Attend) -> Attend:
    """Of a function of `(B, L, H, D)`, which most packages want."""
    return lambda *tensors: attend(*(tensor.transpose(1, 2) for tensor in tensors)).transpose(1, 2)


BUILDERS = {
    "flash-attn": flash_attn,
    "flash-attn-4": flash_attn_4,
    "xformers": xformers,
    "natten": natten,
    "local-attention": local_attention,
}
MODULES = {
    "flash-attn": "flash_attn.flash_attn_interface",
    "flash-attn-4": "flash_attn.cute",
    "xformers": "xformers",
    "natten": "natten",
    "local-attention": "local_attention",
}
NAMES = tuple(BUILDERS)
