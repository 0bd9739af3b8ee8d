"""Hugging Face models on attnkern: `attn_implementation="attnkern"`, and `"attnkern_local"`.

    attnkern.huggingface.register()
    model = AutoModel.from_pretrained(path, attn_implementation="attnkern")

"attnkern" computes what "sdpa" does, and besides it soft caps, attention sinks and the weights
(`output_attentions=True`). "attnkern_local" also keeps every query inside a window around its own position:
`config.attnkern_window`, an int or `(left, right)`, else `config.sliding_window`.
"""

import math

import torch
from torch import Tensor, nn

from attnkern.api import local_attention
from attnkern.nn.kinds import Local
from attnkern.problem import UNLIMITED
from attnkern.results import AuxRequest

EVERYWHERE = (UNLIMITED, UNLIMITED)


def register() -> None:
    """Makes "attnkern" and "attnkern_local" known to transformers; any number of times.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError("attnkern.huggingface needs transformers: pip install 'attnkern[hf]'") from error
    from transformers.masking_utils import sdpa_mask

    # without a mask function of the same name the mask would be None, and padding ignored
    AttentionInterface.register("attnkern", attention)
    AttentionMaskInterface.register("attnkern", sdpa_mask)
    AttentionInterface.register("attnkern_local", windowed_attention)
    AttentionMaskInterface.register("attnkern_local", windowed_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    output_attentions: bool = False,
    cache: object | None = None,
    window: tuple[int, int] = EVERYWHERE,
    **_,
) -> tuple[Tensor, Tensor | None]:
    """What transformers' attention modules call: its `sdpa_attention_forward`, and what that one refuses.

    Args:
        query, key, value: `(B, H, Lq, E)`, `(B, Hkv, Lk, E)` and `(B, Hkv, Lk, Ev)`.
        attention_mask: broadcasts to `(B, H, Lq, Lk)`; bool, or added to the scores.
        is_causal: `module.is_causal` by default; counts only without a mask and for several queries.
        softcap, position_bias: cap and bias of the scores.
        s_aux: `(H,)`, the score of each head's sink, a key without a value.
        window: `(left, right)` counts of keys, for "attnkern_local".

    A model's own `sliding_window` is in its mask already, sometimes with exceptions (image tokens that see
    each other), so it is not read here.

    Returns:
        Output `(B, Lq, H, Ev)`, contiguous, and weights `(B, H, Lq, Lk)` with `output_attentions`, else None.

    Raises:
        NotImplementedError: a paged cache (continuous batching).
    """
    if cache is not None:
        raise NotImplementedError("attnkern cannot read the paged cache of continuous batching")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_causal = is_causal and attention_mask is None and query.shape[2] > 1

    output, aux = local_attention(
        query.expand(key.shape[0], -1, -1, -1),  # learned queries come with batch 1
        key,
        value,
        _merge(attention_mask, position_bias),
        dropout,
        is_causal,
        scaling,
        enable_gqa=True,
        window=window,
        softcap=softcap or 0.0,
        return_aux=AuxRequest(lse=s_aux is not None, weights="heads" if output_attentions else None),
    )
    weights = aux.weights
    if s_aux is not None:
        # one more key of score s takes 1 - sigmoid(lse - s) of every weight
        share = torch.sigmoid(aux.lse - s_aux[:, None]).unsqueeze(-1).to(output.dtype)
        output, weights = output * share, None if weights is None else weights * share
    return output.transpose(1, 2).contiguous(), weights


def windowed_attention(module, query, key, value, attention_mask, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
    """`attention` inside the window of the module's config."""
    # with a cache, a query's position is known to the mask alone: see windowed_mask
    in_mask = attention_mask is not None and query.shape[2] != key.shape[2]
    window = EVERYWHERE if in_mask else config_window(getattr(module, "config", None))
    return attention(module, query, key, value, attention_mask, *args, window=window, **kwargs)


def windowed_mask(q_length: int, kv_length: int, *, config, mask_function, **kwargs) -> Tensor | None:
    """transformers' `sdpa_mask`, which holds the window where queries are not at the keys of the same number."""
    from transformers.masking_utils import and_masks, sdpa_mask

    if q_length != kv_length:
        left, right = config_window(config)
        first = -math.inf if left == UNLIMITED else -left
        last = math.inf if right == UNLIMITED else right

        def inside(batch, head, query, key):
            return (key - query >= first) & (key - query <= last)

        mask_function = and_masks(mask_function, inside)
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(q_length=q_length, kv_length=kv_length, mask_function=mask_function, **kwargs)


def config_window(config) -> tuple[int, int]:
    """The window of "attnkern_local": `attnkern_window`, else `sliding_window`, which counts the query itself.

    Raises:
        ValueError: the config has neither.
    """
    if (window := getattr(config, "attnkern_window", None)) is not None:
        return Local(window).window
    if (window := getattr(config, "sliding_window", None)) is not None:
        return Local(window - 1).window
    raise ValueError("attnkern_local needs config.attnkern_window, an int or (left, right), or config.sliding_window")


def _merge(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    return torch.where(mask, bias, float("-inf")) if mask.dtype == torch.bool else mask + bias
