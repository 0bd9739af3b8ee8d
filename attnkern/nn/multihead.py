"""`torch.nn.MultiheadAttention` on attnkern's kernels, for every kind of attention."""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.api import global_attention, local_attention
from attnkern.checks import WrongType, WrongValue
from attnkern.nn.center import PredictedCenter
from attnkern.nn.draws import LastDraws, shares
from attnkern.nn.kinds import Global, Hard, Kind, Local, attend_hard, check_kind, predicts_center, refusal
from attnkern.results import AuxRequest, HardAttention

GLOBAL = Global()


class MultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention (Vaswani et al. 2017) with torch's constructor, forward and state_dict.

    Averaged weights are made without the per-head ones, masks are merged without expanding them, and
    the inputs are projected straight into the kernels' layout.

    Args:
        embed_dim ... dtype: `torch.nn.MultiheadAttention`'s.
        attention: what to compute: `Global()`, `Local(window)` or `Hard(...)`. For the last two, query
            `i` stands at key `i`, unless `Local(center="predicted")` learns where to look: then the module has
            parameters that torch's has not, `center`'s. Hard draws keys instead of dropping weights: `dropout` has
            no effect on it.
        backend: None chooses; a name is obeyed or refused, as in `attnkern.global_attention`.

    Attributes:
        center: with `Local(center="predicted")`, the `PredictedCenter`; else absent.
        hard: with `Hard`, the `HardAttention` of the last forward, for `attnkern.estimators`
            (`attnkern.nn.hard_attentions` collects a model's): it keeps that forward's graph alive, and is neither
            copied nor saved. None before, and otherwise.

    Raises:
        ValueError: `add_bias_kv` or `add_zero_attn` with a window: the keys they append lie outside it.
        TypeError: `attention` is no kind.

    One result differs from torch's: a query with nothing to look at gets attention output 0, and weights
    0, where torch gives NaN.
    """

    backend: str | None = None
    _last: LastDraws | None = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device=None,
        dtype=None,
        *,
        attention: Kind = GLOBAL,
        backend: str | None = None,
    ):
        check_kind(attention)
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        if predicts_center(attention):
            self.center = PredictedCenter(embed_dim, num_heads, device, dtype)
        if (reason := refusal(attention, self)) is not None:
            raise ValueError(reason)
        self.attention = attention
        self.backend = backend
        keep_off_fast_path(self)

    @property
    def hard(self) -> HardAttention | None:
        return None if self._last is None else self._last.draws

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`, errors included.

        Args:
            query, key, value: `(L, N, E)`, with `batch_first` `(N, L, E)`, or unbatched `(L, E)`.
            key_padding_mask: `(N, S)`, or `(S)` unbatched; bool is True where a key is IGNORED, float is
                added to the scores.
            need_weights: asks for the weights; False is faster.
            attn_mask: `(L, S)` or `(N * num_heads, L, S)`, bool or float as above.
            average_attn_weights: weights `(N, L, S)`, averaged over heads, or else `(N, num_heads, L, S)`.
            is_causal: promises that `attn_mask` is the causal mask, which may then not be read.

        Returns:
            Output shaped like `query`, and the weights, after dropout, or None. With `Hard` the weights
            are the share of draws that fell on each key.
        """
        if self._may_be_nested(query, key, value, key_padding_mask, attn_mask, need_weights):
            return self._forward_nested(query), None
        batched = F._mha_shape_check(query, key, value, key_padding_mask, attn_mask, self.num_heads)
        self._check(query, key, value, attn_mask, is_causal)
        q, k, v = (self._split_heads(x) for x in self._project(query, key, value))
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)

        # the hint replaces the mask exactly where torch lets it
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._merge_masks(key_padding_mask, None if is_causal else attn_mask, q, k)
        k, v = self._append(k, self.bias_k), self._append(v, self.bias_v)

        wanted = None if not need_weights else "mean" if average_attn_weights else "heads"
        if isinstance(self.attention, Hard):
            output, weights = self._attend_hard(q, k, v, mask, is_causal, wanted)
        else:
            learned = predicts_center(self.attention)
            center = self.center(self._batch_first(query), k.shape[2], key_padding_mask) if learned else None
            output, weights = self._attend(q, k, v, mask, is_causal, wanted, center)

        output = output.transpose(1, 2).flatten(-2)  # (N, L, E)
        if not batched:
            output, weights = output.squeeze(0), None if weights is None else weights.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return self.out_proj(output), weights

    def extra_repr(self) -> str:
        return f"attention={self.attention}"

    def _check(self, query, key, value, attn_mask, is_causal) -> None:
        """What torch checks, with its exceptions."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise AssertionError(
                "MultiheadAttention does not support NestedTensor; "
                "build nn.TransformerEncoder with enable_nested_tensor=False"
            )
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
                "`generate_square_subsequent_mask` to create this mask."
            )
        if query.shape[-1] != self.embed_dim:
            raise AssertionError(f"was expecting embedding dimension of {self.embed_dim}, but got {query.shape[-1]}")
        if self.in_proj_weight is not None and key.shape != value.shape:
            raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")
        separate = () if self.in_proj_weight is not None else (("key", key, self.kdim), ("value", value, self.vdim))
        for name, tensor, width in separate:
            if tensor.shape[-1] != width:
                raise AssertionError(f"was expecting {name} dimension of {width}, but got {tensor.shape[-1]}")
        batch = 0 if self.batch_first else 1
        if query.dim() == 3 and key.shape[batch] != query.shape[batch]:
            raise WrongValue(f"key must have the batch size of query, {query.shape[batch]}, got {key.shape[batch]}")
        if key.shape[:-1] != value.shape[:-1]:
            raise AssertionError(
                f"key's sequence and batch dims {key.shape[:-1]} do not match value's {value.shape[:-1]}"
            )

    def _may_be_nested(self, query, key, value, key_padding_mask, attn_mask, need_weights) -> bool:
        """Whether this is nested self-attention as a torch.nn.TransformerEncoder in evaluation asks for it."""
        plain = query.is_nested and query is key is value and key_padding_mask is None and attn_mask is None
        wants_grad = torch.is_grad_enabled() and (query.requires_grad or self.out_proj.weight.requires_grad)
        return plain and self.batch_first and not (need_weights or self.training or wants_grad)

    def _forward_nested(self, nested: Tensor) -> Tensor:
        lengths = [sentence.shape[0] for sentence in nested.unbind()]
        padded = nested.to_padded_tensor(0.0)
        position = torch.arange(padded.shape[1], device=padded.device)
        padding = position >= torch.tensor(lengths, device=padded.device)[:, None]
        output, _ = self.forward(padded, padded, padded, padding, need_weights=False)
        return torch.nested.as_nested_tensor([row[:length] for row, length in zip(output, lengths)])

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value `(..., E)` in the inputs' layout; one product for those that are one tensor."""
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if weight is not None and query is key and key is value:
            return F.linear(query, weight, bias).chunk(3, -1)
        if weight is not None and key is value:
            q_bias, kv_bias = (None, None) if bias is None else bias.split([width, 2 * width])
            q_weight, kv_weight = weight.split([width, 2 * width])
            return F.linear(query, q_weight, q_bias), *F.linear(key, kv_weight, kv_bias).chunk(2, -1)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if weight is None else weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(F.linear(*each) for each in zip((query, key, value), weights, biases))

    def _batch_first(self, x: Tensor) -> Tensor:
        """`(L, N, E)`, `(N, L, E)` or `(L, E)`, seen as `(N, L, E)`."""
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _split_heads(self, x: Tensor) -> Tensor:
        """As above, seen as `(N, H, L, head_dim)`."""
        return self._batch_first(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _append(self, keys: Tensor, bias: Tensor | None) -> Tensor:
        """Keys, or values, with those that `add_bias_kv` and `add_zero_attn` put at the end."""
        if bias is not None:
            extra = self._split_heads(bias).to(keys.dtype).expand(keys.shape[0], -1, -1, -1)
            keys = torch.cat([keys, extra], dim=2)
        return F.pad(keys, (0, 0, 0, 1)) if self.add_zero_attn else keys

    def _merge_masks(self, key_padding_mask, attn_mask, query: Tensor, key: Tensor) -> Tensor | None:
        """Torch's two masks (True: ignore) as one of ours (True: may look), which broadcasts to (N, H, Lq, Lk)."""
        (batch, heads, len_q, _), len_k = query.shape, key.shape[2]
        masks = {}
        if attn_mask is not None:
            full = (len_q, len_k) if attn_mask.dim() == 2 else (batch * heads, len_q, len_k)
            if attn_mask.shape != full:
                raise RuntimeError(
                    f"The shape of the {attn_mask.dim()}D attn_mask is {attn_mask.shape}, but should be {full}."
                )
            masks["attn_mask"] = attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, (batch, heads))
        if key_padding_mask is not None:
            if key_padding_mask.shape != (batch, len_k):
                raise AssertionError(f"Expected key_padding_mask of shape {batch, len_k}, got {key_padding_mask.shape}")
            masks["key_padding_mask"] = key_padding_mask[:, None, None]
        if not masks:
            return None

        appended = (self.bias_k is not None) + self.add_zero_attn
        if all(mask.dtype == torch.bool for mask in masks.values()):
            return ~reduce(torch.logical_or, (F.pad(mask, (0, appended)) for mask in masks.values()))
        # torch's own conversion to additive masks, with its errors and warnings
        other = {"other_type": F._none_or_dtype(attn_mask), "other_name": "attn_mask", "target_type": query.dtype}
        additive = (F._canonical_mask(mask, name, **other) for name, mask in masks.items())
        mask = reduce(torch.add, (F.pad(mask, (0, appended)) for mask in additive))
        wide = torch.promote_types(mask.dtype, query.dtype)
        if wide not in (torch.float32, query.dtype):
            raise WrongType(f"{' and '.join(masks)} must be bool, float32 or {query.dtype}, got {mask.dtype}")
        return mask if mask.dtype == torch.float32 else mask.to(wide)

    def _attend(self, query, key, value, mask, is_causal, wanted, center, **packing) -> tuple[Tensor, Tensor | None]:
        options = {
            "dropout_p": self.dropout if self.training else 0.0,
            "is_causal": is_causal,
            "return_aux": AuxRequest(weights=wanted),
            "backend": self.backend,
            **packing,
        }
        kind = self.attention
        if isinstance(kind, Local):
            prior = {"window": kind.window, "center": center, "sigma": kind.width, "renormalize": kind.renormalize}
            output, aux = local_attention(query, key, value, mask, **prior, **options)
        else:
            output, aux = global_attention(query, key, value, mask, **options)
        return output, aux.weights

    def _attend_hard(self, query, key, value, mask, is_causal, wanted, **packing) -> tuple[Tensor, Tensor | None]:
        options = {"is_causal": is_causal, "backend": self.backend, **packing}
        output, draws = attend_hard(self.attention, self.training, query, key, value, mask, **options)
        self._last = LastDraws(draws)
        return output, shares(draws.index, key.shape[2], wanted, query.dtype) if wanted else None

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            "attnkern.nn.MultiheadAttention cannot be scripted: use torch.compile, torch.export or torch.jit.trace, or "
            "attnkern.restore_attention(model) before torch.jit.script"
        )


def keep_off_fast_path(module: nn.Module) -> None:
    """In evaluation nn.TransformerEncoderLayer would compute softmax without calling a module that has no hooks."""
    module.register_forward_pre_hook(is_called)


def is_called(module: nn.Module, inputs: tuple) -> None:
    """A hook that does nothing: see keep_off_fast_path."""
