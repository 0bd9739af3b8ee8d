"""The public operations: checks, defaults, documentation. The work happens in `attnkern.ops`."""

from typing import Literal

import torch
from torch import Tensor

from attnkern import checks, philox, reference
from attnkern.backends.choose import choose
from attnkern.ops import aoa, mac
from attnkern.ops.centered import centered_attention
from attnkern.ops.library import ScoreOptions, describe
from attnkern.ops.sample import sample_attention
from attnkern.ops.softmax import softmax_attention
from attnkern.ops.weights import attention_weights
from attnkern.packing import Layout, opened, places
from attnkern.problem import Inputs
from attnkern.results import Aux, AuxRequest, HardAttention

Offset = int | Literal["end"] | Tensor
UNPACKED = (None, None, None, None)  # cu_seq_q, cu_seq_k, max_q, max_k


def global_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    query_offset: Offset = 0,
    softcap: float = 0.0,
    cu_seq_q: Tensor | None = None,
    cu_seq_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    seed: int | Tensor | None = None,
    return_aux: AuxRequest | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Aux]:
    """Softmax attention over all keys (Bahdanau et al. 2015, Vaswani et al. 2017).

    Arguments are those of `torch.nn.functional.scaled_dot_product_attention` wherever it has them.

    Sequences of different lengths come without padding in one of two ways, and the result likewise: as jagged
    NestedTensors `(B, H, *, E)`, or packed `(T, H, E)` with the arguments of `torch.nn.attention.varlen_attn`. What is
    said of masks, offsets and random choices holds in each sequence as if it were padded to the longest.

    Args:
        query: `(B, H, Lq, E)`; float16, bfloat16, float32 or float64. Packed `(T, H, E)`.
        key: `(B, H, Lk, E)`; with `enable_gqa`, its heads divide the query's.
        value: `(B, H, Lk, Ev)`, heads as key's.
        attn_mask: broadcasts to `(B, H, Lq, Lk)` and is never expanded. Bool: True where a query may
            look. Float: added to the scores, differentiable, -inf hides a key.
        dropout_p: probability of dropping a weight, in [0, 1]; applied whenever it is positive.
        is_causal: query `i` looks at keys `j <= i + query_offset` only. Combines with `attn_mask`.
        scale: multiplies the dot products; `1 / sqrt(E)` by default.
        enable_gqa: lets several query heads share a key head.
        query_offset: key position of query 0: an int, a `(B,)` tensor, or `"end"` for `Lk - Lq`.
        softcap: `c > 0` replaces scores by `c * tanh(score / c)`, before the mask.
        cu_seq_q, cu_seq_k: int32 or int64 `(B + 1,)`: packed sequence `b` is tokens `cu_seq[b] ... cu_seq[b + 1] - 1`;
            the last entry is the number of tokens. On a GPU these numbers are not checked.
        max_q, max_k: lengths of the longest sequences of queries and of keys.
        seed: int or 0-d int64 tensor that fixes dropout; None draws one from torch's generator.
        return_aux: asks for the lse or the attention weights as well.
        backend: None chooses; a name is obeyed or refused.

    Returns:
        Output `(B, H, Lq, Ev)`, packed `(T, H, Ev)`; with `return_aux`, `(output, Aux)`. A query with nothing to look
        at gets output 0 and lse -inf. Packed, an lse is `(H, T)`; weights are those of padded sequences, 0 there.

    Raises:
        ValueError, TypeError: an argument is wrong; raised before any work.
        UnsupportedProblem: the named backend cannot run this.
    """
    return _softmax_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa,
        query_offset=query_offset, softcap=softcap, packing=(cu_seq_q, cu_seq_k, max_q, max_k), seed=seed,
        return_aux=return_aux, backend=backend,
    )  # fmt: skip


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: tuple[int, int],
    center: Tensor | None = None,
    sigma: float | Tensor | None = None,
    renormalize: bool = False,
    query_offset: Offset = 0,
    softcap: float = 0.0,
    cu_seq_q: Tensor | None = None,
    cu_seq_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    seed: int | Tensor | None = None,
    return_aux: AuxRequest | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Aux]:
    """Attention inside a window around each query's position (Luong, Pham, Manning 2015).

    The cost follows the window, not the length. Without `center` this is local-m: query `i` looks
    at keys `[i + query_offset - left, i + query_offset + right]`.

    Args:
        window: `(left, right)` counts of keys, -1 for unlimited.
        center: real key positions `(B|1, H|1, Lq)`; the window is `[floor(center) - left,
            floor(center) + right]` (local-p). Differentiable through `sigma`.
        sigma: width in keys of a Gaussian around the centre, float or shaped like `center`; it
            multiplies the weights after the softmax.
        renormalize: puts the Gaussian inside the softmax instead.

    All other arguments, results and errors are `global_attention`'s.
    """
    if window is None:
        raise TypeError("window must be a pair (left, right), got None")
    return _softmax_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa,
        query_offset=query_offset, softcap=softcap, packing=(cu_seq_q, cu_seq_k, max_q, max_k), seed=seed,
        return_aux=return_aux, backend=backend, window=window, center=center, sigma=sigma, renormalize=renormalize,
    )  # fmt: skip


