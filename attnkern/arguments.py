"""From what a user passes to what the core takes: checked once, the same for every operation."""

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from attnkern import checks, philox
from attnkern.backends.gaussian import lse_of_nearest, sight
from attnkern.ops.library import ScoreOptions
from attnkern.packing import UNPACKED, Layout, Packing, opened


class Call(NamedTuple):
    """Tensors as in `Inputs`, options in the operations' order, and how the caller stores sequences."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    offsets: Tensor | None
    options: ScoreOptions
    layout: Layout
    dropout_p: float

    def tensors(self, seed: Tensor | None) -> tuple[Tensor | None, ...]:
        """What every operation takes before its options."""
        return self.query, self.key, self.value, self.attn_mask, self.offsets, seed, *self.cu_seqs

    @property
    def cu_seqs(self) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.layout.packing is None else self.layout.packing[:2]

    @property
    def query_offset(self) -> int | Tensor:
        return self.options.query_offset if self.offsets is None else self.offsets

    def reference(self) -> dict:
        """The same for `reference.widened`."""
        options = self.options
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "attn_mask": self.attn_mask,
            "scale": options.scale,
            "softcap": options.softcap,
            "is_causal": options.causal,
            "window": (options.left, options.right),
            "query_offset": self.query_offset,
            "packing": self.layout.packing,
        }

    def gaussian(self, center: Tensor | None, sigma: float | Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A centre and a sigma for every query `(B, H, Lq)`, in the dtype of the sums."""
        dtype, rows = torch.promote_types(self.query.dtype, torch.float32), self.query.shape[:3]
        if center is None:
            _, center = self._sight()
        if sigma is not None and not isinstance(sigma, Tensor):
            sigma = torch.full((), sigma, dtype=dtype, device=self.query.device)
        return center.to(dtype).expand(rows), None if sigma is None else sigma.to(dtype).expand(rows)

    def lse_of_nearest(self, lse: Tensor, center: Tensor, sigma: Tensor) -> Tensor:
        """What the core leaves out of rows' lse where the Gaussian is inside of the softmax."""
        options = self.options
        return lse_of_nearest(lse, center, sigma, (options.left, options.right), options.causal, *self._sight())

    def _sight(self) -> tuple[Tensor, Tensor]:
        return sight(self.query[..., 0], self.options.max_k, self.query_offset, *self.cu_seqs)


def checked(
    query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window,
    packing: Packing = UNPACKED, dropout_p=0.0,
) -> Call:  # fmt: skip
    """Raises what `attnkern.global_attention` says."""
    others = is_causal, scale, enable_gqa, query_offset, softcap, window, dropout_p
    kind = None
    if attn_mask is None and packing == UNPACKED and _is_plain(query, key, value):
        try:
            kind = _kind_of_call(query, key, value, others)
            if (found := _found_right.get(kind)) is not None:
                return Call(query, key, value, None, None, *found)
        except (TypeError, RuntimeError):  # what has no hash: a list as the window, symbols for sizes; or no shape
            kind = None
    call = _checked(query, key, value, attn_mask, *others[:-1], packing, dropout_p)
    if kind is not None and query.dim() == 4 and _HASHED_BY_VALUE.issuperset(kind[-1]):
        if len(_found_right) == MOST_KINDS:
            _found_right.clear()
        _found_right[kind] = call[5:]
    return call


MOST_KINDS = 256
_found_right: dict[tuple, tuple[ScoreOptions, Layout, float]] = {}  # kinds of calls, and what came out besides tensors
_HASHED_BY_VALUE = {bool, int, float, str, tuple, type(None)}


def _is_plain(*tensors) -> bool:
    """Whether nothing changes what the checks see."""
    return (
        all([type(tensor) is Tensor and tensor.layout == torch.strided for tensor in tensors])
        and not torch.compiler.is_compiling()
        and not torch._C._is_any_autocast_enabled()
    )


def _kind_of_call(query: Tensor, key: Tensor, value: Tensor, others: tuple) -> tuple:
    """All that the checks ask of a call without a mask, its last entry the types of what is no tensor."""
    window = others[5]
    return (
        query.shape, key.shape, value.shape, query.dtype, key.dtype, value.dtype, query.device, key.device,
        value.device, others, (*map(type, others), *(() if window is None else map(type, window))),
    )  # fmt: skip


def _checked(
    query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window, packing, dropout_p
) -> Call:
    checks.check_bool("is_causal", is_causal)
    query, key, value, plain_mask = autocast(query, key, value, None if _is_causal_bias(attn_mask) else attn_mask)
    packed = checks.is_packed(packing)
    checks.check_tensors(query, key, value, enable_gqa, packed)
    if packed:
        checks.check_packing(query, key, packing)
    query, key, value, layout = opened(query, key, value, packing if packed else None)
    longest = (query.shape[2], key.shape[2]) if layout.packing is None else layout.packing[2:]
    if _is_causal_bias(attn_mask):
        diagonal = checks.causal_diagonal(attn_mask, *longest)
        if not is_causal and window is None:
            query_offset = diagonal  # which meant nothing
        if isinstance(query_offset, int) and query_offset == diagonal:
            is_causal = True
        else:
            plain_mask = torch.ones(longest, dtype=torch.bool, device=query.device).tril(diagonal)
    attn_mask = checks.check_mask(plain_mask, query, key, layout)
    query_offset, offsets = checks.check_offset(query_offset, query, key, layout)
    scale, softcap, dropout_p = checks.check_scalars(scale, softcap, dropout_p, query)
    options = ScoreOptions(scale, softcap, is_causal, *checks.check_window(window), query_offset, *longest)
    return Call(query, key, value, attn_mask, offsets, options, layout, dropout_p)


def _is_causal_bias(attn_mask) -> bool:
    """Whether it is a `torch.nn.attention.bias.CausalBias`; if so, its module (a second's work) is imported already."""
    if attn_mask is None or type(attn_mask) is Tensor:
        return False
    module = sys.modules.get("torch.nn.attention.bias")
    return module is not None and isinstance(attn_mask, module.CausalBias)


def autocast(*tensors):
    """Under autocast, products run in its dtype, as torch's own attention does."""
    first = tensors[0]
    if not isinstance(first, Tensor) or first.is_meta or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.dtype.is_floating_point and t.dtype != torch.float64 else t
        for t in tensors
    )


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A 0-d int64 tensor; None draws one from torch's generator."""
    if seed is None:
        return philox.draw_seed(device)
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed, dtype=torch.int64, device=device)
