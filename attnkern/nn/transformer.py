"""The Transformer on one page (Vaswani et al. 2017, arXiv 1706.03762): encoder, decoder, cache, schedule."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.nn.kinds import Global, Hard, Kind, predicts_center
from attnkern.nn.multihead import MultiheadAttention
from attnkern.nn.position import RelativePositionBias, SinusoidalPosition, positions

PADDING = 0  # the id of no word
GLOBAL = Global()


class DecoderState(NamedTuple):
    """What the decoder knows between two words; every tensor leads with the batch, for beams to pick from.

    position: int64 `(B,)`, words written.
    cache: keys and values of the words written, `(B, layers, 2, H, max_length, E)`; a step writes into it, so that the
        state before the step is gone.
    memory: keys and values of the source words, `(B, layers, 2, H, S, E)`.
    real: bool `(B, S)`, True where there is a source word.
    """

    position: Tensor
    cache: Tensor
    memory: Tensor
    real: Tensor


class Transformer(nn.Module):
    """Encoder and decoder; one matrix embeds source and target words, times `sqrt(dim)`, and scores the next word.

    Train with `F.cross_entropy(model(source, target[:, :-1]).transpose(1, 2), target[:, 1:], ignore_index=0,
    label_smoothing=0.1)` and `warm_up(optimizer)`; write with `attnkern.nn.greedy` or `beam_search`.

    Args:
        words: number of word ids, source and target together; id 0 is padding, at the end of a sentence.
        dim: features of a word.
        num_heads: of every attention.
        num_layers: in the encoder, and as many in the decoder.
        hidden: units of the feed-forward networks.
        dropout: of embeddings, of attention weights and of what a layer adds.
        pre_norm: normalises what goes into a block, and the end of a stack, instead of what comes out of a block.
        encoder_attention, decoder_attention, cross_attention: `Global()`, `Local(window)` or `Hard(...)`. Across,
            target word `i` stands at source word `i`.
        position: adds positions to embeddings, at an offset; sinusoids by default. "relative": nothing is added, but
            biases to the scores inside of a sentence, shared by all layers of a stack, as T5 does (`nn.position`).
        backend: None chooses; a name is obeyed or refused, as in `attnkern.global_attention`.
    """

    def __init__(
        self,
        words: int,
        dim: int = 512,
        num_heads: int = 8,
        num_layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
        *,
        pre_norm: bool = False,
        encoder_attention: Kind = GLOBAL,
        decoder_attention: Kind = GLOBAL,
        cross_attention: Kind = GLOBAL,
        position: nn.Module | Literal["relative"] | None = None,
        backend: str | None = None,
    ):
        super().__init__()
        self.embedding = nn.Embedding(words, dim, padding_idx=PADDING)
        self.encoder_bias = self.decoder_bias = None
        if position == "relative":
            self.encoder_bias = RelativePositionBias(num_heads)
            self.decoder_bias = RelativePositionBias(num_heads, bidirectional=False)
            position = Unchanged()
        elif isinstance(position, str):
            raise ValueError(f'position must be "relative", a module or None, got {position!r}')
        self.position = SinusoidalPosition(dim) if position is None else position
        self.dropout = nn.Dropout(dropout)
        sizes = (dim, num_heads, hidden, dropout, pre_norm, backend)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes, encoder_attention) for _ in range(num_layers))
        self.decoder = nn.ModuleList(
            DecoderLayer(*sizes, decoder_attention, cross_attention) for _ in range(num_layers)
        )
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(dim) if pre_norm else nn.Identity() for _ in range(2))
        nn.init.normal_(self.embedding.weight[1:], std=dim**-0.5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Word ids `(B, S)`, and those `(B, T)` that come before each word to write: logits `(B, T, words)`."""
        states, real = self.read(source)
        written = self.embed(target)
        bias = _between(self.decoder_bias, target.shape[1], target.shape[1])
        for layer in self.decoder:
            written = layer(written, layer.cross_attention.keys(states), real, bias)
        return self.score(written)

    def read(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Source words in their contexts, `(B, S, dim)`, and bool `(B, S)`, True where there is one.

        Raises:
            ValueError: source is no matrix of word ids, or has no word.
        """
        if source.dim() != 2 or not source.shape[1]:
            raise ValueError(f"source must be word ids (batch, words), at least one, got {tuple(source.shape)}")
        states, real = self.embed(source), source != PADDING
        bias = _between(self.encoder_bias, source.shape[1], source.shape[1])
        for layer in self.encoder:
            states = layer(states, real, bias)
        return self.encoder_norm(states), real

    def embed(self, words: Tensor, offset: int | Tensor = 0) -> Tensor:
        return self.dropout(self.position(self.embedding(words) * self.embedding.embedding_dim**0.5, offset))

    def score(self, written: Tensor) -> Tensor:
        return F.linear(self.decoder_norm(written), self.embedding.weight)

    def encode(self, source: Tensor, max_length: int) -> DecoderState:
        """The state before the first word of sentences that will be `max_length` long at most."""
        states, real = self.read(source)
        memory = torch.stack([layer.cross_attention.keys(states) for layer in self.decoder], 1)
        cache = memory.new_zeros(*memory.shape[:4], max_length, memory.shape[-1])
        return DecoderState(torch.zeros_like(source[:, 0]), cache, memory, real)

    @torch.no_grad()  # the cache is written in place
    def step(self, word: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Ids `(B,)` of the words written last: logits `(B, words)` of the next ones, and the state for them."""
        written = self.embed(word.unsqueeze(1), state.position)
        bias = _between(self.decoder_bias, 1, state.cache.shape[4], state.position)
        for n, layer in enumerate(self.decoder):
            written = layer(written, state.memory[:, n], state.real, bias, state.position, state.cache[:, n])
        state = DecoderState(state.position + 1, *state[1:])  # torch 2.11 cannot compile _replace
        return self.score(written)[:, 0], state

    def align(self, source: Tensor, target: Tensor) -> Tensor:
        """Where each word looked, by layer and head: weights `(B, layers, H, T, S)`."""
        found = []

        def look(attention, inputs):
            found.append(attention.forward(*inputs, wanted="heads")[1])

        hooks = [layer.cross_attention.register_forward_pre_hook(look) for layer in self.decoder]
        try:
            self(source, target)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(found, 1)


class Layer(nn.Module):
    """Blocks, each with a residual connection and a norm; the last is the feed-forward network."""

    def __init__(self, dim: int, hidden: int, dropout: float, pre_norm: bool, blocks: int):
        super().__init__()
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(blocks))
        self.dropout, self.pre_norm = nn.Dropout(dropout), pre_norm

    def add(self, number: int, states: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
        norm = self.norms[number]
        if self.pre_norm:
            return states + self.dropout(block(norm(states)))
        return norm(states + self.dropout(block(states)))


class EncoderLayer(Layer):
    def __init__(self, dim, num_heads, hidden, dropout, pre_norm, backend, attention: Kind):
        super().__init__(dim, hidden, dropout, pre_norm, blocks=2)
        self.attention = CachedAttention(dim, num_heads, dropout, attention=attention, backend=backend)

    def forward(self, states: Tensor, real: Tensor, bias: Tensor | None) -> Tensor:
        states = self.add(0, states, lambda x: self.attention(x, self.attention.keys(x), real, bias)[0])
        return self.add(1, states, self.feed_forward)


class DecoderLayer(Layer):
    def __init__(self, dim, num_heads, hidden, dropout, pre_norm, backend, attention: Kind, cross_attention: Kind):
        super().__init__(dim, hidden, dropout, pre_norm, blocks=3)
        self.attention = CachedAttention(dim, num_heads, dropout, attention=attention, backend=backend)
        self.cross_attention = CachedAttention(dim, num_heads, dropout, attention=cross_attention, backend=backend)

    def forward(self, states, memory, real, bias, position: int | Tensor = 0, cache: Tensor | None = None) -> Tensor:
        """All words of a sentence; or with a cache, one word, whose keys are written to it at `position`."""

        def look_back(x):
            keys = self.attention.keys(x)
            if cache is not None:
                cache[torch.arange(len(x), device=x.device), :, :, position] = keys.squeeze(3)
                keys = cache
            return self.attention(x, keys, None, bias, position, True)[0]

        states = self.add(0, states, look_back)
        states = self.add(1, states, lambda x: self.cross_attention(x, memory, real, None, position)[0])
        return self.add(2, states, self.feed_forward)


class CachedAttention(MultiheadAttention):
    """`MultiheadAttention` in two parts: what may be looked at is made once, and looked at as often as need be."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, batch_first=True, **kwargs)

    def keys(self, states: Tensor) -> Tensor:
        """Of words `(B, L, dim)`: keys and values `(B, 2, H, L, E)`."""
        width = self.embed_dim
        both = F.linear(states, self.in_proj_weight[width:], self.in_proj_bias[width:])
        return both.unflatten(-1, (2, self.num_heads, self.head_dim)).permute(0, 2, 3, 1, 4)

    def forward(
        self,
        states: Tensor,
        keys: Tensor,
        real: Tensor | None = None,
        bias: Tensor | None = None,
        position: int | Tensor = 0,
        is_causal: bool = False,
        wanted: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What words `(B, L, dim)` at `position`, an int or `(B,)`, and after it find among `keys`.

        Args:
            keys: as `keys` makes them, position by position from 0.
            real: bool `(B, keys)`, True where there is one.
            bias: added to the scores, `(B|1, H, L, keys)`.
            wanted: "heads" asks for the weights `(B, H, L, keys)`, which are None otherwise.
        """
        width = self.embed_dim
        query = self._split_heads(F.linear(states, self.in_proj_weight[:width], self.in_proj_bias[:width]))
        mask = None if real is None else real[:, None, None]
        if bias is not None:
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        core = (query, *keys.unbind(1), mask, is_causal, wanted)
        if isinstance(self.attention, Hard):
            output, weights = self._attend_hard(*core, query_offset=position)
        else:
            center = None
            if predicts_center(self.attention):  # of words written, each knows those up to itself
                count = positions(states.shape[1], position, states.device) + 1
                count = count.unsqueeze(-2) if is_causal else keys.shape[3]
                center = self.center(states, count, None if real is None else ~real)
            output, weights = self._attend(*core, center, query_offset=position)
        return self.out_proj(output.transpose(1, 2).flatten(-2)), weights


class Unchanged(nn.Module):
    """Leaves embeddings without positions."""

    def forward(self, embeddings: Tensor, offset: int | Tensor = 0) -> Tensor:
        return embeddings


def _between(bias: nn.Module | None, len_q: int, len_k: int, offset: int | Tensor = 0) -> Tensor | None:
    return None if bias is None else bias(len_q, len_k, offset)


def warm_up(optimizer: torch.optim.Optimizer, steps: int = 4000) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate climbs to the optimizer's in that many steps, then falls with the root of the step.

    Vaswani et al. have `lr=(dim * steps) ** -0.5`.
    """
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / steps, (steps / (n + 1)) ** 0.5))
