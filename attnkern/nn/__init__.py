"""Modules built on the operations: drop-in layers, and what kind of attention they compute."""

from attnkern.nn.annealing import WindowAnnealing
from attnkern.nn.aoa_reader import AoAReader
from attnkern.nn.kinds import Global, Hard, Local
from attnkern.nn.luong import LuongAttention, LuongDecoder, LuongSeq2Seq
from attnkern.nn.multihead import MultiheadAttention, hard_attentions

__all__ = [
    "AoAReader",
    "Global",
    "Hard",
    "Local",
    "LuongAttention",
    "LuongDecoder",
    "LuongSeq2Seq",
    "MultiheadAttention",
    "WindowAnnealing",
    "hard_attentions",
]
