"""Modules built on the operations: drop-in layers, and what kind of attention they compute."""

from attnkern.nn.annealing import WindowAnnealing
from attnkern.nn.kinds import Global, Hard, Local
from attnkern.nn.multihead import MultiheadAttention

__all__ = ["Global", "Hard", "Local", "MultiheadAttention", "WindowAnnealing"]