def hard_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    num_samples: int | None = None,
    deterministic: bool = False,
    straight_through: bool = False,
    window: tuple[int, int] | None = None,
    query_offset: Offset = 0,
    softcap: float = 0.0,
    cu_seq_q: Tensor | None = None,
    cu_seq_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    seed: int | Tensor | None = None,
    backend: str | None = None,
) -> HardAttention:
    """Each query looks at one sampled key (Xu et al. 2015, "Show, Attend and Tell").

    The sample is exact, drawn in one pass over the keys in O(Lk) memory; the output is a gather.
    `score`, `lse` and `entropy` are differentiable, for the losses of `attnkern.estimators`; a loss
    that uses `score` alone (leave-one-out) has a sparse backward.

    Args:
        num_samples: independent draws per query, in a new leading dimension; None for one without it.
        deterministic: take the key of the highest score instead (the first of several), as at test time.
        straight_through: let the output's gradient pass to query and key as if it were soft.
        window: restricts where to look, as in `local_attention`; None for everywhere.

    All other arguments and errors are `global_attention`'s.

    Returns:
        HardAttention: output, index, score, lse, entropy, and the property `log_prob`.
    """
    tensors, options, layout = _checked(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window,
        (cu_seq_q, cu_seq_k, max_q, max_k),
    )  # fmt: skip
    device = tensors[0].device
    checks.check_samples(num_samples)
    if layout.nested is not None and num_samples is not None:
        raise ValueError(f"num_samples must be None for nested tensors, got {num_samples}")
    checks.check_seed(seed, device)
    draws = 1 if deterministic or num_samples is None else num_samples
    seed = None if deterministic else _seed_tensor(seed, device)

    if backend == "reference":
        result = reference.widened(
            reference.hard_attention, **_reference_options(tensors, options, layout), num_samples=draws,
            deterministic=deterministic, straight_through=straight_through, seed=seed,
        )  # fmt: skip
    else:
        result = sample_attention(
            *tensors, seed, *_cu_seqs(layout), *options, draws, deterministic, straight_through, backend
        )
    output, index, score, lse, entropy = result
    if num_samples is None:
        output, index, score = output[0], index[0], score[0]
    elif draws != num_samples:
        output, index, score = (t.expand(num_samples, *t.shape[1:]) for t in (output, index, score))
    return HardAttention(layout.output(output), *map(layout.rows, (index, score, lse, entropy)))


