"""The naive definition of every operation, in plain torch, in whatever dtype it is given.

Everything else in this package is compared with these functions, in float64. They store the whole
score matrix, are differentiable any number of times, and draw dropout and samples from the shared
Philox, so they reproduce any backend's random choices.
"""

import math

import torch
from torch import Tensor

from attnkern import philox
from attnkern.packing import Packing, padded
from attnkern.results import HardAttention

NEG_INF = float("-inf")
FARTHEST_SIGMAS = 1e15  # its square is finite


def positions(length: int, query_offset: int | Tensor, device: torch.device) -> Tensor:
    """Where each query stands on the key axis: `(1 | B, 1, Lq)`."""
    offset = torch.as_tensor(query_offset, device=device).reshape(-1, 1, 1)
    return torch.arange(length, device=device) + offset


def scores(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    query_offset: int | Tensor = 0,
    center: Tensor | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """Scores `(B, H, Lq, Lk)`, -inf where a query may not look.

    A score of +inf, from a mask or a product beyond the dtype, counts as the largest finite number, a constant: several
    share the row, and no gradient passes. One of -inf has weight 0, and a row of them alone is empty. NaN in what a
    query looks at makes its results NaN. A key that no query looks at may hold anything.
    """
    len_q, len_k = query.shape[-2], key.shape[-2]
    key = _per_query_head(key, query)
    allowed = _allowed(len_q, len_k, is_causal, window, query_offset, center, query.device)
    if attn_mask is not None:
        allowed = allowed & (attn_mask if attn_mask.dtype == torch.bool else attn_mask != NEG_INF)
    allowed = allowed.expand(*query.shape[:2], len_q, len_k)
    # a key nobody may look at has no influence, whatever it holds
    key = torch.where(allowed.any(-2)[..., None], key, 0.0)

    score = query @ key.mT * (scale if scale is not None else 1 / math.sqrt(query.shape[-1] or 1))
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        score = score + attn_mask
    score = score.masked_fill(score == math.inf, torch.finfo(score.dtype).max)
    return torch.where(allowed, score, NEG_INF)


def softmax(score: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and log-sum-exp `(B, H, Lq)` of each row; an empty row has weights 0 and lse -inf."""
    top = score.amax(-1, keepdim=True) if score.shape[-1] else score.new_full((*score.shape[:-1], 1), NEG_INF)
    top = torch.where(top == NEG_INF, 0.0, top).detach()
    unnormalised = torch.exp(score - top)
    total = unnormalised.sum(-1, keepdim=True)
    filled = total != 0
    total = torch.where(filled, total, 1.0)
    lse = torch.where(filled, top + total.log(), NEG_INF).squeeze(-1)
    return unnormalised / total, lse


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    center: Tensor | None = None,
    sigma: float | Tensor | None = None,
    renormalize: bool = False,
    query_offset: int | Tensor = 0,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    **score_options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Global and local attention: `output, lse, weights` (weights after dropout).

    `center` and `sigma` are local-p of Luong et al. 2015: a Gaussian around `center` multiplies the
    weights after the softmax, or enters the softmax with `renormalize=True`.
    """
    score = scores(query, key, attn_mask, query_offset=query_offset, center=center, **score_options)
    gaussian = _log_gaussian(query, key, query_offset, center, sigma) if sigma is not None else None
    if gaussian is not None and renormalize:
        score = torch.where(score == NEG_INF, NEG_INF, score + gaussian)
    weights, lse = softmax(score)
    if gaussian is not None and not renormalize:
        weights = weights * gaussian.exp()
    if dropout_p:
        keep = _dropout_keep(weights, dropout_p, seed)
        weights = torch.where(keep, weights / (1 - dropout_p), 0.0) if dropout_p < 1 else weights * 0
    value = _per_query_head(value, query)
    value = torch.where((score != NEG_INF).any(-2)[..., None], value, 0.0)
    return weights @ value, lse, weights


def mac_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, activation: str, **score_options
) -> Tensor:
    """Weights that are the scores themselves, their positive part or their exponential; 0 for hidden keys."""
    score = scores(query, key, attn_mask, **score_options)
    seen = score != NEG_INF
    score = torch.where(seen, score, 0.0)
    weights = {"linear": torch.clone, "relu": torch.relu, "exp": torch.exp}[activation](score)
    value = _per_query_head(value, query)
    value = torch.where(seen.any(-2)[..., None], value, 0.0)
    return torch.where(seen, weights, 0.0) @ value


def hard_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    num_samples: int = 1,
    deterministic: bool = False,
    straight_through: bool = False,
    seed: Tensor | None = None,
    index: Tensor | None = None,
    **score_options,
) -> HardAttention:
    """Sampled (or argmax) attention; `index` forces the draws, `(S, B, H, Lq)`."""
    score = scores(query, key, attn_mask, **score_options)
    weights, lse = softmax(score)
    log_weights = torch.where(weights > 0, weights, 1.0).log()
    entropy = -(weights * log_weights).sum(-1)
    if index is None:
        index = argmax(score).expand(num_samples, -1, -1, -1) if deterministic else sample(score, num_samples, seed)

    found = index >= 0
    if score.shape[-1] == 0:
        picked = score.sum(-1).expand(index.shape)
    else:
        picked = score.expand(num_samples, *score.shape).gather(-1, index.clamp(min=0)[..., None]).squeeze(-1)
    value = _per_query_head(value, query)
    value = torch.where((score != NEG_INF).any(-2)[..., None], value, 0.0)
    if score.shape[-1] == 0:
        output = value.new_zeros(*index.shape, value.shape[-1])
    else:
        drawn = index.clamp(min=0)[..., None].expand(*index.shape, value.shape[-1])
        output = value.expand(num_samples, *value.shape).gather(-2, drawn)
        output = torch.where(found[..., None], output, 0.0)
    if straight_through:
        soft = weights @ value.detach()
        output = output + (soft - soft.detach())
    return HardAttention(output, index, torch.where(found, picked, 0.0), lse, entropy)


