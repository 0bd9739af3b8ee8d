"""Hugging Face models on attnkern: `attn_implementation="attnkern"`, and `"attnkern_local"`.

    attnkern.huggingface.register()
    model = AutoModel.from_pretrained(path, attn_implementation="attnkern")

"attnkern" computes what "sdpa" does, and besides it soft caps, attention sinks and the weights
(`output_attentions=True`). "attnkern_local" also keeps every query inside a window around its own position:
`config.attnkern_window`, an int or `(left, right)`, else `config.sliding_window`.
"""

import math
import threading

import torch
from torch import Tensor, nn

from attnkern.api import local_attention
from attnkern.architectures import refuse_strangers
from attnkern.nn.kinds import Local
from attnkern.problem import UNLIMITED
from attnkern.results import AuxRequest

EVERYWHERE = (UNLIMITED, UNLIMITED)
ADDED = ("nllb-moe", "deepseek_v4")  # model types whose own code reads a mask as numbers to be added
SPARSE = ("indices", "block_indices")  # keys that a model chose for each query
_latest = threading.local()  # the causal mask that this thread made last: see _position


def register() -> None:
    """Makes "attnkern" and "attnkern_local" known to transformers; any number of times.

    From then on, a model whose attention does not go through transformers' AttentionInterface raises ValueError when
    it is built with these names.

    Raises:
        ImportError: transformers is not installed, or its own import fails.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "transformers":
            raise ImportError("attnkern.huggingface needs transformers: pip install 'attnkern[hf]'") from error
        raise ImportError(
            f"attnkern.huggingface cannot import transformers: {error} (pip install 'attnkern[hf]' brings what fits)"
        ) from error

    # without a mask function of the same name the mask would be None, and padding ignored
    AttentionInterface.register("attnkern", attention)
    AttentionMaskInterface.register("attnkern", mask)
    AttentionInterface.register("attnkern_local", windowed_attention)
    AttentionMaskInterface.register("attnkern_local", windowed_mask)
    refuse_strangers(PreTrainedModel, ("attnkern", "attnkern_local"))


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
    sinks: Tensor | None = None,
    output_attentions: bool = False,
    cache: object | None = None,
    window: tuple[int, int] = EVERYWHERE,
    query_offset: int | Tensor = 0,
    **others,
) -> tuple[Tensor, Tensor | None]:
    """What transformers' attention modules call: its `sdpa_attention_forward`, and what that one refuses.

    Args:
        query, key, value: `(B, H, Lq, E)`, `(B, Hkv, Lk, E)` and `(B, Hkv, Lk, Ev)`.
        attention_mask: broadcasts to `(B, H, Lq, Lk)`; bool, or added to the scores.
        is_causal: `module.is_causal` by default; counts only without a mask and for several queries.
        softcap, position_bias: cap and bias of the scores.
        s_aux: `(H,)`, the score of each head's sink, a key without a value.
        sinks: `(B, H, Lq, 1)`, the same for each query.
        output_attentions: asks for weights, as does a model that records them.
        window, query_offset: `(left, right)` counts of keys around a query's position, for "attnkern_local".

    A model's own `sliding_window` is in its mask already, sometimes with exceptions (image tokens that see
    each other), so it is not read here.

    Returns:
        Output `(B, Lq, H, Ev)`, contiguous, and weights `(B, H, Lq, Lk)` with `output_attentions`, else None.

    Raises:
        NotImplementedError: a paged cache (continuous batching), or keys chosen for each query (`indices`).
    """
    if cache is not None:
        raise NotImplementedError("attnkern cannot read the paged cache of continuous batching")
    for name in SPARSE:
        if others.get(name) is not None:
            raise NotImplementedError(f"attnkern cannot read {name}, the keys that {type(module).__name__} chose")
    output_attentions = output_attentions or _records_attentions()
    sink = sinks if s_aux is None else s_aux[:, None, None]
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
        query_offset=query_offset,
        softcap=softcap or 0.0,
        return_aux=AuxRequest(lse=sink is not None, weights="heads" if output_attentions else None),
    )
    weights = aux.weights
    if sink is not None:
        # one more key of score s takes 1 - sigmoid(lse - s) of every weight
        share = torch.sigmoid(aux.lse.unsqueeze(-1) - sink).to(output.dtype)
        output, weights = output * share, None if weights is None else weights * share
    return output.transpose(1, 2).contiguous(), weights


def mask(*args, config=None, **kwargs) -> Tensor | None:
    """transformers' mask for "sdpa", True where a query may look, or None; or its additive one for "eager"."""
    from transformers.masking_utils import eager_mask, sdpa_mask

    is_added = getattr(config, "model_type", None) in ADDED
    return (eager_mask if is_added else sdpa_mask)(*args, config=config, **kwargs)


def windowed_attention(module, query, key, value, attention_mask, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
    """`attention` inside the window of the module's config, around a query's position in its own sequence."""
    window, offset = config_window(getattr(module, "config", None)), 0
    if not getattr(module, "is_causal", True):
        offset = _position(module, query)
    elif attention_mask is not None and query.shape[2] != key.shape[2]:
        window = EVERYWHERE  # with a cache, where a query and its keys are is in the mask: see windowed_mask
    return attention(module, query, key, value, attention_mask, *args, window=window, query_offset=offset, **kwargs)


def windowed_mask(
    q_length: int, kv_length: int, q_offset: int | Tensor = 0, *, config, mask_function, **kwargs
) -> Tensor | None:
    """`mask`, which holds the window where queries are not at the keys of the same number.

    Not so in cross-attention, where windowed_attention knows more.
    """
    from transformers.masking_utils import and_masks

    has_cache = isinstance(q_offset, Tensor) or q_offset != 0
    is_causal = "allow_is_bidirectional_skip" not in kwargs
    if is_causal or has_cache:
        # a static cache counts in place
        offset = q_offset.clone() if isinstance(q_offset, Tensor) else q_offset
        _latest.position = type(config), q_length, offset
    if is_causal and q_length != kv_length:
        left, right = config_window(config)
        first = -math.inf if left == UNLIMITED else -left
        last = math.inf if right == UNLIMITED else right

        def inside(batch, head, query, key):
            return (key - query >= first) & (key - query <= last)

        mask_function = and_masks(mask_function, inside)
        kwargs |= {"allow_is_causal_skip": False}
    where = {"q_length": q_length, "kv_length": kv_length, "q_offset": q_offset}
    return mask(**where, config=config, mask_function=mask_function, **kwargs)


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


def _position(module: nn.Module, query: Tensor) -> int | Tensor:
    """The position of the first query, in cross-attention: that of the causal mask made for the same queries.

    transformers tells it to nobody else.
    """
    known_to, length, offset = getattr(_latest, "position", (None, 0, 0))
    config = getattr(module, "config", None)
    is_decoder = getattr(module, "is_decoder", getattr(config, "is_decoder", True))
    if not (is_decoder or getattr(module, "is_cross_attention", False)):
        return 0  # an encoder's own
    if known_to is not type(config) or length != query.shape[2]:
        return 0
    return offset.expand(query.shape[0]) if isinstance(offset, Tensor) else offset


def _records_attentions() -> bool:
    """Whether a model around is collecting weights: some, like GPT-2, do not say so to their attention."""
    try:
        from transformers.utils.output_capturing import _active_collector
    except ImportError:  # transformers before it tells every attention
        return False
    return any(name.endswith("attentions") for name in _active_collector.get() or ())


def _merge(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias if mask is None else mask
    return torch.where(mask, bias, float("-inf")) if mask.dtype == torch.bool else mask + bias
