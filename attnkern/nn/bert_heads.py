"""What BERT is trained to do: a head of one or two layers on the encoder for each task. Arguments are `Bert`'s."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkern.nn.bert import Bert, initialise
from attnkern.nn.bert_config import ACTIVATIONS, BertConfig
from attnkern.nn.checkpoints import Checkpointed


class PreTrainingOutput(NamedTuple):
    """Hugging Face's names: a score for each word of the vocabulary, and for "next" (0) and "random" (1), `(B, 2)`."""

    prediction_logits: Tensor
    seq_relationship_logits: Tensor


class SpanOutput(NamedTuple):
    """Scores `(B, L)` of the answer's first and last token, -inf at padding."""

    start_logits: Tensor
    end_logits: Tensor


class BertForPreTraining(Checkpointed):
    """Masked words (MLM) and whether the second sentence follows the first (NSP)."""

    def __init__(self, config: BertConfig, **options):
        super().__init__()
        self.bert = Bert(config, **options)
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))  # the decoder's weight is the word embeddings
        self.next_sentence = nn.Linear(config.hidden_size, 2)
        self.activation = ACTIVATIONS[config.hidden_act]
        initialise_head(self)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
    ) -> PreTrainingOutput:
        """As `Bert`.

        Args:
            masked_positions: `(B, P)`, the places to predict, in any order; None for all. The decoder costs as much
                as several layers: in training ask for the masked places only.

        Returns:
            prediction_logits are `(B, P, vocab_size)`, or `(B, L, vocab_size)`.
        """
        hidden, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        if masked_positions is not None:
            hidden = hidden.gather(1, masked_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        hidden = self.transform_norm(self.activation(self.transform(hidden)))
        words = F.linear(hidden, self.bert.word_embeddings.weight, self.word_bias)
        return PreTrainingOutput(words, self.next_sentence(pooled))


class BertForSequenceClassification(Checkpointed):
    """A label, `config.id2label`, for a sentence or a pair: logits `(B, num_labels)`."""

    def __init__(self, config: BertConfig, **options):
        super().__init__()
        self.bert = Bert(config, **options)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        initialise_head(self)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None) -> Tensor:
        pooled = self.bert(input_ids, attention_mask, token_type_ids).pooler_output
        return self.classifier(self.dropout(pooled))


class BertForTokenClassification(Checkpointed):
    """A label, `config.id2label`, for each token: logits `(B, L, num_labels)`; at padding they say nothing."""

    def __init__(self, config: BertConfig, **options):
        super().__init__()
        self.bert = Bert(config, pooler=False, **options)
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        initialise_head(self)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None) -> Tensor:
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        return self.classifier(self.dropout(hidden))


class BertForQuestionAnswering(Checkpointed):
    """Where in the text the answer to a question begins and ends (a span, as in SQuAD)."""

    def __init__(self, config: BertConfig, **options):
        super().__init__()
        self.bert = Bert(config, pooler=False, **options)
        self.span = nn.Linear(config.hidden_size, 2)
        initialise_head(self)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None) -> SpanOutput:
        logits = self.span(self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state)
        if attention_mask is not None:
            logits = logits.masked_fill((attention_mask == 0).unsqueeze(-1), float("-inf"))
        return SpanOutput(*logits.unbind(-1))


def head_dropout(config: BertConfig) -> nn.Dropout:
    rate = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if rate is None else rate)


def initialise_head(model: nn.Module) -> None:
    for name, child in model.named_children():
        if name != "bert":
            initialise(child, model.bert.config)
