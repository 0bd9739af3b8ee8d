"""The public operations: checks, defaults, documentation. The work happens in `attnkern.ops`."""

from typing import Literal

import torch
from torch import Tensor

from attnkern import checks, reference
from attnkern.arguments import autocast, checked, seed_tensor
from attnkern.backends.choose import choose
from attnkern.ops import aoa, mac
from attnkern.ops.centered import centered_attention
from attnkern.ops.library import describe
from attnkern.ops.sample import sample_attention
from attnkern.ops.softmax import softmax_attention
from attnkern.ops.weights import attention_weights
from attnkern.packing import UNPACKED, Packing
from attnkern.problem import Inputs
from attnkern.results import Aux, AuxRequest, HardAttention

Offset = int | Literal["end"] | Tensor


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
        query: `(B, H, Lq, E)`; float16, bfloat16, float32 or float64. Packed `(T, H, E)`. As in torch, B may be several
            dimensions or none, and H be left out: results have the same.
        key: `(B, H, Lk, E)`; with `enable_gqa`, its heads divide the query's.
        value: `(B, H, Lk, Ev)`, heads as key's.
        attn_mask: broadcasts to `(B, H, Lq, Lk)` and is never expanded. Bool: True where a query may
            look. Float: added to the scores, differentiable, -inf hides a key. Or torch's `CausalBias`, which needs no
            memory; other subclasses with a meaning of their own are refused.
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
        NotImplementedError: forward-mode differentiation, which only the reference has.
    """
    return _softmax_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa,
        query_offset=query_offset, softcap=softcap, seed=seed,
        packing=Packing(cu_seq_q, cu_seq_k, max_q, max_k),
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
        query_offset=query_offset, softcap=softcap, seed=seed,
        packing=Packing(cu_seq_q, cu_seq_k, max_q, max_k),
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
    call = checked(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window,
        Packing(cu_seq_q, cu_seq_k, max_q, max_k),
    )  # fmt: skip
    num_samples = checks.check_samples(num_samples)
    checks.check_bool("deterministic", deterministic)
    checks.check_bool("straight_through", straight_through)
    if call.layout.nested is not None and num_samples is not None:
        raise ValueError(f"num_samples must be None for nested tensors, got {num_samples}")
    draws = 1 if deterministic or num_samples is None else num_samples
    checks.check_seed(seed, call.query.device)
    seed = None if deterministic else seed_tensor(seed, call.query.device)

    if backend == "reference":
        result = reference.widened(
            reference.hard_attention, **call.reference(), num_samples=draws, deterministic=deterministic,
            straight_through=straight_through, seed=seed,
        )  # fmt: skip
    else:
        result = sample_attention(*call.tensors(seed), *call.options, draws, deterministic, straight_through, backend)
    output, index, score, lse, entropy = result
    if num_samples is None:
        output, index, score = output.squeeze(0), index.squeeze(0), score.squeeze(0)
    elif draws != num_samples:
        output, index, score = (t.expand(num_samples, *t.shape[1:]) for t in (output, index, score))
    return HardAttention(call.layout.output(output), *map(call.layout.rows, (index, score, lse, entropy)))


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
    mean over document words of the softmax of each row, over the question; the result is `alpha beta`. Memory
    grows with `Ld + Lq`: M is not stored, unless (for a gradient on a CPU) it takes no more than the document does.

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
    document, question = autocast(document, question)
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
        result = aoa.attention_over_attention(document, question, *masks, backend)
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
            softcap=softcap, seed=None, backend=backend, window=window,
        )  # fmt: skip
    call = checked(query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window)
    if backend == "reference":
        output = reference.widened(reference.mac_attention, **call.reference(), activation=activation)
    else:
        output = mac.mac_attention(*call.tensors(None), *call.options, activation, backend)
    return call.layout.output(output)


def _softmax_attention(
    query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, *, query_offset, softcap, seed, backend,
    packing=UNPACKED, return_aux=None, window=None, center=None, sigma=None, renormalize=False,
):  # fmt: skip
    call = checked(
        query, key, value, attn_mask, is_causal, scale, enable_gqa, query_offset, softcap, window, packing, dropout_p
    )
    dropout_p = call.dropout_p
    center, sigma = checks.check_gaussian(center, sigma, renormalize, call.query, call.layout)
    aux = checks.check_aux(return_aux)
    checks.check_seed(seed, call.query.device)
    tensors = call.tensors(seed_tensor(seed, call.query.device) if dropout_p else None)

    centered = center is not None or sigma is not None
    if backend is None and centered and aux.weights is not None:
        backend = "reference"  # the only one that writes weights around learned centres
    if backend == "reference":
        output, lse, weights = reference.widened(
            reference.softmax_attention, **call.reference(), center=center, sigma=sigma, renormalize=renormalize,
            dropout_p=dropout_p, seed=tensors[5],
        )  # fmt: skip
        if aux.weights == "mean":
            weights = weights.mean(1)
    elif centered:
        if aux.weights is not None:
            choices = {"center": True, "sigma": sigma is not None, "weights": aux.weights}
            choose(describe(Inputs(*tensors), call.options, **choices), backend)
        center, sigma = call.gaussian(center, sigma)
        output, lse = centered_attention(*tensors, center, sigma, *call.options, renormalize, dropout_p, backend)
        if renormalize and aux.lse:
            lse = lse + call.lse_of_nearest(lse, center, sigma)
    else:
        output, lse = softmax_attention(*tensors, *call.options, dropout_p, backend)
        if aux.weights is not None:
            query, key, _, *others = tensors
            weights = attention_weights(
                query, key, lse.detach(), *others, *call.options, dropout_p, aux.weights == "mean", backend
            )
    output = call.layout.output(output)
    if return_aux is None:
        return output
    lse = call.layout.rows(lse) if aux.lse else None
    return output, Aux(lse, None if aux.weights is None else call.layout.weights(weights))
