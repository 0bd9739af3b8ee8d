"""BERT on one page (Devlin et al. 2018, arXiv 1810.04805): embeddings, encoder, pooler. Padding is never computed."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnkern.nn.bert_config import ACTIVATIONS, BertConfig
from attnkern.nn.checkpoints import Checkpointed
from attnkern.nn.kinds import Hard, Kind, predicts_center
from attnkern.nn.multihead import GLOBAL, MultiheadAttention
from attnkern.packing import places


class BertOutput(NamedTuple):
    """Hugging Face's names: of every token `(B, L, hidden)`, 0 at padding, and of the sentence `(B, hidden)`."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None


class Bert(Checkpointed):
    """The encoder: token ids to a vector for each token and one for the sentence.

    Args:
        attention: what its layers compute: `Global()`, `Local(window)` or `Hard(...)`.
        pooler: False leaves the sentence's vector out.
        backend: None chooses; a name is obeyed or refused, as in `attnkern.global_attention`.

    A layer's parameters are named as `torch.nn.TransformerEncoderLayer`'s, and mean the same.
    """

    def __init__(
        self, config: BertConfig, *, attention: Kind = GLOBAL, pooler: bool = True, backend: str | None = None
    ):
        super().__init__()
        self.config, width = config, config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(BertLayer(config, attention, backend) for _ in range(config.num_hidden_layers))
        self.pooler = nn.Linear(width, width) if pooler else None
        initialise(self, config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> BertOutput:
        """Arguments and results as Hugging Face's `BertModel`.

        Args:
            input_ids: `(B, L)` ints.
            attention_mask: `(B, L)`, nonzero where there is a token, anywhere in the row; None for everywhere. The
                others are taken out here and put back as 0 at the end. Under `torch.compile`, where no size may depend
                on the mask, they are computed too, as sentences of their own: compile around `packed` to save that.
            token_type_ids: `(B, L)`, 0 by default.

        Raises:
            ValueError: a shape is wrong, or L is more than `max_position_embeddings`.
        """
        batch, length = check_tokens(input_ids, 2, attention_mask=attention_mask, token_type_ids=token_type_ids)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        index, cu_seq = pack(mask)
        types = None if token_type_ids is None else token_type_ids.flatten()[index]
        packed = self.packed(input_ids.flatten()[index], cu_seq, length, types, index % length)
        hidden = packed.new_zeros(batch * length, packed.shape[1]).index_copy(0, index, packed)
        hidden = hidden.view(batch, length, -1).masked_fill(~mask.unsqueeze(-1), 0)
        if self.pooler is None:
            return BertOutput(hidden, None)
        rows = torch.arange(batch, device=mask.device)
        return BertOutput(hidden, self.pool(hidden[rows, mask.int().argmax(1)]))

    def packed(
        self,
        input_ids: Tensor,
        cu_seq: Tensor,
        max_length: int,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Sentences one after another, without padding: `(T,)` token ids to `(T, hidden)`; compiles as it is.

        Args:
            cu_seq: int32 `(B + 1,)`, where sentence b begins, and last T.
            max_length: no sentence is longer.
            position_ids: `(T,)`, by default 0, 1, ... in each sentence.

        `pool(hidden[cu_seq[:-1]])` is the sentences' vector.
        """
        check_tokens(input_ids, 1, token_type_ids=token_type_ids, position_ids=position_ids)
        if max_length > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids must have at most {self.config.max_position_embeddings} tokens a sentence "
                f"(max_position_embeddings), got {max_length}"
            )
        if position_ids is None:
            _, position_ids = places(cu_seq, len(input_ids))
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        hidden = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        hidden = self.dropout(self.norm(hidden + self.token_type_embeddings(types)))
        for layer in self.layers:
            hidden = layer(hidden, cu_seq, max_length)
        return hidden

    def pool(self, first: Tensor) -> Tensor:
        """The vectors of each sentence's first token to those of the sentences, `(B, hidden)`."""
        return torch.tanh(self.pooler(first))


class BertLayer(nn.Module):
    """Attention, then a feed-forward network, each added to its input and normalised: `(T, hidden)` to the same."""

    def __init__(self, config: BertConfig, attention: Kind, backend: str | None):
        super().__init__()
        width = config.hidden_size
        self.self_attn = PackedSelfAttention(
            width, config.num_attention_heads, config.attention_probs_dropout_prob, attention=attention, backend=backend
        )
        self.norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.linear1 = nn.Linear(width, config.intermediate_size)
        self.linear2 = nn.Linear(config.intermediate_size, width)
        self.norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor, cu_seq: Tensor, max_length: int) -> Tensor:
        hidden = self.norm1(hidden + self.dropout(self.self_attn(hidden, cu_seq, max_length)))
        inner = self.linear2(self.activation(self.linear1(hidden)))
        return self.norm2(hidden + self.dropout(inner))


class PackedSelfAttention(MultiheadAttention):
    """`MultiheadAttention` of packed sentences `(T, hidden)`, each with itself; query, key and value by one product."""

    can_mix = False  # draws and soft attention, example by example: see Hard.soft_mixture

    def forward(self, hidden: Tensor, cu_seq: Tensor, max_length: int) -> Tensor:
        qkv = self._project(hidden, hidden, hidden)
        qkv = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in qkv)  # (T, H, E)
        packing = {"cu_seq_q": cu_seq, "cu_seq_k": cu_seq, "max_q": max_length, "max_k": max_length}
        if isinstance(self.attention, Hard):
            output, _ = self._attend_hard(*qkv, None, False, None, **packing)
        else:
            center = self._center(hidden, cu_seq) if predicts_center(self.attention) else None
            output, _ = self._attend(*qkv, None, False, None, center, **packing)
        return self.out_proj(output.flatten(1))

    def _center(self, hidden: Tensor, cu_seq: Tensor) -> Tensor:
        """`(1, H, T)`, each in its own sentence."""
        sentence, _ = places(cu_seq, len(hidden))
        return self.center(hidden.unsqueeze(0), cu_seq.diff()[sentence])


def pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens are in a flattened `(B, L)`, sentence after sentence, and where each sentence begins.

    Returns:
        index `(T,)`, and cu_seq `(B + 1,)`, int32.
    """
    batch, length = mask.shape
    counts = mask.sum(1)
    if torch.compiler.is_compiling():  # all stay: each row's tokens, then its padding, as one more sentence
        begins = torch.arange(0, batch * length, length, device=mask.device)
        index = (begins[:, None] + (~mask).int().argsort(stable=True)).flatten()
        counts = torch.stack([counts, length - counts], 1).flatten()
    else:
        index = mask.flatten().nonzero().flatten()
    return index, nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def check_tokens(input_ids: Tensor, dim: int, **others: Tensor | None) -> torch.Size:
    """The shape of `input_ids`, which it must share with the others."""
    if input_ids.dim() != dim or input_ids.is_floating_point():
        wanted = "(batch, length)" if dim == 2 else "(tokens,)"
        raise ValueError(f"input_ids must be ints {wanted}, got {input_ids.dtype} {tuple(input_ids.shape)}")
    for name, other in others.items():
        if other is not None and other.shape != input_ids.shape:
            raise ValueError(f"{name} must be shaped as input_ids, {tuple(input_ids.shape)}, got {tuple(other.shape)}")
    return input_ids.shape


@torch.no_grad()
def initialise(model: nn.Module, config: BertConfig) -> None:
    """Weights from a normal distribution cut at two deviations, as Google's; biases 0."""
    deviation = config.initializer_range
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and ".center." not in name:
            nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
        elif name.endswith("bias"):
            parameter.zero_()
