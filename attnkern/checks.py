"""What a call must satisfy before anything is launched: each error names argument, expected and given."""

import itertools
import math

import torch
from torch import Tensor

from attnkern.packing import Packing
from attnkern.problem import UNLIMITED, UNNORMALISED
from attnkern.results import AuxRequest

FARTHEST = 1 << 28  # positions and windows beyond it see as much as those at it: no sequence is as long


def check_tensors(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool, packed: bool = False) -> None:
    """`query (B, H, Lq, E)`, `key (B, Hkv, Lk, E)`, `value (B, Hkv, Lk, Ev)`; packed `(T, H, E)`; one dtype, device."""
    dims = "(tokens, heads, features)" if packed else "(batch, heads, length, features)"
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dim() != (3 if packed else 4):
            raise ValueError(f"{name} must have {3 if packed else 4} dimensions {dims}, got {_shape(tensor)}")
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise TypeError(f"{name} must have a floating-point dtype of 16 bits or more, got {tensor.dtype}")
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} must have the dtype of query, {query.dtype}, got {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{name} must be on the device of query, {query.device}, got {tensor.device}")
        if not packed and tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} must have the batch size of query, {query.shape[0]}, got {_shape(tensor)}")
        if tensor.is_nested != query.is_nested or tensor.is_nested and not _is_jagged(tensor):
            raise ValueError(f"{name} must be nested where query is, jagged (B, H, *, E) and contiguous")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key must have the features of query, {query.shape[-1]}, got {_shape(key)}")
    if key.shape[-1] == 0:
        raise ValueError(f"query must have at least one feature, got {_shape(query)}")
    if value.shape[:-1] != key.shape[:-1]:
        raise ValueError(f"value must have the heads and length of key, {tuple(key.shape[1:-1])}, got {_shape(value)}")
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads != kv_heads and not enable_gqa:
        raise ValueError(f"key must have {heads} heads like query (or pass enable_gqa=True), got {_shape(key)}")
    if heads != kv_heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(f"query's heads must be a multiple of key's {kv_heads}, got {_shape(query)}")


def check_packing(query: Tensor, key: Tensor, packing: Packing) -> Packing | None:
    """Of packed `(T, H, E)`; None if there is none.

    Numbers are checked where reading them stops nothing: on a CPU, outside of a compiler.
    """
    cu_seq_q, cu_seq_k, max_q, max_k = packing
    if cu_seq_q is None:
        for name, number in packing._asdict().items():
            if number is not None:
                raise ValueError(f"{name} needs cu_seq_q, got None")
        return None
    for name, tensor in (("cu_seq_q", cu_seq_q), ("cu_seq_k", cu_seq_k)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be int32 or int64, got {tensor.dtype}")
        if tensor.dim() != 1 or tensor.shape[0] < 1 or tensor.shape != cu_seq_q.shape:
            raise ValueError(f"{name} must have shape (sequences + 1,), like cu_seq_q, got {_shape(tensor)}")
        if isinstance(query, Tensor) and tensor.device != query.device:
            raise ValueError(f"{name} must be on the device of query, {query.device}, got {tensor.device}")
    for name, longest in (("max_q", max_q), ("max_k", max_k)):
        if not _is_int(longest):
            raise TypeError(f"{name} must be the length of the longest sequence, an int, got {longest!r}")
    if cu_seq_q.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_cu_seq("cu_seq_q", cu_seq_q, "query", query, "max_q", max_q)
        _check_cu_seq("cu_seq_k", cu_seq_k, "key", key, "max_k", max_k)
    return packing


def _check_cu_seq(name: str, cu_seq: Tensor, of: str, tensor: Tensor, longest_name: str, longest: int) -> None:
    bounds = cu_seq.tolist()
    lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
    if bounds[0] != 0 or min(lengths, default=0) < 0:
        raise ValueError(f"{name} must begin with 0 and never fall, got {bounds}")
    if isinstance(tensor, Tensor) and bounds[-1] != tensor.shape[0]:
        raise ValueError(f"{name} must end with {of}'s {tensor.shape[0]} tokens, got {bounds[-1]}")
    if longest < max(lengths, default=0):
        raise ValueError(f"{longest_name} must be at least {max(lengths)}, the longest in {name}, got {longest}")


def _is_jagged(tensor: Tensor) -> bool:
    return tensor.layout == torch.jagged and tensor._ragged_idx == 2 and tensor.transpose(1, 2).lengths() is None


def check_mask(attn_mask: Tensor | None, query: Tensor, key: Tensor, packing: Packing | None = None) -> Tensor | None:
    """The mask as 4-d, unexpanded; bool (True: may look) or float (added to the scores)."""
    if attn_mask is None:
        return None
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"attn_mask must be a Tensor or None, got {type(attn_mask).__name__}")
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise TypeError(f"attn_mask must be bool, float32 or query's {query.dtype}, got {attn_mask.dtype}")
    if attn_mask.device != query.device:
        raise ValueError(f"attn_mask must be on the device of query, {query.device}, got {attn_mask.device}")
    full = (*query.shape[:3], key.shape[2])
    if packing is not None:
        full = (len(packing.cu_seq_q) - 1, query.shape[1], packing.max_q, packing.max_k)
    if attn_mask.dim() > 4:
        raise ValueError(f"attn_mask must have at most 4 dimensions, got {_shape(attn_mask)}")
    mask = attn_mask[(None,) * (4 - attn_mask.dim())]
    if not _broadcasts(mask.shape, full):
        raise ValueError(f"attn_mask must broadcast to (batch, heads, Lq, Lk) = {full}, got {_shape(attn_mask)}")
    for dim in range(4):  # a mask that was expanded already is taken back
        if mask.shape[dim] > 1 and mask.stride(dim) == 0:
            mask = mask.narrow(dim, 0, 1)
    return mask