def argmax(score: Tensor) -> Tensor:
    """The first key of the highest score in each row, -1 in an empty row."""
    if score.shape[-1] == 0:
        return torch.full(score.shape[:-1], -1, device=score.device)
    top, index = score.max(-1)
    first = (score == top[..., None]).to(torch.int8).argmax(-1)
    return torch.where(top == NEG_INF, -1, first)


def attention_over_attention(
    document: Tensor, question: Tensor, document_mask: Tensor | None = None, question_mask: Tensor | None = None
) -> Tensor:
    """Cui et al. 2017: `(B, Ld, E)` and `(B, Lq, E)` to a distribution over the document, `(B, Ld)`."""
    masks = (document_mask, question_mask)
    document_mask, question_mask = (
        torch.ones(words.shape[:2], dtype=torch.bool, device=words.device) if mask is None else mask
        for words, mask in zip((document, question), masks)
    )
    document = torch.where(document_mask[..., None], document, 0.0)
    question = torch.where(question_mask[..., None], question, 0.0)
    score = document @ question.mT
    score = score.masked_fill(score == math.inf, torch.finfo(score.dtype).max)
    score = torch.where(document_mask[:, :, None] & question_mask[:, None], score, NEG_INF)
    alpha, _ = softmax(score.mT)  # (B, Lq, Ld): for each word of the question, over the document
    by_row, _ = softmax(score)  # (B, Ld, Lq): for each word of the document, over the question
    beta = by_row.sum(1) / document_mask.sum(1, keepdim=True).clamp(min=1)
    return (beta[:, None] @ alpha).squeeze(1)


