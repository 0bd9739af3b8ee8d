"""The Attention-over-Attention reader: answers a cloze question with a word of the document."""

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from attnkern.api import attention_over_attention

PADDING = 0  # the id of no word


class AoAReader(nn.Module):
    """Cui et al. 2017 (arXiv 1607.04423): embedding, a bidirectional GRU for each text, Attention-over-Attention.

    The probability of a word is the sum of the attention over its positions in the document: train with
    `-reader(document, question).gather(1, answer[:, None]).log().mean()`.

    Args:
        vocabulary: number of word ids; id 0 is padding, at the end of a text.
        embed_dim: features of a word.
        hidden: features of the GRU in each direction.
        backend: None chooses; a name is obeyed or refused, as in `attnkern.attention_over_attention`.
    """

    def __init__(self, vocabulary: int, embed_dim: int = 384, hidden: int = 256, *, backend: str | None = None):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embed_dim, padding_idx=PADDING)
        self.document_gru = nn.GRU(embed_dim, hidden, batch_first=True, bidirectional=True)
        self.question_gru = nn.GRU(embed_dim, hidden, batch_first=True, bidirectional=True)
        self.backend = backend

    def forward(self, document: Tensor, question: Tensor) -> Tensor:
        """Word ids `(B, Ld)` and `(B, Lq)` to the probability of each word as the answer, `(B, vocabulary)`."""
        attention = self.attend(document, question)
        probability = attention.new_zeros(len(document), self.embedding.num_embeddings)
        return probability.scatter_add(1, document, attention)

    def attend(self, document: Tensor, question: Tensor) -> Tensor:
        """Where in the document the answer stands: `(B, Ld)`.

        Raises:
            ValueError: either is no matrix of word ids, or has no word.
        """
        for name, words in (("document", document), ("question", question)):
            if words.dim() != 2 or not words.shape[1]:
                raise ValueError(f"{name} must be word ids (batch, words), at least one, got {tuple(words.shape)}")
        return attention_over_attention(
            self._read(document, self.document_gru),
            self._read(question, self.question_gru),
            document != PADDING,
            question != PADDING,
            backend=self.backend,
        )

    def _read(self, words: Tensor, gru: nn.GRU) -> Tensor:
        """Each word in its context, `(B, L, 2 * hidden)`; the backward direction starts at the last word."""
        lengths = (words != PADDING).sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=words.shape[1])[0]