def check_offset(
    query_offset: int | str | Tensor, query: Tensor, key: Tensor, packing: Packing | None = None
) -> tuple[int, Tensor | None]:
    """The position of query 0, as an int or as one int64 per batch element."""
    batch = query.shape[0] if packing is None else len(packing.cu_seq_q) - 1
    if isinstance(query_offset, str):
        if query_offset != "end":
            raise ValueError(f"query_offset must be an int, a (batch,) tensor or 'end', got {query_offset!r}")
        if packing is not None:
            return 0, packing.cu_seq_k.diff().long() - packing.cu_seq_q.diff()
        return key.shape[2] - query.shape[2], None
    if not isinstance(query_offset, Tensor):
        if not _is_int(query_offset):
            raise TypeError(f"query_offset must be an int, a (batch,) tensor or 'end', got {query_offset!r}")
        return max(-FARTHEST, min(query_offset, FARTHEST)), None
    if query_offset.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"query_offset must be an int32 or int64 tensor, got {query_offset.dtype}")
    if query_offset.dim() != 1 or query_offset.shape[0] != batch:
        raise ValueError(f"query_offset must have shape ({batch},), got {_shape(query_offset)}")
    if query_offset.device != query.device:
        raise ValueError(f"query_offset must be on the device of query, {query.device}, got {query_offset.device}")
    return 0, query_offset.to(torch.int64).clamp(-FARTHEST, FARTHEST)


def check_window(window: tuple[int, int] | None) -> tuple[int, int]:
    """`(left, right)`, each a count of keys or -1 for unlimited; None is unlimited both ways."""
    if window is None:
        return UNLIMITED, UNLIMITED
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window must be a pair (left, right), got {window!r}")
    for side in window:
        if not _is_int(side):
            raise TypeError(f"window must hold two ints, got {window!r}")
        if side < UNLIMITED:
            raise ValueError(f"window must hold counts of keys, or -1 for unlimited, got {window!r}")
    left, right = (UNLIMITED if side > FARTHEST else side for side in window)
    return left, right


def check_scalars(scale: float | None, softcap: float, dropout_p: float, query: Tensor) -> float:
    """The scale; soft cap and dropout probability are only checked."""
    for name, number in (("dropout_p", dropout_p), ("softcap", softcap), ("scale", 1 if scale is None else scale)):
        if not _is_number(number):
            raise TypeError(f"{name} must be a number, got {number!r}")
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be between 0 and 1, got {dropout_p}")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"softcap must be a finite number, 0 for none, got {softcap}")
    if scale is None:
        return 1 / math.sqrt(query.shape[-1])
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    return scale * 1.0


def check_seed(seed: int | Tensor | None, device: torch.device) -> None:
    """An int or a 0-d int64 tensor."""
    if isinstance(seed, Tensor):
        if seed.dim() or seed.dtype != torch.int64:
            raise ValueError(f"seed must be a 0-d int64 tensor, got {_shape(seed)} {seed.dtype}")
        if seed.device != device:
            raise ValueError(f"seed must be on the device of query, {device}, got {seed.device}")
    elif seed is None:
        return
    elif not _is_int(seed):
        raise TypeError(f"seed must be an int, a 0-d int64 tensor or None, got {seed!r}")
    elif not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit 64 bits, got {seed}")


