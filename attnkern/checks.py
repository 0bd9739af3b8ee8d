"""What a call must satisfy before anything is launched: each error names argument, expected and given."""

import itertools
import math

import torch
from torch import Tensor

from attnkern.packing import Layout, Packing
from attnkern.problem import UNLIMITED, UNNORMALISED, is_int, is_number, plain
from attnkern.results import AuxRequest


class WrongValue(ValueError, RuntimeError):
    """An argument's value or shape; torch's own operations raise RuntimeError for most of these."""


class WrongType(TypeError, RuntimeError):
    """An argument's type or dtype."""


FARTHEST = 1 << 28  # positions and windows beyond it see as much as those at it: no sequence is as long


def check_tensors(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool, packed: bool = False) -> None:
    """`query ([..., H,] Lq, E)`, `key ([..., Hkv,] Lk, E)`, `value ([..., Hkv,] Lk, Ev)`; packed `(T, H, E)`.

    One dtype, one device.
    """
    dims = (
        "3 dimensions (tokens, heads, features)"
        if packed
        else "2 dimensions or more ([[batch,] heads,] length, features)"
    )
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise WrongType(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.is_nested and not _is_jagged(tensor):  # which has no shape to speak of
            raise WrongValue(f"{name} must be nested where query is, jagged (B, H, *, E) and contiguous")
        check_dense(name, tensor)
        if tensor.dim() != 3 if packed else tensor.dim() < 2:
            raise WrongValue(f"{name} must have {dims}, got {_shape(tensor)}")
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise WrongType(f"{name} must have a floating-point dtype of 16 bits or more, got {tensor.dtype}")
        if tensor.dtype != query.dtype:
            raise WrongType(f"{name} must have the dtype of query, {query.dtype}, got {tensor.dtype}")
        if tensor.device != query.device:
            raise WrongValue(f"{name} must be on the device of query, {query.device}, got {tensor.device}")
        if not packed and (tensor.dim() != query.dim() or tensor.shape[:-3] != query.shape[:-3]):
            raise WrongValue(
                f"{name} must have the batch size and dimensions of query, {_shape(query)}, got {_shape(tensor)}"
            )
        if tensor.is_nested != query.is_nested:
            raise WrongValue(f"{name} must be nested where query is, jagged (B, H, *, E) and contiguous")
    if key.shape[-1] != query.shape[-1]:
        raise WrongValue(f"key must have the features of query, {query.shape[-1]}, got {_shape(key)}")
    if value.shape[:-1] != key.shape[:-1]:
        raise WrongValue(f"value must have the heads and length of key, {tuple(key.shape[:-1])}, got {_shape(value)}")
    if query.dim() == 2:
        return
    heads, kv_heads = (tensor.shape[1 if packed else -3] for tensor in (query, key))
    if heads != kv_heads and not enable_gqa:
        raise WrongValue(f"key must have {heads} heads like query (or pass enable_gqa=True), got {_shape(key)}")
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise WrongValue(f"query's heads must be a multiple of key's {kv_heads}, got {_shape(query)}")


def is_packed(packing: Packing) -> bool:
    """Whether there is a `cu_seq_q`, without which the others mean nothing."""
    if packing.cu_seq_q is not None:
        return True
    for name, number in packing._asdict().items():
        if number is not None:
            raise WrongValue(f"{name} needs cu_seq_q, got None")
    return False


def check_packing(query: Tensor, key: Tensor, packing: Packing) -> None:
    """Of packed `(T, H, E)`.

    Numbers are checked where reading them stops nothing: on a CPU, outside of a compiler.
    """
    cu_seq_q, cu_seq_k, max_q, max_k = packing
    for name, tensor in (("cu_seq_q", cu_seq_q), ("cu_seq_k", cu_seq_k)):
        if not isinstance(tensor, Tensor):
            raise WrongType(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in (torch.int32, torch.int64):
            raise WrongType(f"{name} must be int32 or int64, got {tensor.dtype}")
        if tensor.dim() != 1 or tensor.shape[0] < 1 or tensor.shape != cu_seq_q.shape:
            raise WrongValue(f"{name} must have shape (sequences + 1,), like cu_seq_q, got {_shape(tensor)}")
        if isinstance(query, Tensor) and tensor.device != query.device:
            raise WrongValue(f"{name} must be on the device of query, {query.device}, got {tensor.device}")
    for name, longest in (("max_q", max_q), ("max_k", max_k)):
        if not is_int(longest):
            raise WrongType(f"{name} must be the length of the longest sequence, an int, got {longest!r}")
    if cu_seq_q.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_cu_seq("cu_seq_q", cu_seq_q, "query", query, "max_q", max_q)
        _check_cu_seq("cu_seq_k", cu_seq_k, "key", key, "max_k", max_k)


def _check_cu_seq(name: str, cu_seq: Tensor, of: str, tensor: Tensor, longest_name: str, longest: int) -> None:
    bounds = cu_seq.tolist()
    lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
    if bounds[0] != 0 or min(lengths, default=0) < 0:
        raise WrongValue(f"{name} must begin with 0 and never fall, got {bounds}")
    if isinstance(tensor, Tensor) and bounds[-1] != tensor.shape[0]:
        raise WrongValue(f"{name} must end with {of}'s {tensor.shape[0]} tokens, got {bounds[-1]}")
    if longest < max(lengths, default=0):
        raise WrongValue(f"{longest_name} must be at least {max(lengths)}, the longest in {name}, got {longest}")


def _is_jagged(tensor: Tensor) -> bool:
    return tensor.layout == torch.jagged and tensor._ragged_idx == 2 and tensor.transpose(1, 2).lengths() is None


def check_mask(attn_mask: Tensor | None, query: Tensor, key: Tensor, layout: Layout) -> Tensor | None:
    """The mask as 4-d, unexpanded; bool (True: may look) or float (added to the scores)."""
    if attn_mask is None:
        return None
    if not isinstance(attn_mask, Tensor):
        raise WrongType(f"attn_mask must be a Tensor or None, got {type(attn_mask).__name__}")
    check_plain("attn_mask", attn_mask)
    half = attn_mask.dtype in (torch.float16, torch.bfloat16)  # exact in float32 and float64
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype) and not half:
        raise WrongType(f"attn_mask must be bool, float32 or query's {query.dtype}, got {attn_mask.dtype}")
    if attn_mask.device != query.device:
        raise WrongValue(f"attn_mask must be on the device of query, {query.device}, got {attn_mask.device}")
    full = (*layout.leading, query.shape[2], key.shape[2])
    if (packing := layout.packing) is not None:
        full = (len(packing.cu_seq_q) - 1, query.shape[1], packing.max_q, packing.max_k)
    most = max(4, len(full))
    if attn_mask.dim() > most:
        raise WrongValue(f"attn_mask must have at most {most} dimensions, got {_shape(attn_mask)}")
    mask = attn_mask[(None,) * (most - attn_mask.dim())]
    if not _broadcasts(mask.shape, (1,) * (most - len(full)) + full):
        raise WrongValue(f"attn_mask must broadcast to (batch, heads, Lq, Lk) = {full}, got {_shape(attn_mask)}")
    for dim in range(most):  # a mask that was expanded already is taken back
        if mask.shape[dim] > 1 and mask.stride(dim) == 0:
            mask = mask.narrow(dim, 0, 1)
    mask = layout.fold(mask, 2)
    return mask.float() if half and mask.dtype != query.dtype else mask


def check_bool(name: str, value: bool) -> None:
    if not isinstance(value, (bool, torch.SymBool)):
        raise WrongType(f"{name} must be a bool, got {value!r}")


def check_dense(name: str, tensor: Tensor) -> None:
    """Neither sparse nor in some library's own layout."""
    if tensor.layout not in (torch.strided, torch.jagged):
        raise WrongType(f"{name} must be dense, got the layout {tensor.layout}")


def check_plain(name: str, tensor: Tensor) -> None:
    """Not a tensor whose class gives its entries, or the lack of them, a meaning of its own."""
    check_dense(name, tensor)
    if type(tensor) not in (Tensor, torch.nn.Parameter) and _handler(type(tensor)) not in _PLAIN:
        raise WrongType(
            f"{name} must be a plain Tensor, got {type(tensor).__name__}, whose own meaning would be lost: pass it as "
            "a bool or float Tensor"
        )


def _handler(cls: type):
    """What `cls` does when a function of torch's is given one."""
    return getattr(cls.__torch_function__, "__func__", cls.__torch_function__)


_PLAIN = (_handler(Tensor), _handler(torch.nn.Parameter))


def causal_diagonal(attn_mask: Tensor, len_q: int, len_k: int) -> int:
    """The last key of query 0: torch's `CausalBias` holds no entries, only lengths and the corner it starts from."""
    if (attn_mask.seq_len_q, attn_mask.seq_len_kv) != (len_q, len_k):
        expected, given = (len_q, len_k), (attn_mask.seq_len_q, attn_mask.seq_len_kv)
        raise WrongValue(f"attn_mask must be a CausalBias of (Lq, Lk) = {expected}, got {given}")
    return len_k - len_q if attn_mask.variant.name == "LOWER_RIGHT" else 0


def check_offset(
    query_offset: int | str | Tensor, query: Tensor, key: Tensor, layout: Layout
) -> tuple[int, Tensor | None]:
    """The position of query 0, as an int or as one int64 per batch element."""
    packing = layout.packing
    batch = tuple(layout.leading[:-1]) if packing is None else (len(packing.cu_seq_q) - 1,)
    if isinstance(query_offset, str):
        if query_offset != "end":
            raise WrongValue(f"query_offset must be an int, a (batch,) tensor or 'end', got {query_offset!r}")
        if packing is not None:
            return 0, packing.cu_seq_k.diff().long() - packing.cu_seq_q.diff()
        return key.shape[2] - query.shape[2], None
    if not isinstance(query_offset, Tensor):
        if not is_int(query_offset):
            raise WrongType(f"query_offset must be an int, a (batch,) tensor or 'end', got {query_offset!r}")
        return max(-FARTHEST, min(plain(query_offset), FARTHEST)), None
    if query_offset.dtype not in (torch.int32, torch.int64):
        raise WrongType(f"query_offset must be an int32 or int64 tensor, got {query_offset.dtype}")
    if query_offset.dim() != len(batch) or not all(a == b for a, b in zip(query_offset.shape, batch)):
        raise WrongValue(f"query_offset must have shape {batch}, got {_shape(query_offset)}")
    if query_offset.device != query.device:
        raise WrongValue(f"query_offset must be on the device of query, {query.device}, got {query_offset.device}")
    return 0, query_offset.to(torch.int64).clamp(-FARTHEST, FARTHEST).reshape(-1)


def check_window(window: tuple[int, int] | None) -> tuple[int, int]:
    """`(left, right)`, each a count of keys or -1 for unlimited; None is unlimited both ways."""
    if window is None:
        return UNLIMITED, UNLIMITED
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise WrongType(f"window must be a pair (left, right), got {window!r}")
    for side in window:
        if not is_int(side):
            raise WrongType(f"window must hold two ints, got {window!r}")
        if side < UNLIMITED:
            raise WrongValue(f"window must hold counts of keys, or -1 for unlimited, got {window!r}")
    left, right = (UNLIMITED if side > FARTHEST else plain(side) for side in window)
    return left, right


def check_scalars(
    scale: float | Tensor | None, softcap: float, dropout_p: float, query: Tensor
) -> tuple[float, float, float]:
    """Scale, soft cap and dropout probability."""
    for name, number in (("dropout_p", dropout_p), ("softcap", softcap), ("scale", 1 if scale is None else scale)):
        is_tensor = isinstance(number, Tensor) and number.dim() == 0
        if not (is_tensor or is_number(number)):
            raise WrongType(f"{name} must be a number, got {number!r}")
        if is_tensor and number.requires_grad:
            raise WrongValue(
                f"{name} must be a number without gradient (multiply query by a learned scale), got {number}"
            )
    scale = 1 / math.sqrt(query.shape[-1] or 1) if scale is None else _float(scale)
    softcap, dropout_p = _float(softcap), _float(dropout_p)
    if not 0 <= dropout_p <= 1:
        raise WrongValue(f"dropout_p must be between 0 and 1, got {dropout_p}")
    double = query is not None and query.dtype == torch.float64
    largest = torch.finfo(torch.float64 if double else torch.float32).max
    if not 0 <= softcap <= largest:
        raise WrongValue(f"softcap must be a finite number, 0 for none, got {softcap}")
    if not -largest <= scale <= largest:
        raise WrongValue(f"scale must be finite, got {scale}")
    return scale, softcap, dropout_p


def check_seed(seed: int | Tensor | None, device: torch.device) -> None:
    """An int or a 0-d int64 tensor."""
    if isinstance(seed, Tensor):
        if seed.dim() or seed.dtype != torch.int64:
            raise WrongValue(f"seed must be a 0-d int64 tensor, got {_shape(seed)} {seed.dtype}")
        if seed.device != device:
            raise WrongValue(f"seed must be on the device of query, {device}, got {seed.device}")
    elif seed is None:
        return
    elif not is_int(seed):
        raise WrongType(f"seed must be an int, a 0-d int64 tensor or None, got {seed!r}")
    elif not -(2**63) <= seed < 2**63:
        raise WrongValue(f"seed must fit 64 bits, got {seed}")


def check_gaussian(
    center: Tensor | None, sigma: float | Tensor | None, renormalize: bool, query: Tensor, layout: Layout
) -> tuple[Tensor | None, float | Tensor | None]:
    """`center` and a tensor `sigma` as `(B|1, H|1, Lq)`; sigma is positive."""
    if center is None and sigma is None and renormalize is False:
        return None, None
    check_bool("renormalize", renormalize)
    for name, tensor in (("center", center), ("sigma", sigma)):
        if not isinstance(tensor, Tensor):
            if name == "center" and tensor is not None:
                raise WrongType(f"center must be a Tensor or None, got {type(tensor).__name__}")
            continue
        check_plain(name, tensor)
        full = (*layout.leading, query.shape[2]) if layout.packing is None else query.shape[:3]
        fits = tensor.dim() == len(full) and _broadcasts(tensor.shape, full)
        if not (fits and tensor.shape[-1] == full[-1]) and not (name == "sigma" and tensor.dim() == 0):
            raise WrongValue(
                f"{name} must have shape (batch | 1, heads | 1, Lq) of {tuple(full)}, got {_shape(tensor)}"
            )
        if not tensor.dtype.is_floating_point:
            raise WrongType(f"{name} must have a floating-point dtype, got {tensor.dtype}")
        if tensor.device != query.device:
            raise WrongValue(f"{name} must be on the device of query, {query.device}, got {tensor.device}")
    if not isinstance(sigma, Tensor):
        check_sigma(sigma, "a number, a Tensor or None")
    if renormalize and sigma is None:
        raise WrongValue("renormalize=True needs sigma, got None")
    center, sigma = (layout.fold(x, 1) if isinstance(x, Tensor) and x.dim() else x for x in (center, sigma))
    return center, sigma if isinstance(sigma, Tensor) or sigma is None else _float(sigma)


def check_sigma(sigma: float | None, expected: str = "a number or None") -> None:
    if sigma is None:
        return
    if not is_number(sigma):
        raise WrongType(f"sigma must be {expected}, got {sigma!r}")
    if not 0 < _float(sigma) < math.inf:
        raise WrongValue(f"sigma must be positive and finite, got {sigma}")


def check_activation(activation: str) -> None:
    if activation not in ("softmax", *UNNORMALISED):
        raise WrongValue(f"activation must be 'softmax', 'linear', 'relu' or 'exp', got {activation!r}")


def check_samples(num_samples: int | None) -> int | None:
    if num_samples is None:
        return None
    if not is_int(num_samples):
        raise WrongType(f"num_samples must be an int or None, got {num_samples!r}")
    if num_samples < 1:
        raise WrongValue(f"num_samples must be at least 1, got {num_samples}")
    if num_samples >= 2**31:
        raise WrongValue(f"num_samples must be below 2**31, got {num_samples}")
    return plain(num_samples)


def check_pair(document: Tensor, question: Tensor) -> None:
    """`document (..., Ld, E)` and `question (..., Lq, E)`, neither empty, one dtype, one device."""
    for name, tensor in (("document", document), ("question", question)):
        if not isinstance(tensor, Tensor):
            raise WrongType(f"{name} must be a Tensor, got {type(tensor).__name__}")
        check_dense(name, tensor)
        if tensor.dim() < 2:
            raise WrongValue(f"{name} must have dimensions (..., words, features), got {_shape(tensor)}")
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise WrongType(f"{name} must have a floating-point dtype of 16 bits or more, got {tensor.dtype}")
        if 0 in tensor.shape[-2:]:
            raise WrongValue(f"{name} must have at least one word and one feature, got {_shape(tensor)}")
    if question.dtype != document.dtype:
        raise WrongType(f"question must have the dtype of document, {document.dtype}, got {question.dtype}")
    if question.device != document.device:
        raise WrongValue(f"question must be on the device of document, {document.device}, got {question.device}")
    if question.shape[:-2] != document.shape[:-2] or question.shape[-1] != document.shape[-1]:
        raise WrongValue(
            f"question must have the batch and features of document, {_shape(document)}, got {_shape(question)}"
        )


def check_words(name: str, mask: Tensor | None, words: Tensor) -> None:
    """A bool mask `(..., L)`, True where there is a word, for `words (..., L, E)`."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise WrongType(f"{name} must be a Tensor or None, got {type(mask).__name__}")
    check_plain(name, mask)
    if mask.dtype != torch.bool:
        raise WrongType(f"{name} must be bool, True where there is a word, got {mask.dtype}")
    if mask.shape != words.shape[:-1]:
        raise WrongValue(f"{name} must have shape {tuple(words.shape[:-1])}, got {_shape(mask)}")
    if mask.device != words.device:
        raise WrongValue(f"{name} must be on the device of document, {words.device}, got {mask.device}")


NOTHING_MORE = AuxRequest()


def check_aux(return_aux: AuxRequest | None) -> AuxRequest:
    if return_aux is None:
        return NOTHING_MORE
    if not hasattr(return_aux, "lse"):
        raise WrongType(f"return_aux must be an AuxRequest or None, got {type(return_aux).__name__}")
    weights = getattr(return_aux, "weights", None)  # torch's own AuxRequest has none
    if weights not in (None, "mean", "heads"):
        raise WrongValue(f"AuxRequest.weights must be None, 'mean' or 'heads', got {weights!r}")
    return AuxRequest(return_aux.lse, weights)


def _broadcasts(shape, full) -> bool:
    # compared one by one: sizes may be symbols of a compiler, which `in` does not resolve
    return all(any(size == fit for fit in (whole, 1)) for size, whole in zip(shape, full))


def _float(value) -> float:
    try:
        return value * 1.0 if isinstance(value, (torch.SymInt, torch.SymFloat)) else float(value)
    except OverflowError:  # an int
        return math.inf if value > 0 else -math.inf


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
