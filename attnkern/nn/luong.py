"""The sequence-to-sequence model of Luong, Pham and Manning 2015: four scores, input feeding, local attention."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from attnkern.api import global_attention, local_attention
from attnkern.nn.center import PredictedCenter
from attnkern.nn.kinds import Global, Hard, Kind, Local, attend_hard, check_kind, predicts_center
from attnkern.results import HardAttention

PADDING = 0  # the id of no word
GLOBAL = Global()

Score = Literal["dot", "general", "concat", "location"]


class LuongState(NamedTuple):
    """What the decoder knows between two words; every tensor leads with the batch, for beams to pick from.

    cells: hidden and cell state of each layer, `(B, layers, 2, hidden)`.
    fed: the last attentional state, `(B, hidden)`.
    position: number of words written, an int: all sentences of a batch advance together.
    memory: the source words in their contexts, `(B, S, hidden)`.
    keys: what they are scored by, shaped like memory.
    real: bool `(B, S)`, True where there is a word; None where all are words.
    """

    cells: Tensor
    fed: Tensor
    position: int
    memory: Tensor
    keys: Tensor
    real: Tensor | None


class LuongAttention(nn.Module):
    """`h~ = tanh(W_c [c; h])`, with the context c from one head of attention over the source.

    dot `h.e` and general `h W e` are products of the core. concat `v.tanh(W[h; e])` and location `W h` are none: they
    enter as a bias, with gradient, on the product of zeros. concat then stores `(B, T, S, hidden)`.

    Args:
        hidden: features of a state.
        score: "dot", "general", "concat" or "location".
        kind: `Global()`, `Local(window)` (local-m; with `center="predicted"` local-p) or `Hard(...)`.
        max_source: the most source words, as many as location has scores; the others ignore it.
        backend: None chooses; a name is obeyed or refused.

    Raises:
        ValueError, TypeError: an argument is none of these, or location has no max_source.
    """

    def __init__(self, hidden: int, score: Score, kind: Kind, max_source: int | None, backend: str | None):
        super().__init__()
        check_kind(kind)
        if score not in get_args(Score):
            raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
        if score == "location":
            if max_source is None:
                raise ValueError("max_source must be given for the location score, got None")
            self.query = nn.Linear(hidden, max_source, bias=False)
        elif score != "dot":
            self.query = nn.Linear(hidden, hidden, bias=False)
        if score == "concat":
            self.key = nn.Linear(hidden, hidden, bias=False)  # the two are W's halves
            self.v = nn.Linear(hidden, 1, bias=False)
        if predicts_center(kind):
            self.center = PredictedCenter(hidden, 1)
        self.combine = nn.Linear(2 * hidden, hidden, bias=False)
        self.score, self.kind, self.backend = score, kind, backend

    def keys(self, memory: Tensor) -> Tensor:
        """What the source words are scored by: made once for a sentence.

        Raises:
            ValueError: location has not as many scores.
        """
        if self.score == "location" and memory.shape[1] > self.query.out_features:
            raise ValueError(f"source must have at most {self.query.out_features} words, got {memory.shape[1]}")
        return self.key(memory) if self.score == "concat" else memory

    def forward(self, states: Tensor, source: LuongState, need_weights: bool = False):
        """States `(B, T, hidden)`, of words at `position` and after it, to `h~`, shaped like them.

        Returns:
            h~; the weights `(B, T, S)`, asked for by `need_weights`, else None; with `Hard` the `HardAttention`, else
            None.
        """
        value, size = source.memory, source.memory.shape[1]
        if need_weights:  # unit vectors, carried along as further features, come back as the weights
            units = torch.eye(size, dtype=value.dtype, device=value.device)
            value = torch.cat([value, units.expand(len(value), -1, -1)], -1)
        query, key, bias = self._scores(states, source)
        mask, padding = bias, None
        if source.real is not None:
            real, padding = source.real[:, None, None], ~source.real
            mask = real if bias is None else bias.masked_fill(~real, -torch.inf)
        center = self.center(states, size, padding) if predicts_center(self.kind) else None
        context, hard = self._attend(query[:, None], key[:, None], value[:, None], mask, source.position, center)
        context, weights = context[:, 0].split([states.shape[-1], value.shape[-1] - states.shape[-1]], -1)
        states = self.combine(torch.cat([context, states], -1)).tanh()
        return states, weights if need_weights else None, hard

    def _scores(self, states: Tensor, source: LuongState) -> tuple[Tensor, Tensor, Tensor | None]:
        """Query `(B, T, E)` and key `(B, S, E)` whose products, plus a bias `(B, 1, T, S)` or None, are the scores."""
        if self.score == "dot":
            return states, source.keys, None
        query = self.query(states)
        if self.score == "general":
            return query, source.keys, None
        if self.score == "concat":
            bias = self.v((query[:, :, None] + source.keys[:, None]).tanh())[..., 0]
        else:
            bias = query[..., : source.keys.shape[1]]
        return torch.zeros_like(states[..., :1]), torch.zeros_like(source.keys[..., :1]), bias[:, None]

    def _attend(self, query, key, value, mask, position, center) -> tuple[Tensor, HardAttention | None]:
        kind, options = self.kind, {"scale": 1.0, "backend": self.backend}
        if isinstance(kind, Global):
            return global_attention(query, key, value, mask, **options), None
        options["query_offset"] = position
        if isinstance(kind, Local):
            prior = {"window": kind.window, "center": center, "sigma": kind.width, "renormalize": kind.renormalize}
            return local_attention(query, key, value, mask, **prior, **options), None
        return attend_hard(kind, self.training, query, key, value, mask, **options)


class LuongDecoder(nn.Module):
    """LSTM decoder that attends to a memory: words in their contexts, or the places of a picture.

    With input feeding a word's query needs the attention of the word before: one call of the core for each. Without,
    one for all words.

    Args:
        words: number of word ids.
        hidden: features of a word, of a state and of the memory.
        num_layers: of LSTM cells.
        score, attention, max_source, backend: what `LuongAttention` computes.
        input_feeding: puts `h~` of the word before beside the next word.

    Attributes:
        hard: with `Hard`, the `HardAttention` of the last forward, as `attnkern.nn.MultiheadAttention.hard`.
    """

    hard: HardAttention | None = None

    def __init__(
        self,
        words: int,
        hidden: int,
        num_layers: int = 1,
        *,
        score: Score = "general",
        attention: Kind = GLOBAL,
        input_feeding: bool = True,
        max_source: int | None = None,
        backend: str | None = None,
    ):
        super().__init__()
        self.embedding = nn.Embedding(words, hidden)
        first = 2 * hidden if input_feeding else hidden
        self.cells = nn.ModuleList(nn.LSTMCell(hidden if n else first, hidden) for n in range(num_layers))
        self.attend = LuongAttention(hidden, score, attention, max_source, backend)
        self.output = nn.Linear(hidden, words)
        self.attention, self.input_feeding = attention, input_feeding

    def begin(self, memory: Tensor, cells: Tensor, real: Tensor | None = None) -> LuongState:
        """The state before the first word; shapes as in `LuongState`."""
        return LuongState(cells, torch.zeros_like(memory[:, 0]), 0, memory, self.attend.keys(memory), real)

    def forward(self, words: Tensor, state: LuongState, need_weights: bool = False):
        """Word ids `(B, T)` written after `state`.

        Returns:
            Logits `(B, T, words)` of the word after each; the new state; the weights `(B, T, S)`, asked for by
            `need_weights`, else None.
        """
        written, weights, hards = [], [], []
        for part in words.split(1, 1) if self.input_feeding else [words]:
            states, cells = [], state.cells
            for word in self.embedding(part).unbind(1):
                cells = advance(self.cells, torch.cat([word, state.fed], -1) if self.input_feeding else word, cells)
                states.append(cells[:, -1, 0])
            attentional, looked, hard = self.attend(torch.stack(states, 1), state, need_weights)
            # torch 2.11 cannot compile _replace
            state = LuongState(cells, attentional[:, -1], state.position + part.shape[1], *state[3:])
            written.append(attentional)
            weights.append(looked)
            hards.append(hard)
        if isinstance(self.attention, Hard):
            output, *rest = zip(*hards)
            self.hard = HardAttention(torch.cat(output, -2), *(torch.cat(part, -1) for part in rest))
        return self.output(torch.cat(written, 1)), state, torch.cat(weights, 1) if need_weights else None

    def step(self, word: Tensor, state: LuongState) -> tuple[Tensor, LuongState]:
        """Of the words `(B,)` written last, logits `(B, words)`, as `attnkern.nn.greedy` and `beam_search` ask."""
        logits, state, _ = self(word.unsqueeze(1), state)
        return logits[:, 0], state

    def __getstate__(self) -> dict:
        # the last draws belong to a graph: neither copied nor pickled
        return {name: value for name, value in self.__dict__.items() if name != "hard"}


class LuongSeq2Seq(nn.Module):
    """LSTM encoder, LSTM decoder, attention between them (Luong et al. 2015, arXiv 1508.04025).

    Train with `F.cross_entropy(model(source, target[:, :-1]).transpose(1, 2), target[:, 1:])`.

    Args:
        source_words, target_words: numbers of word ids; id 0 of the source is padding, at the end of a sentence.
        hidden: features of a word and of a state.
        num_layers: LSTM layers in encoder and decoder.
        decoder: what else `LuongDecoder` takes.
    """

    def __init__(self, source_words: int, target_words: int, hidden: int = 1000, num_layers: int = 1, **decoder):
        super().__init__()
        self.embedding = nn.Embedding(source_words, hidden, padding_idx=PADDING)
        self.encoder = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(num_layers))
        self.decoder = LuongDecoder(target_words, hidden, num_layers, **decoder)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Word ids `(B, S)`, and those `(B, T)` that come before each word to write: logits `(B, T, target_words)`."""
        return self.decoder(target, self.encode(source))[0]

    def align(self, source: Tensor, target: Tensor) -> Tensor:
        """Where each word looked: weights `(B, T, S)`."""
        return self.decoder(target, self.encode(source), need_weights=True)[2]

    def encode(self, source: Tensor) -> LuongState:
        """The state before the first word. Padding leaves the encoder as it was.

        Raises:
            ValueError: source is no matrix of word ids, or has no word.
        """
        if source.dim() != 2 or not source.shape[1]:
            raise ValueError(f"source must be word ids (batch, words), at least one, got {tuple(source.shape)}")
        real, words = source != PADDING, self.embedding(source)
        cells = words.new_zeros(len(source), len(self.encoder), 2, words.shape[-1])
        memory = []
        for word, here in zip(words.unbind(1), real.unbind(1)):
            cells = torch.where(here[:, None, None, None], advance(self.encoder, word, cells), cells)
            memory.append(cells[:, -1, 0])
        return self.decoder.begin(torch.stack(memory, 1), cells, real)


def advance(layers: nn.ModuleList, input: Tensor, cells: Tensor) -> Tensor:
    """One word `(B, features)` through a stack of LSTM cells: their new states `(B, layers, 2, hidden)`."""
    states = []
    for layer, (hidden, cell) in zip(layers, (pair.unbind(1) for pair in cells.unbind(1))):
        hidden, cell = layer(input, (hidden, cell))
        states.append(torch.stack([hidden, cell], 1))
        input = hidden
    return torch.stack(states, 1)