def check_gaussian(center: Tensor | None, sigma: float | Tensor | None, renormalize: bool, query: Tensor) -> None:
    """`center` and a tensor `sigma` are `(B|1, H|1, Lq)`; sigma is positive."""
    for name, tensor in (("center", center), ("sigma", sigma)):
        if not isinstance(tensor, Tensor):
            if name == "center" and tensor is not None:
                raise TypeError(f"center must be a Tensor or None, got {type(tensor).__name__}")
            continue
        full = query.shape[:3]
        fits = tensor.dim() == 3 and _broadcasts(tensor.shape, full)
        if not (fits and tensor.shape[2] == full[2]) and not (name == "sigma" and tensor.dim() == 0):
            raise ValueError(
                f"{name} must have shape (batch | 1, heads | 1, Lq) of {tuple(full)}, got {_shape(tensor)}"
            )
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{name} must be on the device of query, {query.device}, got {tensor.device}")
    if not isinstance(sigma, Tensor):
        check_sigma(sigma, "a number, a Tensor or None")
    if renormalize and sigma is None:
        raise ValueError("renormalize=True needs sigma, got None")


def check_sigma(sigma: float | None, expected: str = "a number or None") -> None:
    if sigma is None:
        return
    if not _is_number(sigma):
        raise TypeError(f"sigma must be {expected}, got {sigma!r}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")


def check_activation(activation: str) -> None:
    if activation not in ("softmax", *UNNORMALISED):
        raise ValueError(f"activation must be 'softmax', 'linear', 'relu' or 'exp', got {activation!r}")


def check_samples(num_samples: int | None) -> None:
    if num_samples is None:
        return
    if not _is_int(num_samples):
        raise TypeError(f"num_samples must be an int or None, got {num_samples!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")


def check_pair(document: Tensor, question: Tensor) -> None:
    """`document (..., Ld, E)` and `question (..., Lq, E)`, neither empty, one dtype, one device."""
    for name, tensor in (("document", document), ("question", question)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dim() < 2:
            raise ValueError(f"{name} must have dimensions (..., words, features), got {_shape(tensor)}")
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:
            raise TypeError(f"{name} must have a floating-point dtype of 16 bits or more, got {tensor.dtype}")
        if 0 in tensor.shape[-2:]:
            raise ValueError(f"{name} must have at least one word and one feature, got {_shape(tensor)}")
    if question.dtype != document.dtype:
        raise TypeError(f"question must have the dtype of document, {document.dtype}, got {question.dtype}")
    if question.device != document.device:
        raise ValueError(f"question must be on the device of document, {document.device}, got {question.device}")
    if question.shape[:-2] != document.shape[:-2] or question.shape[-1] != document.shape[-1]:
        raise ValueError(
            f"question must have the batch and features of document, {_shape(document)}, got {_shape(question)}"
        )


def check_words(name: str, mask: Tensor | None, words: Tensor) -> None:
    """A bool mask `(..., L)`, True where there is a word, for `words (..., L, E)`."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, True where there is a word, got {mask.dtype}")
    if mask.shape != words.shape[:-1]:
        raise ValueError(f"{name} must have shape {tuple(words.shape[:-1])}, got {_shape(mask)}")
    if mask.device != words.device:
        raise ValueError(f"{name} must be on the device of document, {words.device}, got {mask.device}")


def check_aux(return_aux: AuxRequest | None) -> AuxRequest:
    if return_aux is None:
        return AuxRequest()
    if not hasattr(return_aux, "lse"):
        raise TypeError(f"return_aux must be an AuxRequest or None, got {type(return_aux).__name__}")
    weights = getattr(return_aux, "weights", None)  # torch's own AuxRequest has none
    if weights not in (None, "mean", "heads"):
        raise ValueError(f"AuxRequest.weights must be None, 'mean' or 'heads', got {weights!r}")
    return AuxRequest(return_aux.lse, weights)


def _broadcasts(shape, full) -> bool:
    # compared one by one: sizes may be symbols of a compiler, which `in` does not resolve
    return all(any(size == fit for fit in (whole, 1)) for size, whole in zip(shape, full))


def _is_int(value) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return _is_int(value) or isinstance(value, (float, torch.SymFloat))


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