@torch.no_grad()
def sample(score: Tensor, num_samples: int, seed: Tensor) -> Tensor:
    """One pass over blocks of 64 keys, exactly as defined: int64 `(S, B, H, Lq)`.

    Keep the running maximum and sum `(m, l)`. With `b` the mass of the next block and `l` including
    it, draw `u`; if `u*l < b` the sample moves to this block, to the first key whose running sum
    exceeds `u*l`: inverse-CDF and reservoir sampling at once.
    """
    batch, heads, len_q, len_k = score.shape
    rows = torch.arange(len_q, device=score.device)
    batch_heads = torch.arange(batch * heads, device=score.device).view(batch, heads)
    index = torch.full((num_samples, batch, heads, len_q), -1, device=score.device)
    running_max = score.new_full((batch, heads, len_q), NEG_INF)
    running_sum = score.new_zeros(batch, heads, len_q)
    for begin in range(0, len_k, philox.SAMPLE_BLOCK):
        block = score[..., begin : begin + philox.SAMPLE_BLOCK]
        new_max = torch.maximum(running_max, block.amax(-1))
        safe_max = torch.where(new_max == NEG_INF, 0.0, new_max)
        mass = torch.exp(block - safe_max[..., None])
        block_mass = mass.sum(-1)
        running_sum = running_sum * torch.exp(running_max - safe_max) + block_mass
        running_max = new_max
        number = torch.full((1,), begin // philox.SAMPLE_BLOCK, device=score.device)
        u = philox.sample_uniforms(seed, rows, batch_heads, number, num_samples).squeeze(-1)
        target = u.to(score.dtype) * running_sum
        # the first block with any mass is always taken; rounding must not lose it
        taken = (block_mass > 0) & ((target < block_mass) | (index < 0))
        reached = (philox.running_sum(mass) <= target[..., None]).sum(-1)
        last = torch.where(mass > 0, torch.arange(block.shape[-1], device=score.device), -1).amax(-1)
        index = torch.where(taken, begin + torch.minimum(reached, last), index)
    return index


def _allowed(len_q, len_k, is_causal, window, query_offset, center, device) -> Tensor:
    """Where the prior lets a query look: bool, broadcasts to `(B, H, Lq, Lk)`."""
    at = positions(len_q, query_offset, device)[..., None]
    j = torch.arange(len_k, device=device)
    middle = at if center is None else center.detach().floor()[..., None]
    left, right = window
    allowed = torch.ones_like(j, dtype=torch.bool) & (middle == middle)
    if left >= 0:
        allowed = allowed & (j >= middle - left)
    if right >= 0:
        allowed = allowed & (j <= middle + right)
    return allowed & (j <= at) if is_causal else allowed


def _per_query_head(tensor: Tensor, query: Tensor) -> Tensor:
    return tensor.repeat_interleave(query.shape[1] // max(1, tensor.shape[1]), dim=1)


def _log_gaussian(query, key, query_offset, center, sigma) -> Tensor:
    if center is None:
        center = positions(query.shape[-2], query_offset, query.device).to(query.dtype)
    if isinstance(sigma, Tensor) and sigma.dim():
        sigma = sigma[..., None]
    distance = (torch.arange(key.shape[-2], device=key.device) - center[..., None]) / sigma
    return -0.5 * distance.clamp(-FARTHEST_SIGMAS, FARTHEST_SIGMAS) ** 2


def _dropout_keep(weights: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    batch, heads, len_q, len_k = weights.shape
    device = weights.device
    batch_heads = torch.arange(batch * heads, device=device).view(batch, heads)
    return philox.dropout_keep(seed, torch.arange(len_q, device=device), batch_heads, (0, len_k), dropout_p)


def widened(
    function,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    packing: Packing | None = None,
    **options,
):
    """A reference in at least float32, its output and weights in the query's dtype: what `backend="reference"` runs."""
    if packing is not None:
        function = padded(function, packing)
    dtype = torch.promote_types(query.dtype, torch.float32)
    floats = {name: x for name, x in options.items() if isinstance(x, Tensor) and x.is_floating_point()}
    if attn_mask is not None:
        options["attn_mask"] = attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(dtype)
    options |= {name: x.to(dtype) for name, x in floats.items()}
    result = function(query.to(dtype), key.to(dtype), value.to(dtype), **options)
    if isinstance(result, Tensor):
        return result.to(query.dtype)
    if isinstance(result, HardAttention):
        return HardAttention(result.output.to(query.dtype), *result[1:])
    output, lse, weights = result
    return output.to(query.dtype), lse, weights.to(query.dtype)