def attention_over_attention(
    document: Tensor,
    question: Tensor,
    document_mask: Tensor | None = None,
    question_mask: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Attention-over-Attention (Cui et al. 2017, arXiv 1607.04423): where in the document the answer stands.

    Of the scores `M = document question^T`, `alpha` is the softmax of each column, over the document, and `beta` the
    mean over document words of the softmax of each row, over the question; the result is `alpha beta`. M is
    never stored: memory grows with `Ld + Lq`.

    Args:
        document: `(B, Ld, E)`, or any leading dimensions; float16, bfloat16, float32 or float64.
        question: `(B, Lq, E)`, leading dimensions as document's.
        document_mask, question_mask: bool `(B, Ld)` and `(B, Lq)`, True where there is a word. What stands at other
            places has no influence.
        backend: None chooses; a name is obeyed or refused.

    Returns:
        `(B, Ld)`: a distribution over the document's words, 0 at masked places. All 0 where document or question has
        no word at all.

    Raises:
        ValueError, TypeError: an argument is wrong, or a length is 0; raised before any work.
        UnsupportedProblem: the named backend cannot run this.
    """
    document, question = _autocast(document, question)
    checks.check_pair(document, question)
    checks.check_words("document_mask", document_mask, document)
    checks.check_words("question_mask", question_mask, question)
    shape = document.shape[:-1]
    document, question = (words.reshape(-1, *words.shape[-2:]) for words in (document, question))
    masks = (None if mask is None else mask.reshape(-1, mask.shape[-1]) for mask in (document_mask, question_mask))
    if backend == "reference":
        dtype = torch.promote_types(document.dtype, torch.float32)
        result = reference.attention_over_attention(document.to(dtype), question.to(dtype), *masks).to(document.dtype)
    else:
        result = aoa.attention_over_attention(document, question, *masks, backend)[0]
    return result.reshape(shape)


def mac_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    activation: Literal["softmax", "linear", "relu", "exp"] = "softmax",
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    window: tuple[int, int] | None = None,
    query_offset: Offset = 0,
    softcap: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """The bare multiply-accumulate: `output_i = sum_j activation(score_ij) * value_j`.

    The scores are `scale * query . key`, soft-capped, plus the mask, as in `global_attention`. "linear", "relu" and
    "exp" weights are not normalised; a key that a query may not look at has weight 0 under each. "softmax" is
    `global_attention`, or `local_attention` where there is a window.

    Layers are special cases (`attnkern.as_attention`): with `key` the hidden units, "relu" is a feed-forward network
    whose hidden layer is never stored; "linear" with feature maps is Katharopoulos et al. 2020; "exp" with a
    decaying bias is a linear recurrence. A bias `a_i - b_j` needs no mask: it is the product of two more features,
    `(a_i, 1)` of the query and `(1, -b_j)` of the key (and then goes through `scale` and `softcap`).

    Args:
        activation: what makes weights of scores. "exp" does not subtract the row's largest score: scores of keys in
            sight must stay below 88 (11 in float16, whose largest number is 65504), or the weight is infinite.
        window: `(left, right)` as in `local_attention`; None for everywhere.

    All other arguments and errors are `global_attention`'s.

    Returns:
        Output `(B, H, Lq, Ev)`, 0 for a query with nothing to look at.
    """
    checks.check_activation(activation)
    if activation == "softmax":
        return _softmax_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa, query_offset=query_offset,
            softcap=softcap, packing=UNPACKED, seed=None, return_aux=None, backend=backend, window=window,
        )  # fmt: skip
    tensors, options, layout = _checked(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window
    )
    if backend == "reference":
        output = reference.widened(
            reference.mac_attention, **_reference_options(tensors, options, layout), activation=activation
        )
    else:
        output = mac.mac_attention(*tensors, None, *_cu_seqs(layout), *options, activation, backend)
    return layout.output(output)


def _softmax_attention(
    query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, *,
    query_offset, softcap, packing, seed, return_aux, backend, window=None, center=None, sigma=None, renormalize=False,
):  # fmt: skip
    tensors, options, layout = _checked(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window, packing, dropout_p
    )
    query, key, _, attn_mask, offsets = tensors
    checks.check_seed(seed, query.device)
    checks.check_gaussian(center, sigma, renormalize, query)
    aux = checks.check_aux(return_aux)
    seed = _seed_tensor(seed, query.device) if dropout_p else None

    centered = center is not None or sigma is not None
    if backend is None and centered and aux.weights is not None:
        backend = "reference"  # the only one that writes weights around learned centres
    cu_seqs = _cu_seqs(layout)
    if backend == "reference":
        output, lse, weights = reference.widened(
            reference.softmax_attention, **_reference_options(tensors, options, layout), center=center, sigma=sigma,
            renormalize=renormalize, dropout_p=dropout_p, seed=seed,
        )  # fmt: skip
        if aux.weights == "mean":
            weights = weights.mean(1)
    elif centered:
        if aux.weights is not None:
            inputs = Inputs(*tensors, None, *cu_seqs)
            choose(describe(inputs, *options, center=True, sigma=sigma is not None, weights=aux.weights), backend)
        center, sigma = _gaussian(query, center, sigma, options.query_offset if offsets is None else offsets, layout)
        output, lse = centered_attention(
            *tensors, seed, *cu_seqs, center, sigma, *options, renormalize, dropout_p, backend
        )
    else:
        output, lse = softmax_attention(*tensors, seed, *cu_seqs, *options, dropout_p, backend)
        if aux.weights is not None:
            weights = attention_weights(
                query, key, lse.detach(), attn_mask, offsets, seed, *cu_seqs, *options, dropout_p,
                aux.weights == "mean", backend,
            )  # fmt: skip
    output = layout.output(output)
    if return_aux is None:
        return output
    return output, Aux(layout.rows(lse) if aux.lse else None, weights if aux.weights is not None else None)


def _checked(
    query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window, packing=UNPACKED,
    dropout_p=0.0,
):  # fmt: skip
    """What all operations share: their tensors and options as the core has them, and the caller's layout."""
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    checks.check_tensors(query, key, value, enable_gqa, packed=packing[0] is not None)
    packing = checks.check_packing(query, key, *packing)
    query, key, value, layout = opened(query, key, value, packing)
    attn_mask = checks.check_mask(attn_mask, query, key, layout.packing)
    query_offset, offsets = checks.check_offset(query_offset, query, key, layout.packing)
    scale = checks.check_scalars(scale, softcap, dropout_p, query)
    longest = (query.shape[2], key.shape[2]) if layout.packing is None else layout.packing[2:]
    options = ScoreOptions(scale, softcap, is_causal, *checks.check_window(window), query_offset, *longest)
    return (query, key, value, attn_mask, offsets), options, layout


def _cu_seqs(layout: Layout) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if layout.packing is None else layout.packing[:2]


def _reference_options(tensors: tuple, options: ScoreOptions, layout: Layout) -> dict:
    query, key, value, attn_mask, offsets = tensors
    return {
        "query": query,
        "key": key,
        "value": value,
        "attn_mask": attn_mask,
        "scale": options.scale,
        "softcap": options.softcap,
        "is_causal": options.causal,
        "window": (options.left, options.right),
        "query_offset": options.query_offset if offsets is None else offsets,
        "packing": layout.packing,
    }


def _gaussian(
    query: Tensor, center: Tensor | None, sigma: float | Tensor | None, query_offset: int | Tensor, layout: Layout
) -> tuple[Tensor, Tensor | None]:
    """A centre and a sigma for every query `(B, H, Lq)`, in the dtype of the sums."""
    dtype, rows = torch.promote_types(query.dtype, torch.float32), query.shape[:3]
    if center is None and layout.packing is not None:
        sequence, position = places(layout.packing.cu_seq_q, query.shape[2])
        center = position + (query_offset[sequence] if isinstance(query_offset, Tensor) else query_offset)
    elif center is None:
        center = reference.positions(query.shape[2], query_offset, query.device)
    if sigma is not None and not isinstance(sigma, Tensor):
        sigma = torch.full((), sigma, dtype=dtype, device=query.device)
    return center.to(dtype).expand(rows), None if sigma is None else sigma.to(dtype).expand(rows)


def _autocast(*tensors):
    """Under autocast, products run in its dtype, as torch's own attention does."""
    first = tensors[0]
    if not isinstance(first, Tensor) or first.is_meta or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.dtype.is_floating_point and t.dtype != torch.float64 else t
        for t in tensors
    )


def _seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    if seed is None:
        return philox.draw_seed(device)
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed, dtype=torch.int64, device=device)
