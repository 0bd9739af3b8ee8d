"""Modules built on the operations: drop-in layers, models, and what kind of attention they compute."""

from attnkern.nn.annealing import WindowAnnealing
from attnkern.nn.aoa_reader import AoAReader
from attnkern.nn.bert import Bert
from attnkern.nn.bert_config import BertConfig
from attnkern.nn.bert_heads import (
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from attnkern.nn.checkpoints import CheckpointError
from attnkern.nn.decoding import beam_search, greedy
from attnkern.nn.draws import hard_attentions
from attnkern.nn.kinds import Global, Hard, Local
from attnkern.nn.luong import LuongAttention, LuongDecoder, LuongSeq2Seq
from attnkern.nn.multihead import MultiheadAttention
from attnkern.nn.position import LearnedPosition, RelativePositionBias, SinusoidalPosition
from attnkern.nn.transformer import Transformer, warm_up
from attnkern.nn.wordpiece import WordPiece

__all__ = [
    "AoAReader",
    "Bert",
    "BertConfig",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "CheckpointError",
    "Global",
    "Hard",
    "LearnedPosition",
    "Local",
    "LuongAttention",
    "LuongDecoder",
    "LuongSeq2Seq",
    "MultiheadAttention",
    "RelativePositionBias",
    "SinusoidalPosition",
    "Transformer",
    "WindowAnnealing",
    "WordPiece",
    "beam_search",
    "greedy",
    "hard_attentions",
    "warm_up",
]
